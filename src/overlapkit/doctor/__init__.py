"""`overlapkit doctor`: why communication is not hidden, from everything that can be looked at."""
