"""Gradient buckets: smaller, so that there are as many as in the user's run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from megatron.bridge.models.layer_blocks import UncountableModel
from megatron.bridge.models.pipeline_layout import layers_by_chunk, unrolled
from megatron.bridge.training.bucketing import bucketing
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.effective import make_effective
from overlapkit.config.run import Run, read_settings
from overlapkit.config.yaml_file import Document
from overlapkit.lab.own.layout import Layout
from overlapkit.lab.own.reduced import Notes

MOST_BUCKETS = 8
"""Most gradient buckets that are asked for."""

SEVERAL = 4
"""Buckets where it is not known how many the user's run has."""

_LARGEST = 1 << 30
_MORE_TENSORS = (
    "mtp_num_layers",
    "use_transformer_engine_full_layer_spec",
    "restore_modelopt_state",
    "pipeline_model_parallel_layout",
    "virtual_pipeline_model_parallel_size",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
)
"""Settings with which tensors are not counted, or which say where they are."""

Sections = dict[str, dict[str, Any]]


def as_run(sections: Sections, ranks: int) -> Run:
    """The effective run of sections for `Variant.settings`.

    Raises:
        InputError: a section cannot be built.
        OverlapConfigError: the layout does not divide the ranks.
    """
    settings = read_settings(Document("the reduced configuration", sections))
    return make_effective(settings, ranks, AssumedSoftware())[0]


def size_buckets(
    sections: Sections, effective: Run, old: Layout, new: Layout, notes: Notes
) -> None:
    """Give `bucket_size` a value with which there are as many buckets as in the user's run.

    Args:
        sections: the reduced configuration, which is completed.
        effective: the user's run, after the rules.
        old, new: their layouts.
        notes: where the change is written down.
    """
    if not effective.ddp.overlap_grad_reduce or new.replicas == 1:
        return
    first = _first_layers(effective.model)
    known = None if first is None else _count(effective, old.dp, first)
    run = as_run(sections, new.ranks)
    fewer = _first_layers(run.model)

    def buckets(size: int) -> int:
        run.ddp.bucket_size = size
        return (0 if fewer is None else _count(run, new.dp, fewer)) or 0

    size = bucket_size_for(min(known or SEVERAL, MOST_BUCKETS), buckets)
    _place(size, sections, new.ranks)
    made = buckets(size)
    asked = effective.ddp.bucket_size
    there = f"where there are {known}" if known else "where it is not known how many there are"
    notes.change("ddp.bucket_size", asked, size, f"{made} buckets in the first chunk, {there}")
    if known and made < known:
        notes.unproven.append(
            f"ddp.bucket_size: {known} buckets; {made} are trained: a first, several in the middle "
            "and a last"
        )


def _place(size: int, sections: Sections, ranks: int) -> None:
    """Write a bucket size where it takes effect: comm_overlap has the last word, or none at all."""
    for section in ("comm_overlap", "ddp"):
        if section in sections:
            sections[section]["bucket_size"] = size
            if as_run(sections, ranks).ddp.bucket_size == size:
                return
            del sections[section]["bucket_size"]


def bucket_size_for(count: int, buckets: Callable[[int], int]) -> int:
    """The largest bucket size, in parameters, that makes `count` buckets, or the next more.

    Where no size makes as many, that of the most.

    Args:
        count: how many there should be.
        buckets: how many a size makes; no more the larger the size is.
    """
    low, high = 1, _LARGEST
    count = min(count, buckets(low))
    while high - low > 1:
        middle = (low + high) // 2
        if buckets(middle) >= count:
            low = middle
        else:
            high = middle
    return low


def _first_layers(model: Any) -> int | None:
    """Layers of the first stage's first chunk; None where they are not known."""
    layout = getattr(model, "pipeline_model_parallel_layout", None)
    if isinstance(layout, list) and layout and isinstance(layout[0], list):
        return layout[0].count("decoder")
    if isinstance(layout, str):
        return unrolled(layout).split("|")[0].count("t")
    try:
        return len(layers_by_chunk(model)[0][0])
    except UncountableModel:
        return None


def _count(run: Run, data_parallel_size: int, layers: int) -> int | None:
    """Gradient buckets of the first model chunk; None where they are not known.

    The chunk is counted as one of a model whose other stage has the same layers, since a
    pipeline_model_parallel_layout is not read there.
    """
    fields = vars(run.model) | dict.fromkeys(_MORE_TENSORS)
    fields |= {"num_layers": layers}
    pattern = fields.get("moe_layer_freq")
    if isinstance(pattern, list):
        fields["moe_layer_freq"] = pattern[:layers]
    if (fields.get("pipeline_model_parallel_size") or 1) > 1:
        fields |= {"num_layers": 2 * layers, "pipeline_model_parallel_size": 2}
        fields |= {"account_for_embedding_in_pipeline_split": False}
        fields |= {"account_for_loss_in_pipeline_split": False}
        if isinstance(pattern, list):
            fields["moe_layer_freq"] = pattern[:layers] * 2
    late = bool(getattr(run.optimizer, "overlap_param_gather_with_optimizer_step", False))
    try:
        chunks = bucketing(
            SimpleNamespace(**fields),
            run.ddp,
            data_parallel_size=data_parallel_size,
            layer_spec="transformer_engine",
            overlap_param_gather_with_optimizer_step=late,
        )
    except UncountableModel:
        return None
    return len(chunks[0].buckets)
