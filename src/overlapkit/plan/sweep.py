"""Layouts that fit, ranked by their estimated throughput."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from overlapkit.config.effective import make_effective
from overlapkit.config.run import Run, Settings, build_run
from overlapkit.plan.advise.dimensions import overlapped
from overlapkit.plan.advise.draft import draft, run_in_precision
from overlapkit.plan.candidates import LayoutChoice, candidates, layout_in, sizes_of, with_layout
from overlapkit.plan.checks import faults
from overlapkit.plan.cluster import Cluster
from overlapkit.plan.estimate.costs import MemoryNeed, StepSummary, costs_of_run


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
        fitting: the layouts that fit, the fastest first.
        tried: how many divide the model and the GPUs.
        least_over: the layout that exceeds the memory by least; None where some fit.
        unestimated: why no estimate could be made, where none could.
    """

    fitting: tuple[Ranked, ...]
    tried: int
    least_over: tuple[LayoutChoice, MemoryNeed] | None
    unestimated: str | None

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
            f"GB usable of a GPU's {memory.capacity / 1e9:.1f} GB: {remedy_of(memory)}"
        )


def remedy_of(memory: MemoryNeed) -> str:
    """What makes a run fit: recomputation helps only where activations are the problem."""
    if memory.states > memory.usable:
        return (
            f"weights, gradients and optimizer state alone take {memory.states / 1e9:.1f} GB; use "
            f"at least {memory.states / memory.usable:.1f} times as many GPUs"
        )
    return (
        "use more GPUs, or set model.recompute_granularity=full with "
        "model.recompute_method=uniform and model.recompute_num_layers=1"
    )


def sweep(settings: Settings, cluster: Cluster, swept: tuple[str, ...]) -> Ranking:
    """Every layout that divides, estimated with the overlap that the rules grant it.

    Args:
        settings: of the run. Its own layout is used for the dimensions that are not swept.
        cluster: the GPUs.
        swept: dimensions of `candidates.SWEPT`.

    Raises:
        InputError: a size that a sweep needs is not set.
    """
    given = build_run(settings)
    sizes = sizes_of(given.model, given.train)
    fitting: list[Ranked] = []
    least_over: tuple[LayoutChoice, MemoryNeed] | None = None
    failures: Counter[str] = Counter()
    tried = 0
    too_large: set[LayoutChoice] = set()
    world_size, domain = cluster.world_size, cluster.nvlink_domain
    for layout in candidates(sizes, world_size, domain, layout_in(given), swept):
        # There is no estimate yet: the reach of the experts' exchange decides whether to hide it.
        far = layout.ep * (sizes.expert_tp or layout.tp) > domain
        trial = _Trial.of(settings, layout, cluster, expert_overlap=far)
        if next(faults(trial.run, world_size, domain), None) is not None:
            continue
        tried += 1
        of_any_batch = replace(layout, mbs=0)
        if of_any_batch in too_large:
            # A larger micro-batch needs even more memory.
            continue
        found = trial.estimate()
        if isinstance(found, str):
            failures[found] += 1
        elif isinstance(found, MemoryNeed):
            too_large.add(of_any_batch)
            if least_over is None or found.needed < least_over[1].needed:
                least_over = layout, found
        else:
            fitting.append(found)
    # Of equally fast ones the simplest: fewer ranks to a model, fewer chunks, a smaller batch.
    fitting.sort(key=lambda r: (-round(r.summary.tokens_per_s_per_gpu, 1), r.layout))
    why = failures.most_common(1)[0][0] if failures else None
    return Ranking(tuple(fitting), tried, None if fitting else least_over, why)


@dataclass(frozen=True)
class _Trial:
    """A layout to estimate: the settings with the overlap to request, and their run."""

    layout: LayoutChoice
    cluster: Cluster
    settings: Settings
    run: Run

    @classmethod
    def of(
        cls, settings: Settings, layout: LayoutChoice, cluster: Cluster, *, expert_overlap: bool
    ) -> _Trial:
        drafted = draft(
            with_layout(settings, layout),
            cluster.world_size,
            cluster.assumptions,
            expert_overlap=expert_overlap,
        )
        # Which preset TP overlap uses makes no difference to an estimate, but takes time.
        comm = {k: v for k, v in drafted.comm.items() if k != "tp_comm_overlap_cfg"}
        requested = drafted.settings(comm)
        return cls(layout, cluster, requested, run_in_precision(requested, cluster.assumptions))

    def estimate(self) -> Ranked | MemoryNeed | str:
        """The layout with its estimate, the memory it needs if that is too much, or why neither."""
        world_size = self.cluster.world_size
        # Memory is estimated first: most layouts do not fit, and cutting buckets takes time.
        costs = costs_of_run(self.run, world_size, self.cluster.machine, cut=False)
        if isinstance(costs, str):
            return costs
        memory = costs.memory()
        if not memory.fits:
            return memory
        run, _ = make_effective(self.settings, world_size, self.cluster.assumptions.software)
        summary = costs.with_exchange_of(run).summary(overlapped(run))
        return Ranked(self.layout, world_size // self.layout.ranks, summary, memory)
