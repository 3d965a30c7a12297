"""Which overlap a run should have on a cluster, from arithmetic that can be checked."""

from overlapkit.callable_package import make_callable

make_callable(__name__)
