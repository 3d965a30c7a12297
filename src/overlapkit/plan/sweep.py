"""Layouts that fit, ranked by what they are expected to train a second."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from overlapkit.config.effective import make_effective
from overlapkit.config.run import Settings
from overlapkit.explain.report import Assumptions
from overlapkit.plan.advise.dimensions import overlapped
from overlapkit.plan.advise.proposal import draft, run_in_precision
from overlapkit.plan.candidates import LayoutChoice, ModelSizes, candidates, with_layout
from overlapkit.plan.checks import faults
from overlapkit.plan.estimate.costs import MemoryNeed, Summary, costs_of_run
from overlapkit.plan.estimate.machine import Machine


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
    summary: Summary
    memory: MemoryNeed


@dataclass(frozen=True)
class Ranking:
    """A sweep's result.

    Attributes:
        fitting: the layouts that fit, the fastest first.
        tried: how many divide the model and the GPUs.
        least_over: the layout that misses the memory by least; None where some fit.
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
        """Why nothing fits, and what would mend it."""
        if self.tried == 0:
            return (
                "no layout divides these GPUs, the model and the batch; change --world-size or "
                "train.global_batch_size, or sweep more dimensions"
            )
        if self.least_over is None:
            return f"no layout can be estimated: {self.unestimated}"
        layout, memory = self.least_over
        over = (memory.needed - memory.usable) / 1e9
        return (
            f"none of {self.tried} layouts fits; the nearest, {layout}, needs "
            f"{memory.needed / 1e9:.1f} GB, {over:.1f} GB more than can be used of a GPU's "
            f"{memory.capacity / 1e9:.1f} GB: {remedy_of(memory)}"
        )


def remedy_of(memory: MemoryNeed) -> str:
    """What makes a run fit: recomputation only where it is activations that are too many."""
    if memory.states > memory.usable:
        return (
            f"weights, gradients and optimizer state alone take {memory.states / 1e9:.1f} GB; use "
            f"at least {memory.states / memory.usable:.1f} times as many GPUs"
        )
    return (
        "use more GPUs, or set model.recompute_granularity=full with "
        "model.recompute_method=uniform and model.recompute_num_layers=1"
    )


def sweep(
    settings: Settings,
    sizes: ModelSizes,
    fixed: LayoutChoice,
    world_size: int,
    domain: int,
    machine: Machine,
    assumptions: Assumptions,
    swept: tuple[str, ...],
) -> Ranking:
    """Every layout that divides, estimated with the overlap that the rules grant it.

    Args:
        settings: of the run; its own layout is replaced.
        sizes: of the model.
        fixed: the layout as given, for what is not swept.
        world_size: GPUs of the job.
        domain: GPUs that NVLink joins.
        machine: rates and links.
        assumptions: GPU and software.
        swept: dimensions of `candidates.SWEPT`.
    """
    fitting: list[Ranked] = []
    least_over: tuple[LayoutChoice, MemoryNeed] | None = None
    failures: Counter[str] = Counter()
    tried = 0
    too_large: set[LayoutChoice] = set()
    for layout in candidates(sizes, world_size, domain, fixed, swept):
        # Without an estimate yet, the reach of the experts' exchange tells whether to hide it.
        far = layout.ep * (sizes.expert_tp or layout.tp) > domain
        drafted = draft(with_layout(settings, layout), world_size, assumptions, expert_overlap=far)
        # Which preset carries TP overlap makes no difference to an estimate, but takes time.
        comm = {k: v for k, v in drafted.comm.items() if k != "tp_comm_overlap_cfg"}
        asked = drafted.settings(comm)
        run = run_in_precision(asked, assumptions)
        if next(faults(run, world_size, domain), None) is not None:
            continue
        tried += 1
        alike = replace(layout, mbs=0)
        if alike in too_large:
            # A larger micro-batch needs more memory still.
            continue
        costs = costs_of_run(run, world_size, machine, cut=False)
        if isinstance(costs, str):
            failures[costs] += 1
            continue
        memory = costs.memory()
        if not memory.fits:
            too_large.add(alike)
            if least_over is None or memory.needed < least_over[1].needed:
                least_over = layout, memory
            continue
        run, _ = make_effective(asked, world_size, assumptions.software)
        costs = costs.with_exchange_of(run)
        summary = costs.summary(overlapped(run))
        fitting.append(Ranked(layout, world_size // layout.ranks, summary, memory))
    # Of equally fast ones the plainest: fewer ranks to a model, fewer chunks, a smaller batch.
    fitting.sort(key=lambda r: (-round(r.summary.tokens_per_s_per_gpu, 1), r.layout))
    why = failures.most_common(1)[0][0] if failures else None
    return Ranking(tuple(fitting), tried, None if fitting else least_over, why)
