"""Model providers, imported on first use: they load torch, and the rest of the package does not."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.models.t5_provider import T5ModelProvider

__all__ = ["GPTModelProvider", "T5ModelProvider"]

_MODULES = {"GPTModelProvider": "gpt_provider", "T5ModelProvider": "t5_provider"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
