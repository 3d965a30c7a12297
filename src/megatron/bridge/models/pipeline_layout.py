"""The layers of each pipeline stage and model chunk of a Megatron-Core 0.16 model."""

from __future__ import annotations

import re
from itertools import accumulate, chain, pairwise
from math import gcd
from typing import Any

from megatron.bridge.models.model_shape import UncountableModel, divided, read, read_size


def virtual_size_of_layout(layout: Any, stages: int) -> int | None:
    """The virtual pipeline size that Megatron-Core reads from a pipeline_model_parallel_layout.

    Args:
        layout: None, a string such as ``"Et*2|t*2|t*2|t*2L"``, a list of stages, or
            Megatron-Core's own PipelineParallelLayerLayout.
        stages: pipeline_model_parallel_size.

    Returns:
        None where there is no layout, or where it has no such size (Megatron-Core then refuses it).
    """
    if isinstance(layout, str):
        parts = unrolled(layout).count("|") + 1
    elif isinstance(layout, list):
        parts = len(layout)
    else:
        size = getattr(layout, "virtual_pipeline_model_parallel_size", None)
        return size if isinstance(size, int) else None
    return parts // stages if parts % stages == 0 else None


def unrolled(layout: str) -> str:
    """A layout without its repetitions ``(..)*n`` and ``x*n``, and without cosmetic commas."""
    groups = re.sub(r"\(([^)]+)\)\*(\d+)", _repeated, layout.replace(",", ""))
    return re.sub(r"(.)\*(\d+)", _repeated, groups)


_MOST_REPEATS = 10_000


def _repeated(found: re.Match[str]) -> str:
    return found[1] * min(int(found[2]), _MOST_REPEATS)


def layers_by_chunk(model: Any) -> list[list[range]]:
    """The layers (from 0) of every model chunk, as ``[vp_stage][pp_rank]``.

    Layers are numbered in the order in which a microbatch passes them: chunk 0 of every stage, then
    chunk 1 of every stage. Without virtual pipelining there is one chunk per stage.

    Raises:
        UncountableModel: Megatron-Core refuses the layout, or it is a
            pipeline_model_parallel_layout, which is not read here.
    """
    if read(model, "pipeline_model_parallel_layout") is not None:
        raise UncountableModel(
            "pipeline_model_parallel_layout is set, and the layers of a stage are not read from it"
        )
    stages = read_size(model, "pipeline_model_parallel_size")
    chunks = read_size(model, "virtual_pipeline_model_parallel_size", default=1)
    if stages == 1 and read(model, "virtual_pipeline_model_parallel_size") is not None:
        raise UncountableModel(
            f"virtual_pipeline_model_parallel_size={chunks} needs pipeline_model_parallel_size > 1"
        )
    counts = [
        [divided(slots, chunks, "layers of a pipeline stage") for slots in _slots(model, stages)]
        for _ in range(chunks)
    ]
    counts[0][0] -= bool(read(model, "account_for_embedding_in_pipeline_split"))
    counts[-1][-1] -= bool(read(model, "account_for_loss_in_pipeline_split"))
    layers = read_size(model, "num_layers")
    if min(map(min, counts)) < 0 or sum(map(sum, counts)) != layers:
        raise UncountableModel(
            f"num_layers={layers} does not fit the pipeline: its chunks would have {counts} layers"
        )
    ends = list(accumulate(chain.from_iterable(counts), initial=0))
    layers_of = [range(*bounds) for bounds in pairwise(ends)]
    return [layers_of[chunk * stages : (chunk + 1) * stages] for chunk in range(chunks)]


def _slots(model: Any, stages: int) -> list[int]:
    """Layers of each stage; the embedding and the loss count as layers where the model says so."""
    ends = {
        0: read(model, "num_layers_in_first_pipeline_stage"),
        stages - 1: read(model, "num_layers_in_last_pipeline_stage"),
    }
    embedding = bool(read(model, "account_for_embedding_in_pipeline_split"))
    loss = bool(read(model, "account_for_loss_in_pipeline_split"))
    fixed = {stage: count for stage, count in ends.items() if count is not None}
    if fixed and (embedding or loss):
        raise UncountableModel(
            "num_layers_in_first_pipeline_stage and num_layers_in_last_pipeline_stage exclude "
            "account_for_embedding_in_pipeline_split and account_for_loss_in_pipeline_split"
        )
    left = read_size(model, "num_layers") + embedding + loss - sum(fixed.values())
    others = stages - len(fixed)
    even = divided(left, others, "layers over the other pipeline stages") if others else 0
    return [fixed.get(stage, even) for stage in range(stages)]


def virtual_sizes(model: Any) -> list[int]:
    """Every virtual pipeline size above 1 that divides the layers of each stage, smallest first.

    Empty with one stage, with a pipeline_model_parallel_layout, or where the layers do not divide.
    """
    try:
        stages = read_size(model, "pipeline_model_parallel_size")
        if stages < 2 or read(model, "pipeline_model_parallel_layout") is not None:
            return []
        common = gcd(*_slots(model, stages))
    except UncountableModel:
        return []
    return [size for size in range(2, common + 1) if common % size == 0]
