"""The nested GPT configuration of Megatron-Bridge's newer recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.bridge.models.gpt.gpt_builder import GPTModelConfig
from megatron.bridge.models.nested import declared_fields


@dataclass(kw_only=True)
class BridgeGPTModelConfig(GPTModelConfig):
    """A GPTModelConfig to which no attribute can be set that neither it nor `transformer` has."""

    def __setattr__(self, name: str, value: Any) -> None:
        transformer = self.__dict__.get("transformer")
        known = declared_fields(type(self)) | {"builder"}
        if not (
            transformer is None
            or name in known
            or name.startswith("_")
            or hasattr(transformer, name)
        ):
            raise AttributeError(
                f"neither {type(self).__name__} nor its {type(transformer).__name__} has a field "
                f"{name!r}"
            )
        super().__setattr__(name, value)
