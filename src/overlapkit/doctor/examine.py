"""Examines a job and this machine, and collects the findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.rules.context import OTHER_VERSIONS
from megatron.bridge.training.software import AssumedSoftware, te_version
from overlapkit.config.installation import Installation
from overlapkit.config.run import Settings
from overlapkit.config.sources import world_size_of
from overlapkit.doctor.configuration import configuration_findings, not_certain
from overlapkit.doctor.environment import environment_findings
from overlapkit.doctor.finding import Evidence, Finding, ranked
from overlapkit.doctor.machine import Machine, look_at_machine
from overlapkit.doctor.packages import Package, installed_packages, package_findings
from overlapkit.doctor.profile import joined
from overlapkit.errors import InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.hardware import find_gpu

if TYPE_CHECKING:
    from overlapkit.trace.document import TraceDocument


@dataclass(frozen=True)
class Question:
    """What doctor is asked about.

    Attributes:
        settings: the configuration; None without one.
        world_size: GPUs of the job; None takes the number that the launch script or the profile
            states.
        gpu: the cluster's GPU; None takes the profile's, or the visible one.
        te: as in `overlapkit explain`; None looks at the packages where a GPU is visible.
        env_file: file of the job's environment; None takes the current environment.
        profile: the document of `overlapkit trace`; None without a profile.
        installation: the checkout or installation that has the job's versions; None without one.
    """

    settings: Settings | None
    world_size: int | None
    gpu: str | None
    te: str | None
    env_file: str | None
    profile: TraceDocument | None
    installation: Installation | None = None


@dataclass(frozen=True)
class Examination:
    """What was examined, and what was found.

    Attributes:
        report: that of `overlapkit explain`; None without a configuration.
        environment: what is known of the job's environment.
        packages: what is installed here.
        machine: the GPUs here.
        profile: trace's document; None without a profile.
        findings: all, most likely first.
        assumed: what had to be assumed.
        remarks: where the profile shows another run than the configuration, about the versions,
            and what of the configuration was not looked at.
    """

    report: Report | None
    environment: JobEnvironment
    packages: list[Package]
    machine: Machine
    profile: TraceDocument | None
    findings: list[Finding]
    assumed: list[str] = field(default_factory=list)
    remarks: tuple[str, ...] = ()

    @property
    def trains_here(self) -> bool:
        """Whether overlapkit is in an environment of a job; if not, its packages tell nothing."""
        return _trains(self.packages)


def examine(question: Question) -> Examination:
    """Examine packages, machine, environment, configuration and profile.

    Raises:
        InputError: the number of GPUs is not known, or as `overlapkit.explain.report.explain`.
    """
    machine = look_at_machine()
    packages = installed_packages()
    findings = list(package_findings(packages))
    assumed: list[str] = []
    assumptions = _assumptions(question, machine, packages, assumed)
    environment = assumptions.job
    report = None
    configured: list[Finding] = []
    if question.settings is not None:
        of_profile = question.profile.world_size if question.profile is not None else None
        size = world_size_of(question.settings, question.world_size, of_profile)
        report = explain(question.settings, size, assumptions)
        environment = report.environment
        assumed += report.notes
        if not report.assumptions.gpu_given:
            assumed.append(f"the GPU is {report.assumptions.gpu_name}: see --gpu")
        configured += configuration_findings(report)
        configured += _hardware_findings(report, machine)
    findings += environment_findings(environment, configured=report is not None)
    diagnoses = question.profile.diagnoses if question.profile is not None else []
    unlike = question.profile.contradictions if question.profile is not None else []
    # A configuration that is not the profile's does not explain it.
    findings += [*joined(diagnoses, []), *configured] if unlike else joined(diagnoses, configured)
    return Examination(
        report,
        environment,
        packages,
        machine,
        question.profile,
        ranked(findings),
        assumed,
        ()
        if report is None
        else (*unlike, *report.remarks, *_on_other_versions(report), *not_certain(report)),
    )


def _trains(packages: Sequence[Package]) -> bool:
    return any(package.version is not None for package in packages)


def _on_other_versions(report: Report) -> Iterator[str]:
    """What the versions that the run may also have would do otherwise."""
    for d in report.decisions:
        if d.rule == OTHER_VERSIONS.id:
            yield f"{report.name(d)}: {d.reason.rstrip('.')} -> {d.remedy}"


def _assumptions(
    question: Question, machine: Machine, packages: Sequence[Package], assumed: list[str]
) -> Assumptions:
    gpu = question.gpu
    if gpu is None:
        of_profile = question.profile.gpu if question.profile is not None else None
        visible = machine.gpus[0] if machine.gpus else None
        for name, where in ((of_profile, "the profile"), (visible, "this machine")):
            known = _known_gpu(name)
            if known is not None:
                gpu = known
                assumed.append(f"the GPU is {known}, as in {where}")
                break
    found = question.installation
    assumptions = assume(gpu, question.te, question.env_file, installation=found)
    stated = found is not None and found.te is not None
    if question.te is None and machine.gpus and _trains(packages) and not stated:
        version = te_version()
        torch = next((p.version for p in packages if p.name == "torch"), None)
        te = f"{version}, installed here" if version else "not installed here"
        software = AssumedSoftware(te=version, torch=torch or "any")
        assumptions = replace(assumptions, software=software, te=te)
    return assumptions


def _known_gpu(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return find_gpu(name)[0]
    except InputError:
        return None


def _hardware_findings(report: Report, machine: Machine) -> list[Finding]:
    """What the configuration needs and the visible GPUs do not have."""
    size = report.effective["model.tensor_model_parallel_size"] or 1
    if size < 2 or machine.nvlink is not False:
        return []
    knob = "model.tensor_model_parallel_size"
    name = report.words.flag(knob) or knob.partition(".")[2]
    return [
        Finding(
            "hardware.no-nvlink",
            "hardware",
            "Tensor-parallel ranks are not all connected by NVLink",
            (Evidence("hardware", f"{machine.summary}; {name} is {size}"),),
            "keep tensor parallelism within GPUs that NVLink connects, and use pipeline or data "
            "parallelism across the others",
        )
    ]
