"""The JSON document of `overlapkit audit`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from overlapkit.audit.audit import Audit, Audited
from overlapkit.audit.text import State, state, verdict_text
from overlapkit.explain.document import ExplainDecision, decision_document
from overlapkit.explain.lint.order import leading


class AuditFile(Struct, frozen=True, kw_only=True):
    """One configuration, or one launch of a script."""

    file: Annotated[
        str, Meta(description="as it was found; `FILE:LINE` for one of several launches")
    ]
    state: Annotated[
        State,
        Meta(
            description="`sound`; `notes`: notes with advice alone; `findings`; `wrong`: it cannot "
            "be judged since something in it is wrong; `not-judged`: a value is missing that the "
            "file alone does not have"
        ),
    ]
    verdict: Annotated[str, Meta(description="the answer in one line, as the text has it")]
    world_size: Annotated[
        int | None,
        Meta(
            description="GPUs of the job; `null` where nothing states them: `decisions` then holds "
            "what is found on any number"
        ),
    ]
    findings: Annotated[int, Meta(description="how many of `decisions` are findings")]
    decisions: Annotated[
        list[ExplainDecision],
        Meta(description="the findings, the worst first, then the notes with advice"),
    ]
    problem: Annotated[
        str | None, Meta(description="why it could not be judged; `null` where it was")
    ]
    does_not_start: Annotated[
        bool,
        Meta(
            description="whether `problem` is one for which the framework itself refuses to start: "
            "a key that it does not have, or a layout that does not divide the GPUs"
        ),
    ] = False


class AuditDocument(Struct, frozen=True, kw_only=True):
    """Every configuration and launch script below a folder, with its verdict."""

    schema: Annotated[
        Literal["overlapkit/audit/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/audit/v1"
    paths: Annotated[list[str], Meta(description="the folders and files that were named")]
    files: Annotated[list[AuditFile], Meta(description="in order of their names")]
    findings: Annotated[int, Meta(description="the findings of all files together")]
    passed_over: Annotated[
        int,
        Meta(description="YAML files and scripts that have nothing to do with a Megatron run"),
    ]


def audit_document(audit: Audit) -> AuditDocument:
    """The answer as the document `overlapkit/audit/v1`."""
    return AuditDocument(
        paths=list(audit.paths),
        files=[_file(each) for each in audit.audited],
        findings=sum(each.findings for each in audit.audited),
        passed_over=audit.others,
    )


def _file(each: Audited) -> AuditFile:
    report = each.report
    return AuditFile(
        file=each.file,
        state=state(each),
        verdict=verdict_text(each),
        world_size=each.world_size,
        findings=each.findings,
        decisions=[] if report is None else [decision_document(report, d) for d in leading(report)],
        problem=each.problem or None,
        does_not_start=each.does_not_start,
    )
