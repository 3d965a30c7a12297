"""Looks at everything and puts the findings together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from megatron.bridge.training.software import AssumedSoftware, te_version
from overlapkit.config.effective import FRAMEWORKS
from overlapkit.config.run import Settings
from overlapkit.config.sources import world_size_of
from overlapkit.doctor.configuration import configuration_findings
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
class Asked:
    """What the user gave.

    Attributes:
        settings: the configuration; None without one.
        world_size: GPUs of the job; None takes what the launch script or the profile tells.
        gpu: the cluster's GPU; None takes the profile's, or the visible one.
        te: as of `overlapkit explain`; None looks at the packages where a GPU is visible.
        env_file: the job's environment; None takes the present one.
        profile: the document of `overlapkit trace`; None without a profile.
    """

    settings: Settings | None
    world_size: int | None
    gpu: str | None
    te: str | None
    env_file: str | None
    profile: TraceDocument | None


@dataclass(frozen=True)
class Examination:
    """What was looked at, and what was found.

    Attributes:
        report: explain's; None without a configuration.
        environment: variables that the job starts with.
        environment_source: where they come from.
        packages: what is installed here.
        machine: the GPUs here.
        profile: trace's document; None without a profile.
        findings: all, most likely first.
        assumed: what had to be assumed.
    """

    report: Report | None
    environment: Mapping[str, str]
    environment_source: str
    packages: list[Package]
    machine: Machine
    profile: TraceDocument | None
    findings: list[Finding]
    assumed: list[str] = field(default_factory=list)


def examine(asked: Asked) -> Examination:
    """Look at packages, machine, environment, configuration and profile.

    Raises:
        InputError: the number of GPUs is not known, or as `overlapkit explain`.
    """
    machine = look_at_machine()
    packages = installed_packages()
    findings = list(package_findings(packages))
    assumed: list[str] = []
    assumptions = _assumptions(asked, machine, packages, assumed)
    environment = assumptions.environment
    source = assumptions.environment_source
    report = None
    configured: list[Finding] = []
    if asked.settings is not None:
        of_profile = asked.profile.world_size if asked.profile is not None else None
        size = world_size_of(asked.settings, asked.world_size, of_profile)
        report = explain(asked.settings, size, assumptions)
        environment, source = report.assumptions.environment, report.assumptions.environment_source
        assumed += report.notes
        if not report.assumptions.gpu_given:
            assumed.append(f"the GPU is {report.assumptions.gpu_name}: see --gpu")
        configured += configuration_findings(report)
        configured += _hardware_findings(report, machine)
    findings += environment_findings(environment, source, configured=report is not None)
    diagnoses = asked.profile.diagnoses if asked.profile is not None else []
    findings += joined(diagnoses, configured)
    return Examination(
        report, environment, source, packages, machine, asked.profile, ranked(findings), assumed
    )


def _assumptions(
    asked: Asked, machine: Machine, packages: Sequence[Package], assumed: list[str]
) -> Assumptions:
    named = asked.gpu
    if named is None:
        of_profile = asked.profile.gpu if asked.profile is not None else None
        visible = machine.gpus[0] if machine.gpus else None
        for seen, where in ((of_profile, "the profile"), (visible, "this machine")):
            known = _known_gpu(seen)
            if known is not None:
                named = known
                assumed.append(f"the GPU is {known}, as in {where}")
                break
    assumptions = assume(named, asked.te or "assume", asked.env_file)
    if asked.te is None and machine.gpus:
        version = te_version()
        torch = next((p.version for p in packages if p.name == "torch"), None)
        told = f"{version}, installed here" if version else "not installed here"
        software = AssumedSoftware(te=version, torch=torch or "any")
        assumptions = replace(assumptions, software=software, te=told)
    return assumptions


def _known_gpu(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return find_gpu(name)[0]
    except InputError:
        return None


def _hardware_findings(report: Report, machine: Machine) -> list[Finding]:
    """What the visible GPUs lack for this configuration."""
    size = report.effective["model.tensor_model_parallel_size"] or 1
    if size < 2 or machine.nvlink is not False:
        return []
    return [
        Finding(
            "hardware.no-nvlink",
            "hardware",
            "Tensor-parallel ranks are not all joined by NVLink",
            (Evidence("hardware", f"{machine.told}; tensor_model_parallel_size is {size}"),),
            "keep tensor parallelism within GPUs that NVLink joins, or use pipeline or data "
            "parallelism across the others",
        )
    ]


def configuration_told(report: Report) -> str:
    """A configuration in one line: file, GPUs, layout, whose rules."""
    e = report.effective
    sizes = {
        "TP": e["model.tensor_model_parallel_size"],
        "PP": e["model.pipeline_model_parallel_size"],
        "VPP": e["model.virtual_pipeline_model_parallel_size"] or "none",
        "CP": e["model.context_parallel_size"],
        "EP": e["model.expert_model_parallel_size"],
        "DP": report.data_parallel_size,
    }
    layout = " ".join(f"{name} {size}" for name, size in sizes.items())
    gpus = f"{report.world_size} x {report.assumptions.gpu_name}"
    rules = f"{FRAMEWORKS[report.framework]}'s rules"
    te = f"Transformer Engine {report.assumptions.te}"
    return f"{report.source}, {gpus}, {layout}, {te}, {rules}"


def profile_told(profile: TraceDocument) -> str:
    """A profile in one line: ranks, and the median step of the slowest."""
    ranks, slowest = profile.ranks, profile.slowest.median
    step, exposed = slowest.step_us, slowest.exposed_comm_us
    share = f" ({100 * exposed / step:.1f} %)" if step else ""
    return (
        f"{len(ranks)} rank{'s' if len(ranks) != 1 else ''}, median step {step / 1000:.1f} ms, "
        f"exposed communication {exposed / 1000:.2f} ms{share}"
    )
