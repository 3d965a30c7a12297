"""Measures communication overlap in profiles, and finds what made a step slower."""

from overlapkit.callable_package import make_callable

make_callable(__name__)
