"""A GPT's configuration with its TransformerConfig inside, and the builder of its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from megatron.bridge.models.nested import ModelConfig

if TYPE_CHECKING:
    from megatron.core.models.gpt.gpt_model import GPTModel

    from megatron.bridge.models.gpt_provider import LayerSpec


@dataclass(kw_only=True)
class GPTModelConfig(ModelConfig):
    """What builds a GPT: Megatron-Core's TransformerConfig in `transformer`, the rest beside it.

    Defaults are those of Megatron-LM's class of this name (megatron/training/models/gpt.py, core
    0.18.2 and newer). Attributes of `transformer` can be read and set here too.
    """

    builder: ClassVar[str] = "megatron.bridge.models.gpt.gpt_builder.GPTModelBuilder"

    transformer_layer_spec: LayerSpec | Callable[..., LayerSpec] | None = None
    """The layers' modules, or a function of this config; None: `default_layer_spec`."""
    vocab_size: int | None = None
    """Size of the tokenizer's vocabulary; needed to build the model."""
    make_vocab_size_divisible_by: int = 128
    """Rows per tensor-parallel rank are a multiple of this, where the vocabulary is padded."""
    should_pad_vocab: bool = False
    """Pad the vocabulary, so that it splits evenly over the tensor-parallel ranks."""
    seq_length: int = 1024
    """Tokens per sequence, which is also the number of learned positions."""
    fp16_lm_cross_entropy: bool = False
    """Compute the loss in 16 bits."""
    parallel_output: bool = True
    """Leave the logits split over the tensor-parallel ranks."""
    share_embeddings_and_output_weights: bool = False
    """Use the embedding's weights for the output layer."""
    position_embedding_type: Literal["learned_absolute", "rope", "mrope", "yarn", "none"] = (
        "learned_absolute"
    )
    """How positions enter the model."""
    rotary_percent: float = 1.0
    """Share of each head's channels that rotary positions rotate."""
    rotary_base: float = 10000
    """Base period of rotary positions."""
    rope_scaling: bool = False
    """Stretch rotary frequencies for long contexts, the Llama 3.1 way."""
    rope_scaling_factor: float = 8.0
    """How far `rope_scaling` stretches them."""
    scatter_embedding_sequence_parallel: bool = True
    """With sequence parallelism, scatter the embedding's output over the sequence."""
    seq_len_interpolation_factor: float | None = None
    """Interpolate rotary positions linearly by this factor, above 1; None: no interpolation."""
    tp_comm_overlap_cfg: str | dict[str, Any] | None = None
    """Userbuffers settings per GEMM for tensor-parallel overlap; None: Transformer Engine's own."""
    use_arbitrary_attention_mask: bool | None = None
    """For quantized models: a mask other than the causal one."""


class GPTModelBuilder:
    """Builds the model of a GPTModelConfig."""

    def __init__(self, model_config: GPTModelConfig) -> None:
        self._model_config = model_config

    def build_model(
        self,
        pg_collection: Any = None,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> GPTModel:
        """This rank's part of the model. Process groups must be initialized.

        Args:
            pg_collection: Megatron-Core's process groups; None: those of its parallel_state.
            pre_process, post_process, vp_stage: as for `GPTModelProvider.provide`.

        Raises:
            ValueError, AssertionError: as for `GPTModelProvider.provide`.
        """
        from megatron.bridge.models.gpt_provider import build_gpt_model

        groups = {} if pg_collection is None else {"pg_collection": pg_collection}
        return build_gpt_model(self._model_config, pre_process, post_process, vp_stage, **groups)
