"""Megatron-Core's TransformerConfig, checked in `finalize()` instead of at construction.

Users construct a provider and then set its fields one by one. In between, the fields may contradict
each other (sequence parallelism is on, tensor parallelism not yet).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from megatron.core.transformer.transformer_config import (
    TransformerConfig as MCoreTransformerConfig,
)


@dataclass
class TransformerConfig(MCoreTransformerConfig):  # type: ignore[misc]
    """A Megatron-Core TransformerConfig whose `__post_init__` runs in `finalize()`."""

    def __post_init__(self) -> None:
        """Does nothing: construction does not validate."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # A value set after finalize() is the user's, even where it equals the derived value. The
        # dict is a new one, because a shallow copy of this config shares the old one.
        derived = self.__dict__.get("_derived", {})
        if name in derived:
            self.__dict__["_derived"] = {k: v for k, v in derived.items() if k != name}

    def finalize(self) -> None:
        """Run Megatron-Core's checks, and let it fill in the fields that follow from others.

        A second call changes nothing. After a field was set, it starts again from the given values:
        what Megatron-Core had filled in (`expert_tensor_parallel_size` from the tensor-parallel
        size, `output_layer_init_method` from `num_layers`) is computed again. Running its
        `__post_init__` on its own results would keep the old ones, and would refuse some of them
        (`enable_cuda_graph` together with the `cuda_graph_impl` that it chose).

        Raises:
            ValueError: Megatron-Core refuses the fields; they keep the given values.
            AssertionError: the same.
        """
        current, former = _values(self), self.__dict__.pop("_finalized", {})
        if current == former:
            self.__dict__["_finalized"] = former
            return
        derived = self.__dict__.pop("_derived", {})
        given = current | {k: v for k, v in derived.items() if current[k] == former[k]}
        _assign(self, given)
        try:
            super().__post_init__()
        except Exception:
            _assign(self, given)
            raise
        finalized = _values(self)
        # Not dataclass fields: Megatron-Core compares and logs those.
        self.__dict__["_derived"] = {k: v for k, v in given.items() if finalized[k] != v}
        self.__dict__["_finalized"] = finalized


def _values(config: TransformerConfig) -> dict[str, Any]:
    # Megatron-Core appends to recompute_modules and cuda_graph_scope in place.
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {k: list(v) if isinstance(v, list) else v for k, v in values.items()}


def _assign(config: TransformerConfig, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(config, name, value)
