"""A T5 model's configuration, and the real Megatron-Core model from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from megatron.core.models.T5 import t5_spec as specs
from megatron.core.models.T5.t5_model import T5Model
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron.bridge.errors import OverlapConfigError
from megatron.bridge.models.building import built_vocab_size, first_and_last_stage
from megatron.bridge.models.transformer_config import TransformerConfig

LayerSpec: TypeAlias = ModuleSpec | TransformerBlockSubmodules
"""One layer's spec, for every layer; or the specs of all layers, one by one."""

LayerSpecs: TypeAlias = tuple[LayerSpec, LayerSpec]
"""The encoder's layers, and the decoder's."""


def transformer_engine_layer_spec(
    encoder_config: T5ModelProvider, decoder_config: T5ModelProvider
) -> LayerSpecs:
    """Layers of Transformer Engine's modules."""
    return (
        specs.encoder_model_with_transformer_engine_default_spec(),
        specs.decoder_model_with_transformer_engine_default_spec(),
    )


def local_layer_spec(
    encoder_config: T5ModelProvider, decoder_config: T5ModelProvider
) -> LayerSpecs:
    """Layers of Megatron-Core's own modules, which need no Transformer Engine."""
    # Not its block specs: their final norm is Transformer Engine's, and without it there is none.
    return specs.encoder_model_with_local_spec(), specs.decoder_model_with_local_spec()


def default_layer_spec(
    encoder_config: T5ModelProvider, decoder_config: T5ModelProvider
) -> LayerSpecs:
    """Transformer Engine's modules where it can be imported and `transformer_impl` selects them."""
    use_te = specs.HAVE_TE and decoder_config.transformer_impl != "local"
    layer_spec = transformer_engine_layer_spec if use_te else local_layer_spec
    return layer_spec(encoder_config, decoder_config)


@dataclass
class T5ModelProvider(TransformerConfig):
    """The decoder's TransformerConfig of Megatron-Core, and what else a T5 model needs.

    The first fields are Megatron-Core's with the defaults of Megatron-Bridge's provider; all others
    of Megatron-Core have their own. (Megatron-Bridge also turns persist_layer_norm and
    apply_rope_fusion on, which Megatron-Core's own modules refuse without Transformer Engine.)
    Construction checks nothing; `finalize()` does.
    """

    attention_softmax_in_fp32: bool = False
    """Compute the attention's softmax in fp32."""
    bias_activation_fusion: bool = True
    """Fuse bias and activation of the feed-forward."""
    bias_dropout_fusion: bool = True
    """Fuse bias, dropout and residual connection."""
    masked_softmax_fusion: bool = True
    """Fuse mask, scale and softmax of the attention."""
    deallocate_pipeline_outputs: bool = True
    """Free a stage's output once it was sent to the next stage."""
    tp_only_amax_red: bool = False
    """Reduce FP8's amax over the tensor-parallel ranks alone."""

    encoder_num_layers: int | None = None
    """Layers of the encoder; None: as many as the decoder's `num_layers`."""
    vocab_size: int | None = None
    """Size of the tokenizer's vocabulary; needed to build the model."""
    should_pad_vocab: bool = False
    """Pad the vocabulary, so that it splits evenly over the tensor-parallel ranks."""
    make_vocab_size_divisible_by: int = 128
    """Rows per tensor-parallel rank are a multiple of this, where the vocabulary is padded."""
    seq_length: int = 512
    """Tokens of the encoder's sequence."""
    seq_length_dec: int = 128
    """Tokens of the decoder's sequence."""
    max_position_embeddings: int = 512
    """Learned positions, shared by encoder and decoder."""
    position_embedding_type: Literal["learned_absolute", "rope", "relative"] = "learned_absolute"
    """How positions enter the model."""
    relative_attention_num_buckets: int = 32
    """Buckets of relative positions."""
    relative_attention_max_distance: int = 128
    """Distance from which all relative positions share a bucket."""
    rotary_percent: float = 1.0
    """Share of each head's channels that rotary positions rotate."""
    seq_len_interpolation_factor: float | None = None
    """Interpolate rotary positions linearly by this factor, above 1; None: no interpolation."""
    share_embeddings_and_output_weights: bool = True
    """Use the embedding's weights for the output layer."""
    parallel_output: bool = True
    """Leave the logits split over the tensor-parallel ranks."""
    fp16_lm_cross_entropy: bool = False
    """Compute the loss in 16 bits."""
    tp_comm_overlap_cfg: str | dict[str, Any] | None = None
    """Userbuffers settings per GEMM for tensor-parallel overlap; None: Transformer Engine's own."""
    transformer_layer_spec: (
        LayerSpecs | Callable[[T5ModelProvider, T5ModelProvider], LayerSpecs]
    ) = default_layer_spec
    """The encoder's and decoder's modules, or a function of the encoder's and decoder's config."""

    def provide(
        self,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> T5Model:
        """Finalize, and build the model. Process groups must be initialized.

        Args:
            pre_process: build the embedding; None: on the first pipeline stage.
            post_process: build the output layer; None: on the last pipeline stage.
            vp_stage: must be None or 0.

        Raises:
            ValueError: the fields contradict each other; this package raises an
                OverlapConfigError, Megatron-Core its own errors. A pipeline is one such case:
                Megatron-Core 0.16 puts encoder and decoder on every stage, and passes a stage's
                decoder output to the next stage's encoder.
            AssertionError: the same, or the process groups are not initialized.
        """
        if self.pipeline_model_parallel_size > 1 or vp_stage:
            raise OverlapConfigError(
                f"model.pipeline_model_parallel_size={self.pipeline_model_parallel_size}, "
                f"vp_stage={vp_stage}: Megatron-Core's T5 model cannot be split into pipeline "
                "stages. Set model.pipeline_model_parallel_size=1."
            )
        self.finalize()
        encoder_config = self._encoder_config()
        spec = self.transformer_layer_spec
        encoder_spec, decoder_spec = spec(encoder_config, self) if callable(spec) else spec
        if pre_process is None or post_process is None:
            first, last = first_and_last_stage(self.virtual_pipeline_model_parallel_size, vp_stage)
            pre_process = first if pre_process is None else pre_process
            post_process = last if post_process is None else post_process
        return T5Model(
            self,
            encoder_config=encoder_config,
            transformer_encoder_layer_spec=encoder_spec,
            transformer_decoder_layer_spec=decoder_spec,
            vocab_size=built_vocab_size(self),
            max_sequence_length=self.max_position_embeddings,
            pre_process=pre_process,
            post_process=post_process,
            fp16_lm_cross_entropy=self.fp16_lm_cross_entropy,
            parallel_output=self.parallel_output,
            share_embeddings_and_output_weights=self.share_embeddings_and_output_weights,
            position_embedding_type=self.position_embedding_type,
            rotary_percent=self.rotary_percent,
            seq_len_interpolation_factor=self.seq_len_interpolation_factor,
            relative_attention_num_buckets=self.relative_attention_num_buckets,
            relative_attention_max_distance=self.relative_attention_max_distance,
        )

    def _encoder_config(self) -> T5ModelProvider:
        encoder = copy.copy(self)
        if self.encoder_num_layers is not None:
            encoder.num_layers = self.encoder_num_layers
            encoder.finalize()
        return encoder
