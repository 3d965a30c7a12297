"""Communication overlap in Megatron training: what is in effect, what to set, what a profile shows.

The functions are documented in docs/library.md. They return the documents that the commands print
with ``--json``, as typed objects, and raise `InputError` for bad input. They load no torch.
"""

from typing import TYPE_CHECKING, Any

from overlapkit.errors import InputError

if TYPE_CHECKING:
    # At run time `explain`, `plan` and `trace` are subpackages: see callable_package.py.
    from overlapkit.library import compare, explain, explain_versions, plan, trace, translate

__version__ = "0.2.0.dev0"
__all__ = [
    "InputError",
    "__version__",
    "compare",
    "explain",
    "explain_versions",
    "plan",
    "trace",
    "translate",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import overlapkit` stays fast.
    from importlib import import_module

    if name in ("explain", "plan", "trace", "translate"):
        return import_module(f"overlapkit.{name}")
    if name in ("compare", "explain_versions"):
        return getattr(import_module("overlapkit.library"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
