"""What every provider needs to build its model: the vocabulary size and the pipeline stage."""

from __future__ import annotations

from typing import Protocol

from megatron.bridge.errors import OverlapConfigError


class VocabularyFields(Protocol):
    """The fields that determine the number of rows of the embedding."""

    vocab_size: int | None
    should_pad_vocab: bool
    make_vocab_size_divisible_by: int
    tensor_model_parallel_size: int


def built_vocab_size(config: VocabularyFields) -> int:
    """Rows of the embedding: `vocab_size`, padded where `should_pad_vocab` is on.

    Padded to the next multiple of `make_vocab_size_divisible_by` x `tensor_model_parallel_size`,
    so that each tensor-parallel rank has the same, convenient number of rows.

    Raises:
        OverlapConfigError: there is no vocabulary size, or it does not split evenly.
    """
    vocab_size, tp = config.vocab_size, config.tensor_model_parallel_size
    if vocab_size is None:
        raise OverlapConfigError(
            "model.vocab_size is None: set it to the tokenizer's size before building the model."
        )
    if vocab_size < 1:
        raise OverlapConfigError(f"model.vocab_size={vocab_size}: set it to at least 1.")
    if config.should_pad_vocab:
        multiple = config.make_vocab_size_divisible_by * tp
        return -(-vocab_size // multiple) * multiple
    if vocab_size % tp:
        raise OverlapConfigError(
            f"model.vocab_size={vocab_size} is not divisible by "
            f"model.tensor_model_parallel_size={tp}: set model.should_pad_vocab=True."
        )
    return vocab_size


def first_and_last_stage(virtual_size: int | None, vp_stage: int | None) -> tuple[bool, bool]:
    """Whether this rank's chunk contains the embedding, and whether it contains the output layer.

    Args:
        virtual_size: the model's virtual_pipeline_model_parallel_size.
        vp_stage: which of the rank's model chunks this is; needed with a virtual pipeline.

    Raises:
        OverlapConfigError: `vp_stage` is missing, or the process groups were initialized for
            another virtual pipeline size, so that every chunk would be built as a first one.
    """
    from megatron.core import parallel_state

    known = parallel_state.get_virtual_pipeline_model_parallel_world_size()
    if (known or 1) != (virtual_size or 1):
        raise OverlapConfigError(
            f"model.virtual_pipeline_model_parallel_size={virtual_size}, but the process groups "
            f"were initialized with {known}: give initialize_model_parallel() the model's value."
        )
    if known is not None and vp_stage is None:
        raise OverlapConfigError(
            f"vp_stage is None with model.virtual_pipeline_model_parallel_size={virtual_size}: "
            f"pass provide() the model chunk to build, from 0 to {known - 1}."
        )
    return (
        parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
    )
