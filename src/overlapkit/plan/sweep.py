"""Layouts that fit, ranked by their estimated throughput.

A sweep need not estimate every layout. A bound, which costs little, says how fast a layout can be
at most; the layouts are estimated in its order until no other can be among the fastest.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import dataclass, field, replace

from overlapkit.config.effective import make_effective
from overlapkit.config.run import Settings, build_run
from overlapkit.plan.advise.dimensions import overlapped
from overlapkit.plan.advise.draft import EP_OVERLAP, draft, requests, run_in_precision
from overlapkit.plan.advise.recommend import experts_not_worth
from overlapkit.plan.bounds import Bounds
from overlapkit.plan.candidates import (
    LayoutChoice,
    ModelSizes,
    candidates,
    layout_in,
    sizes_of,
    with_layout,
)
from overlapkit.plan.checks import faults
from overlapkit.plan.cluster import Cluster
from overlapkit.plan.estimate.costs import Costs, MemoryNeed, StepSummary, costs_of_run
from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.inputs import PRECISIONS
from overlapkit.plan.measures import FULL, saving_tiers

RANKED = 20
"""Layouts whose order is exact: as many as an answer lists."""


@dataclass(frozen=True)
class Ranked:
    """One layout that fits.

    Attributes:
        layout: ranks by dimension, and the micro-batch.
        data_parallel_size: world size / (TP x PP x CP).
        summary: the step with the overlap that the rules grant.
        memory: of the fullest GPU.
    """

    layout: LayoutChoice
    data_parallel_size: int
    summary: StepSummary
    memory: MemoryNeed


@dataclass(frozen=True)
class Ranking:
    """A sweep's result.

    Attributes:
        fitting: the layouts that were estimated and fit, the fastest first.
        tried: how many divide the model and the GPUs.
        slower: how many of these were not estimated, since they are slower than `fastest`.
        ranked: how many of the fastest were asked for; None for all.
        least_over: the layout that exceeds the memory by least; None where some fit.
        unestimated: why no estimate could be made, where none could.
    """

    fitting: tuple[Ranked, ...]
    tried: int
    least_over: tuple[LayoutChoice, MemoryNeed] | None
    unestimated: str | None
    slower: int = 0
    ranked: int | None = None

    @property
    def fastest(self) -> tuple[Ranked, ...]:
        """Those of `fitting` that no other layout is faster than."""
        return self.fitting[: self.ranked] if self.slower else self.fitting

    @property
    def best(self) -> Ranked:
        """The fastest."""
        return self.fitting[0]

    def why_none(self) -> str:
        """Why nothing fits, and what would fix it."""
        if self.tried == 0:
            return (
                "no layout divides the GPUs, the model and the batch evenly; change --world-size "
                "or train.global_batch_size, or sweep more dimensions"
            )
        if self.least_over is None:
            return f"no layout can be estimated: {self.unestimated}"
        layout, memory = self.least_over
        over = (memory.needed - memory.usable) / 1e9
        return (
            f"none of {self.tried} layouts fits; the closest, {layout}, needs "
            f"{memory.needed / 1e9:.1f} GB, {over:.1f} GB more than the {memory.usable / 1e9:.1f} "
            f"GB usable of a GPU's {memory.capacity / 1e9:.1f} GB: {remedy_of(memory, layout)}"
        )


def remedy_of(memory: MemoryNeed, layout: LayoutChoice) -> str:
    """What makes a run fit: recomputation helps only where activations are the problem."""
    if memory.states > memory.usable:
        return (
            f"weights, gradients and optimizer state alone take {memory.states / 1e9:.1f} GB; use "
            f"at least {memory.states / memory.usable:.1f} times as many GPUs"
        )
    if layout.recompute == FULL or layout.saving:
        return "use more GPUs, or a shorter model.seq_length"
    return (
        "use more GPUs, or set model.recompute_granularity=full with "
        "model.recompute_method=uniform and model.recompute_num_layers=1"
    )


def sweep(
    settings: Settings, cluster: Cluster, swept: tuple[str, ...], *, ranked: int | None = RANKED
) -> Ranking:
    """The fastest layouts that fit, estimated with the overlap that is recommended for each.

    Args:
        settings: of the run. Its own layout is used for the dimensions that are not swept.
        cluster: the GPUs.
        swept: dimensions of `candidates.SWEPT`.
        ranked: how many of the fastest to find; None estimates every layout.

    Raises:
        InputError: a size that a sweep needs is not set.
    """
    given = build_run(settings)
    sizes = sizes_of(given.model, given.train)
    search = _Search(settings, cluster)
    tried = _sweep_with((), search, sizes, swept, ranked)
    if "saving" in swept and not search.fitting and search.least_over is not None:
        machine = cluster.machine
        lower = _smaller_precision(machine) if ASSUMED_PRECISION in settings.asked else None
        for tier in saving_tiers(given, settings.asked, machine.host is not None, lower):
            tried += sum(_sweep_with(one, search, sizes, swept, ranked) for one in tier)
            if search.fitting:
                break
    return search.ranking(tried, ranked)


def _sweep_with(
    saving: tuple[str, ...],
    search: _Search,
    sizes: ModelSizes,
    swept: tuple[str, ...],
    ranked: int | None,
) -> int:
    """Try the layouts that save memory in these ways beside all that were tried; how many they are.

    What was found before counts: a layout that must be slower than that is not estimated.
    """
    settings, cluster = search.settings, search.cluster
    fixed = replace(layout_in(build_run(settings)), saving=saving)
    layouts = list(candidates(sizes, cluster.world_size, cluster.nvlink_domain, fixed, swept))
    bounds = Bounds(settings, cluster, layouts)
    for number, (most, layout) in enumerate(bounds.fastest_first()):
        if ranked is not None and search.has_faster(ranked, most):
            search.slower += len(layouts) - number
            break
        search.try_one(layout, bounds)
    search.look_for_the_closest(bounds)
    return len(layouts)


ASSUMED_PRECISION = "mixed_precision._recipe"
"""Among the keys of settings whose precision nobody stated."""


def _smaller_precision(machine: Machine) -> str | None:
    """The recipe of mixed_precision with the smallest numbers that a GPU commonly trains in."""
    if "mxfp8" in machine.rates:
        return PRECISIONS["mxfp8"]
    return PRECISIONS["fp8"] if "fp8" in machine.rates else None


@dataclass
class _Search:
    """The layouts that were tried so far.

    Attributes:
        settings, cluster: of the sweep.
        fitting: those that fit.
        rates: their tokens/s/GPU, negative, so that the fastest comes first.
        refused: how many cannot run.
        slower: how many need not be tried.
        least_over: the one that exceeds the memory by least.
        failures: why there is no estimate, and of how many.
        fits: those that fit, whatever they recompute.
        too_large: the smallest micro-batch that does not fit, by what else a layout is.
        skipped: layouts that need more memory than one that does not fit.
    """

    settings: Settings
    cluster: Cluster
    fitting: list[Ranked] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    refused: int = 0
    slower: int = 0
    least_over: tuple[LayoutChoice, MemoryNeed] | None = None
    failures: Counter[str] = field(default_factory=Counter)
    fits: set[LayoutChoice] = field(default_factory=set)
    too_large: dict[LayoutChoice, int] = field(default_factory=dict)
    skipped: list[LayoutChoice] = field(default_factory=list)

    def has_faster(self, ranked: int, most: float) -> bool:
        """Whether `ranked` layouts are faster than any with at most `most` tokens/s/GPU."""
        if len(self.fitting) < ranked:
            return False
        return -self.rates[ranked - 1] > round(most, 1)

    def try_one(self, layout: LayoutChoice, bounds: Bounds) -> None:
        """Estimate a layout, unless it cannot run or cannot fit."""
        of_any_batch = replace(layout, mbs=0)
        states = replace(of_any_batch, recompute="", cp_comm="")
        any_recomputed = replace(layout, recompute="")
        if any_recomputed in self.fits:
            # Recomputing more takes time, and saves memory that is not needed.
            return
        # A larger micro-batch needs more memory, and nothing saves weights and optimizer state.
        smallest = min(self.too_large.get(each, layout.mbs + 1) for each in (of_any_batch, states))
        if layout.mbs >= smallest:
            self.skipped.append(layout)
            return
        costs = bounds.costs(layout)
        need = costs if isinstance(costs, str) else costs.memory()
        if isinstance(need, MemoryNeed) and need.fits:
            trial = _Trial(layout, self.cluster, with_layout(self.settings, layout))
            world_size, domain = self.cluster.world_size, self.cluster.nvlink_domain
            if next(faults(build_run(trial.settings), world_size, domain), None) is not None:
                self.refused += 1
                return
            found = trial.estimate()
            if isinstance(found, Ranked):
                self.fitting.append(found)
                insort(self.rates, -_rounded(found))
                self.fits.add(any_recomputed)
                return
            need = found
        if isinstance(need, str):
            self.failures[need] += 1
            return
        self.too_large[of_any_batch] = layout.mbs
        if need.states > need.usable:
            self.too_large[states] = 1
        self.note_over(layout, need)

    def note_over(self, layout: LayoutChoice, need: MemoryNeed) -> None:
        """Keep the layout that exceeds the memory by least."""
        if self.least_over is None or need.needed < self.least_over[1].needed:
            self.least_over = layout, need

    def look_for_the_closest(self, bounds: Bounds) -> None:
        """Where nothing fits: the memory of what was skipped with the smallest micro-batch."""
        skipped, self.skipped = self.skipped, []
        if self.fitting or not skipped:
            return
        least = min((one.mbs, one.vp) for one in skipped)
        for layout in skipped:
            if (layout.mbs, layout.vp) == least:
                costs = bounds.costs(layout)
                if not isinstance(costs, str):
                    self.note_over(layout, costs.memory())

    def ranking(self, layouts: int, ranked: int | None) -> Ranking:
        """What was found among this many layouts."""
        # Of equally fast ones the simplest: fewer ranks to a model, fewer chunks, a smaller batch.
        fitting = sorted(self.fitting, key=lambda one: (-_rounded(one), one.layout))
        why = self.failures.most_common(1)[0][0] if self.failures else None
        return Ranking(
            tuple(fitting),
            layouts - self.refused,
            None if fitting else self.least_over,
            why,
            self.slower,
            ranked,
        )


def _rounded(one: Ranked) -> float:
    return round(one.summary.tokens_per_s_per_gpu, 1)


@dataclass(frozen=True)
class _Trial:
    """A layout to estimate, and the settings with it."""

    layout: LayoutChoice
    cluster: Cluster
    settings: Settings

    def estimate(self) -> Ranked | MemoryNeed | str:
        """The layout with its estimate, the memory it needs if that is too much, or why neither."""
        found: Ranked | MemoryNeed | str = "no overlap was tried"
        for expert_overlap in (True, False) if self.layout.ep > 1 else (False,):
            costs = self._costs(expert_overlap=expert_overlap)
            if isinstance(costs, str):
                return costs
            memory = costs.memory()
            if not memory.fits:
                return memory
            on = overlapped(costs.run)
            dp = self.cluster.world_size // self.layout.ranks
            found = Ranked(self.layout, dp, costs.summary(on), memory)
            if requests(self.settings, EP_OVERLAP) or not self._without_experts(costs):
                break
        return found

    def _without_experts(self, costs: Costs) -> bool:
        """Whether the experts' overlap was granted and does not pay."""
        granted = getattr(costs.run.model, EP_OVERLAP, False)
        return bool(granted) and experts_not_worth(costs.run, costs, self.cluster) is not None

    def _costs(self, *, expert_overlap: bool) -> Costs | str:
        drafted = draft(
            self.settings,
            self.cluster.world_size,
            self.cluster.assumptions,
            expert_overlap=expert_overlap,
        )
        # Which preset TP overlap uses makes no difference to an estimate, but takes time.
        comm = {k: v for k, v in drafted.comm.items() if k != "tp_comm_overlap_cfg"}
        requested = drafted.settings(comm)
        world_size = self.cluster.world_size
        costs = costs_of_run(
            run_in_precision(requested, self.cluster.assumptions),
            world_size,
            self.cluster.machine,
            cut=False,
        )
        if isinstance(costs, str):
            return costs
        run, _ = make_effective(requested, world_size, self.cluster.assumptions.software)
        return costs.with_exchange_of(run)
