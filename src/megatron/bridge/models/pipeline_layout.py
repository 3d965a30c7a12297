"""The layers of each pipeline stage and model chunk of a Megatron-Core 0.16 model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from math import gcd
from typing import Any

from megatron.bridge.models.layer_blocks import UncountableModel, hybrid_pattern
from megatron.bridge.models.model_fields import divided, read, read_size
from megatron.bridge.models.model_shape import layer_count, prediction_depths


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


_LETTERS = {"E": "embedding", "t": "decoder", "m": "mtp", "L": "loss"}


def layout_rows(layout: Any) -> list[list[str]]:
    """The chunks of a pipeline_model_parallel_layout in the order in which a microbatch passes
    them, each as names: embedding, decoder, mtp, loss.

    Args:
        layout: a string, a list of stages, or Megatron-Core's own PipelineParallelLayerLayout.

    Raises:
        UncountableModel: it is none of these, or has a part that Megatron-Core does not know.
    """
    layout = getattr(layout, "input_data", layout)
    rows: Iterable[Iterable[Any]]
    if isinstance(layout, str):
        rows = [[_LETTERS.get(each, each) for each in row] for row in unrolled(layout).split("|")]
    elif isinstance(layout, list) and all(isinstance(row, list) for row in layout):
        rows = layout
    else:
        raise UncountableModel(
            f"pipeline_model_parallel_layout={layout!r}: want a text such as Et|ttL, or a list of "
            "lists"
        )
    # Megatron-Core's own names are members of an enumeration.
    named = [[str(getattr(each, "name", each)).strip().lower() for each in row] for row in rows]
    for each in chain.from_iterable(named):
        if each not in _LETTERS.values():
            raise UncountableModel(f"pipeline_model_parallel_layout has an unknown part {each!r}")
    return named


@dataclass(frozen=True)
class ModelPart:
    """What one model chunk has.

    Attributes:
        layers: its layers, from 0.
        first: whether the embedding is before them.
        last: whether the output layer and the loss are after them.
        predicts: whether the layers of multi-token prediction are after them.
        normalizes: whether the norm after the model's last layer is here.
    """

    layers: range
    first: bool
    last: bool
    predicts: bool
    normalizes: bool


def whole_model(layers: int, *, predicts: bool) -> ModelPart:
    """A model that is not divided."""
    return ModelPart(range(layers), first=True, last=True, predicts=predicts, normalizes=True)


def parts_by_chunk(model: Any) -> list[list[ModelPart]]:
    """What every model chunk has, as ``[vp_stage][pp_rank]``.

    Chunks are numbered in the order in which a microbatch passes them: chunk 0 of every stage, then
    chunk 1 of every stage. Without virtual pipelining there is one chunk per stage.

    Raises:
        UncountableModel: Megatron-Core refuses the layout.
    """
    stages = read_size(model, "pipeline_model_parallel_size")
    layers, depths = layer_count(model), prediction_depths(model)
    layout = read(model, "pipeline_model_parallel_layout")
    pattern = hybrid_pattern(model)
    predicting = -1
    if layout is not None:
        rows = layout_rows(layout)
        _check_layout(rows, stages, layers, depths)
        counts = [row.count("decoder") for row in rows]
        predicting = next((n for n, row in enumerate(rows) if "mtp" in row), -1)
    elif pattern is not None and len(pattern.chunks) > 1:
        counts = [len(chunk) for chunk in pattern.chunks]
        if len(counts) % stages:
            raise UncountableModel(
                f"the hybrid pattern has {len(counts)} chunks, which cannot be divided over "
                f"pipeline_model_parallel_size={stages}"
            )
    else:
        counts = _even_counts(model, stages, layers)
    if depths and predicting < 0:
        predicting = len(counts) - 1
    ends = list(accumulate(counts, initial=0))
    last = len(counts) - 1
    # Without prediction the norm stays with the output layer, else with the last layer.
    norm = max(n for n, count in enumerate(counts) if count) if depths else last
    parts = [
        ModelPart(range(*bounds), n == 0, n == last, n == predicting, n == norm)
        for n, bounds in enumerate(pairwise(ends))
    ]
    return [parts[n : n + stages] for n in range(0, len(parts), stages)]


def layers_by_chunk(model: Any) -> list[list[range]]:
    """The layers (from 0) of every model chunk, as ``[vp_stage][pp_rank]``; see `parts_by_chunk`.

    Raises:
        UncountableModel: Megatron-Core refuses the layout.
    """
    return [[part.layers for part in row] for row in parts_by_chunk(model)]


def _check_layout(rows: list[list[str]], stages: int, layers: int, depths: int) -> None:
    """What Megatron-Core asserts of a layout (core/transformer/pipeline_parallel_layer_layout.py).

    Raises:
        UncountableModel: one of these does not hold.
    """
    every = list(chain.from_iterable(rows))
    predicting = sum("mtp" in row for row in rows)
    broken = None
    if len(rows) % stages:
        broken = f"has {len(rows)} chunks for pipeline_model_parallel_size={stages}"
    elif every.count("decoder") != layers:
        broken = f"has {every.count('decoder')} decoder layers for num_layers={layers}"
    elif every.count("mtp") != depths or predicting > 1:
        broken = f"has {every.count('mtp')} mtp layers in {predicting} chunks for {depths} of them"
    elif every[0] != "embedding" or every[-1] != "loss":
        broken = "does not begin with the embedding and end with the loss"
    elif every.count("embedding") + every.count("loss") != 2:
        broken = "has more than one embedding or loss"
    if broken:
        raise UncountableModel(f"pipeline_model_parallel_layout {broken}")


def _even_counts(model: Any, stages: int, layers: int) -> list[int]:
    """The layers of every chunk where no layout names them."""
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
    if min(map(min, counts)) < 0 or sum(map(sum, counts)) != layers:
        raise UncountableModel(
            f"num_layers={layers} does not fit the pipeline: its chunks would have {counts} layers"
        )
    return list(chain.from_iterable(counts))


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
    left = layer_count(model) + embedding + loss - sum(fixed.values())
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
