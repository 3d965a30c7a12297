"""Runs the rules of `megatron.bridge` on a configuration and collects what they decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from megatron.bridge.recipes.launch_env import EnvironmentVariable
from megatron.bridge.training.decisions import (
    Decision,
    Dimension,
    Outcome,
    OverlapConfigError,
)
from megatron.bridge.training.edits import ENV
from megatron.bridge.training.job_environment import UNKNOWN, JobEnvironment
from megatron.bridge.training.rules.context import Gpu as KnownGpu
from megatron.bridge.training.software import Software
from megatron.bridge.training.versions import NEWEST
from overlapkit.config.effective import EFFECTIVE_KNOBS as EFFECTIVE_KNOBS
from overlapkit.config.gaps import Gap, unread
from overlapkit.config.megatron_lm.doubt import of_other_rules, weakened
from overlapkit.config.megatron_lm.flag_words import KEYS, KeyWords, words_of
from overlapkit.config.places import Place
from overlapkit.config.reading import StackBasis
from overlapkit.config.remarks import remarks
from overlapkit.config.run import Framework, Run, Settings
from overlapkit.errors import DoesNotStart, InputError
from overlapkit.explain.buckets import Buckets, buckets_of
from overlapkit.explain.judge import Judged, judge, on_other_stacks
from overlapkit.explain.launch import judge_environment
from overlapkit.explain.misfit import misfit
from overlapkit.explain.places import decision_place
from overlapkit.explain.schedule import Pipeline, microbatches_of, pipeline_of
from overlapkit.hardware import Gpu

CURRENT = "the current environment"
"""What is looked at where nothing states the job's environment."""

SEVERITY = (Outcome.WRONG_NUMBERS, Outcome.ERROR, Outcome.REFUSED)
"""The outcomes of findings, the worst first."""

DIMENSIONS = tuple(Dimension)
"""In the order in which decisions are shown."""


@dataclass(frozen=True)
class Assumptions:
    """What a configuration file does not say.

    Attributes:
        gpu_name: canonical name of the GPU.
        gpu: its figures.
        gpu_given: whether the user specified it; otherwise it is assumed.
        software: the Transformer Engine and torch that rules depend on.
        te: how the user sees that: "assumed", "not installed", or a version.
        environment: variables that the job would start with.
        environment_source: where they come from, as the user sees it.
        environment_is_the_jobs: whether they are all that the job has, so that a missing one is
            reported.
        unknown_variables: names that may be set, to a value that is not known.
        origins: what sets the variables that a launcher sets by itself, by name.
    """

    gpu_name: str
    gpu: Gpu
    gpu_given: bool
    software: Software
    te: str
    environment: Mapping[str, str]
    environment_source: str
    environment_is_the_jobs: bool = False
    unknown_variables: frozenset[str] = frozenset()
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def machine(self) -> KnownGpu:
        """The GPU, as far as rules depend on it."""
        return KnownGpu(
            self.gpu_name,
            float(self.gpu.least_capability),
            self.gpu.nvlink_domain,
            self.gpu_given,
        )

    @property
    def job(self) -> JobEnvironment:
        """What is known of the job's environment, without what the configuration adds to it."""
        return JobEnvironment(
            self.environment,
            self.environment_is_the_jobs,
            self.environment_source,
            self.origins,
            unknown=self.unknown_variables,
        )


@dataclass(frozen=True)
class Report:
    """What a configuration makes effective.

    Attributes:
        source: the configuration's file.
        world_size: GPUs of the job.
        data_parallel_size: world size / (TP x PP x CP).
        assumptions: what the file does not say.
        run: the configuration objects as the model is built from them.
        decisions: every decision, by dimension.
        effective: `EFFECTIVE_KNOBS` and their values.
        launch_env: the environment that the job needs.
        framework: whose rules were applied.
        notes: what was assumed while reading a launch script.
        remarks: about the versions, and what of the configuration was not looked at.
        not_read: whether the configuration has a setting that no rule looked at, since no version
            that is known here has it, or something that was not read.
        basis: the versions whose rules were applied, and how they are known.
        environment: what is known of the job's environment, with the configuration's env_vars.
        buckets: the gradient buckets; in words why they are not known, or that there are none.
        places: where the user set what each decision is about, in their order; None where nothing
            that the user set is.
        gaps: what of the launch script is not known, and may add to what was read.
        words: for its settings, in the language of its configuration.
        asked: the dotted keys that count as requested.
        microbatches: of a step on each replica; None where that is not known.
        pipeline: how long the pipeline stands idle; None without one, or where that is not known.
    """

    source: str
    world_size: int
    data_parallel_size: int
    assumptions: Assumptions
    run: Run
    decisions: list[Decision]
    effective: dict[str, Any]
    launch_env: tuple[EnvironmentVariable, ...]
    framework: Framework = "megatron-bridge"
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    not_read: bool = False
    basis: StackBasis = field(default_factory=lambda: StackBasis(NEWEST))
    environment: JobEnvironment = UNKNOWN
    buckets: Buckets | str = ""
    places: tuple[Place | None, ...] = ()
    gaps: tuple[Gap, ...] = ()
    words: KeyWords = KEYS
    asked: frozenset[str] = frozenset()
    microbatches: int | None = None
    pipeline: Pipeline | None = None

    @property
    def not_certain(self) -> list[Decision]:
        """What would be a finding, if what is not known adds nothing."""
        return [d for d in self.decisions if not d.certain]

    @property
    def findings(self) -> list[Decision]:
        """What trains on wrong numbers, what must not start, and what is not in effect."""
        return sorted(
            (d for d in self.decisions if d.is_finding), key=lambda d: SEVERITY.index(d.outcome)
        )

    def name(self, decision: Decision) -> str:
        """What one of its decisions is about, in its words."""
        return self.words.name(decision.knob)

    def names(self, decisions: Iterable[Decision]) -> list[str]:
        """What some of its decisions are about, each once and in short."""
        return list(dict.fromkeys(self.words.short(d.knob) for d in decisions))

    def place(self, decision: Decision) -> Place | None:
        """Where the user set what one of its decisions is about."""
        both = zip(self.decisions, self.places, strict=True)
        return next((where for d, where in both if d is decision), None)


def explain(
    settings: Settings, world_size: int, assumptions: Assumptions, *, other_versions: bool = True
) -> Report:
    """Apply every rule to the settings of a run.

    Args:
        settings: of the run.
        world_size: GPUs of the job.
        assumptions: what the settings do not say.
        other_versions: whether it is noted what the other versions do that the run may have.

    Raises:
        InputError: the layout does not divide the world size, or a section cannot be built.
    """
    given, assumptions = assumptions, _with_launch(settings, assumptions)
    try:
        judged = judge(settings, world_size, assumptions)
    except OverlapConfigError as error:
        launch, culprit = settings.launch, misfit(settings, world_size)
        if launch is not None and launch.world_size == world_size:
            raise DoesNotStart(
                f"{settings.source}: it starts the job on {world_size} GPUs: {error}, or give "
                f"--world-size N where it is started on another number{culprit}"
            ) from None
        raise DoesNotStart(
            f"{settings.source}: --world-size {world_size}: {error}{culprit}"
        ) from None
    run, update, decisions = judged.run, judged.update, list(judged.decisions)
    if other_versions:
        decisions += on_other_stacks(settings, world_size, assumptions, judged)
    gaps = _gaps(settings, given)
    required, of_environment = _of_environment(settings, judged, world_size, assumptions, gaps)
    decisions += of_environment

    def decide(other: Settings) -> list[Decision]:
        try:
            there = judge(other, world_size, assumptions)
        except OverlapConfigError as error:
            raise InputError(str(error)) from None
        _, more = _of_environment(other, there, world_size, assumptions, gaps)
        return [*there.decisions, *more]

    decisions = weakened(decisions, settings, update.environment, gaps, decide)
    if settings.origin is not None and settings.origin.own_data_parallel:
        decisions = [d for d in decisions if d.dimension is not Dimension.DP]
    if settings.origin is not None and settings.origin.other_rules:
        decisions = of_other_rules(decisions, settings.origin.name)
    refused = {d.knob for d in decisions if d.is_finding}
    chosen = (Outcome.GRANTED, Outcome.DEFAULT)
    # What a later rule refuses is not also reported as granted by an earlier one.
    decisions = [d for d in decisions if not (d.outcome in chosen and d.knob in refused)]
    shown = [d for d in decisions if d.is_finding or _matters(d)]
    shown.sort(key=lambda d: DIMENSIONS.index(d.dimension))
    microbatches = microbatches_of(run, update.data_parallel_size, settings.framework)
    return Report(
        settings.source,
        world_size,
        update.data_parallel_size,
        assumptions,
        run,
        shown,
        dict(judged.effective),
        required,
        settings.framework,
        settings.launch.notes if settings.launch is not None else (),
        remarks(settings),
        settings.is_partly_read or bool(unread(gaps)),
        settings.basis,
        update.environment,
        buckets_of(run, update.data_parallel_size),
        tuple(decision_place(settings, d) for d in shown),
        unread(gaps),
        words_of(settings),
        settings.asked,
        microbatches,
        pipeline_of(run, microbatches),
    )


def _gaps(settings: Settings, given: Assumptions) -> tuple[Gap, ...]:
    """What of the launch script is not known; a file of the job's environment settles variables."""
    if not given.environment_is_the_jobs:
        return settings.gaps
    without = (replace(gap, variables=frozenset()) for gap in settings.gaps)
    return tuple(gap for gap in without if gap.flags != frozenset())


def _of_environment(
    settings: Settings,
    judged: Judged,
    world_size: int,
    assumptions: Assumptions,
    gaps: Sequence[Gap],
) -> tuple[tuple[EnvironmentVariable, ...], list[Decision]]:
    """The variables that a run needs, and what is wrong with its job's, as far as that is known.

    What a gap may set counts as not set: a finding that rests on that is weakened later.
    """
    environment = judged.update.environment
    if any(gap.variables is None for gap in unread(gaps)):
        environment = replace(environment, complete=True)
    required, decisions = judge_environment(
        settings,
        judged.run,
        world_size,
        environment,
        assumptions.gpu,
        gpu_given=assumptions.gpu_given,
        known=judged.decisions,
    )
    words = words_of(settings)
    decisions = [_changed_in_place(d, settings, required) for d in decisions]
    kept = [d for d in decisions if d.is_finding or not _may_be_set(d, environment, gaps)]
    required = tuple(replace(v, reason=words.fact(v.reason)) for v in required)
    # Where a variable is to be set, the remedy says: not every place takes an export.
    return required, [
        replace(d, reason=words.fact(d.reason), remedy=d.remedy and words.advice(d.remedy))
        for d in kept
    ]


def _changed_in_place(
    d: Decision, settings: Settings, required: Sequence[EnvironmentVariable]
) -> Decision:
    """A finding on a variable that the launch script sets, with a remedy at that very place.

    Another export would be overridden there. A rule may need less than NVIDIA's own launch
    environment sets: then the remedy says whose the two numbers are.
    """
    name = d.knob.removeprefix(ENV)
    needed = next((edit.value for edit in d.edits if edit.key == d.knob), None)
    if not d.is_finding or name == d.knob or not isinstance(needed, str):
        return d
    remedy = (d.remedy or "").rstrip(".")
    where = settings.where.get(d.knob)
    if d.effective is not None and where is not None and where.argument is None:
        _, otherwise, rest = remedy.partition("; on ")
        remedy = f"change {name}={d.effective} to {needed} at {where}{otherwise}{rest}"
    own = next((v for v in required if v.name == name and v.value != needed), None)
    if own is not None:
        remedy += (
            f"; {needed} is what {d.rule} needs, {own.value} what Megatron-Bridge's own launch "
            f"environment sets ({own.rule})"
        )
    return replace(d, remedy=remedy)


def _may_be_set(d: Decision, environment: JobEnvironment, gaps: Sequence[Gap]) -> bool:
    """Whether a decision is about a variable that is not known to be missing."""
    name = d.knob.removeprefix(ENV)
    missing = d.knob.startswith(ENV) and environment.get(name) is None
    return missing and any(gap.may_set(name) for gap in unread(gaps))


def _with_launch(settings: Settings, assumptions: Assumptions) -> Assumptions:
    """The assumptions with the variables that the settings' own launch script exports.

    They replace the current environment, and are added to a file of the job's environment.
    """
    launch = settings.launch
    source = None if launch is None else launch.environment_source or launch.source
    if launch is None or source is None:
        return assumptions
    given: Mapping[str, str] = {}
    if assumptions.environment_is_the_jobs or launch.source is None:
        given = assumptions.environment
    if launch.source is None:
        source = f"{source} or {assumptions.environment_source}"
    stated = {**given, **launch.environment}
    fallback = {n: v for n, v in launch.fallback.items() if n not in stated}
    own = fallback.keys() | launch.environment.keys()
    return replace(
        assumptions,
        environment={**fallback, **stated},
        origins={n: origin for n, origin in launch.origins.items() if n in own},
        environment_source=source,
        environment_is_the_jobs=launch.whole or assumptions.environment_is_the_jobs,
        unknown_variables=launch.unknown - given.keys() - own,
    )


def _matters(decision: Decision) -> bool:
    """Whether a decision is about overlap: mixed precision overwrites many other fields."""
    return decision.dimension is not Dimension.PRECISION or decision.knob in EFFECTIVE_KNOBS
