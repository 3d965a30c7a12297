"""The JSON documents of `overlapkit lab`: the results of a run, and a job handed to Slurm."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from overlapkit.errors import InputError
from overlapkit.lab.link.kind import LinkUsed
from overlapkit.lab.measurements import MeasuredVariant, ObservedBlock, ProfiledStep
from overlapkit.lab.protocol import Block, DecisionRecord
from overlapkit.lab.scenario import NOT_CONFIRMED, ClaimOutcome, JudgedScenario
from overlapkit.output.printable import all_printable

RESULTS_FILE = "results.json"
"""In the folder of ``--out``: the `LabDocument` of the run."""

Present = TypeVar("Present")


class LabMachine(Struct, frozen=True, kw_only=True):
    """The machine that ran the ranks."""

    device: Annotated[str, Meta(description="`cpu` or `cuda`")]
    device_name: Annotated[str, Meta(description="name of the GPU; `cpu` without one")]
    processor: Annotated[str, Meta(description="architecture of the CPU")]
    cores: Annotated[int, Meta(description="CPU cores that the lab may use")]
    versions: Annotated[
        dict[str, str],
        Meta(
            description="versions where the ranks ran: `python`, and those of `torch`, "
            "`megatron-core`, `transformer-engine`, `overlapkit` and `numpy` that are installed"
        ),
    ]


class LabLink(Struct, frozen=True, kw_only=True):
    """The link between the ranks."""

    kind: Annotated[
        Literal["kernel", "paced", "unshaped", "nccl", "shared-gpu"],
        Meta(
            description="`kernel` (network namespaces, limited by the kernel), `paced` (each TCP "
            "connection limited separately), `unshaped` (the machine's memory), `nccl` (one GPU "
            "for each rank) or `shared-gpu`"
        ),
    ]
    shaped: Annotated[
        bool,
        Meta(
            description="communication takes as long as on a real link, so claims about time can "
            "be judged"
        ),
    ]
    reason: Annotated[str, Meta(description="why the link is of this kind")]
    meaning: Annotated[str, Meta(description="what that means for the measurement")]
    isolation: Annotated[
        str, Meta(description="how the processes are kept together, so that none is left behind")
    ]


class LabClaim(Struct, frozen=True, kw_only=True):
    """A statement that the scenario tests, and the verdict."""

    claim: Annotated[str, Meta(description="the statement, in one sentence")]
    outcome: Annotated[
        ClaimOutcome, Meta(description="`confirmed`, `not confirmed`, or `not testable here`")
    ]
    evidence: Annotated[
        str, Meta(description="the figures that decided; for `not testable here`, why")
    ]


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
    step_ms: Annotated[float | UnsetType, Meta(description="median of `steps_ms`")] = UNSET
    spread_ms: Annotated[
        float | UnsetType,
        Meta(
            description="half of the interquartile range of `steps_ms`; with fewer than three "
            "steps, half of their range"
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


class LabBlock(Struct, frozen=True, kw_only=True):
    """Variants that the same processes trained together."""

    name: Annotated[str, Meta(description="unique in the document")]
    ranks: Annotated[int, Meta(description="processes")]
    link_mbit: Annotated[
        float | None, Meta(description="rate of the link; `null`: it is not limited")
    ]
    timed: Annotated[
        bool,
        Meta(
            description="variants took turns and their steps were timed; otherwise each was "
            "trained once, to compare the results"
        ),
    ]
    counted_steps: Annotated[
        int,
        Meta(description="timed steps of each variant, over all its turns; 0 without timing"),
    ]
    profiled_steps: Annotated[
        int,
        Meta(description="steps of each variant recorded with the profiler, after the timed ones"),
    ]
    ideal_ms: Annotated[
        float | None,
        Meta(
            description="the shortest step that overlap could give the first variant: the longer "
            "of its compute alone (`step_ms` - `exposed_ms`) and its communication alone "
            "(`comm_ms`). `null` without a profile, and where `comm_ms` is longer than the timed "
            "step: such a profile does not describe the timed steps"
        ),
    ]
    variants: Annotated[
        list[LabVariant], Meta(description="the others are compared with the first")
    ]


class LabScenario(Struct, frozen=True, kw_only=True):
    """A set of claims and the training that tested them."""

    name: Annotated[str, Meta(description="as on the command line")]
    title: Annotated[str, Meta(description="what it shows")]
    claims: Annotated[list[LabClaim], Meta(description="what was tested, and the verdicts")]
    blocks: Annotated[
        list[LabBlock], Meta(description="its variants, in groups that were trained together")
    ]


class LabDocument(Struct, frozen=True, kw_only=True):
    """The results of a run of the lab."""

    schema: Annotated[
        Literal["overlapkit/lab/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/lab/v1"
    machine: Annotated[LabMachine, Meta(description="the machine that ran the ranks")]
    link: Annotated[LabLink, Meta(description="the link between the ranks")]
    seconds: Annotated[float, Meta(description="duration of the run, including its judgement")]
    scenarios: Annotated[list[LabScenario], Meta(description="in the order of the command line")]
    confirmed: Annotated[
        bool, Meta(description="no claim is `not confirmed`; `not testable here` is allowed")
    ]


class LabJobDocument(Struct, frozen=True, kw_only=True):
    """A job that was written and, without ``--dry-run``, submitted to Slurm."""

    schema: Annotated[
        Literal["overlapkit/lab-job/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/lab-job/v1"
    folder: Annotated[str, Meta(description="the run's folder, from `--out`")]
    script: Annotated[str, Meta(description="path of the job's script in that folder")]
    job: Annotated[str | None, Meta(description="Slurm's id of the job; `null` with `--dry-run`")]
    ranks: Annotated[int, Meta(description="number of processes")]
    collect: Annotated[str, Meta(description="the command that shows the results")]


def present(value: Present | UnsetType) -> Present:
    """The value of a key that is known to be present; see `LabVariant`."""
    assert value is not UNSET
    return value


def lab_document(
    judged: Sequence[JudgedScenario], *, link: LabLink, device: str, seconds: float
) -> LabDocument:
    """The document of a run.

    Args:
        judged: the scenarios, in the order of the command line.
        link: the link between the ranks.
        device: "cpu" or "cuda".
        seconds: duration of the run.
    """
    blocks = [block for one in judged for block in one.observations.blocks.values()]
    return LabDocument(
        machine=LabMachine(
            device=device,
            device_name=blocks[0].device_name if blocks else "cpu",
            processor=platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            versions=blocks[0].versions if blocks else {},
        ),
        link=link,
        seconds=round(seconds, 1),
        scenarios=[_scenario(one) for one in judged],
        confirmed=not any(v.outcome == NOT_CONFIRMED for one in judged for v in one.verdicts),
    )


def lab_link(used: LinkUsed) -> LabLink:
    """The link that the launcher made."""
    return LabLink(
        kind=used.kind,
        shaped=used.shaped,
        reason=used.reason,
        meaning=used.meaning,
        isolation=used.isolated,
    )


def printable_document(document: LabDocument) -> LabDocument:
    """The document with texts that a terminal and a page can show."""
    return msgspec.convert(all_printable(msgspec.to_builtins(document)), LabDocument)


def read_results(folder: Path) -> LabDocument:
    """The document that a run with ``--out`` left in a folder.

    Raises:
        InputError: it cannot be read, or it is damaged.
    """
    path = folder / RESULTS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabDocument)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a folder that the lab wrote") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: damaged: {error}; run the lab again") from None


def _scenario(judged: JudgedScenario) -> LabScenario:
    return LabScenario(
        name=judged.scenario.name,
        title=judged.scenario.title,
        claims=[
            LabClaim(claim=v.claim, outcome=v.outcome, evidence=v.evidence) for v in judged.verdicts
        ],
        blocks=[_block(block, judged.observations.blocks[block.name]) for block in judged.blocks],
    )


def _block(block: Block, observed: ObservedBlock) -> LabBlock:
    variants = list(observed.variants.values())
    first = variants[0]
    best = ideal(first)
    return LabBlock(
        name=block.name,
        ranks=block.ranks,
        link_mbit=None if observed.rate_mbit is None else round(observed.rate_mbit, 1),
        timed=block.rounds > 0,
        counted_steps=block.rounds * block.steps,
        profiled_steps=block.profiled if block.rounds else 0,
        ideal_ms=None if best is None else _ms(best),
        variants=[_variant(variant, first) for variant in variants],
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


def _variant(variant: MeasuredVariant, first: MeasuredVariant) -> LabVariant:
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
        step_ms=_ms(variant.step) if timed else UNSET,
        spread_ms=_ms(variant.spread) if timed else UNSET,
        ratio=_ratio(variant.step, first.step) if timed else UNSET,
        of_ideal=_ratio(variant.step, best) if timed else UNSET,
        steps_ms=[_ms(step) for step in variant.steps] if timed else UNSET,
        profile=UNSET
        if variant.profile is None
        else _profile(variant.profile, [r.trace for r in variant.ranks if r.trace is not None]),
    )


def _profile(profile: ProfiledStep, traces: list[str]) -> LabProfile:
    return LabProfile(
        step_ms=_ms(profile.step),
        step_spread_ms=_ms(profile.step_spread),
        compute_ms=_ms(profile.compute),
        comm_ms=_ms(profile.comm),
        exposed_ms=_ms(profile.exposed),
        hidden_ms=_ms(profile.hidden),
        other_ms=_ms(profile.other),
        overlap_pct=None if profile.overlap is None else round(100 * profile.overlap, 1),
        by_dimension={
            name: LabDimension(comm_ms=_ms(comm), exposed_ms=_ms(exposed))
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


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
