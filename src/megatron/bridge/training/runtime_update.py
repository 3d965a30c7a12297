"""The order in which a run's configurations become effective.

Mixed precision first, then the data-parallel size, then comm_overlap, then the distributed
optimizer's switch, then what Megatron-Core makes of it all. The order is itself a rule: what an
earlier step or a hand wrote, a later step overwrites.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from megatron.bridge.training.comm_overlap import CommOverlapConfig, InstalledSoftware
from megatron.bridge.training.decisions import (
    Decision,
    Dimension,
    Outcome,
    OverlapConfigError,
    raise_errors,
    rule,
)
from megatron.bridge.training.mixed_precision import precision_errors
from megatron.bridge.training.rules.context import Context, _CommOverlapConfig
from megatron.bridge.training.rules.megatron_core import (
    core_consequences,
    layout_sets_vpp,
    without_comm_overlap,
)
from megatron.bridge.training.software import Software

OPTIMIZER_SWITCH = rule(
    "dp.distributed-optimizer-sync",
    Dimension.DP,
    claim="use_distributed_optimizer on either of ddp and optimizer turns it on for both, but only "
    "after comm_overlap was applied, which looks at ddp's alone.",
    remedy="set ddp.use_distributed_optimizer=true",
)
OVERWRITTEN = rule(
    "any.set-by-hand-overwritten",
    Dimension.ANY,
    claim="With a comm_overlap section, its defaults overwrite what was set on model, ddp and "
    "optimizer by hand.",
    remedy="set the knob in comm_overlap",
)


class Run(Protocol):
    """The configurations of a run: a ConfigContainer, or what was read from a file."""

    model: Any
    optimizer: Any
    ddp: Any
    mixed_precision: Any  # MixedPrecisionConfig | None; a name is resolved before.
    comm_overlap: CommOverlapConfig | None


def data_parallel_size(model: Any, world_size: int) -> int:
    """World size / (TP x PP x CP).

    Raises:
        OverlapConfigError: it does not divide.
    """
    sizes = {
        "tensor_model_parallel_size": model.tensor_model_parallel_size,
        "pipeline_model_parallel_size": model.pipeline_model_parallel_size,
        "context_parallel_size": getattr(model, "context_parallel_size", 1),
    }
    ranks = 1
    for size in sizes.values():
        ranks *= size or 1
    if world_size % ranks:
        product = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise OverlapConfigError(
            f"world size ({world_size}) is not divisible by {product} = {ranks}; "
            f"change the layout or use a multiple of {ranks} GPUs"
        )
    return world_size // ranks


@dataclass(frozen=True)
class Update:
    """What an update did.

    Attributes:
        data_parallel_size: world size / (TP x PP x CP).
        decisions: every decision, in the order in which it was taken.
    """

    data_parallel_size: int
    decisions: list[Decision]


def update_runtime(
    run: Run, world_size: int, *, software: Software | None = None, strict: bool = True
) -> Update:
    """Make a run's configurations effective, in place and in order.

    Args:
        run: its model, optimizer and ddp are changed; mixed_precision and comm_overlap are read.
        world_size: number of ranks (GPUs) of the job.
        software: what is installed; by default looked up.
        strict: raise on the first step whose decisions hold an error; otherwise go on, so that
            every error is seen.

    Raises:
        OverlapConfigError: the layout does not divide the world size, or, with `strict`, the run
            must not start.
    """
    decisions: list[Decision] = []

    def step(taken: Iterator[Decision] | list[Decision]) -> None:
        taken = list(taken)
        if strict:
            raise_errors(taken)
        decisions.extend(taken)

    if run.mixed_precision is not None:
        errors = precision_errors(run.mixed_precision, software=software)
        step(errors)
        if not errors:
            run.mixed_precision.setup(run.model, run.optimizer, run.ddp, software=software)
            step(run.mixed_precision.decisions)

    dp_size = data_parallel_size(run.model, world_size)
    if run.comm_overlap is not None:
        run.comm_overlap.data_parallel_size = dp_size
        resolution = run.comm_overlap.resolve(run.model, run.ddp, software, run.optimizer)
        step(resolution.decisions + resolution.userbuffers)
        if software is None:
            run.comm_overlap.setup(run.model, run.optimizer, run.ddp)
        else:
            run.comm_overlap.apply(resolution, run.model, run.optimizer, run.ddp)

    step(layout_sets_vpp(run.model))
    step(sync_distributed_optimizer(run))
    context = Context(
        request=_CommOverlapConfig(),
        model=run.model,
        ddp=run.ddp,
        software=software or InstalledSoftware(),
        data_parallel_size=dp_size,
    )
    if run.comm_overlap is None:
        step(without_comm_overlap(context))
    step(core_consequences(context, run.optimizer))
    return Update(dp_size, decisions)


def sync_distributed_optimizer(run: Run) -> list[Decision]:
    """Turn the distributed optimizer on for both ddp and optimizer where it is on for either."""
    on_ddp = bool(getattr(run.ddp, "use_distributed_optimizer", False))
    on_optimizer = bool(getattr(run.optimizer, "use_distributed_optimizer", False))
    if on_ddp == on_optimizer:
        return []
    run.ddp.use_distributed_optimizer = run.optimizer.use_distributed_optimizer = True
    late = " after comm_overlap had left data parallelism alone" if not on_ddp else ""
    return [
        OPTIMIZER_SWITCH.decide(
            f"{'ddp' if on_optimizer else 'optimizer'}.use_distributed_optimizer",
            requested=None,
            effective=True,
            reason=f"it is on for {'the optimizer' if on_optimizer else 'ddp'}, so it was turned "
            f"on for both{late}",
            outcome=Outcome.NOTE,
            remedy=OPTIMIZER_SWITCH.remedy if not on_ddp else None,
        )
    ]


def hold_against_request(
    decisions: list[Decision], asked: Mapping[str, Any], effective: Mapping[str, Any]
) -> list[Decision]:
    """The decisions, each held against what was set by hand: granted, or turned into a refusal.

    Args:
        decisions: as `update_runtime` took them.
        asked: dotted knob to the value that the user wrote on model, ddp or optimizer.
        effective: dotted knob to the value that it has now.
    """
    by_hand = {k: v for k, v in asked.items() if k in effective}
    told: set[str] = set()
    result = []
    for decision in decisions:
        value = by_hand.get(decision.knob)
        # A note tells what follows from a value, but for one that tells that it overwrote it.
        chooses = decision.outcome in (Outcome.DEFAULT, Outcome.GRANTED)
        overwrote = decision.outcome is Outcome.NOTE and decision.requested == value
        if decision.outcome is Outcome.REFUSED:
            told.add(decision.knob)
        elif value is not None and (chooses or overwrote):
            told.add(decision.knob)
            decision = _held(decision, value)
        result.append(decision)
    undone = {k: v for k, v in by_hand.items() if k not in told and effective[k] != v}
    result += [
        OVERWRITTEN.decide(
            knob,
            requested=value,
            effective=effective[knob],
            reason=f"set to {value!r} by hand, and overwritten",
            outcome=Outcome.REFUSED,
        )
        for knob, value in undone.items()
    ]
    return result


def _held(decision: Decision, value: Any) -> Decision:
    """A decision about a knob that was also set to `value` by hand."""
    if decision.effective == value:
        return replace(decision, requested=value, outcome=Outcome.GRANTED)
    knob = decision.knob.rpartition(".")[2]
    told = value if not isinstance(value, bool) else str(value).lower()
    return replace(
        decision,
        requested=value,
        outcome=Outcome.REFUSED,
        reason=f"set to {told} by hand, and overwritten: {decision.reason}",
        remedy=decision.remedy or f"set comm_overlap.{knob}={told}",
    )
