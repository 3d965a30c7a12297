"""The shard of a bucket that each rank keeps, and what a checkpoint needs in it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

from megatron.bridge.models.layer_blocks import UncountableModel
from megatron.bridge.training.bucketing import Bucket, bucketing
from megatron.bridge.training.decisions import Decision, Dimension, rule
from megatron.bridge.training.edits import Edit, either
from megatron.bridge.training.rules.context import Context

_PADDED = "ddp.pad_buckets_for_high_nccl_busbw"
_RESHARDABLE = "set checkpoint.dist_ckpt_optim_fully_reshardable=true"

SHARD_OF_PADDING = rule(
    "core.checkpoint-shard-of-padding",
    Dimension.DP,
    claim="A checkpoint in the format dp_reshardable, the default of the distributed optimizer, "
    "stops the job where a rank's shard of a bucket is padding only: a small bucket over many "
    "ranks, or with pad_buckets_for_high_nccl_busbw (observed with megatron-core 0.16.1; the "
    "assertion is there to 0.19.0).",
    remedy=f"{_RESHARDABLE}, or ddp.pad_buckets_for_high_nccl_busbw=false where that pads it",
    source="Megatron-LM megatron/core/optimizer/distrib_optimizer.py, "
    "sharded_param_state_dp_reshardable",
)


def shard_checks(c: Context) -> Iterator[Decision]:
    """Whether each rank has a part of a tensor in each bucket, where checkpoints need it."""
    if not _written(c):
        return
    bucket = _of_padding(c, c.ddp)
    if bucket is None:
        return
    shard = bucket.size // bucket.ranks
    idle = bucket.ranks - -(-bucket.end // shard)
    edits: tuple[Edit, ...] = ()
    if c.of_ddp("pad_buckets_for_high_nccl_busbw"):
        ddp = copy(c.ddp)
        ddp.pad_buckets_for_high_nccl_busbw = False
        edits = (Edit(_PADDED, False),) if _of_padding(c, ddp) is None else ()
    yield SHARD_OF_PADDING.error(
        "ddp.use_distributed_optimizer",
        True,
        f"a bucket of {'experts' if bucket.expert else 'parameters'} with {bucket.end:,} elements "
        f"is padded to {bucket.size:,} for {bucket.ranks} ranks, and {idle} of them "
        f"{'keeps' if idle == 1 else 'keep'} padding alone: the first checkpoint stops the job "
        "with an AssertionError (empty bucket encountered)",
        either(edits, _RESHARDABLE),
        edits,
    )


def _written(c: Context) -> bool:
    """Whether the distributed optimizer's state is certainly saved in the format."""
    if c.fsdp is not None or not c.of_ddp("use_distributed_optimizer"):
        return False
    saves = getattr(c.train, "save", None) and getattr(c.train, "save_optim", True)
    form = getattr(c.train, "ckpt_format", None) or "torch_dist"
    whole = getattr(c.train, "dist_ckpt_optim_fully_reshardable", False)
    return bool(saves and form == "torch_dist" and not whole)


def _of_padding(c: Context, ddp: Any) -> Bucket | None:
    """The first bucket whose last shard has no part of a tensor; None where none is known."""
    step = bool(c.of_optimizer("overlap_param_gather_with_optimizer_step"))
    try:
        chunks = bucketing(
            c.model,
            ddp,
            data_parallel_size=c.data_parallel_size or 1,
            overlap_param_gather_with_optimizer_step=step,
        )
    except UncountableModel:
        return None
    buckets = (bucket for chunk in chunks for bucket in chunk.buckets)
    return next((b for b in buckets if b.end <= b.size - b.size // b.ranks), None)
