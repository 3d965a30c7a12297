"""Layers, pipeline stages and model chunks: fewer, with the differences between them kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.bridge.models.layer_blocks import UncountableModel, moe_layers_of
from megatron.bridge.models.pipeline_layout import (
    layers_by_chunk,
    layout_rows,
    virtual_size_of_layout,
)
from overlapkit.errors import InputError
from overlapkit.lab.own.layout import Layout
from overlapkit.lab.own.reduced import Notes

MOST_CHUNKS = 3
"""Virtual stages of a rank: a first, one in the middle, a last."""

ALONE = 4
"""Most layers of a model that is not divided into chunks."""

EACH = 2
"""Most layers of a chunk, where all chunks have as many."""

_NEEDS_PIPELINE = (
    "virtual_pipeline_model_parallel_size",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "pipeline_model_parallel_layout",
    "microbatch_group_size_per_vp_stage",
)
_ACCOUNTED = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
_BY_LAYER = ("moe_layer_freq", "no_rope_freq")
_WHY = "as many layers as the pipeline's structure needs"


@dataclass(frozen=True)
class Chunk:
    """A model chunk.

    Attributes:
        layers: numbers of its layers in the user's model, from 0.
        others: what else a pipeline_model_parallel_layout puts there: embedding, mtp, loss.
    """

    layers: tuple[int, ...]
    others: tuple[str, ...] = ()


Grid = list[list[Chunk]]
"""The chunks, as ``[vp_stage][pp_rank]``."""


def fewer_layers(model: Any, old: Layout, new: Layout, notes: Notes, source: str) -> dict[str, Any]:
    """The keys of section `model` that say how many layers there are, and where.

    Args:
        model: the user's, with its defaults.
        old, new: the layouts of the user's run and of this one.
        notes: where the changes are written down.
        source: the configuration, for messages.

    Raises:
        InputError: the user's layers do not fit the user's pipeline.
    """
    grid = _chunks_of(model, old.pp, source)
    chosen = _chosen(grid, new.pp)
    sizes = _fewer([[len(chunk.layers) for chunk in row] for row in chosen])
    picked = [
        [_spread(chunk.layers, size) for chunk, size in zip(row, counts, strict=True)]
        for row, counts in zip(chosen, sizes, strict=True)
    ]
    order = [layer for row in picked for chunk in row for layer in chunk]
    vpp = len(chosen) if new.pp > 1 and len(grid) > 1 else None
    result: dict[str, Any] = {"num_layers": len(order)}
    if vpp is not None:
        result["virtual_pipeline_model_parallel_size"] = vpp
        notes.kept.append(f"interleaving, with {vpp} model chunks on each of {new.pp} stages")
    mtp = getattr(model, "mtp_num_layers", None)
    if mtp:
        result["mtp_num_layers"] = min(mtp, 2)
        notes.kept.append("multi-token prediction")
    result |= _uneven(model, chosen, sizes, new.pp, min(mtp or 0, 2), notes)
    result |= _by_layer(model, order, notes)
    for key, value in result.items():
        notes.change(f"model.{key}", getattr(model, key, None), value, _WHY)
    for key in _NEEDS_PIPELINE:
        if new.pp == 1 and old.pp > 1 and getattr(model, key, None) is not None:
            notes.change(f"model.{key}", getattr(model, key), None, "there is one stage")
    return result


def _chunks_of(model: Any, stages: int, source: str) -> Grid:
    layout = getattr(model, "pipeline_model_parallel_layout", None)
    if layout is None and not getattr(model, "num_layers", None):
        # The model's sizes come from elsewhere, such as a checkpoint: even stages.
        chunks = getattr(model, "virtual_pipeline_model_parallel_size", None) or 1
        each = [range(n * EACH, (n + 1) * EACH) for n in range(chunks * stages)]
        flat = [Chunk(tuple(layers)) for layers in each]
        return [flat[n * stages : (n + 1) * stages] for n in range(chunks)]
    if layout is None:
        try:
            return [[Chunk(tuple(layers)) for layers in row] for row in layers_by_chunk(model)]
        except UncountableModel as cause:
            raise InputError(f"{source}: {cause}: make the layers fit the pipeline") from None
    size = virtual_size_of_layout(layout, stages)
    try:
        parts = layout_rows(layout)
    except UncountableModel as cause:
        raise InputError(f"{source}: model.{cause}") from None
    if size is None or sum(row.count("decoder") for row in parts) != model.num_layers:
        raise InputError(
            f"{source}: model.pipeline_model_parallel_layout does not have {stages} stages and "
            f"num_layers={model.num_layers} decoders: make them agree"
        )
    flat = []
    start = 0
    for row in parts:
        end = start + row.count("decoder")
        flat.append(Chunk(tuple(range(start, end)), tuple(n for n in row if n != "decoder")))
        start = end
    return [flat[n * stages : (n + 1) * stages] for n in range(size)]


def _chosen(grid: Grid, stages: int) -> Grid:
    """The chunks that stay: of the first stages and the last, and of those in the middle.

    In the middle, stages that differ from the ones before come first.
    """
    rows = [grid[n] for n in _ends_and_middle(len(grid))] if stages > 1 else grid
    if stages == 1:
        whole = [chunk for row in grid for chunk in row]
        layers = tuple(layer for chunk in whole for layer in chunk.layers)
        return [[Chunk(layers, tuple(n for chunk in whole for n in chunk.others))]]
    total = len(grid[0])
    middle = list(range(1, total - 1))

    def kind(stage: int) -> tuple[Any, ...]:
        return tuple((len(row[stage].layers), row[stage].others) for row in rows)

    seen = {kind(0), kind(total - 1)}
    distinct = []
    for stage in middle:
        if kind(stage) not in seen:
            seen.add(kind(stage))
            distinct.append(stage)
    # What only a middle stage has, such as the layers of multi-token prediction, comes first.
    distinct.sort(key=lambda stage: not any("mtp" in row[stage].others for row in rows))
    rest = [stage for stage in middle if stage not in distinct]
    between = sorted([*distinct, *rest][: stages - 2])
    kept = [0, *between, total - 1]
    lost = [
        name
        for row in grid
        for stage in range(total)
        for name in row[stage].others
        if name == "mtp" and (stage not in kept or row not in rows)
    ]
    result = [[row[stage] for stage in kept] for row in rows]
    if lost:
        last = result[-1][-1]
        result[-1][-1] = Chunk(last.layers, (*lost, *last.others))
    return result


def _ends_and_middle(size: int) -> list[int]:
    if size <= MOST_CHUNKS:
        return list(range(size))
    return [0, size // 2, size - 1]


def _fewer(counts: list[list[int]]) -> list[list[int]]:
    """Fewer layers for each chunk: chunks with more than others still have more."""
    kinds = sorted({n for row in counts for n in row if n})
    alone = len(counts) == len(counts[0]) == 1
    if len(kinds) == 1:
        most = ALONE if alone else EACH
        smaller = {kinds[0]: min(kinds[0], most)}
    else:
        smaller = {kind: number for number, kind in enumerate(kinds, start=1)}
    return [[smaller.get(n, 0) for n in row] for row in counts]


def _spread(layers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """`count` of the layers, the first and the last among them."""
    if count < 2 or len(layers) <= count:
        return layers[:count]
    return tuple(layers[n * (len(layers) - 1) // (count - 1)] for n in range(count))


def _uneven(
    model: Any, chosen: Grid, sizes: list[list[int]], stages: int, mtp: int, notes: Notes
) -> dict[str, Any]:
    """The keys that divide layers unevenly."""
    if stages == 1:
        return {}
    if getattr(model, "pipeline_model_parallel_layout", None) is not None:
        notes.kept.append("pipeline_model_parallel_layout, with fewer layers of each kind of chunk")
        return {
            "pipeline_model_parallel_layout": [
                _row(chunk, count, mtp)
                for row, counts in zip(chosen, sizes, strict=True)
                for chunk, count in zip(row, counts, strict=True)
            ]
        }
    result: dict[str, Any] = {key: True for key in _ACCOUNTED if getattr(model, key, False)}
    for key, stage in (
        ("num_layers_in_first_pipeline_stage", 0),
        ("num_layers_in_last_pipeline_stage", -1),
    ):
        if getattr(model, key, None) is not None:
            result[key] = sum(row[stage] for row in sizes)
    if result:
        notes.kept.append("uneven pipeline stages")
    return result


def _row(chunk: Chunk, count: int, mtp: int) -> list[str]:
    """A chunk as pipeline_model_parallel_layout has it."""
    predicted = ["mtp"] * mtp if "mtp" in chunk.others else []
    first = ["embedding"] if "embedding" in chunk.others else []
    last = ["loss"] if "loss" in chunk.others else []
    return [*first, *["decoder"] * count, *predicted, *last]


def _by_layer(model: Any, order: list[int], notes: Notes) -> dict[str, Any]:
    """Patterns over layers: the entries of the layers that stay, with both kinds among them."""
    result: dict[str, Any] = {}
    has_experts = bool(getattr(model, "num_moe_experts", None))
    for key in _BY_LAYER:
        if key == "moe_layer_freq" and not has_experts:
            continue
        layers = getattr(model, "num_layers", None) or max(order, default=0) + 1
        pattern = _pattern(key, getattr(model, key, None), layers)
        if pattern is None or len(set(pattern)) == 1:
            if pattern is not None and key == "moe_layer_freq" and not pattern[0]:
                result[key] = [0] * len(order)
            continue
        kept = [pattern[layer] for layer in order]
        if len(set(kept)) == 1 and len(kept) > 1:
            first = pattern[0] != kept[0]
            kept[0 if first else -1] = 1 - kept[0]
        result[key] = kept
        notes.kept.append(f"{key}: layers of both kinds")
    return result


def _pattern(key: str, value: Any, layers: int) -> list[int] | None:
    """A pattern's entry for each layer; None where there is none."""
    if isinstance(value, list) and len(value) == layers:
        return [int(bool(entry)) for entry in value]
    if key == "moe_layer_freq":
        try:
            return [int(each) for each in moe_layers_of(value, layers)]
        except UncountableModel:
            return None
    if isinstance(value, int) and value > 1:
        # Megatron-Core: every value-th layer has no rotary positions.
        return [int((layer + 1) % value == 0) for layer in range(layers)]
    return None
