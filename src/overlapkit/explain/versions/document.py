"""The JSON document of `overlapkit explain` for several versions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from megatron.bridge.training.decisions import Outcome
from overlapkit.config.run import Framework
from overlapkit.explain.document import (
    Config,
    ExplainDecision,
    ExplainGPU,
    Findings,
    Notes,
    NotKnown,
    WorldSize,
    decision_document,
    gap_document,
)
from overlapkit.explain.lint.order import faults
from overlapkit.explain.versions.matrix import Kind, Matrix, Row, Version
from overlapkit.explain.versions.text import version_names
from overlapkit.output.numbers import plain


class ExplainedVersion(Struct, frozen=True, kw_only=True):
    """The answer for one version."""

    core: Annotated[str | None, Meta(description="megatron-core's version")]
    bridge: Annotated[
        str | None, Meta(description="Megatron-Bridge's; `null` for a run of Megatron-LM")
    ]
    accepted: Annotated[
        bool, Meta(description="whether the job starts: it has no finding `error` and no `problem`")
    ]
    problem: Annotated[
        str | None,
        Meta(description="why the configuration cannot be judged for it; `null` where it was"),
    ]
    findings: Findings
    wrong_numbers: Annotated[
        int, Meta(description="how many of the findings let it train on wrong numbers")
    ]
    decisions: Annotated[
        list[ExplainDecision],
        Meta(description="the findings, the worst first, then the notes on known faults"),
    ]
    notes: Notes


class ExplainedValue(Struct, frozen=True, kw_only=True):
    """An outcome, and the versions that have it."""

    versions: Annotated[list[str], Meta(description="of the package that `by` names, oldest first")]
    value: Annotated[
        Any,
        Meta(description="the outcome; `null` where a version has none, or the value is not set"),
    ]


class ExplainedRow(Struct, frozen=True, kw_only=True):
    """One outcome that is not the same with all versions."""

    kind: Annotated[
        Kind,
        Meta(
            description="`finding`; `fault`: a known fault that is no finding here; `knob`: a key "
            "of `effective`; `env`: a variable of `launch_env`; `buckets`: how many gradient "
            "buckets the model gets; `bucket-size`: parameters at which a bucket is closed; "
            "`note`: a remark on the version or on keys that it lacks"
        ),
    ]
    knob: Annotated[
        str,
        Meta(description="dotted; `env.NAME` for a variable; for a `note` the remark itself"),
    ]
    rule: Annotated[
        str | None, Meta(description="the rule of a finding or a fault; `null` for the other kinds")
    ]
    values: Annotated[list[ExplainedValue], Meta(description="each outcome once")]


class ExplainVersionsDocument(Struct, frozen=True, kw_only=True):
    """Which versions accept a configuration, and what differs among them."""

    schema: Annotated[
        Literal["overlapkit/explain-versions/v1"],
        Meta(description="name and version of this document"),
    ] = "overlapkit/explain-versions/v1"
    config: Config
    framework: Annotated[
        Framework, Meta(description="whose rules were applied: `megatron-bridge` or `megatron-lm`")
    ]
    world_size: WorldSize
    gpu: Annotated[ExplainGPU, Meta(description="the GPU that the rules assume")]
    by: Annotated[
        Literal["core", "bridge"],
        Meta(description="the package whose versions were asked for, as `--core` or `--bridge`"),
    ]
    versions: Annotated[list[ExplainedVersion], Meta(description="the answers, oldest first")]
    differs: Annotated[
        list[ExplainedRow], Meta(description="every outcome that is not the same with all of them")
    ]
    not_known: NotKnown = []


def versions_document(matrix: Matrix) -> ExplainVersionsDocument:
    """The answers as the document `overlapkit/explain-versions/v1`."""
    report = matrix.any_report
    a = report.assumptions
    return ExplainVersionsDocument(
        config=report.source,
        framework=report.framework,
        world_size=report.world_size,
        gpu=ExplainGPU(name=a.gpu_name, assumed=not a.gpu_given),
        by="bridge" if matrix.package == "bridge" else "core",
        versions=[_version(version, report.framework) for version in matrix.versions],
        differs=[_row(matrix, row) for row in matrix.differs],
        not_known=list(map(gap_document, report.gaps)),
    )


def _version(version: Version, framework: Framework) -> ExplainedVersion:
    report, findings = version.report, version.findings
    return ExplainedVersion(
        core=version.stack.core,
        bridge=version.stack.bridge if framework == "megatron-bridge" else None,
        accepted=version.starts,
        problem=version.problem or None,
        findings=len(findings),
        wrong_numbers=sum(d.outcome is Outcome.WRONG_NUMBERS for d in findings),
        decisions=[]
        if report is None
        else [decision_document(report, d) for d in [*findings, *faults(report)]],
        notes=[] if report is None else [*report.notes, *report.remarks],
    )


def _row(matrix: Matrix, row: Row) -> ExplainedRow:
    names = version_names(matrix)
    by_value: dict[str, tuple[Any, list[str]]] = {}
    for name, value, version in zip(names, row.values, matrix.versions, strict=True):
        if version.report is not None:
            by_value.setdefault(repr(value), (value, []))[1].append(name)
    return ExplainedRow(
        kind=row.kind,
        knob=row.knob,
        rule=row.rule,
        values=[
            ExplainedValue(versions=versions, value=plain(value))
            for value, versions in by_value.values()
        ],
    )
