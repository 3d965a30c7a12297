"""A plan: the requested run, its layout checked or chosen, and what is recommended for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from megatron.bridge.training.decisions import Dimension
from megatron.bridge.training.rules.context import OTHER_VERSIONS
from overlapkit.config.effective import make_effective
from overlapkit.config.emit.yaml_text import flow
from overlapkit.config.megatron_lm.flag_words import KEYS, KeyWords, words_of
from overlapkit.config.run import Settings, build_run
from overlapkit.errors import InputError
from overlapkit.plan.advise.draft import draft
from overlapkit.plan.advise.proposal import Proposal
from overlapkit.plan.advise.recommend import Recommendation, recommend
from overlapkit.plan.checks import check_chunks, check_layout
from overlapkit.plan.cluster import Cluster
from overlapkit.plan.estimate.costs import Costs, MemoryNeed, StepSummary, costs_of_run
from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.figure import Figure
from overlapkit.plan.inputs import SHORT, Inputs
from overlapkit.plan.rates.measured import Kind
from overlapkit.plan.rates.resting import resting
from overlapkit.plan.search.candidates import (
    SWEPT,
    LayoutChoice,
    changed_keys,
    layout_in,
    measures,
    sizes_of,
    with_layout,
)
from overlapkit.plan.search.measures import SAVINGS, saving_settings
from overlapkit.plan.search.ranking import Ranking, remedy_of
from overlapkit.plan.search.sweep import RANKED, sweep

ESTIMATE_ERROR = 0.1
"""Share of the GPU's memory by which an estimate may be wrong. A given layout may already be
running, so it is refused only where it needs more than the entire memory and this share."""


_MIXTURE = "a mixture of experts is slower than estimated where tokens concentrate on a few experts"


@dataclass(frozen=True)
class Plan:
    """What to run, how, and what to expect.

    Attributes:
        source: the configuration or model, as the user named it.
        world_size: GPUs of the job.
        gpu: their short name.
        layout: ranks by dimension, and the micro-batch.
        data_parallel_size: world size / (TP x PP x CP).
        precision: of the linear layers.
        chosen_because: how the layout was chosen; None where it was given.
        recommendation: the overlap.
        estimates: the step with the recommended overlap and without any; empty without estimate.
        memory: of the fullest GPU; None without estimate.
        ranking: the layouts that were compared; None where none were.
        notes: what was assumed or left open.
        rates: the file of measured rates that the estimates rest on; None without one.
        resting: the shares of the step with overlap that rest on it, by kind.
        words: for settings, in the language of the run that is planned.
        chosen_settings: what was chosen of the layout and what goes with it, as overrides.
    """

    source: str
    world_size: int
    gpu: str
    layout: LayoutChoice
    data_parallel_size: int
    precision: str
    chosen_because: str | None
    recommendation: Recommendation
    estimates: tuple[StepSummary, ...]
    memory: MemoryNeed | None
    ranking: Ranking | None
    notes: tuple[str, ...]
    words: KeyWords = KEYS
    chosen_settings: Mapping[str, Any] = field(default_factory=dict)
    rates: str | None = None
    resting: Mapping[Kind, float] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that carry the plan, dotted, usable as overrides: layout and overlap."""
        return {**self.chosen_settings, **self.recommendation.proposal.recommended_settings}

    @property
    def name(self) -> str:
        """The configuration, or the model without the option that names it."""
        return self.source.removeprefix("--model ")

    def figures(self) -> Iterator[Figure]:
        """Every figure that the plan states, with its derivation."""
        for summary in self.estimates:
            yield summary.figure
        if self.memory is not None:
            yield self.memory.figure


def make_plan(inputs: Inputs, cluster: Cluster, swept: tuple[str, ...] | None = None) -> Plan:
    """The plan of a run.

    Args:
        inputs: the run.
        cluster: the GPUs.
        swept: dimensions of the layout to compare; None compares none, unless no layout is given.

    Raises:
        InputError: the layout cannot run or does not fit. The message says what would.
    """
    if inputs.original is not None:
        check_chunks(inputs.original)
    chosen = _choose(inputs, cluster, swept)
    settings = chosen.settings
    run = build_run(settings)
    check_layout(run, cluster.world_size, cluster.nvlink_domain, source=settings.source)
    recommendation = recommend(
        settings,
        None if chosen.because else inputs.original,
        cluster,
        lambda proposal: _costs_of(proposal, cluster),
    )
    costs, notes = recommendation.costs, chosen.notes
    estimates: tuple[StepSummary, ...] = ()
    memory = None
    measured = cluster.machine.measured
    shares: Mapping[Kind, float] = {}
    if costs is not None:
        memory = costs.memory()
        doubt = _doubt(settings, memory, cluster)
        notes = (doubt,) if doubt else notes
        estimates = costs.summary(recommendation.overlapped), costs.summary(frozenset())
        if measured is not None:
            shares = resting(measured, partial(_seconds, costs, recommendation.overlapped))
    proposal = recommendation.proposal
    return Plan(
        source=settings.source,
        world_size=cluster.world_size,
        gpu=cluster.gpu,
        layout=replace(layout_in(proposal.run), saving=chosen.saving),
        data_parallel_size=proposal.report.data_parallel_size,
        precision=proposal.draft.precision,
        chosen_because=chosen.because,
        recommendation=recommendation,
        estimates=estimates,
        memory=memory,
        ranking=chosen.ranking,
        notes=(
            *_still_assumed(inputs, chosen),
            *cluster.notes,
            *notes,
            *([_MIXTURE] if estimates and run.model.num_moe_experts else []),
            *_not_granted(proposal),
            *_on_other_versions(proposal),
            *proposal.report.remarks,
        ),
        words=KEYS if inputs.original is None else words_of(inputs.original),
        rates=None if measured is None else measured.name,
        resting=shares,
        chosen_settings={
            **changed_keys(inputs.read, proposal.settings, layout=chosen.because is not None),
            **saving_settings(chosen.saving, run.model.num_layers or 0),
        },
    )


def _seconds(costs: Costs, overlapped: frozenset[str], machine: Machine) -> float:
    """The step of a run on another machine."""
    return replace(costs, machine=machine).seconds(overlapped)


@dataclass(frozen=True)
class _Chosen:
    """The settings to plan for, and where their layout comes from.

    Attributes:
        settings: with the layout.
        ranking: the layouts that were compared; None where none were.
        because: how the layout was chosen; None where it was given.
        saving: what was turned on since nothing fits without.
        notes: about a given layout that is not the fastest of the sweep, and about one that saves
            memory without need and is faster.
        searched: dimensions of the layout that were searched, where it was chosen.
    """

    settings: Settings
    ranking: Ranking | None = None
    because: str | None = None
    saving: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()


def _still_assumed(inputs: Inputs, chosen: _Chosen) -> list[str]:
    """What was assumed, and was not chosen by the search afterwards."""
    decided = {SHORT["mbs"]} if "mbs" in chosen.searched else set()
    if any(name not in SAVINGS for name in chosen.saving):
        decided.add("mixed_precision")
    return [one for one in inputs.assumed if one.partition("=")[0] not in decided]


def _choose(inputs: Inputs, cluster: Cluster, swept: tuple[str, ...] | None) -> _Chosen:
    """The layout as given, or the fastest of a sweep."""
    settings = inputs.settings
    if swept is None:
        return _Chosen(settings) if inputs.layout_given else _fastest(inputs, cluster)
    ranking = _ranked(settings, cluster, swept, offering=True)
    best = ranking.best
    offer = _offer(ranking, settings)
    if not inputs.layout_given or not _can_run(settings, cluster):
        because = f"The fastest layout of the sweep, by estimate{_saved_by(best.layout)}"
        chosen = with_layout(settings, best.layout)
        return _Chosen(chosen, ranking, because, best.layout.saving, offer, swept)
    note = (
        f"this plan is for the given layout; the fastest of the sweep, {best.layout}, would "
        f"reach {best.summary.tokens_per_s_per_gpu:,.0f} tokens/s/GPU by estimate"
    )
    return _Chosen(settings, ranking, notes=(note, *offer))


def _fastest(inputs: Inputs, cluster: Cluster) -> _Chosen:
    """The fastest layout of all, where none is given."""
    settings, swept = inputs.settings, free_dimensions(inputs)
    if inputs.original is not None and not _has_sizes(settings):
        # What is missing is reported with the layout.
        return _Chosen(settings)
    ranking = sweep(settings, cluster, swept, ranked=CHOSEN_FROM, offering=True)
    if not ranking.fitting:
        if inputs.original is None or ranking.least_over is not None:
            raise InputError(f"{settings.source}: {ranking.why_none()}")
        note = f"no layout is given, and none could be chosen: {ranking.why_none()}"
        return _Chosen(settings, notes=(note,))
    best = ranking.best.layout
    return _Chosen(
        with_layout(settings, best),
        ranking,
        f"No layout was given: this is the fastest that fits, by estimate, of {ranking.tried} that "
        f"divide the model and the GPUs{_saved_by(best)}{_told_apart(ranking)}; "
        f"--sweep {','.join(swept)} lists the others",
        best.saving,
        _offer(ranking, settings),
        swept,
    )


def _saved_by(layout: LayoutChoice) -> str:
    """What a layout turns on since nothing fits without, as a part of a sentence."""
    return f"; none fits without {' and '.join(layout.saving)}" if layout.saving else ""


def _told_apart(ranking: Ranking) -> str:
    """Whether the estimate can tell the fastest from the others, as a part of a sentence."""
    if len(ranking.fitting) == 1 and not ranking.slower:
        return ""
    others = len(ranking.equal) - 1
    misjudged = f"published pairs of layouts are misjudged by up to {ranking.misjudged:.0%}"
    if not others:
        return f"; the next is slower by more than the estimate errs ({misjudged})"
    least = "at least " if ranking.more_may_be_equal else ""
    one = "1 other counts" if others == 1 else f"{others} others count"
    return f"; {least}{one} as equally fast ({misjudged})"


def _offer(ranking: Ranking, settings: Settings) -> tuple[str, ...]:
    """A layout that saves memory without need and is faster, as a note; empty without one."""
    if ranking.offered is None:
        return ()
    layout, summary = ranking.offered.layout, ranking.offered.summary
    more = summary.tokens_per_s_per_gpu / ranking.best.summary.tokens_per_s_per_gpu - 1
    layers = build_run(settings).model.num_layers or 0
    known = "" if summary.range else ", though nothing of this kind was ever measured"
    return (
        f"not needed, but faster by estimate: {' and '.join(layout.saving)} allows "
        f"{replace(layout, saving=())}, {summary.tokens_per_s_per_gpu:,.0f} tokens/s/GPU "
        f"({more:+.0%}){known} -> try {overrides(layout, layers)}",
    )


CHOSEN_FROM = 5
"""Layouts whose order is exact where one is chosen."""


def _has_sizes(settings: Settings) -> bool:
    try:
        run = build_run(settings)
        sizes_of(run.model, run.train)
    except InputError:
        return False
    return True


def free_dimensions(inputs: Inputs) -> tuple[str, ...]:
    """What is swept where no layout is given; what is given beside it stays."""
    model = build_run(inputs.settings).model
    fixed = {"mbs"} if inputs.micro_batch_given else set()
    fixed |= set() if model.num_moe_experts else {"ep"}
    fixed |= {"recompute"} if model.recompute_granularity else set()
    fixed |= {"cp_comm"} if "model.cp_comm_type" in inputs.settings.asked else set()
    return tuple(name for name in SWEPT if name not in fixed)


def _ranked(
    settings: Settings,
    cluster: Cluster,
    swept: tuple[str, ...],
    ranked: int = RANKED,
    *,
    offering: bool = False,
) -> Ranking:
    ranking = sweep(settings, cluster, swept, ranked=ranked, offering=offering)
    if not ranking.fitting:
        raise InputError(f"{settings.source}: {ranking.why_none()}")
    return ranking


def _can_run(settings: Settings, cluster: Cluster) -> bool:
    """Whether the layout as given can run and fits."""
    world_size, assumptions = cluster.world_size, cluster.assumptions
    try:
        check_layout(build_run(settings), world_size, cluster.nvlink_domain, source=settings.source)
    except InputError:
        return False
    requested = draft(settings, world_size, assumptions).settings()
    run, _ = make_effective(requested, world_size, assumptions.software)
    costs = costs_of_run(run, world_size, cluster.machine)
    return isinstance(costs, str) or costs.memory().fits


def _costs_of(proposal: Proposal, cluster: Cluster) -> Costs | str:
    """The costs of a proposal's run, or why there is no estimate."""
    if proposal.settings.values.get("peft") is not None:
        return "only adapters are trained, but the estimate is for training every weight"
    return costs_of_run(proposal.run, cluster.world_size, cluster.machine)


def _doubt(settings: Settings, memory: MemoryNeed, cluster: Cluster) -> str | None:
    """Why a layout may not fit; None where it does.

    Raises:
        InputError: it needs more than an error of the estimate could explain.
    """
    if memory.fits:
        return None
    why = _does_not_fit(settings, memory, cluster)
    if memory.needed > memory.capacity * (1 + ESTIMATE_ERROR):
        raise InputError(f"{settings.source}: {why}")
    return f"it may not fit: {why}"


def _does_not_fit(settings: Settings, memory: MemoryNeed, cluster: Cluster) -> str:
    over = (memory.needed - memory.usable) / 1e9
    need = (
        f"{layout_in(build_run(settings))} needs {memory.needed / 1e9:.1f} GB "
        f"on the fullest {cluster.gpu}, {over:.1f} GB more than the "
        f"{memory.usable / 1e9:.1f} GB usable of its {memory.capacity / 1e9:.1f} GB"
    )
    try:
        best = _ranked(
            settings, cluster, ("tp", "pp", "vp", "cp", "ep", "recompute", "saving"), 1
        ).best.layout
    except InputError:
        either = f"no other layout on {cluster.world_size} GPUs fits either"
        return f"{need}; {either}: {remedy_of(memory, layout_in(build_run(settings)))}"
    layers = build_run(settings).model.num_layers or 0
    return f"{need}; {overrides(best, layers)} fits (see --sweep {','.join(SWEPT)})"


def overrides(layout: LayoutChoice, layers: int) -> str:
    """A layout of a model with so many layers as the overrides that request it."""
    parts = [f"tp={layout.tp}", f"pp={layout.pp}", f"vp={layout.vp}", f"cp={layout.cp}"]
    if layout.ep > 1:
        parts.append(f"ep={layout.ep}")
    parts.append(f"mbs={layout.mbs}")
    parts += [f"model.{key}={flow(value)}" for key, value in measures(layout).items()]
    saving = saving_settings(layout.saving, layers)
    parts += [f"{key}={flow(value)}" for key, value in saving.items()]
    return shlex.join(parts)


def _on_other_versions(proposal: Proposal) -> Iterator[str]:
    """What the versions that the run may also have would do otherwise."""
    for d in proposal.report.decisions:
        if d.rule == OTHER_VERSIONS.id:
            yield f"{d.knob}: {d.reason.rstrip('.')} -> {d.remedy}"


def _not_granted(proposal: Proposal) -> Iterator[str]:
    """What the rules refuse: of the configuration, and of what the command line fixes.

    The experts' overlap is not among them: its own dimension says why it is off.
    """
    for d in proposal.refused:
        if d.dimension is not Dimension.EP:
            yield f"{d.knob} is not applied: {d.reason.rstrip('.')} -> {d.remedy}"
    for d in proposal.report.findings:
        refused = f"{d.knob} ({d.outcome.value}): {d.reason.rstrip('.')}"
        yield refused + (f" -> {d.remedy}" if d.remedy else "")
