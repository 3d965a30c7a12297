"""What communication overlap a configuration really gets, and why."""

from overlapkit.callable_package import make_callable

make_callable(__name__)
