"""A model's configuration with its TransformerConfig inside, as Megatron-Bridge has since 0.4.2.

`model.transformer` holds Megatron-Core's TransformerConfig, and beside it are the fields that only
the builder of the model reads. Every attribute of `transformer` can be read and set on the outer
configuration too, so that what reads `model.tensor_model_parallel_size` works with either shape.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(kw_only=True)
class ModelConfig:
    """The base of the nested configurations; construction checks nothing."""

    builder: ClassVar[str] = ""
    """Dotted name of the class that builds the model: `_builder_` in a configuration file."""

    transformer: Any
    """Megatron-Core's TransformerConfig, or a subclass that is checked in `finalize()`."""
    restore_modelopt_state: bool = False
    """Restore what ModelOpt saved: quantization, sparsity."""
    extra_checkpoint_metadata: dict[str, Any] | None = None
    """What a conversion of checkpoints stores beside the model."""

    def __getattr__(self, name: str) -> Any:
        # Called only for what is not found on this object. `transformer` itself is not there yet
        # while a copy is being made.
        transformer = self.__dict__.get("transformer")
        if transformer is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        try:
            return getattr(transformer, name)
        except AttributeError:
            raise AttributeError(
                f"neither {type(self).__name__} nor its {type(transformer).__name__} has an "
                f"attribute {name!r}"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        transformer = self.__dict__.get("transformer")
        if name in declared_fields(type(self)) or not hasattr(transformer, name):
            super().__setattr__(name, value)
        else:
            setattr(transformer, name, value)

    def finalize(self) -> None:
        """Run Megatron-Core's checks of the transformer.

        Raises:
            ValueError, AssertionError: Megatron-Core's own.
        """
        if (finalize := getattr(self.transformer, "finalize", None)) is not None:
            finalize()


def declared_fields(cls: type) -> frozenset[str]:
    """Names of the fields of a dataclass."""
    return frozenset(f.name for f in fields(cls))
