"""Helpers shared by tests and benchmarks; importable with `tests/` on `sys.path`."""
