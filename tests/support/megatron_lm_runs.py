"""Megatron-LM jobs whose remedies are made: as flags, as settings, and in the environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatron.bridge.training.decisions import RULES, Decision
from megatron.bridge.training.edits import ENV, REMOVED, Edit
from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.rules.context import Gpu
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN
from overlapkit.config.effective import make_effective
from overlapkit.config.megatron_lm.flag_edits import FlagEdit, flag_edits, make
from overlapkit.config.megatron_lm.flags import DEFAULTS, FLAGS
from overlapkit.config.megatron_lm.script import read_megatron_lm_arguments
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings
from support.megatron_lm_cases import SIZES, arguments
from support.rule_cases import ALL_CASES, on_stack

_KEYS = {key for flag in FLAGS.values() for key in flag.keys}
# Megatron-Bridge's comm_overlap turns these on with the distributed optimizer.
_BRIDGES_OVERLAP = ("ddp.overlap_grad_reduce", "ddp.overlap_param_gather")


@dataclass(frozen=True)
class Job:
    """A Megatron-LM job: its arguments, and what else its rules depend on."""

    words: list[str]
    core: str | None = None
    world_size: int = 32
    software: AssumedSoftware = field(default_factory=AssumedSoftware)
    environment: JobEnvironment = field(default_factory=JobEnvironment)
    gpu: Gpu | None = None

    def settings(self) -> Settings:
        return Reading(core=self.core).dated(read_megatron_lm_arguments(self.words))

    def decisions(self, settings: Settings | None = None) -> list[Decision]:
        read = settings or self.settings()
        software, environment = self.software, self.environment
        return make_effective(read, self.world_size, software, environment, self.gpu)[1].decisions


def job_of(text: str, name: str) -> Job:
    """The job of some flags, with the newest known version that a rule holds for."""
    return Job(arguments(text), next(s.core for s in reversed(KNOWN) if RULES[name].holds(s)))


def job_like(name: str) -> Job:
    """A case of a rule as a Megatron-LM job, as far as flags can say it."""
    case = on_stack(name, ALL_CASES[name])
    software = case.get("software") or AssumedSoftware()
    core = software.stack.core if "software" in case else None
    values: dict[str, Any] = {}
    comm = case.get("comm")
    if comm is not None and (case.get("ddp") or {}).get("use_distributed_optimizer"):
        values |= dict.fromkeys(_BRIDGES_OVERLAP, True)
    for section in ("model", "ddp", "optimizer", "train", "comm"):
        for key, value in (case.get(section) or {}).items():
            places = (
                ("model", "ddp", "optimizer") if section == "comm" else (section, "megatron_lm")
            )
            known = [f"{p}.{key}" for p in places if f"{p}.{key}" in _KEYS]
            values |= {known[0]: value} if known else {}
    words = SIZES.split()
    for key, value in values.items():
        change = flag_edits([Edit(key, value)], core)
        words = words if change.why_not else make(change, words)
    others = {key: case[key] for key in ("world_size", "environment", "gpu") if key in case}
    return Job(words, core, **{"world_size": 16, "software": software, **others})


def findings(decisions: Iterable[Decision]) -> set[str]:
    return {d.rule for d in decisions if d.is_finding}


def in_flags(job: Job, edits: Iterable[Edit]) -> Job:
    """The job with changes made to its arguments, and to its environment."""
    edits = list(edits)
    change = as_flags(job, edits)
    assert not change.why_not, change.why_not
    return replace(job, words=make(change, job.words), environment=_environment(job, edits))


def as_flags(job: Job, edits: Iterable[Edit]) -> FlagEdit:
    return flag_edits([e for e in edits if not e.key.startswith(ENV)], job.core)


def in_settings(job: Job, edits: Iterable[Edit]) -> list[Decision]:
    """The decisions on the job with changes made to its settings by their keys."""
    settings = job.settings()
    values = {s: dict(v) if isinstance(v, Mapping) else v for s, v in settings.values.items()}
    edits = list(edits)
    for edit in edits:
        section, _, key = edit.key.partition(".")
        if section == "env":
            continue
        content = values.get(section) or {}
        content.pop(key, None)
        if edit.value is not REMOVED:
            content[key] = edit.value
        elif edit.key in DEFAULTS:
            content[key] = DEFAULTS[edit.key]
        values[section] = content
    changed = replace(job, environment=_environment(job, edits))
    return changed.decisions(replace(settings, values=values))


def _environment(job: Job, edits: Iterable[Edit]) -> JobEnvironment:
    variables = dict(job.environment.variables)
    for edit in edits:
        if edit.key.startswith(ENV):
            variables.pop(edit.key.removeprefix(ENV), None)
            if edit.value is not REMOVED:
                variables[edit.key.removeprefix(ENV)] = str(edit.value)
    return replace(job.environment, variables=variables)
