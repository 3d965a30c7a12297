"""The JSON document of `overlapkit compare`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from overlapkit.explain.stack_document import JobStack, stack_document
from overlapkit.output.numbers import us_of_ns
from overlapkit.output.printable import all_printable
from overlapkit.trace.compare.causes import Cause, by_cause
from overlapkit.trace.compare.comparison import (
    Comparison,
    DecisionChange,
    DecisionKind,
    Explanation,
)
from overlapkit.trace.compare.side import Counted, Side
from overlapkit.trace.compare.verdict import Verdict
from overlapkit.trace.measure.step_times import PARTS, Part
from overlapkit.trace.measure.units import StepsFrom, Unit

BaseUs = Annotated[float, Meta(description="time in the median step of the base run")]
ChangePct = Annotated[
    float | None, Meta(description="the same in percent of `base_us`; `null` where that is 0")
]
NewUs = Annotated[float, Meta(description="time in the median step of the new run")]
ChangeUs = Annotated[float, Meta(description="`new_us` - `base_us`")]
PartName = Annotated[
    Part, Meta(description="`compute`, `exposed_comm`, `exposed_memory` or `idle`")
]


class CompareSide(Struct, frozen=True, kw_only=True):
    """One of the two runs."""

    name: Annotated[str, Meta(description="the file or folder, as the command line names it")]
    ranks: Annotated[
        int,
        Meta(
            description="number of ranks that were read; of a process with several GPUs, of these"
        ),
    ]
    counted: Annotated[
        Counted, Meta(description="what `ranks` counts: `ranks`, or `GPUs` of one process")
    ] = "ranks"
    steps: Annotated[int, Meta(description="number of steps that all ranks have; 1 without steps")]
    gpu: Annotated[str | None, Meta(description="name of the GPU; `null` where not recorded")]
    world_size: Annotated[
        int | None, Meta(description="number of ranks of the job; `null` where not recorded")
    ]
    data_parallel_size: Annotated[
        int | None,
        Meta(description="world size / (TP x PP x CP); `null` without configurations"),
    ]
    steps_from: Annotated[
        StepsFrom | None,
        Meta(
            description="`ranges`, `repetition` or `iterations`, as in trace; `null` where a rank "
            "has no steps"
        ),
    ]
    unit: Annotated[
        Unit,
        Meta(
            description="what step means in other keys: a `step` of training, or an `iteration` of "
            "an inference engine"
        ),
    ] = "step"
    step_us: Annotated[float, Meta(description="the median step")]
    spread_us: Annotated[
        float | None,
        Meta(description="range of the middle half of the steps; `null` for fewer than three"),
    ]


class CompareMoved(Struct, frozen=True, kw_only=True):
    """A kernel or a kind of communication inside a part.

    Each moment has one owner (of kernels that run at the same time, the one that began first), so
    the owners of a part add up to it. Idle time is owned by the work that ends it.
    """

    name: Annotated[str, Meta(description="name of the owner")]
    base_us: BaseUs
    new_us: NewUs
    change_us: ChangeUs


class ComparePart(Struct, frozen=True, kw_only=True):
    """One of the exclusive parts of the step."""

    part: PartName
    base_us: BaseUs
    new_us: NewUs
    change_us: ChangeUs
    change_pct: ChangePct
    moved: Annotated[
        list[CompareMoved], Meta(description="what changed most inside the part, at most five")
    ]


class CompareDimension(Struct, frozen=True, kw_only=True):
    """The exposed communication of one parallel dimension."""

    base_us: BaseUs
    new_us: NewUs
    change_us: ChangeUs


class CompareExplanation(Struct, frozen=True, kw_only=True):
    """A part that changed and on which a decision acts."""

    part: PartName
    dimension: Annotated[
        str | None,
        Meta(description="the parallel dimension; `null` where the entire part is meant"),
    ]
    operations: Annotated[
        list[str],
        Meta(description="the operations of that dimension; empty where all of them are meant"),
    ]
    change_us: Annotated[float, Meta(description="change of that time")]


class CompareDecision(Struct, frozen=True, kw_only=True):
    """Something that the two configurations decide differently."""

    kind: Annotated[
        DecisionKind,
        Meta(
            description="`knob`: a setting; `env`: a variable of the launch environment; "
            "`finding`: a refused request or an error; `buckets`: the number of gradient buckets"
        ),
    ]
    knob: Annotated[str, Meta(description="what is decided, dotted")]
    base: Annotated[Any, Meta(description="its value in the base run")]
    new: Annotated[Any, Meta(description="its value in the new run")]
    name: Annotated[
        str,
        Meta(description="what is decided, as the text shows it: a flag for two Megatron-LM jobs"),
    ]
    change: Annotated[str, Meta(description="both values, as the text shows them")]
    by: Annotated[
        list[str],
        Meta(description="`causes` as the text names them; empty where that is the knob itself"),
    ]
    causes: Annotated[list[str], Meta(description="the configuration keys that caused it")]
    reason: Annotated[str | None, Meta(description="why, in one sentence")]
    rule: Annotated[str | None, Meta(description="id of the rule that decided")]
    explains: Annotated[
        list[CompareExplanation],
        Meta(description="the changed parts that it acts on, the largest first"),
    ]


class CompareCause(Struct, frozen=True, kw_only=True):
    """Decisions with the same cause, and the parts that they act on, each once."""

    causes: Annotated[
        list[str],
        Meta(description="the configuration keys; that of the decision where none is known"),
    ]
    decisions: Annotated[
        list[str], Meta(description="what is decided, as `knob` of `decisions`; the first leads")
    ]
    explains: Annotated[
        list[CompareExplanation],
        Meta(
            description="the changed parts that any of them acts on, the largest first; operations "
            "only where no decision acts on their entire dimension"
        ),
    ]


class CompareKey(Struct, frozen=True, kw_only=True):
    """A key that differs between the configurations."""

    key: Annotated[str, Meta(description="dotted")]
    base: Annotated[Any, Meta(description="its value in the base configuration")]
    new: Annotated[Any, Meta(description="its value in the new configuration")]


class CompareStacks(Struct, frozen=True, kw_only=True):
    """The versions that the two configurations are for."""

    base: Annotated[JobStack, Meta(description="the base run's")]
    new: Annotated[JobStack, Meta(description="the new run's")]


class CompareDocument(Struct, frozen=True, kw_only=True):
    """What changed in the median step between two runs.

    The changes of the parts add up to `change_us`. For this the parts are those of the median step
    itself (of an even number of steps, the mean of the two middle ones), averaged over the ranks
    step by step. They are not medians of each part.
    """

    schema: Annotated[
        Literal["overlapkit/compare/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/compare/v1"
    verdict: Annotated[
        Verdict,
        Meta(
            description="`slower` or `faster`; `same` where the change is within `spread_us`; "
            "`unknown` where the profiles do not tell"
        ),
    ]
    verdict_holds: Annotated[
        bool,
        Meta(
            description="enough steps of both runs stand behind the verdict. The exit status is 1 "
            "only then"
        ),
    ]
    verdict_reasons: Annotated[
        list[str],
        Meta(description="why the verdict is `unknown` or does not hold; empty where it holds"),
    ]
    has_steps: Annotated[
        bool,
        Meta(
            description="both runs have steps; otherwise the figures of one that has none are of "
            "its whole trace"
        ),
    ]
    base: Annotated[CompareSide, Meta(description="the base run")]
    new: Annotated[CompareSide, Meta(description="the new run")]
    change_us: Annotated[float, Meta(description="`new.step_us` - `base.step_us`")]
    change_pct: Annotated[
        float | None,
        Meta(description="the same in percent of the base step; `null` where that is 0"),
    ]
    spread_us: Annotated[
        float,
        Meta(
            description="what the change must exceed: the larger of what the steps of either run "
            "differ by (the middle half of them; all where there are fewer than eight), and at "
            "least 1 % of the base step, or 10 % where a run has fewer than three steps"
        ),
    ]
    by_spread: Annotated[
        bool,
        Meta(
            description="whether `spread_us` is what the steps differ by, and not the least share"
        ),
    ]
    parts: Annotated[list[ComparePart], Meta(description="the exclusive parts of the median step")]
    exposed_by_dimension: Annotated[
        dict[str, CompareDimension],
        Meta(description="each parallel dimension, and its exposed communication"),
    ]
    contradictions: Annotated[
        list[str],
        Meta(
            description="with both configurations: what one says and the profile of its run shows "
            "otherwise"
        ),
    ]
    warnings: Annotated[list[str], Meta(description="what to keep in mind")]
    stacks: Annotated[
        CompareStacks | UnsetType,
        Meta(description="with both configurations: the versions that they are for"),
    ] = UNSET
    decisions: Annotated[
        list[CompareDecision] | UnsetType,
        Meta(description="with both configurations: what they decide differently"),
    ] = UNSET
    causes: Annotated[
        list[CompareCause] | UnsetType,
        Meta(description="with both configurations: `decisions` by their cause"),
    ] = UNSET
    keys: Annotated[
        list[CompareKey] | UnsetType,
        Meta(description="with both configurations: the keys that differ"),
    ] = UNSET


def compare_document(c: Comparison) -> CompareDocument:
    """The document of a comparison. Texts from the files are made printable."""
    data_parallel = c.data_parallel or (None, None)
    return all_printable(
        CompareDocument(
            verdict=c.judgement.verdict,
            verdict_holds=c.judgement.holds,
            verdict_reasons=list(c.judgement.reasons),
            has_steps=c.has_steps,
            base=_side(c.base, data_parallel[0]),
            new=_side(c.new, data_parallel[1]),
            change_us=us_of_ns(c.change),
            change_pct=_percent(c.change, c.base.step),
            spread_us=us_of_ns(c.judgement.threshold),
            by_spread=c.judgement.by_spread,
            parts=[_part(c, part) for part in PARTS],
            exposed_by_dimension={
                d: CompareDimension(
                    base_us=us_of_ns(c.base.exposed.get(d, 0.0)),
                    new_us=us_of_ns(c.new.exposed.get(d, 0.0)),
                    change_us=us_of_ns(c.new.exposed.get(d, 0.0) - c.base.exposed.get(d, 0.0)),
                )
                for d in {**c.base.exposed, **c.new.exposed}
            },
            contradictions=c.contradictions,
            warnings=c.warnings,
            stacks=UNSET
            if c.stacks is None
            else CompareStacks(base=stack_document(c.stacks[0]), new=stack_document(c.stacks[1])),
            decisions=UNSET if c.decisions is None else [_decision(d) for d in c.decisions],
            causes=UNSET
            if c.decisions is None
            else [_cause(each) for each in by_cause(c.decisions)],
            keys=UNSET
            if c.decisions is None
            else [CompareKey(key=key, base=a, new=b) for key, (a, b) in c.keys.items()],
        )
    )


def _percent(change: float, of: float) -> float | None:
    return round(100 * change / of, 4) if of else None


def _side(side: Side, data_parallel: int | None) -> CompareSide:
    return CompareSide(
        name=side.name,
        ranks=side.ranks,
        counted=side.counted,
        steps=side.recorded,
        steps_from=side.steps_from,
        unit=side.unit,
        gpu=side.gpu,
        world_size=side.world_size,
        data_parallel_size=data_parallel,
        step_us=us_of_ns(side.step),
        spread_us=None if side.spread is None else us_of_ns(side.spread),
    )


def _part(c: Comparison, part: Part) -> ComparePart:
    return ComparePart(
        part=part,
        base_us=us_of_ns(c.base.parts[part]),
        new_us=us_of_ns(c.new.parts[part]),
        change_us=us_of_ns(c.part_change(part)),
        change_pct=_percent(c.part_change(part), c.base.parts[part]),
        moved=[
            CompareMoved(
                name=m.name,
                base_us=us_of_ns(m.base),
                new_us=us_of_ns(m.new),
                change_us=us_of_ns(m.change),
            )
            for m in c.movers[part]
            if abs(m.change) >= 0.5
        ],
    )


def _cause(c: Cause) -> CompareCause:
    return CompareCause(
        causes=list(c.keys),
        decisions=[d.knob for d in c.decisions],
        explains=[_explanation(e) for e in c.explains],
    )


def _explanation(e: Explanation) -> CompareExplanation:
    return CompareExplanation(
        part=e.part,
        dimension=e.dimension,
        operations=list(e.operations),
        change_us=us_of_ns(e.change),
    )


def _decision(d: DecisionChange) -> CompareDecision:
    return CompareDecision(
        kind=d.kind,
        knob=d.knob,
        name=d.name,
        change=d.change,
        by=list(d.by),
        base=d.base,
        new=d.new,
        causes=list(d.causes),
        reason=d.reason,
        rule=d.rule,
        explains=[_explanation(e) for e in d.explains],
    )
