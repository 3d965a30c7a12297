"""The JSON document of `overlapkit doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct

from overlapkit.config.run import Framework
from overlapkit.doctor.environment import shown_variables
from overlapkit.doctor.examine import Examination
from overlapkit.doctor.finding import MOST, Finding, Kind, Source
from overlapkit.doctor.packages import in_bounds
from overlapkit.explain.stack_document import JobStack, stack_document

if TYPE_CHECKING:
    from overlapkit.trace.document import TraceDocument


class DoctorEnvironment(Struct, frozen=True, kw_only=True):
    """The environment that was checked."""

    source: Annotated[str, Meta(description="where the variables come from")]
    variables: Annotated[
        dict[str, str], Meta(description="the variables of interest that are set, and their values")
    ]


class DoctorPackage(Struct, frozen=True, kw_only=True):
    """A package that matters for overlap, installed here or not."""

    name: Annotated[
        str,
        Meta(
            description="`torch`, `megatron-core`, `transformer-engine`, `nemo-run` or "
            "`megatron-bridge`"
        ),
    ]
    version: Annotated[str | None, Meta(description="`null` where it is not installed")]
    required: Annotated[
        str, Meta(description="the versions that overlapkit supports; empty for any version")
    ]
    fits: Annotated[
        bool, Meta(description="it is not installed, or its version is one of those supported")
    ]


class DoctorMachine(Struct, frozen=True, kw_only=True):
    """The GPUs that are visible here."""

    gpus: Annotated[list[str], Meta(description="their names, in order; empty where none is")]
    driver: Annotated[
        str | None, Meta(description="the driver's version; `null` where no GPU is visible")
    ]
    nvlink: Annotated[
        bool | None,
        Meta(
            description="NVLink joins every two GPUs; `null` for a single GPU, and where it is not "
            "known"
        ),
    ]
    told: Annotated[str, Meta(description="what was found, in one sentence")]


class DoctorProfile(Struct, frozen=True, kw_only=True):
    """The profile, by the rank whose median step is the longest."""

    files: Annotated[list[str], Meta(description="the traces that were read")]
    rank: Annotated[int | None, Meta(description="the rank; `null` where no trace states it")]
    step_us: Annotated[float, Meta(description="its median step, in microseconds")]
    exposed_comm_us: Annotated[
        float,
        Meta(description="communication in that step while nothing computes, in microseconds"),
    ]
    warnings: Annotated[list[str], Meta(description="what was omitted or assumed in reading it")]
    contradictions: Annotated[
        list[str],
        Meta(
            description="what the configuration says and the profile shows otherwise; where there "
            "is any, no finding of the one explains the other"
        ),
    ] = []


class DoctorEvidence(Struct, frozen=True, kw_only=True):
    """What a finding is based on."""

    source: Annotated[Source, Meta(description="where it was found")]
    text: Annotated[str, Meta(description="what was found, for people")]


class DoctorFinding(Struct, frozen=True, kw_only=True):
    """A likely cause of communication that is not hidden."""

    id: Annotated[
        str,
        Meta(
            description="stable: the id of the profile's diagnosis, the rule that decided, or an "
            "id of doctor's own"
        ),
    ]
    kind: Annotated[Kind, Meta(description="what kind of cause it is")]
    message: Annotated[str, Meta(description="what is wrong, in one sentence")]
    evidence: Annotated[list[DoctorEvidence], Meta(description="what the finding is based on")]
    remedy: Annotated[str | None, Meta(description="what to do")]
    cost_us: Annotated[
        float | None,
        Meta(description="microseconds per step that the profile measures for it; `null` without"),
    ]
    rules: Annotated[list[str], Meta(description="rules of `overlapkit explain` that apply")]
    knobs: Annotated[
        list[str],
        Meta(description="dotted knobs that those rules decide; `env.NAME` for a variable"),
    ]


class DoctorDocument(Struct, frozen=True, kw_only=True):
    """Why communication is not hidden: at most five findings, most likely first."""

    schema: Annotated[
        Literal["overlapkit/doctor/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/doctor/v1"
    config: Annotated[
        str | None,
        Meta(
            description="the configuration, as the command line names it; `null` without one, like "
            "the five keys below"
        ),
    ]
    framework: Annotated[
        Framework | None,
        Meta(description="whose rules were applied: `megatron-bridge` or `megatron-lm`"),
    ]
    stack: Annotated[JobStack | None, Meta(description="the versions whose rules were applied")]
    world_size: Annotated[
        int | None,
        Meta(
            description="GPUs of the job: as given, as the launch script starts them, or as the "
            "profile states"
        ),
    ]
    gpu: Annotated[
        str | None,
        Meta(
            description="the GPU that the rules assume: as given, else the profile's, else the "
            "visible one, else a default"
        ),
    ]
    transformer_engine: Annotated[
        str | None, Meta(description="what was assumed of Transformer Engine, or found here")
    ]
    environment: Annotated[DoctorEnvironment, Meta(description="the environment that was checked")]
    packages: Annotated[list[DoctorPackage], Meta(description="what is installed here")]
    machine: Annotated[DoctorMachine, Meta(description="the GPUs that are visible here")]
    profile: Annotated[DoctorProfile | None, Meta(description="`null` without `--trace`")]
    findings: Annotated[list[DoctorFinding], Meta(description="at most five, most likely first")]
    more_findings: Annotated[int, Meta(description="how many findings are not in `findings`")]
    assumed: Annotated[list[str], Meta(description="what had to be assumed")]
    notes: Annotated[
        list[str],
        Meta(description="about the versions, and what of the configuration was not looked at"),
    ]


def doctor_document(x: Examination) -> DoctorDocument:
    """The examination as the document `overlapkit/doctor/v1`."""
    report = x.report
    return DoctorDocument(
        config=None if report is None else report.source,
        framework=None if report is None else report.framework,
        stack=None if report is None else stack_document(report.basis),
        world_size=None if report is None else report.world_size,
        gpu=None if report is None else report.assumptions.gpu_name,
        transformer_engine=None if report is None else report.assumptions.te,
        environment=DoctorEnvironment(
            source=x.environment.sources, variables=shown_variables(x.environment)
        ),
        packages=[
            DoctorPackage(name=p.name, version=p.version, required=p.required, fits=in_bounds(p))
            for p in x.packages
        ],
        machine=DoctorMachine(
            gpus=list(x.machine.gpus),
            driver=x.machine.driver,
            nvlink=x.machine.nvlink,
            told=x.machine.summary,
        ),
        profile=None if x.profile is None else _profile(x.profile),
        findings=[_finding(f) for f in x.findings[:MOST]],
        more_findings=max(0, len(x.findings) - MOST),
        assumed=list(x.assumed),
        notes=list(x.remarks),
    )


def _profile(profile: TraceDocument) -> DoctorProfile:
    slowest = profile.slowest
    return DoctorProfile(
        files=profile.files,
        rank=slowest.rank,
        step_us=slowest.median.step_us,
        exposed_comm_us=slowest.median.exposed_comm_us,
        warnings=profile.warnings,
        contradictions=profile.contradictions,
    )


def _finding(f: Finding) -> DoctorFinding:
    return DoctorFinding(
        id=f.id,
        kind=f.kind,
        message=f.message,
        evidence=[DoctorEvidence(source=e.source, text=e.text) for e in f.evidence],
        remedy=f.remedy or None,
        cost_us=f.cost_us,
        rules=list(f.rules),
        knobs=list(f.knobs),
    )
