"""Which overlap a run should have on a cluster, from arithmetic that can be checked."""
