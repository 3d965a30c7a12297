"""What Megatron-Bridge's model providers choose where a configuration by hand says nothing.

A provider is a TransformerConfig with other defaults. A file that Megatron-Bridge wrote has every
field, so that only files by hand are completed with these.
"""

from __future__ import annotations

from typing import Any

from megatron.bridge.training.software import Software

FUSION = "gradient_accumulation_fusion"

PROVIDER_CHOICES: dict[str, Any] = {
    "deallocate_pipeline_outputs": True,
    "masked_softmax_fusion": True,
    "cross_entropy_loss_fusion": True,
    "mtp_enabled": False,
    # Where a kernel for it can be imported: see `fusion_default`.
    FUSION: True,
}
"""Fields of a model whose default is not that of Megatron-Core's class (GPTModelProvider in
Megatron-Bridge's src/megatron/bridge/models/gpt_provider.py, the same in 0.3.1 to main)."""


def bridge_default(section: str, key: str, core: Any) -> Any:
    """The default of a key in Megatron-Bridge, where Megatron-Core's class has `core`."""
    return PROVIDER_CHOICES.get(key, core) if section == "model" else core


def fusion_default(software: Software) -> bool:
    """Whether gradient_accumulation_fusion is on by default with this software.

    It is where a kernel can be imported: APEX's, and since Megatron-Bridge 0.4.2 also Transformer
    Engine's. NVIDIA's containers have both, so Transformer Engine stands for either.
    """
    return software.have_te()
