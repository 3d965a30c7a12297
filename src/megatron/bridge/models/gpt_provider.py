"""A GPT model's configuration, and the real Megatron-Core model from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from megatron.core.models.gpt import gpt_layer_specs as specs
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron.bridge.models.building import built_vocab_size, first_and_last_stage
from megatron.bridge.models.transformer_config import TransformerConfig
from megatron.bridge.utils import fusions

LayerSpec: TypeAlias = ModuleSpec | TransformerBlockSubmodules
"""One layer's spec, for every layer; or the specs of this pipeline stage's layers, one by one."""

GPTConfiguration: TypeAlias = Any
"""A GPTModelProvider, or a GPTModelConfig: its attributes are the same."""


def transformer_engine_layer_spec(config: GPTConfiguration) -> ModuleSpec:
    """A layer of Transformer Engine's modules, as `config` describes it."""
    return specs.get_gpt_layer_with_transformer_engine_spec(
        # A nested configuration has it only where Megatron-Core does.
        use_te_op_fuser=getattr(config, "use_transformer_engine_op_fuser", False),
        **_layer_fields(config, "use_te_activation_func", "use_grouped_gemm_for_dense_mlp"),
    )


def local_layer_spec(config: GPTConfiguration) -> ModuleSpec:
    """A layer of Megatron-Core's own modules, which need no Transformer Engine."""
    return specs.get_gpt_layer_local_spec(**_layer_fields(config, "normalization"))


def _layer_fields(config: GPTConfiguration, *more: str) -> dict[str, Any]:
    """What a layer's spec depends on, as arguments: those that this Megatron-Core has a field for.

    Megatron-Core gives the arguments the names of its fields, apart from the number of experts, and
    drops or adds both together: `moe_use_legacy_grouped_gemm` ended with 0.16.
    """
    names = (
        "moe_grouped_gemm",
        "qk_layernorm",
        "multi_latent_attention",
        "moe_use_legacy_grouped_gemm",
        "qk_l2_norm",
        *more,
    )
    return {"num_experts": config.num_moe_experts} | {
        name: getattr(config, name) for name in names if hasattr(config, name)
    }


def default_layer_spec(config: GPTConfiguration, vp_stage: int | None = None) -> LayerSpec:
    """Transformer Engine's modules where it can be imported and `transformer_impl` selects them.

    Otherwise Megatron-Core's own modules, which have no tensor-parallel overlap. Where dense and
    MoE layers alternate (`moe_layer_freq`), the spec of each layer of this pipeline stage.
    """
    use_te = _uses_transformer_engine(config)
    if config.num_moe_experts is not None and config.moe_layer_freq != 1:
        return specs.get_gpt_decoder_block_spec(
            transformer_of(config),
            use_transformer_engine=use_te,
            normalization=config.normalization,
            qk_l2_norm=config.qk_l2_norm,
            vp_stage=vp_stage,
        )
    return transformer_engine_layer_spec(config) if use_te else local_layer_spec(config)


def _mtp_block_spec(config: GPTConfiguration, layer_spec: LayerSpec, vp_stage: int | None) -> Any:
    """Spec of the multi-token-prediction layers; None on a stage without them."""
    if not config.mtp_num_layers:
        return None
    use_te, transformer = _uses_transformer_engine(config), transformer_of(config)
    if isinstance(layer_spec, TransformerBlockSubmodules) and not layer_spec.layer_specs:
        # The stage that predicts may have no decoder layer to take the spec from.
        layer_spec = specs.get_gpt_decoder_layer_specs(
            transformer, use_te, config.normalization, config.qk_l2_norm
        )[-1]
    return specs.get_gpt_mtp_block_spec(
        transformer, layer_spec, use_transformer_engine=use_te, vp_stage=vp_stage
    )


def _uses_transformer_engine(config: GPTConfiguration) -> bool:
    return bool(specs.HAVE_TE) and config.transformer_impl != "local"


def transformer_of(config: GPTConfiguration) -> Any:
    """Megatron-Core's TransformerConfig: inside a nested configuration, or a provider itself."""
    return getattr(config, "transformer", config)


def build_gpt_model(
    config: GPTConfiguration,
    pre_process: bool | None = None,
    post_process: bool | None = None,
    vp_stage: int | None = None,
    **more: Any,
) -> GPTModel:
    """Finalize a configuration, and build this rank's part of its model.

    Args:
        config: a GPTModelProvider or a GPTModelConfig.
        pre_process, post_process, vp_stage: as for `GPTModelProvider.provide`.
        more: further arguments of Megatron-Core's GPTModel, such as pg_collection.

    Raises:
        ValueError, AssertionError: as for `GPTModelProvider.provide`.
    """
    config.finalize()
    vocab_size = built_vocab_size(config)
    if pre_process is None or post_process is None:
        first, last = first_and_last_stage(config.virtual_pipeline_model_parallel_size, vp_stage)
        pre_process = first if pre_process is None else pre_process
        post_process = last if post_process is None else post_process
    layer_spec = _layer_spec(config, vp_stage)
    return GPTModel(
        transformer_of(config),
        transformer_layer_spec=layer_spec,
        vocab_size=vocab_size,
        max_sequence_length=config.seq_length,
        pre_process=pre_process,
        post_process=post_process,
        fp16_lm_cross_entropy=config.fp16_lm_cross_entropy,
        parallel_output=config.parallel_output,
        share_embeddings_and_output_weights=config.share_embeddings_and_output_weights,
        position_embedding_type=config.position_embedding_type,
        rotary_percent=config.rotary_percent,
        rotary_base=config.rotary_base,
        rope_scaling=config.rope_scaling,
        rope_scaling_factor=config.rope_scaling_factor,
        scatter_embedding_sequence_parallel=config.scatter_embedding_sequence_parallel,
        seq_len_interpolation_factor=config.seq_len_interpolation_factor,
        mtp_block_spec=_mtp_block_spec(config, layer_spec, vp_stage),
        vp_stage=vp_stage,
        **more,
    )


def _layer_spec(config: GPTConfiguration, vp_stage: int | None) -> LayerSpec:
    spec = config.transformer_layer_spec or default_layer_spec
    # Not whether it is callable: a ModuleSpec is.
    if isinstance(spec, ModuleSpec | TransformerBlockSubmodules):
        return spec
    if "vp_stage" in inspect.signature(spec).parameters:
        return spec(config, vp_stage=vp_stage)
    return spec(config)


@dataclass
class GPTModelProvider(TransformerConfig):
    """Megatron-Core's TransformerConfig, and what else is needed to build a GPT.

    The first fields are Megatron-Core's with the defaults of Megatron-Bridge's provider; all others
    of Megatron-Core have their own. Construction checks nothing; `finalize()` does.
    """

    attention_softmax_in_fp32: bool = False
    """Compute the attention's softmax in fp32."""
    deallocate_pipeline_outputs: bool = True
    """Free a stage's output once it was sent to the next stage."""
    masked_softmax_fusion: bool = True
    """Fuse mask, scale and softmax of the attention."""
    cross_entropy_loss_fusion: bool = True
    """Fuse the operations of the loss."""
    gradient_accumulation_fusion: bool = field(
        default_factory=fusions.can_enable_gradient_accumulation_fusion
    )
    """Accumulate weight gradients inside their GEMM; on where a kernel for it can be imported."""
    mtp_enabled: bool = False
    """For Megatron-Bridge's conversion of checkpoints; `mtp_num_layers` decides on the layers."""
    tp_only_amax_red: bool = False
    """Reduce FP8's amax over the tensor-parallel ranks alone."""

    vocab_size: int | None = None
    """Size of the tokenizer's vocabulary; needed to build the model."""
    should_pad_vocab: bool = False
    """Pad the vocabulary, so that it splits evenly over the tensor-parallel ranks."""
    make_vocab_size_divisible_by: int = 128
    """Rows per tensor-parallel rank are a multiple of this, where the vocabulary is padded."""
    seq_length: int = 1024
    """Tokens per sequence, which is also the number of learned positions."""
    position_embedding_type: Literal["learned_absolute", "rope", "mrope", "yarn", "none"] = (
        "learned_absolute"
    )
    """How positions enter the model."""
    rotary_base: float = 10000
    """Base period of rotary positions."""
    rotary_percent: float = 1.0
    """Share of each head's channels that rotary positions rotate."""
    rope_scaling: bool = False
    """Stretch rotary frequencies for long contexts, the Llama 3.1 way."""
    rope_scaling_factor: float = 1.0
    """How far `rope_scaling` stretches them."""
    seq_len_interpolation_factor: float | None = None
    """Interpolate rotary positions linearly by this factor, above 1; None: no interpolation."""
    scatter_embedding_sequence_parallel: bool = True
    """With sequence parallelism, scatter the embedding's output over the sequence."""
    share_embeddings_and_output_weights: bool = True
    """Use the embedding's weights for the output layer."""
    parallel_output: bool = True
    """Leave the logits split over the tensor-parallel ranks."""
    fp16_lm_cross_entropy: bool = False
    """Compute the loss in 16 bits."""
    tp_comm_overlap_cfg: str | dict[str, Any] | None = None
    """Userbuffers settings per GEMM for tensor-parallel overlap; None: Transformer Engine's own."""
    use_transformer_engine_op_fuser: bool = False
    """Let Transformer Engine fuse the MLP's operations."""
    transformer_layer_spec: LayerSpec | Callable[..., LayerSpec] = default_layer_spec
    """The layers' modules, or a function of this config, and of `vp_stage` if it takes that."""

    def provide(
        self,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> GPTModel:
        """Finalize, and build this rank's part of the model. Process groups must be initialized.

        Args:
            pre_process: build the embedding; None: on the first pipeline stage.
            post_process: build the output layer; None: on the last pipeline stage.
            vp_stage: which of the rank's model chunks to build, with a virtual pipeline.

        Raises:
            ValueError: the fields contradict each other; this package raises an
                OverlapConfigError, Megatron-Core its own errors.
            AssertionError: the same, or the process groups are not initialized.
        """
        return build_gpt_model(self, pre_process, post_process, vp_stage)
