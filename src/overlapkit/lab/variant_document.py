"""A variant in the lab's JSON document: what it trained with, its times and its profile."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType

from overlapkit.lab.measurements import MeasuredVariant, ProfiledStep
from overlapkit.lab.protocol import DecisionRecord

Present = TypeVar("Present")


class LabRefusedSetting(Struct, frozen=True, kw_only=True):
    """A requested setting that a rule did not grant."""

    rule: Annotated[str, Meta(description="id of the rule, as in `overlapkit explain`")]
    knob: Annotated[str, Meta(description="the setting, dotted")]
    requested: Annotated[Any, Meta(description="the requested value")]
    effective: Annotated[Any, Meta(description="the value that the variant trained with")]
    reason: Annotated[str, Meta(description="why")]


class LabDimension(Struct, frozen=True, kw_only=True):
    """Communication of one parallel dimension in a profiled step."""

    comm_ms: Annotated[float, Meta(description="communication")]
    exposed_ms: Annotated[float, Meta(description="communication while nothing computes")]


class LabProfile(Struct, frozen=True, kw_only=True):
    """The profiled steps of a variant.

    Every time is the mean over ranks of each rank's median step, measured as
    [json-trace.md](json-trace.md) defines it. Except for rounding, `step_ms` = `compute_ms` +
    `exposed_ms` + `other_ms`, and `comm_ms` = `exposed_ms` + `hidden_ms`.
    """

    step_ms: Annotated[float, Meta(description="length of a step; the profiler makes it longer")]
    step_spread_ms: Annotated[
        float,
        Meta(description="half of the range of the profiled steps, on the rank with the largest"),
    ]
    compute_ms: Annotated[float, Meta(description="operators of the model, or GPU kernels")]
    comm_ms: Annotated[float, Meta(description="communication")]
    exposed_ms: Annotated[float, Meta(description="communication while nothing computes")]
    hidden_ms: Annotated[float, Meta(description="communication while something computes")]
    other_ms: Annotated[
        float,
        Meta(
            description="neither: the interpreter's own time, waiting for another rank without "
            "communicating, and exposed memory copies on a GPU"
        ),
    ]
    overlap_pct: Annotated[
        float | None,
        Meta(description="`hidden_ms` / `comm_ms`, in percent; `null` without communication"),
    ]
    by_dimension: Annotated[
        dict[str, LabDimension],
        Meta(
            description="those of `TP`, `DP`, `PP`, `CP`, `EP`, `embedding` and `other` that "
            "communicate"
        ),
    ]
    traces: Annotated[
        list[str],
        Meta(
            description="each rank's profile, a file in the folder of `--out`; `overlapkit trace` "
            "reads it"
        ),
    ]


class LabVariant(Struct, frozen=True, kw_only=True):
    """One way to train the model.

    A variant that a rule or Megatron-Core refused has only `name` and `error`; all others have all
    keys from `layout` to `weights`. Those from `step_ms` to `steps_ms` are present in blocks that
    are `timed`, and `profile` where steps were profiled.
    """

    name: Annotated[str, Meta(description="unique in its block")]
    error: Annotated[
        str | UnsetType,
        Meta(
            description="the message with which a rule or Megatron-Core refused the variant. That "
            "is a finding, not a failure: some variants exist to be refused"
        ),
    ] = UNSET
    layout: Annotated[
        dict[str, int] | UnsetType,
        Meta(description="sizes `tp`, `pp`, `vpp` and `dp`; 1 where not partitioned"),
    ] = UNSET
    effective: Annotated[
        dict[str, Any] | UnsetType,
        Meta(
            description="dotted overlap knobs and their values in the configurations that "
            "trained, after all rules"
        ),
    ] = UNSET
    refused: Annotated[
        list[LabRefusedSetting] | UnsetType,
        Meta(description="requested settings that a rule did not grant"),
    ] = UNSET
    buckets: Annotated[
        list[int] | UnsetType,
        Meta(description="number of gradient buckets of each model chunk of rank 0"),
    ] = UNSET
    parameters: Annotated[int | UnsetType, Meta(description="of rank 0")] = UNSET
    peak_mb: Annotated[
        float | UnsetType,
        Meta(
            description="on the largest rank: weights, gradient buffers and optimizer state, plus "
            "the growth of memory during a step"
        ),
    ] = UNSET
    wire_mb: Annotated[
        float | UnsetType | None,
        Meta(
            description="what the busiest rank's link sent per timed step, headers included; "
            "`null` where ranks do not have links of their own"
        ),
    ] = UNSET
    losses: Annotated[
        list[float | None] | UnsetType,
        Meta(
            description="mean loss of each step from the first, on the first rank that has a "
            "loss; `null` where it is not finite"
        ),
    ] = UNSET
    weights: Annotated[
        list[str] | UnsetType,
        Meta(
            description="SHA-256 of each rank's final weights: equal where every bit is. Ranks of "
            "another layout have other pieces"
        ),
    ] = UNSET
    step_ms: Annotated[
        float | UnsetType,
        Meta(description="median of the `steps_ms` of turns that were not disturbed"),
    ] = UNSET
    spread_ms: Annotated[
        float | UnsetType,
        Meta(
            description="half of the interquartile range of the same steps; with fewer than three "
            "steps, half of their range"
        ),
    ] = UNSET
    disturbed_turns: Annotated[
        int | UnsetType,
        Meta(
            description="turns in which other programs took cores that the ranks needed. They are "
            "left out of `step_ms` and `spread_ms`, unless every turn was disturbed"
        ),
    ] = UNSET
    ratio: Annotated[
        float | UnsetType | None,
        Meta(
            description="`step_ms` over that of the block's first variant; `null` where that one "
            "was refused"
        ),
    ] = UNSET
    of_ideal: Annotated[float | UnsetType | None, Meta(description="`step_ms` over `ideal_ms`")] = (
        UNSET
    )
    steps_ms: Annotated[
        list[float] | UnsetType,
        Meta(description="the timed steps; each as long as on the slowest rank"),
    ] = UNSET
    profile: Annotated[LabProfile | UnsetType, Meta(description="the profiled steps")] = UNSET

    def __post_init__(self) -> None:
        """Check which keys are present; see the class.

        Raises:
            ValueError: some are missing, or present without the others.
        """
        trained = [getattr(self, name) is not UNSET for name in _OF_TRAINED]
        timed = [getattr(self, name) is not UNSET for name in _OF_TIMED]
        if self.error is not UNSET:
            if any((*trained, *timed, self.profile is not UNSET)):
                raise ValueError(f"variant {self.name}: has `error` and results")
        elif not all(trained) or any(timed) != all(timed):
            raise ValueError(f"variant {self.name}: some of its keys are missing")

    @property
    def was_trained(self) -> bool:
        """Neither a rule nor Megatron-Core refused it."""
        return self.error is UNSET

    @property
    def was_timed(self) -> bool:
        """Its steps were timed."""
        return self.step_ms is not UNSET


_OF_TRAINED = (
    "layout",
    "effective",
    "refused",
    "buckets",
    "parameters",
    "peak_mb",
    "wire_mb",
    "losses",
    "weights",
)
_OF_TIMED = ("step_ms", "spread_ms", "ratio", "of_ideal", "steps_ms")


def present(value: Present | UnsetType) -> Present:
    """The value of a key that is known to be present; see `LabVariant`."""
    assert value is not UNSET
    return value


def lab_variant(variant: MeasuredVariant, first: MeasuredVariant) -> LabVariant:
    """A variant as the document has it; `first` is the one that it is compared with."""
    if variant.error is not None:
        return LabVariant(name=variant.name, error=variant.error)
    rank = variant.ranks[0]
    timed = bool(rank.turns)
    best = ideal(first)
    return LabVariant(
        name=variant.name,
        layout=rank.layout,
        effective=variant.effective,
        refused=[_refused(d) for d in variant.decisions if d.outcome == "refused"],
        buckets=[len(chunk) for chunk in rank.buckets],
        parameters=rank.parameters,
        peak_mb=round(variant.peak_bytes / 1e6, 1),
        wire_mb=None if variant.wire_bytes is None else round(variant.wire_bytes / 1e6, 2),
        losses=next(iter(variant.losses.values()), []),
        weights=variant.digests,
        step_ms=rounded_ms(variant.step) if timed else UNSET,
        spread_ms=rounded_ms(variant.spread) if timed else UNSET,
        ratio=_ratio(variant.step, first.step) if timed else UNSET,
        of_ideal=_ratio(variant.step, best) if timed else UNSET,
        steps_ms=[rounded_ms(step) for step in variant.steps] if timed else UNSET,
        disturbed_turns=variant.disturbed_turns if timed else UNSET,
        profile=UNSET
        if variant.profile is None
        else _profile(variant.profile, [r.trace for r in variant.ranks if r.trace is not None]),
    )


def ideal(off: MeasuredVariant) -> float | None:
    """Shortest step that overlap could give a variant that hides nothing, in seconds.

    The longer of its compute alone and its communication alone: its step without the exposed
    communication, and its communication. None without a profile, and where the profiled
    communication takes longer than the timed step: such a profile does not describe the timed
    steps, as happens where ranks share cores.
    """
    if off.profile is None or math.isnan(off.step) or off.profile.comm > off.step:
        return None
    return max(off.step - off.profile.exposed, off.profile.comm)


def _profile(profile: ProfiledStep, traces: list[str]) -> LabProfile:
    return LabProfile(
        step_ms=rounded_ms(profile.step),
        step_spread_ms=rounded_ms(profile.step_spread),
        compute_ms=rounded_ms(profile.compute),
        comm_ms=rounded_ms(profile.comm),
        exposed_ms=rounded_ms(profile.exposed),
        hidden_ms=rounded_ms(profile.hidden),
        other_ms=rounded_ms(profile.other),
        overlap_pct=None if profile.overlap is None else round(100 * profile.overlap, 1),
        by_dimension={
            name: LabDimension(comm_ms=rounded_ms(comm), exposed_ms=rounded_ms(exposed))
            for name, (comm, exposed) in profile.by_dimension.items()
        },
        traces=traces,
    )


def _refused(decision: DecisionRecord) -> LabRefusedSetting:
    return LabRefusedSetting(
        rule=decision.rule,
        knob=decision.knob,
        requested=decision.requested,
        effective=decision.effective,
        reason=decision.reason,
    )


def _ratio(seconds: float, reference: float | None) -> float | None:
    if reference is None or math.isnan(reference):
        return None
    return round(seconds / reference, 3)


def rounded_ms(seconds: float) -> float:
    """Seconds as milliseconds, as the document has them."""
    return round(seconds * 1e3, 2)
