"""The JSON document of `overlapkit plan`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from overlapkit.explain.stack_document import JobStack, stack_document
from overlapkit.output.numbers import rounded_gb, rounded_ms
from overlapkit.plan.advise.dimensions import DimensionAdvice, bucket_count
from overlapkit.plan.advise.next_steps import next_steps
from overlapkit.plan.advise.proposal import Proposal
from overlapkit.plan.advise.recommend import Gain
from overlapkit.plan.estimate.costs import MemoryNeed, StepSummary
from overlapkit.plan.estimate.range_document import PlanRange, range_document
from overlapkit.plan.layout_document import (
    PlanLayout,
    PlanSweep,
    layout_document,
    sweep_document,
)
from overlapkit.plan.plan import Plan
from overlapkit.plan.rates.measured_document import PlanMeasured, measured_document
from overlapkit.plan.spoken import advice, recommended_flags, spoken
from overlapkit.plan.work_document import PlanDerivation, derivation_document


class PlanTimes(Struct, frozen=True, kw_only=True):
    """Milliseconds without overlap and with it."""

    without: Annotated[float, Meta(description="ms with every overlap off")]
    with_: Annotated[float, Meta(description="ms with the recommended overlap")] = field(
        name="with"
    )


class PlanThroughput(Struct, frozen=True, kw_only=True):
    """Throughput without overlap and with it."""

    without: Annotated[int, Meta(description="tokens/s/GPU with every overlap off")]
    with_: Annotated[int, Meta(description="tokens/s/GPU with the recommended overlap")] = field(
        name="with"
    )


class PlanEstimate(Struct, frozen=True, kw_only=True):
    """What a step is expected to take."""

    step_ms: Annotated[PlanTimes, Meta(description="the step")]
    tokens_per_s_per_gpu: Annotated[PlanThroughput, Meta(description="tokens trained per second")]
    parts_ms: Annotated[
        dict[str, PlanTimes],
        Meta(
            description="the parts that take any time, which add up to the step. Exposed "
            "communication is one part per dimension; `contention` is by how much hidden "
            "communication slows compute, `host` is waiting for the host to start a mixture's "
            "kernels"
        ),
    ]
    range: Annotated[
        PlanRange | None,
        Meta(description="`null` where nothing of this kind was ever compared with a measurement"),
    ] = None
    measured: Annotated[
        PlanMeasured | None, Meta(description="with `--rates`: what rests on them")
    ] = None


class PlanMemory(Struct, frozen=True, kw_only=True):
    """Memory of the fullest GPU, in GB of 10^9 bytes."""

    needed: Annotated[float, Meta(description="GB that the run needs, by estimate")]
    usable: Annotated[float, Meta(description="GB that a run can use: the capacity less a margin")]
    capacity: Annotated[float, Meta(description="GB of the GPU")]


class PlanDimension(Struct, frozen=True, kw_only=True):
    """Whether the communication of one parallel dimension is overlapped.

    All dimensions are listed, in this order: `TP`, `DP gradients`, `DP parameters`, `PP`, `CP`,
    `EP`. The gains of two dimensions need not add up.
    """

    dimension: Annotated[str, Meta(description="name of the dimension")]
    ranks: Annotated[int, Meta(description="GPUs that communicate; 1: nothing is exchanged")]
    on: Annotated[bool, Meta(description="whether it is overlapped, as the rules grant it")]
    gain_ms: Annotated[
        float | None,
        Meta(
            description="ms that this overlap saves, all others being as recommended; below 0 "
            "where it costs more than it hides, `null` where it is off, has no switch, or there "
            "is no estimate"
        ),
    ]
    gain_pct: Annotated[
        float | None, Meta(description="the same in percent of the step without this overlap")
    ]
    reason: Annotated[str, Meta(description="why, in one sentence")]
    remedy: Annotated[
        str | None,
        Meta(
            description="what would turn it on, or off where it costs more than it hides, or `null`"
        ),
    ]


class PlanPreset(Struct, frozen=True, kw_only=True):
    """The userbuffers settings of TP overlap."""

    name: Annotated[
        str | None, Meta(description="the preset; `null` means Transformer Engine's own settings")
    ]
    match: Annotated[
        str, Meta(description="how well the preset fits this run: `exact`, `nearest` or `none`")
    ]
    differs: Annotated[
        list[str], Meta(description="what the preset was tuned for that this run is not")
    ]
    reason: Annotated[str, Meta(description="why this preset, or why none")]


class PlanBucket(Struct, frozen=True, kw_only=True):
    """The buckets that gradients are reduced in."""

    parameters: Annotated[int, Meta(description="parameters of a bucket, not bytes")]
    reason: Annotated[str, Meta(description="why this size")]
    count: Annotated[
        str | None, Meta(description="how many buckets there are, in a sentence; `null` if unknown")
    ]


class PlanChange(Struct, frozen=True, kw_only=True):
    """A knob whose effective value differs from that of the configuration as given."""

    from_: Annotated[Any, Meta(description="its value in the configuration as given")] = field(
        name="from"
    )
    to: Annotated[Any, Meta(description="its recommended value")]


class PlanNextStep(Struct, frozen=True, kw_only=True):
    """What to try when a profile contradicts the plan."""

    shows: Annotated[str, Meta(description="what the profile shows")]
    change: Annotated[str, Meta(description="what to set then, and why it helps")]


class PlanDocument(Struct, frozen=True, kw_only=True):
    """What to set for a model on a cluster, why, and what to expect."""

    schema: Annotated[
        Literal["overlapkit/plan/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/plan/v1"
    config: Annotated[
        str, Meta(description="the configuration or the model, as the command line names it")
    ]
    stack: Annotated[JobStack, Meta(description="the versions that it is planned for")]
    world_size: Annotated[int, Meta(description="GPUs of the job")]
    gpu: Annotated[str, Meta(description="short name of the GPU, such as `h100`")]
    precision: Annotated[
        str,
        Meta(
            description="of the linear layers: `bf16`, `fp8 current`, `fp8 delayed`, "
            "`fp8 blockwise`, `mxfp8`, `nvfp4` or `fp32`"
        ),
    ]
    layout: Annotated[PlanLayout, Meta(description="how model and batch are divided")]
    estimate: Annotated[
        PlanEstimate | None,
        Meta(description="what a step is expected to take; `null` if it cannot be estimated"),
    ]
    not_estimated: Annotated[str | None, Meta(description="why there is no estimate")]
    memory_gb: Annotated[
        PlanMemory | None, Meta(description="of the fullest GPU; `null` without an estimate")
    ]
    dimensions: Annotated[list[PlanDimension], Meta(description="the overlap, by dimension")]
    preset: Annotated[
        PlanPreset | None, Meta(description="the userbuffers settings; `null` without TP overlap")
    ]
    bucket: Annotated[
        PlanBucket | None,
        Meta(description="the gradient buckets; `null` where gradients are not overlapped"),
    ]
    gradient_reduction: Annotated[
        str, Meta(description="the precision that gradients are summed in, and the alternative")
    ]
    environment: Annotated[
        dict[str, str],
        Meta(description="each environment variable that the job needs, and its value"),
    ]
    environment_reasons: Annotated[
        dict[str, str], Meta(description="the same variables, and why they are needed")
    ]
    settings: Annotated[
        dict[str, Any],
        Meta(description="dotted keys that carry the recommendation, usable as overrides"),
    ]
    changes: Annotated[
        dict[str, PlanChange],
        Meta(
            description="knobs whose effective value differs from that of the configuration as "
            "given; empty for a published model"
        ),
    ]
    next_steps: Annotated[
        list[PlanNextStep], Meta(description="what to try when a profile contradicts the plan")
    ]
    notes: Annotated[list[str], Meta(description="what was assumed or not applied")]
    sweep: Annotated[
        PlanSweep | None,
        Meta(description="with `--sweep`, or where the layout was chosen: what was compared"),
    ]
    work: Annotated[
        list[PlanDerivation] | None,
        Meta(
            description="with `--show-work`: the derivations of the tokens per second with overlap "
            "and without, and of the memory"
        ),
    ]
    flags: Annotated[
        list[list[str]] | None,
        Meta(
            description="of a Megatron-LM job: each flag that carries the recommendation, with its "
            "words; `null` for a run that takes no flags"
        ),
    ] = None
    omitted_flags: Annotated[
        list[str] | None, Meta(description="the flags of the job to omit; `null` as for `flags`")
    ] = None


def plan_document(plan: Plan, *, show_work: bool = False) -> PlanDocument:
    """The plan as the document `overlapkit/plan/v1`.

    Args:
        plan: what to show.
        show_work: with the derivation of every figure, which is long.
    """
    r, p = plan.recommendation, plan.recommendation.proposal
    preset, flags = p.preset, recommended_flags(plan)
    return PlanDocument(
        config=plan.name,
        stack=stack_document(p.report.basis),
        world_size=plan.world_size,
        gpu=plan.gpu,
        precision=plan.precision,
        layout=layout_document(plan),
        estimate=_estimate(plan, *plan.estimates) if plan.estimates else None,
        not_estimated=r.not_estimated,
        memory_gb=None if plan.memory is None else _memory(plan.memory),
        dimensions=[_dimension(plan, d, r.gains.get(d.name)) for d in r.dimensions],
        preset=None
        if preset is None
        else PlanPreset(
            name=preset.name,
            match=preset.match,
            differs=list(preset.differs),
            reason=preset.reason,
        ),
        bucket=_bucket(p),
        gradient_reduction=r.reduction,
        environment={v.name: v.value for v in p.report.launch_env},
        environment_reasons={v.name: plan.words.fact(v.reason) for v in p.report.launch_env},
        settings=plan.settings,
        flags=None if flags is None else [list(words) for words in flags.add],
        omitted_flags=None if flags is None else list(flags.remove),
        changes={
            knob: PlanChange(from_=before, to=after) for knob, (before, after) in r.changes.items()
        },
        next_steps=[
            PlanNextStep(shows=s.shows, change=spoken(plan, s.change)) for s in next_steps(p)
        ],
        notes=[spoken(plan, note) for note in plan.notes],
        sweep=None if plan.ranking is None else sweep_document(plan.ranking),
        work=[derivation_document(figure) for figure in plan.figures()] if show_work else None,
    )


def _estimate(plan: Plan, after: StepSummary, before: StepSummary) -> PlanEstimate:
    return PlanEstimate(
        step_ms=_times(before.step_s, after.step_s),
        tokens_per_s_per_gpu=PlanThroughput(
            without=round(before.tokens_per_s_per_gpu), with_=round(after.tokens_per_s_per_gpu)
        ),
        parts_ms={
            name: _times(before.parts.get(name, 0), after.parts.get(name, 0))
            for name in before.parts | after.parts
            if before.parts.get(name) or after.parts.get(name)
        },
        range=range_document(after),
        measured=measured_document(plan.rates, plan.resting),
    )


def _times(before_s: float, after_s: float) -> PlanTimes:
    return PlanTimes(without=rounded_ms(before_s), with_=rounded_ms(after_s))


def _memory(memory: MemoryNeed) -> PlanMemory:
    return PlanMemory(
        needed=rounded_gb(memory.needed),
        usable=rounded_gb(memory.usable),
        capacity=rounded_gb(memory.capacity),
    )


def _dimension(plan: Plan, d: DimensionAdvice, gain: Gain | None) -> PlanDimension:
    said = advice(plan, d)
    return PlanDimension(
        dimension=d.name,
        ranks=d.ranks,
        on=d.on,
        gain_ms=None if gain is None else rounded_ms(gain.seconds),
        gain_pct=None if gain is None else round(100 * gain.share, 1),
        reason=said.reason,
        remedy=said.remedy,
    )


def _bucket(p: Proposal) -> PlanBucket | None:
    size = p.effective("ddp.bucket_size")
    if size is None or not p.effective("ddp.overlap_grad_reduce"):
        return None
    return PlanBucket(
        parameters=size,
        reason=p.bucket.reason if p.bucket is not None else "given on the command line",
        count=bucket_count(p),
    )
