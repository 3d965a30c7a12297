"""Microbatches: fewer and smaller, in the same relation to the pipeline."""

from __future__ import annotations

from typing import Any

from overlapkit.lab.own.layout import Layout
from overlapkit.lab.own.reduced import Notes


def fewer_microbatches(
    model: Any, train: Any, old: Layout, new: Layout, notes: Notes
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of `train`, and keys of `model`, for fewer microbatches.

    There are fewer microbatches than stages, as many or more, as in the user's run; and a whole
    multiple of the stages, or none. Where the user's number is not known, there are two for each
    stage.
    """
    micro = getattr(train, "micro_batch_size", None) or 1
    batch = getattr(train, "global_batch_size", None)
    count = max(1, batch // (micro * old.dp)) if batch else 2 * old.pp
    group = getattr(model, "microbatch_group_size_per_vp_stage", None)
    of_model: dict[str, Any] = {}
    if group and new.pp > 1 and (getattr(model, "virtual_pipeline_model_parallel_size", None)):
        # A group of microbatches passes a chunk before the next chunk gets one.
        smaller = new.pp if group <= old.pp else 2 * new.pp
        groups = 1 if count <= group else 2
        fewer = groups * smaller + (new.pp if count > group and count % group else 0)
        of_model["microbatch_group_size_per_vp_stage"] = smaller
        notes.change("model.microbatch_group_size_per_vp_stage", group, smaller, "as the stages")
    elif new.pp == 1:
        fewer = min(count, 2)
    elif count < old.pp:
        fewer = min(count, new.pp - 1)
    elif count == old.pp:
        fewer = new.pp
    else:
        fewer = 2 * new.pp + (1 if count % old.pp else 0)
    size = min(micro, 2)
    of_train = {"micro_batch_size": size, "global_batch_size": size * new.dp * fewer}
    notes.change("train.micro_batch_size", micro, size, "a step stays short")
    notes.change(
        "train.global_batch_size",
        getattr(train, "global_batch_size", None),
        of_train["global_batch_size"],
        _relation(fewer, new.pp)
        + (f", where there are {_relation(count, old.pp)}" if batch else ""),
    )
    if getattr(train, "rampup_batch_size", None):
        notes.change("train.rampup_batch_size", train.rampup_batch_size, None, "a few steps only")
    return of_train, of_model


def _relation(microbatches: int, stages: int) -> str:
    many = "microbatch" if microbatches == 1 else "microbatches"
    return f"{microbatches} {many}" + (f" for {stages} stages" if stages > 1 else "")
