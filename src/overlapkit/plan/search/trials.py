"""The layouts that a search tries, one after another."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from overlapkit.config.effective import make_effective
from overlapkit.config.run import Settings, build_run
from overlapkit.plan.advise.dimensions import overlapped
from overlapkit.plan.advise.draft import EP_OVERLAP, draft, requests, run_in_precision
from overlapkit.plan.advise.recommend import experts_not_worth
from overlapkit.plan.checks import faults
from overlapkit.plan.cluster import Cluster
from overlapkit.plan.estimate.costs import Costs, MemoryNeed, costs_of_run
from overlapkit.plan.search.bounds import Bounds, Known
from overlapkit.plan.search.candidates import LayoutChoice, with_layout
from overlapkit.plan.search.ranking import Ranked, Ranking, rounded


@dataclass
class Trials:
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
        known: seconds of a microbatch, which `Bounds` share.
        beyond: tokens/s/GPU that a layout must exceed to be of interest.
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
    known: Known = field(default_factory=dict)
    beyond: float = 0.0

    def bounds(self, layouts: Sequence[LayoutChoice]) -> Bounds:
        """The bounds of layouts, which share what is known of those before."""
        return Bounds(self.settings, self.cluster, layouts, self.known)

    def has_faster(self, ranked: int, most: float) -> bool:
        """Whether one with at most `most` tokens/s/GPU is of no interest, or `ranked` layouts are
        faster."""
        if most <= self.beyond:
            return True
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
                insort(self.rates, -rounded(found))
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
        if self.fitting or self.beyond or not skipped:
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
        fitting = sorted(self.fitting, key=lambda one: (-rounded(one), one.layout))
        why = self.failures.most_common(1)[0][0] if self.failures else None
        return Ranking(
            tuple(fitting),
            layouts - self.refused,
            None if fitting else self.least_over,
            why,
            self.slower,
            ranked,
        )


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
