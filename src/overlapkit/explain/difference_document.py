"""The JSON document of `overlapkit explain A B`: the difference of two runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from overlapkit.explain.difference import Change, Difference, Kind
from overlapkit.explain.document import (
    Config,
    ExplainDecision,
    Findings,
    Notes,
    WorldSize,
    decision_document,
)
from overlapkit.explain.report import Report
from overlapkit.explain.stack_document import JobStack, stack_document
from overlapkit.output.numbers import plain


class ExplainSide(Struct, frozen=True, kw_only=True):
    """One of the two runs."""

    config: Config
    stack: Annotated[JobStack, Meta(description="the versions whose rules were applied")]
    world_size: WorldSize
    findings: Findings
    decisions: Annotated[
        list[ExplainDecision], Meta(description="the decisions that `findings` counts")
    ]
    notes: Notes


class ExplainCause(Struct, frozen=True, kw_only=True):
    """A key that differs between the runs, and brought a change about."""

    key: Annotated[
        str,
        Meta(
            description="dotted; `comm_overlap` or `mixed_precision` where the entire section "
            "differs; `--world-size`; `--core` for the versions"
        ),
    ]
    before: Annotated[
        Any,
        Meta(
            description="its value in the first run; its default where it is not written; `null` "
            "for an absent section"
        ),
    ]
    after: Annotated[Any, Meta(description="the same in the second run")]


class ExplainChange(Struct, frozen=True, kw_only=True):
    """One outcome that differs between the runs."""

    kind: Annotated[
        Kind,
        Meta(
            description="`knob`: a key of `effective`; `env`: a variable of `launch_env`; "
            "`finding`: one that only one of the runs has; `buckets`: how many gradient buckets "
            "the model gets"
        ),
    ]
    knob: Annotated[
        str,
        Meta(description="dotted; `env.NAME` for a variable, `buckets` for their number"),
    ]
    rule: Annotated[
        str | None, Meta(description="the rule of a finding; `null` for the other kinds")
    ]
    before: Annotated[
        Any,
        Meta(
            description="the outcome in the first run; for a finding its `outcome`, `null` where "
            "the run has none; for `buckets` a sentence"
        ),
    ]
    after: Annotated[Any, Meta(description="the same in the second run")]
    causes: Annotated[
        list[ExplainCause],
        Meta(
            description="the key that alone brings the second outcome about; where none does, the "
            "smallest set of keys found that does together; empty where no set was found"
        ),
    ]
    reason: Annotated[
        str | None, Meta(description="why the second run has its outcome, where a decision says so")
    ]


class ExplainWithoutEffect(Struct, frozen=True, kw_only=True):
    """A key that differs between the runs, and changes nothing of the overlap."""

    key: Annotated[str, Meta(description="dotted")]
    before: Annotated[
        Any, Meta(description="its value in the first run; its default where it is not written")
    ]
    after: Annotated[Any, Meta(description="the same in the second run")]
    reason: Annotated[str, Meta(description="why nothing follows")]


class ExplainDifferenceDocument(Struct, frozen=True, kw_only=True):
    """What two runs decide differently, and which keys caused it."""

    schema: Annotated[
        Literal["overlapkit/explain-difference/v1"],
        Meta(description="name and version of this document"),
    ] = "overlapkit/explain-difference/v1"
    before: Annotated[ExplainSide, Meta(description="the first run")]
    after: Annotated[ExplainSide, Meta(description="the second run")]
    changes: Annotated[list[ExplainChange], Meta(description="every outcome that differs")]
    without_effect: Annotated[
        list[ExplainWithoutEffect],
        Meta(description="keys that differ without effect, as far as the reason is known"),
    ]


def difference_document(difference: Difference) -> ExplainDifferenceDocument:
    """The difference as the document `overlapkit/explain-difference/v1`."""
    return ExplainDifferenceDocument(
        before=_side(difference.before),
        after=_side(difference.after),
        changes=[_change(difference, change) for change in difference.changes],
        without_effect=[
            ExplainWithoutEffect(
                key=each.key, before=plain(each.before), after=plain(each.after), reason=each.reason
            )
            for each in difference.without_effect
        ],
    )


def _side(report: Report) -> ExplainSide:
    return ExplainSide(
        config=report.source,
        stack=stack_document(report.basis),
        world_size=report.world_size,
        findings=len(report.findings),
        decisions=[decision_document(report, d) for d in report.findings],
        notes=[*report.notes, *report.remarks],
    )


def _change(difference: Difference, change: Change) -> ExplainChange:
    return ExplainChange(
        kind=change.of.kind,
        knob=change.of.knob,
        rule=change.of.rule,
        before=plain(change.before),
        after=plain(change.after),
        causes=[
            ExplainCause(key=key, before=plain(old), after=plain(new))
            for key in change.causes
            for old, new in [difference.keys[key]]
        ],
        reason=change.reason,
    )
