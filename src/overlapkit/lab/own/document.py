"""The user's own run in the lab's JSON document."""

from __future__ import annotations

import math
from typing import Annotated, Any

from msgspec import Meta, Struct

from overlapkit.lab.own.numbers import Compared, StepApart
from overlapkit.lab.own.own_run import Finding, OwnRun
from overlapkit.lab.own.reduced import Reduced


class LabFinding(Struct, frozen=True, kw_only=True):
    """What a rule says against the run."""

    rule: Annotated[str, Meta(description="id of the rule, as in `overlapkit explain`")]
    knob: Annotated[str, Meta(description="the setting, as the configuration spells it")]
    outcome: Annotated[str, Meta(description="`wrong-numbers`, `error` or `refused`")]
    reason: Annotated[str, Meta(description="why")]
    remedy: Annotated[
        str | None, Meta(description="how to get the other outcome; `null` where there is none")
    ]
    place: Annotated[str | None, Meta(description="where the user set it; `null` where nobody did")]


class LabChange(Struct, frozen=True, kw_only=True):
    """One setting that was changed so that the run fits a few processes."""

    what: Annotated[str, Meta(description="its dotted key, or the size that was changed")]
    before: Annotated[Any, Meta(description="its value in the run; `null` where it is not set")]
    after: Annotated[Any, Meta(description="its value here; `null` where it is not set")]
    why: Annotated[str, Meta(description="the reason")]


class LabStepApart(Struct, frozen=True, kw_only=True):
    """How far the run is from the unpartitioned model after a step."""

    step: Annotated[int, Meta(description="from 1")]
    loss: Annotated[
        float | None, Meta(description="mean over the replicas; `null` where it is not finite")
    ]
    reference_loss: Annotated[
        float | None,
        Meta(description="the unpartitioned model's, in the run's own precision; or `null`"),
    ]
    tensors: Annotated[int, Meta(description="tensors compared")]
    differing: Annotated[int, Meta(description="tensors that differ in a bit")]
    largest: Annotated[
        float | None,
        Meta(
            description="the largest norm of a tensor's difference over its norm in the "
            "unpartitioned model in fp32; `null` where it is not finite"
        ),
    ]
    wrong: Annotated[
        dict[str, float | None],
        Meta(description="tensors that differ by more than rounding explains, and by how much"),
    ]


class LabComparison(Struct, frozen=True, kw_only=True):
    """A block's run, compared with the unpartitioned model step by step."""

    block: Annotated[str, Meta(description="name of the block")]
    equal: Annotated[bool, Meta(description="the numbers are equal, as far as rounding lets them")]
    identical: Annotated[bool, Meta(description="no bit of a weight or a loss differs")]
    losses: Annotated[
        float | None,
        Meta(description="the largest relative difference of a loss; `null` if not finite"),
    ]
    unrestored: Annotated[
        list[str], Meta(description="tensors that a checkpoint did not bring back")
    ]
    mismatch: Annotated[str, Meta(description="why tensors could not be compared; or empty")]
    steps: Annotated[list[LabStepApart], Meta(description="after every step")]


class LabOwnRun(Struct, frozen=True, kw_only=True):
    """The user's own run, and what was made of it."""

    source: Annotated[str, Meta(description="the configuration, as the user named it")]
    world_size: Annotated[int, Meta(description="GPUs of the job")]
    world_size_assumed: Annotated[
        bool,
        Meta(description="nothing states that number: the smallest with data parallelism is taken"),
    ]
    data_parallel_size: Annotated[int, Meta(description="replicas of the job")]
    ranks: Annotated[int, Meta(description="processes that train it here; 0 where none does")]
    settings: Annotated[
        dict[str, dict[str, Any]],
        Meta(description="the small run, by sections as in a YAML configuration"),
    ]
    changed: Annotated[list[LabChange], Meta(description="what was changed")]
    kept: Annotated[list[str], Meta(description="what was kept on purpose")]
    unproven: Annotated[
        list[str], Meta(description="what cannot run here, and what that leaves unproven")
    ]
    findings: Annotated[list[LabFinding], Meta(description="what the rules say against the run")]
    here: Annotated[
        list[LabFinding],
        Meta(description="what the rules of the versions installed here say against the small run"),
    ]
    trained: Annotated[bool, Meta(description="ranks were started for it")]
    as_written: Annotated[
        bool, Meta(description="it was to be trained although the rules refuse it")
    ]
    remedies: Annotated[
        list[str], Meta(description="settings that were changed in the run with the remedy")
    ]
    comparisons: Annotated[
        list[LabComparison], Meta(description="with the unpartitioned model in one process")
    ]


def lab_own_run(own: OwnRun, compared: dict[str, Compared]) -> LabOwnRun:
    """The user's run as the document has it.

    Args:
        own: the run.
        compared: block to its comparison with the unpartitioned model.
    """
    small = own.reduced or Reduced({}, 0)
    return LabOwnRun(
        source=own.source,
        world_size=own.world_size,
        world_size_assumed=own.world_size_assumed,
        data_parallel_size=own.data_parallel_size,
        ranks=small.ranks,
        settings=small.settings,
        changed=[
            LabChange(what=c.what, before=_plain(c.old), after=_plain(c.new), why=c.why)
            for c in small.changed
        ],
        kept=list(small.kept),
        unproven=list(small.unproven),
        findings=[_finding(each) for each in own.findings],
        here=[_finding(each) for each in own.here],
        trained=own.is_trained,
        as_written=own.as_written,
        remedies=list(own.remedies),
        comparisons=[_comparison(block, each) for block, each in compared.items()],
    )


def _finding(finding: Finding) -> LabFinding:
    return LabFinding(
        rule=finding.rule,
        knob=finding.knob,
        outcome=finding.outcome,
        reason=finding.reason,
        remedy=finding.remedy,
        place=finding.place,
    )


def _comparison(block: str, compared: Compared) -> LabComparison:
    return LabComparison(
        block=block,
        equal=compared.equal,
        identical=compared.identical,
        losses=_finite(compared.losses),
        unrestored=list(compared.unrestored),
        mismatch=compared.mismatch,
        steps=[_step(step) for step in compared.steps],
    )


def _step(step: StepApart) -> LabStepApart:
    return LabStepApart(
        step=step.step,
        loss=step.loss,
        reference_loss=step.reference,
        tensors=step.apart.tensors,
        differing=len(step.apart.relative),
        largest=_finite(step.apart.largest),
        wrong={name: _finite(step.apart.relative[name]) for name in step.apart.worst},
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
