"""Makes a subpackage callable: `overlapkit.explain(...)` and `overlapkit.explain.report`.

`explain`, `plan` and `trace` are both functions of the library and subpackages. Importing a
subpackage binds its name in `overlapkit` to the module, whatever was bound before. A plain function
of the same name would therefore disappear with the first import of the subpackage. Instead the
module itself is callable: `overlapkit.explain` is the same object in every order of imports. So
`import overlapkit.explain.report as r` and dotted names in `monkeypatch.setattr` work as usual.
Type checkers see the functions, which `overlapkit/__init__.py` imports for them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspect import Signature


class CallablePackage(ModuleType):
    """A subpackage that calls the library's function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self)(*args, **kwargs)

    @property
    def __signature__(self) -> Signature:
        """The function's signature, for `inspect.signature` and editors."""
        from inspect import signature

        return signature(_function(self))

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        """The package's docstring and how to call it, for `help`."""
        from inspect import getdoc

        package = str(self.__dict__.get("__doc__") or "").strip()
        call = f"{self.__name__}{self.__signature__}"
        return f"{package}\n\n{call}\n\n{getdoc(_function(self))}"


def make_callable(name: str) -> None:
    """Let the package of this name call the library's function of the same last name."""
    sys.modules[name].__class__ = CallablePackage


def _function(package: ModuleType) -> Callable[..., Any]:
    # Imported here, and by name: the library imports the packages that it makes callable.
    from importlib import import_module

    function: Callable[..., Any] = getattr(
        import_module("overlapkit.library"), package.__name__.rpartition(".")[2]
    )
    return function
