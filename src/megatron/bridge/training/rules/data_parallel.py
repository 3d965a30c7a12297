"""The data-parallel overlap that comm_overlap chooses, and the size of its gradient buckets."""

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
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.remedies import DISTRIBUTED, Edits
from megatron.bridge.training.rules.context import Context, choose
from megatron.bridge.training.versions import Range, holds

DP_NEEDS_DISTRIBUTED_OPTIMIZER = rule(
    "dp.needs-distributed-optimizer",
    Dimension.DP,
    claim="comm_overlap's data-parallel knobs are ignored while ddp.use_distributed_optimizer is "
    "off.",
    remedy="set ddp.use_distributed_optimizer=true",
    edits=(Edit(DISTRIBUTED, True),),
)
DP_MUON = rule(
    "dp.muon-by-name",
    Dimension.DP,
    claim="Megatron-Bridge chooses the layer-wise optimizer where optimizer.optimizer is "
    "dist_muon, without the distributed optimizer, so that comm_overlap applies none of its "
    "data-parallel overlap, and nothing says so. Values on ddp itself keep their effect.",
    remedy="set the knob on ddp itself, such as ddp.overlap_grad_reduce=true",
    source="Megatron-Bridge src/megatron/bridge/training/optim.py",
)
DP_NOTHING_TO_OVERLAP = rule(
    "dp.size-1",
    Dimension.DP,
    claim="With data-parallel size 1 all data-parallel overlap is off and bucket_size is None.",
    remedy="set the knob in comm_overlap: its values win over this default",
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
    edits=(Edit("comm_overlap.bucket_size", AUTO),),
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
    claim="overlap_param_gather_with_optimizer_step is off by default, because of a "
    "checkpointing problem.",
    remedy="set comm_overlap.overlap_param_gather_with_optimizer_step=true",
    opt_in=True,
)

_GATHERS_LAYER_WISE = (Range("core", since="0.17.1"),)
"""As core.param-gather-layer-wise: before, the gather needs the distributed optimizer."""

_DP_KNOBS = {
    "overlap_grad_reduce": "ddp",
    "overlap_param_gather": "ddp",
    "bucket_size": "ddp",
    "align_param_gather": "ddp",
    "overlap_param_gather_with_optimizer_step": "optimizer",
}

GATHERS_DIFFER = rule(
    "dp.param-gather-differs",
    Dimension.DP,
    claim="Where overlap_param_gather differs between ddp and optimizer, ddp's decides alone "
    "whether parameters are gathered with overlap. The optimizer's is read only where MXFP8 "
    "parameters are gathered through the gradient buffer (wrong.mxfp8-gathers-differ).",
    remedy="set overlap_param_gather to the same value on ddp and optimizer",
    versions=(Range("bridge", until="0.5.1"),),
    source="Megatron-LM megatron/core/optimizer: optimizer.py, distrib_optimizer.py; "
    "Megatron-Bridge 4bb633034 keeps them equal",
)


def decide_dp(c: Context) -> Iterator[Decision]:
    """Every data-parallel knob of comm_overlap: as requested, else the default of its rule.

    Raises:
        OverlapConfigError: the data-parallel size is not known.
    """
    dp = c.data_parallel_size
    interleaved = c.pipeline_size > 1 and c.virtual_pipeline_size > 1
    if dp is None or dp < 1:
        raise OverlapConfigError(
            f"comm_overlap.data_parallel_size is {dp!r}; it must be set before setup(): "
            "world size / (TP x PP x CP)"
        )
    if dp == 1:
        reason = "data-parallel size is 1, so there is no other replica to exchange with"
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
        requested = getattr(c.request, knob)
        if knob == "bucket_size" and requested is not None and not is_bucket_size(requested):
            yield _decide_other_bucket(c, dp, requested)
        else:
            yield choose(rules[knob], f"{section}.{knob}", defaults[knob], requested, reason)


def _decide_other_bucket(c: Context, dp: int, requested: Any) -> Decision:
    """A request for bucket_size that is no number of parameters: "auto", or an error."""
    if requested == AUTO:
        return _decide_auto_bucket(c, dp)
    return DP_BUCKET_VALUE.decide(
        "ddp.bucket_size",
        requested=requested,
        effective=None,
        reason=f"comm_overlap.bucket_size is {requested!r}",
        outcome=Outcome.ERROR,
    )


def _decide_auto_bucket(c: Context, dp: int) -> Decision:
    """A number for bucket_size="auto", from the parameters that Megatron-Core puts into buckets.

    Dense and expert gradients have separate buffers, which different ranks reduce, and share one
    bucket_size: the buffer that needs the smaller buckets decides.
    """
    sizes = [
        (auto_bucket_size(parameters, ranks), parameters, ranks, kind)
        for kind, parameters, ranks in _reduced_buffers(c, dp)
        if ranks > 1 and parameters > SMALLEST_BUCKET
    ]
    size, parameters, ranks, kind = min(sizes, default=(SMALLEST_BUCKET, 0, dp, ""))
    counted = f"{parameters:,}{kind} parameters per rank in the first chunk"
    return DP_BUCKET_SIZE.decide(
        "ddp.bucket_size",
        requested=AUTO,
        effective=size,
        reason=f"auto: {counted}, reduced by {ranks} ranks",
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
            # The vocabulary often comes later, with the tokenizer: the layers alone are enough.
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

    12 x hidden^2 per layer, as in a plain transformer whose feed-forward is 4 hidden sizes wide.
    """
    hidden = c.of_model("hidden_size") or 0
    layers = c.of_model("num_layers") or 1
    chunks = c.pipeline_size * c.virtual_pipeline_size
    tp = c.model.tensor_model_parallel_size or 1
    return 12 * hidden * hidden * max(layers // chunks, 1) // tp


def decide_dp_ignored(c: Context) -> Iterator[Decision]:
    """The data-parallel knobs without the distributed optimizer: comm_overlap changes none."""
    name = str(c.of_optimizer("optimizer", ""))
    muon = "muon" in name
    by = DP_MUON if muon else DP_NEEDS_DISTRIBUTED_OPTIMIZER
    for knob, section in _DP_KNOBS.items():
        holder = c.optimizer if section == "optimizer" else c.ddp
        requested, present = getattr(c.request, knob), getattr(holder, knob, None)
        reason = (
            f"ddp.use_distributed_optimizer is off{f' with {name}' if muon else ''}, so "
            "comm_overlap leaves data parallelism alone"
        )
        if requested is None and present:
            outcome = Outcome.DEFAULT
        elif requested is None:
            # Only the two that comm_overlap would have turned on are worth a note.
            if knob not in ("overlap_grad_reduce", "overlap_param_gather"):
                continue
            outcome = Outcome.NOTE
        elif present == requested or (requested is False and not present):
            reason += f" ({section} has the same value anyway)"
            outcome = Outcome.GRANTED
        else:
            outcome = Outcome.REFUSED
        fixable = outcome in (Outcome.NOTE, Outcome.REFUSED)
        edits = _on_ddp_itself(c, section, knob) if muon else by.edits
        yield by.decide(
            f"{section}.{knob}",
            requested=requested,
            effective=present,
            reason=reason,
            outcome=outcome,
            remedy=in_words(edits) if fixable and edits else None,
            edits=edits if fixable else (),
        )


def _on_ddp_itself(c: Context, section: str, knob: str) -> Edits:
    """A knob as comm_overlap requests it, set where the layer-wise optimizer's run reads it."""
    requested = getattr(c.request, knob)
    ignored = knob == "overlap_param_gather" and not holds(_GATHERS_LAYER_WISE, c.stack)
    if ignored or knob == "overlap_param_gather_with_optimizer_step":
        # The layer-wise optimizer does not do either, so a request is all that can be changed.
        return (Edit(f"comm_overlap.{knob}", False),) if requested else ()
    edits: Edits = ()
    if knob in ("overlap_param_gather", "bucket_size") and not c.of_ddp("overlap_grad_reduce"):
        edits = (Edit("ddp.overlap_grad_reduce", True),)
    return (*edits, Edit(f"{section}.{knob}", True if requested is None else requested))


def gathers_differ(c: Context) -> Iterator[Decision]:
    """What follows where ddp and optimizer disagree about the gather, and nothing makes them equal.

    Where MXFP8 parameters are gathered through the gradient buffer, the rule of
    wrong numbers speaks.
    """
    on_ddp = bool(c.of_ddp("overlap_param_gather"))
    on_optimizer = bool(c.of_optimizer("overlap_param_gather"))
    applies = c.fsdp is None and c.of_ddp("use_distributed_optimizer")
    if on_ddp == on_optimizer or not applies or c.of_ddp("reuse_grad_buf_for_mxfp8_param_ag"):
        return
    knob = "overlap_param_gather"
    if on_ddp:
        yield GATHERS_DIFFER.decide(
            f"optimizer.{knob}",
            requested=None,
            effective=False,
            reason="it is on for ddp and off for the optimizer: ddp's decides, and parameters are "
            "gathered with overlap",
            outcome=Outcome.NOTE,
            edits=(Edit(f"optimizer.{knob}", True),),
        )
        return
    needed = [] if c.of_ddp("overlap_grad_reduce") else ["overlap_grad_reduce"]
    yield GATHERS_DIFFER.decide(
        f"optimizer.{knob}",
        requested=True,
        effective=False,
        reason="it is off for ddp, which decides alone: every step waits for the gather of all "
        "parameters",
        outcome=Outcome.REFUSED,
        edits=tuple(Edit(f"ddp.{name}", True) for name in [*needed, knob]),
    )
