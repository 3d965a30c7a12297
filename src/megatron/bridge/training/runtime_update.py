"""The order in which a run's configurations become effective.

Mixed precision first, then the data-parallel size, then comm_overlap, then the distributed
optimizer's switch, then what Megatron-Core does with the result. The order is itself a rule: a
later step overwrites what an earlier step or the user has set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from megatron.bridge.training.comm_overlap import CommOverlapConfig, InstalledSoftware
from megatron.bridge.training.decisions import (
    Decision,
    Dimension,
    Outcome,
    OverlapConfigError,
    in_force,
    raise_errors,
    rule,
)
from megatron.bridge.training.edits import Edit, either, in_words
from megatron.bridge.training.job_environment import (
    ENV_VARS,
    UNKNOWN,
    JobEnvironment,
    with_env_vars,
)
from megatron.bridge.training.mixed_precision import precision_errors
from megatron.bridge.training.remedies import DISTRIBUTED
from megatron.bridge.training.rules.bridge_buckets import bucket_size_at_wrap
from megatron.bridge.training.rules.context import Context, Gpu, Launcher, _CommOverlapConfig
from megatron.bridge.training.rules.core_pipeline import layout_sets_vpp
from megatron.bridge.training.rules.data_parallel import gathers_differ
from megatron.bridge.training.rules.data_parallel_refusals import step_consequences
from megatron.bridge.training.rules.dispatchers import dispatcher_consequences, update_dispatcher
from megatron.bridge.training.rules.fsdp import fsdp_consequences, update_fsdp
from megatron.bridge.training.rules.graphs import update_graphs
from megatron.bridge.training.rules.megatron_core import (
    core_consequences,
    without_comm_overlap,
)
from megatron.bridge.training.rules.pipeline import PP_INTERLEAVED
from megatron.bridge.training.software import Software
from megatron.bridge.training.versions import MAIN, Range, Stack

OPTIMIZER_SWITCH = rule(
    "dp.distributed-optimizer-sync",
    Dimension.DP,
    claim="use_distributed_optimizer on either ddp or optimizer turns it on for both, but only "
    "after comm_overlap was applied, and comm_overlap reads only ddp's.",
    remedy="set ddp.use_distributed_optimizer=true",
    edits=(Edit(DISTRIBUTED, True),),
)
GATHER_SYNC = rule(
    "dp.param-gather-sync",
    Dimension.DP,
    claim="overlap_param_gather on either of ddp and optimizer turns it on for both.",
    versions=(Range("bridge", since="0.5.1"),),
    source="Megatron-Bridge 4bb633034",
)
PACKING_OFF = rule(
    "bridge.packing-no-ep-overlap",
    Dimension.EP,
    claim="Packing of Energon's VLM batches (dataset.packing_buffer_size) turns "
    "overlap_moe_expert_parallel_comm and delay_wgrad_compute off, in comm_overlap too.",
    remedy="set the two to false, or dataset.packing_buffer_size=null",
    versions=(Range("bridge", since=MAIN),),
    source="Megatron-Bridge 46d7e9f4f",
)
OVERWRITTEN = rule(
    "any.set-by-hand-overwritten",
    Dimension.ANY,
    claim="With a comm_overlap section, its defaults overwrite what was set explicitly on model, "
    "ddp and optimizer.",
    remedy="set the knob in comm_overlap, or to the value that is in effect",
)


class Run(Protocol):
    """The configurations of a run: a ConfigContainer, or settings read from a file."""

    model: Any
    optimizer: Any
    ddp: Any
    mixed_precision: Any  # MixedPrecisionConfig | None; a recipe's name is already resolved.
    comm_overlap: CommOverlapConfig | None
    # Sections of Megatron-Bridge alone; None where nothing is known of them.
    dist: Any
    rerun_state_machine: Any
    dataset: Any


def data_parallel_size(model: Any, world_size: int) -> int:
    """World size / (TP x PP x CP).

    Raises:
        OverlapConfigError: the layout does not divide the world size.
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
    """The result of an update.

    Attributes:
        data_parallel_size: world size / (TP x PP x CP).
        decisions: every decision, in the order in which it was made.
        environment: what is known of the job's environment, with the configuration's env_vars.
        replaced: knobs whose request another mechanism fulfils, so that their value is no refusal.
    """

    data_parallel_size: int
    decisions: list[Decision]
    environment: JobEnvironment = UNKNOWN
    replaced: frozenset[str] = frozenset()


def update_runtime(
    run: Run,
    world_size: int,
    *,
    software: Software | None = None,
    environment: JobEnvironment = UNKNOWN,
    gpu: Gpu | None = None,
    launcher: Launcher | None = None,
    strict: bool = True,
) -> Update:
    """Make a run's configurations effective, in place and in order.

    Args:
        run: its model, optimizer and ddp are changed; mixed_precision and comm_overlap are read.
        world_size: number of ranks (GPUs) of the job.
        software: what is installed; looked up by default.
        environment: what is known of the job's environment, without the configuration's env_vars.
        gpu: the job's GPU, where it is known.
        launcher: how the job is started, where that is known.
        strict: raise at the first step whose decisions include an error; otherwise continue, so
            that every error is reported.

    Raises:
        OverlapConfigError: the layout does not divide the world size, or, with `strict`, the run
            must not start.
    """
    decisions: list[Decision] = []
    installed = software or InstalledSoftware()

    def step(taken: Iterable[Decision]) -> None:
        taken = list(taken)
        if strict:
            raise_errors(taken)
        decisions.extend(taken)

    environment, taken = with_env_vars(getattr(run, ENV_VARS, None), environment, installed.stack)
    step(taken)
    if run.mixed_precision is not None:
        errors = precision_errors(run.mixed_precision, software=software)
        step(errors)
        if not errors:
            run.mixed_precision.setup(run.model, run.optimizer, run.ddp, software=software)
            step(run.mixed_precision.decisions)

    dp_size = data_parallel_size(run.model, world_size)
    step(packing_without_overlap(run, installed.stack))
    request, sets_data_parallel = _CommOverlapConfig(), False
    if run.comm_overlap is not None:
        run.comm_overlap.data_parallel_size = dp_size
        resolution = run.comm_overlap.resolve(run.model, run.ddp, software, run.optimizer, gpu)
        sets_data_parallel = resolution.data_parallel is not None
        step(resolution.decisions + resolution.userbuffers)
        if software is None:
            run.comm_overlap.setup(run.model, run.optimizer, run.ddp)
        else:
            run.comm_overlap.apply(resolution, run.model, run.optimizer, run.ddp)
        request = run.comm_overlap.user_comm_overlap_cfg or request

    context = Context(
        request=request,
        model=run.model,
        ddp=run.ddp,
        software=installed,
        data_parallel_size=dp_size,
        optimizer=run.optimizer,
        dist=getattr(run, "dist", None),
        environment=environment,
        rerun_state_machine=getattr(run, "rerun_state_machine", None),
        dataset=getattr(run, "dataset", None),
        has_comm_overlap=run.comm_overlap is not None,
        sets_data_parallel=sets_data_parallel,
        mixed_precision=run.mixed_precision,
        gpu=gpu,
        launcher=launcher,
        train=getattr(run, "train", None),
        batch=getattr(run, "train", None),
        backend=getattr(getattr(run, "dist", None), "distributed_backend", None) or "nccl",
    )
    step(updates_after_overlap(run, context))
    if run.comm_overlap is None:
        step(without_comm_overlap(context))
    step(in_force(core_consequences(context, run.optimizer), context.stack))
    step(in_force(bridge_consequences(context), context.stack))
    return Update(dp_size, decisions, environment)


def updates_after_overlap(run: Run, c: Context) -> Iterator[Decision]:
    """What Megatron-Core and Megatron-Bridge change once comm_overlap was applied, in place."""
    yield from layout_sets_vpp(c.model)
    yield from update_graphs(c)
    yield from update_fsdp(c)
    yield from sync_distributed_optimizer(run)
    if GATHER_SYNC.holds(c.stack):
        yield from sync_param_gather(run)
    else:
        yield from gathers_differ(c)
    yield from update_dispatcher(c)
    yield from bucket_size_at_wrap(c)


def bridge_consequences(c: Context) -> Iterator[Decision]:
    """What Megatron-Bridge's own checks and wrappers make of the effective knobs."""
    yield from fsdp_consequences(c)
    yield from step_consequences(c)
    yield from dispatcher_consequences(c)


def packing_without_overlap(run: Run, stack: Stack) -> Iterator[Decision]:
    """Turn expert-parallel overlap off, on the model and in the request, for packed VLM batches."""
    size = getattr(getattr(run, "dataset", None), "packing_buffer_size", None)
    if not PACKING_OFF.holds(stack) or size is None:
        return
    for knob in ("overlap_moe_expert_parallel_comm", "delay_wgrad_compute"):
        holders = [run.model, run.comm_overlap]
        if run.comm_overlap is not None:
            holders.append(run.comm_overlap.user_comm_overlap_cfg)
        asked = [holder for holder in holders if getattr(holder, knob, False)]
        for holder in asked:
            setattr(holder, knob, False)
        sections = ("model" if holder is run.model else "comm_overlap" for holder in asked)
        edits = tuple(Edit(f"{section}.{knob}", False) for section in dict.fromkeys(sections))
        if asked:
            yield PACKING_OFF.decide(
                f"model.{knob}",
                requested=True,
                effective=False,
                reason=f"dataset.packing_buffer_size is {size}",
                outcome=Outcome.REFUSED,
                remedy=either(edits, "dataset.packing_buffer_size=null"),
                edits=edits,
            )


def sync_distributed_optimizer(run: Run) -> list[Decision]:
    """Turn the distributed optimizer on for both ddp and optimizer where it is on for either."""
    on_ddp = bool(getattr(run.ddp, "use_distributed_optimizer", False))
    on_optimizer = bool(getattr(run.optimizer, "use_distributed_optimizer", False))
    if on_ddp == on_optimizer:
        return []
    run.ddp.use_distributed_optimizer = run.optimizer.use_distributed_optimizer = True
    late = ", after comm_overlap had left data parallelism alone" if not on_ddp else ""
    return [
        OPTIMIZER_SWITCH.decide(
            f"{'ddp' if on_optimizer else 'optimizer'}.use_distributed_optimizer",
            requested=None,
            effective=True,
            reason=f"it is on for {'the optimizer' if on_optimizer else 'ddp'}, so it was turned "
            f"on for both{late}",
            outcome=Outcome.NOTE,
            edits=OPTIMIZER_SWITCH.edits if not on_ddp else (),
        )
    ]


def sync_param_gather(run: Run) -> list[Decision]:
    """Turn overlap_param_gather on for both ddp and optimizer where it is on for either."""
    on_ddp = bool(getattr(run.ddp, "overlap_param_gather", False))
    on_optimizer = bool(getattr(run.optimizer, "overlap_param_gather", False))
    if on_ddp == on_optimizer:
        return []
    run.ddp.overlap_param_gather = run.optimizer.overlap_param_gather = True
    return [
        GATHER_SYNC.decide(
            f"{'ddp' if on_optimizer else 'optimizer'}.overlap_param_gather",
            requested=None,
            effective=True,
            reason=f"it is on for {'the optimizer' if on_optimizer else 'ddp'}, so it was turned "
            "on for both",
            outcome=Outcome.NOTE,
        )
    ]


def compare_with_request(
    decisions: list[Decision],
    requested: Mapping[str, Any],
    effective: Mapping[str, Any],
    others: Mapping[str, Any] | None = None,
) -> list[Decision]:
    """The decisions, compared with what was set explicitly: each is granted, or becomes a refusal.

    Args:
        decisions: those of `update_runtime`.
        requested: dotted knob to the value that the user set on model, ddp or optimizer.
        effective: dotted knob to the value that it has now.
        others: dotted setting to the value that the user set, of settings outside `effective`: a
            note that such a value was replaced becomes a refusal.
    """
    others = others or {}
    explicit = {k: v for k, v in requested.items() if k in effective}
    covered: set[str] = set()
    interleaved = PP_INTERLEAVED.id in {d.rule for d in decisions}
    result = []
    for decision in decisions:
        value = explicit.get(decision.knob)
        other = others.get(decision.knob)
        # A note says what follows from a value, except where it says that the value was replaced.
        chooses = decision.outcome in (Outcome.DEFAULT, Outcome.GRANTED)
        overwrote = decision.outcome is Outcome.NOTE and decision.requested == value
        if decision.outcome is Outcome.REFUSED:
            covered.add(decision.knob)
        elif value is not None and (chooses or overwrote):
            covered.add(decision.knob)
            decision = _with_request(decision, value, interleaved=interleaved)
        elif other is not None and _was_replaced(decision, other):
            decision = _with_request(decision, other, interleaved=interleaved)
        result.append(decision)
    undone = {k: v for k, v in explicit.items() if k not in covered and effective[k] != v}
    result += [
        OVERWRITTEN.decide(
            knob,
            requested=value,
            effective=effective[knob],
            reason=f"set explicitly to {value!r}, and overwritten",
            outcome=Outcome.REFUSED,
            edits=_as_in_effect(knob, effective[knob]),
        )
        for knob, value in undone.items()
    ]
    return result


def _was_replaced(decision: Decision, value: Any) -> bool:
    """Whether a note says that this value was replaced by another one."""
    before, after = (str(each).removeprefix("torch.") for each in (value, decision.effective))
    return decision.outcome is Outcome.NOTE and decision.requested == value and before != after


def _with_request(decision: Decision, value: Any, *, interleaved: bool) -> Decision:
    """A decision about a knob that was also set explicitly to `value`."""
    if decision.effective == value:
        return replace(decision, requested=value, outcome=Outcome.GRANTED)
    written = value if not isinstance(value, bool) else str(value).lower()
    remedy, edits = decision.remedy, decision.edits
    if remedy is None:
        edits = _in_comm_overlap(decision, value, interleaved=interleaved)
        edits = edits or _as_in_effect(decision.knob, decision.effective)
        remedy = in_words(edits) or None
    return replace(
        decision,
        requested=value,
        outcome=Outcome.REFUSED,
        reason=f"set explicitly to {written}, and overwritten: {decision.reason}",
        remedy=remedy,
        edits=edits,
    )


_CHOSEN_BY_OVERLAP = ("dp.", "pp.", "ep.", "tp.")
_TOGETHER = {
    ("overlap_grad_reduce", False): ("overlap_param_gather",),
    ("overlap_param_gather", True): ("overlap_grad_reduce",),
}
"""By a knob and its value: the knobs that have the value too, since one needs the other."""


def _in_comm_overlap(decision: Decision, value: Any, *, interleaved: bool) -> tuple[Edit, ...]:
    """A knob that comm_overlap chose by default, set there; empty where that would not do.

    That is so where comm_overlap requests another value itself, and where the layout has no use for
    the value or refuses it.
    """
    name = decision.knob.rpartition(".")[2]
    by_default = decision.outcome is Outcome.DEFAULT
    if not by_default or not decision.rule.startswith(_CHOSEN_BY_OVERLAP):
        return ()
    refused = {
        "tp_comm_overlap": True,  # comm_overlap always says whether it is on.
        "batch_p2p_comm": value and interleaved,
        "overlap_p2p_comm": value and not interleaved,
        # Both have needs beyond the layout, and comm_overlap has reasons to leave them off.
        "overlap_param_gather_with_optimizer_step": value,
        "defer_embedding_wgrad_compute": value,
        "bucket_size": decision.effective is None,
    }
    if refused.get(name, False):
        return ()
    names = (name, *_TOGETHER.get((name, value), ()))
    return tuple(Edit(f"comm_overlap.{each}", value) for each in names)


def _as_in_effect(knob: str, value: Any) -> tuple[Edit, ...]:
    """A knob as it is whatever the user writes there; empty where no file can say its value."""
    plain = value is None or isinstance(value, (bool, int, float, str))
    return (Edit(knob, value),) if plain else ()
