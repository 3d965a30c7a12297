"""Which data-parallel overlap comm_overlap chooses, and how large its gradient buckets are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.models.parameter_count import UncountableModel, chunk_parameters
from megatron.bridge.training.bucket_size import (
    AUTO,
    BRIDGE_BUCKET_SIZE,
    SMALLEST_BUCKET,
    auto_bucket_size,
    is_bucket_size,
)
from megatron.bridge.training.decisions import (
    Decision,
    Dimension,
    Outcome,
    OverlapConfigError,
    rule,
)
from megatron.bridge.training.rules.context import Context, choose

DP_NEEDS_DISTRIBUTED_OPTIMIZER = rule(
    "dp.needs-distributed-optimizer",
    Dimension.DP,
    claim="comm_overlap's data-parallel knobs are ignored while ddp.use_distributed_optimizer is "
    "off.",
    remedy="set ddp.use_distributed_optimizer=true",
)
DP_NOTHING_TO_OVERLAP = rule(
    "dp.size-1",
    Dimension.DP,
    claim="With data-parallel size 1 all data-parallel overlap is off and bucket_size is None.",
    remedy="ask for it in comm_overlap, whose values win over this default",
)
DP_DEFAULTS = rule(
    "dp.defaults",
    Dimension.DP,
    claim="With data-parallel size > 1 overlap_grad_reduce and overlap_param_gather are on.",
    remedy="set the knob in comm_overlap: its values win over this default",
)
DP_BUCKET_SIZE = rule(
    "dp.bucket-size",
    Dimension.DP,
    claim=f"bucket_size is {BRIDGE_BUCKET_SIZE} parameters (128 Mi, not bytes) by default with "
    'data-parallel size > 1; "auto" fits it to the model.',
    remedy='set comm_overlap.bucket_size to "auto" or to a number of parameters',
)
DP_BUCKET_VALUE = rule(
    "dp.bucket-size-value",
    Dimension.DP,
    claim='comm_overlap.bucket_size is a number of parameters above 0, "auto" or None.',
    remedy="set comm_overlap.bucket_size=auto",
)
DP_ALIGN = rule(
    "dp.align-param-gather",
    Dimension.DP,
    claim="align_param_gather is on by default only with data-parallel size > 1, PP > 1 and "
    "VPP > 1.",
    remedy="set comm_overlap.align_param_gather",
)
DP_OPTIMIZER_STEP = rule(
    "dp.param-gather-with-optimizer-step",
    Dimension.DP,
    claim="overlap_param_gather_with_optimizer_step stays off by default, because of a "
    "checkpointing problem.",
    remedy="set comm_overlap.overlap_param_gather_with_optimizer_step=true",
    opt_in=True,
)

_DP_KNOBS = {
    "overlap_grad_reduce": "ddp",
    "overlap_param_gather": "ddp",
    "bucket_size": "ddp",
    "align_param_gather": "ddp",
    "overlap_param_gather_with_optimizer_step": "optimizer",
}


def decide_dp(c: Context) -> Iterator[Decision]:
    dp = c.data_parallel_size
    interleaved = c.pipeline_size > 1 and c.virtual_pipeline_size > 1
    if dp is None or dp < 1:
        raise OverlapConfigError(
            f"comm_overlap.data_parallel_size is {dp!r}; it must be set before setup(): "
            "world size / (TP x PP x CP)"
        )
    if dp == 1:
        reason = "data-parallel size is 1: there is no other replica to exchange with"
        if (cp := c.of_model("context_parallel_size") or 1) > 1:
            reason += f" (but the {cp} context-parallel ranks still reduce gradients, unhidden)"
        defaults: dict[str, Any] = dict.fromkeys(_DP_KNOBS, False) | {"bucket_size": None}
        rules = dict.fromkeys(_DP_KNOBS, DP_NOTHING_TO_OVERLAP)
    else:
        reason = f"data-parallel size is {dp}"
        defaults = {
            "overlap_grad_reduce": True,
            "overlap_param_gather": True,
            "bucket_size": BRIDGE_BUCKET_SIZE,
            "align_param_gather": interleaved,
            "overlap_param_gather_with_optimizer_step": False,
        }
        rules = {
            "overlap_grad_reduce": DP_DEFAULTS,
            "overlap_param_gather": DP_DEFAULTS,
            "bucket_size": DP_BUCKET_SIZE,
            "align_param_gather": DP_ALIGN,
            "overlap_param_gather_with_optimizer_step": DP_OPTIMIZER_STEP,
        }
    for knob, section in _DP_KNOBS.items():
        asked = getattr(c.request, knob)
        if knob == "bucket_size" and asked == AUTO:
            yield _decide_auto_bucket(c, dp)
        elif knob == "bucket_size" and asked is not None and not is_bucket_size(asked):
            yield DP_BUCKET_VALUE.decide(
                "ddp.bucket_size",
                requested=asked,
                effective=None,
                reason=f"comm_overlap.bucket_size is {asked!r}",
                outcome=Outcome.ERROR,
            )
        else:
            yield choose(rules[knob], f"{section}.{knob}", defaults[knob], asked, reason)


def _decide_auto_bucket(c: Context, dp: int) -> Decision:
    """A number for bucket_size="auto", from the parameters that Megatron-Core puts into buckets.

    Dense and expert gradients have buffers of their own, reduced by different ranks, and share the
    one bucket_size: the buffer that needs the smaller buckets decides.
    """
    sizes = [
        (auto_bucket_size(parameters, ranks), parameters, ranks, kind)
        for kind, parameters, ranks in _reduced_buffers(c, dp)
        if ranks > 1 and parameters > SMALLEST_BUCKET
    ]
    size, parameters, ranks, kind = min(sizes, default=(SMALLEST_BUCKET, 0, dp, ""))
    told = f"auto: {parameters:,}{kind} parameters per rank in the first chunk, reduced by {ranks}"
    return DP_BUCKET_SIZE.decide(
        "ddp.bucket_size",
        requested=AUTO,
        effective=size,
        reason=f"{told} ranks",
        outcome=Outcome.GRANTED,
    )


def _reduced_buffers(c: Context, dp: int) -> Iterator[tuple[str, int, int]]:
    """Gradient buffers of one rank's first model chunk: kind, parameters, ranks that reduce it."""
    # Context-parallel ranks hold the same parameters and join the reduction.
    ranks = dp * (c.of_model("context_parallel_size") or 1)
    tp = c.model.tensor_model_parallel_size or 1
    ep = c.of_model("expert_model_parallel_size") or 1
    expert_ranks = ranks * tp // (ep * (c.of_model("expert_tensor_parallel_size") or tp))
    try:
        tensors = chunk_parameters(c.model)
    except UncountableModel:
        try:
            # The vocabulary often comes with the tokenizer, later: the layers alone serve well.
            vocabulary = 1 if c.of_model("vocab_size") is None else None
            tensors = chunk_parameters(c.model, vocab_size=vocabulary)
        except UncountableModel:
            yield " (estimated)", _estimated_parameters(c), ranks
            return
    experts = sum(t.numel for t in tensors if t.expert)
    yield "", sum(t.numel for t in tensors) - experts, ranks
    if experts:
        yield " expert", experts, expert_ranks


def _estimated_parameters(c: Context) -> int:
    """A lower bound for a model that cannot be counted: its attention and feed-forward weights.

    12 x hidden^2 a layer, as in a plain transformer whose feed-forward is 4 hidden sizes wide.
    """
    hidden = c.of_model("hidden_size") or 0
    layers = c.of_model("num_layers") or 1
    chunks = c.pipeline_size * c.virtual_pipeline_size
    tp = c.model.tensor_model_parallel_size or 1
    return 12 * hidden * hidden * max(layers // chunks, 1) // tp


def decide_dp_ignored(c: Context) -> Iterator[Decision]:
    """What becomes of data-parallel knobs without the distributed optimizer: nothing is touched."""
    for knob, section in _DP_KNOBS.items():
        holder = c.optimizer if section == "optimizer" else c.ddp
        asked, present = getattr(c.request, knob), getattr(holder, knob, None)
        reason = (
            "ddp.use_distributed_optimizer is off, so comm_overlap leaves data parallelism alone"
        )
        if asked is None and present:
            outcome = Outcome.DEFAULT
        elif asked is None:
            # Told of the two that comm_overlap would have turned on.
            if knob not in ("overlap_grad_reduce", "overlap_param_gather"):
                continue
            outcome = Outcome.NOTE
        elif present == asked or (asked is False and not present):
            reason += f" ({section} holds the same value by itself)"
            outcome = Outcome.GRANTED
        else:
            outcome = Outcome.REFUSED
        yield DP_NEEDS_DISTRIBUTED_OPTIMIZER.decide(
            f"{section}.{knob}",
            requested=asked,
            effective=present,
            reason=reason,
            outcome=outcome,
            remedy=DP_NEEDS_DISTRIBUTED_OPTIMIZER.remedy
            if outcome in (Outcome.NOTE, Outcome.REFUSED)
            else None,
        )
