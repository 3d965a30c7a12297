"""What a search for a layout found."""

from __future__ import annotations

from dataclasses import dataclass

from overlapkit.plan.estimate.costs import MemoryNeed, StepSummary
from overlapkit.plan.search.candidates import LayoutChoice
from overlapkit.plan.search.measures import FULL


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
        offered: the fastest that saves memory without need, where the estimate can tell that it is
            faster than all of `fitting`; None where none is, or none was asked for.
        least_over: the layout that exceeds the memory by least; None where some fit.
        unestimated: why no estimate could be made, where none could.
    """

    fitting: tuple[Ranked, ...]
    tried: int
    least_over: tuple[LayoutChoice, MemoryNeed] | None
    unestimated: str | None
    slower: int = 0
    ranked: int | None = None
    offered: Ranked | None = None

    @property
    def fastest(self) -> tuple[Ranked, ...]:
        """Those of `fitting` that no other layout is faster than."""
        return self.fitting[: self.ranked] if self.slower else self.fitting

    @property
    def best(self) -> Ranked:
        """The fastest."""
        return self.fitting[0]

    @property
    def equal(self) -> tuple[Ranked, ...]:
        """Those of `fastest` that the estimate cannot tell from the best, which is among them."""
        best = self.best.summary
        return tuple(one for one in self.fastest if not one.summary.told_from(best))

    @property
    def misjudged(self) -> float:
        """Share of the throughput up to which published pairs of layouts are misjudged."""
        return self.best.summary.apart - 1

    @property
    def more_may_be_equal(self) -> bool:
        """Whether layouts that were not estimated may count as equally fast, too."""
        return bool(self.slower) and len(self.equal) == len(self.fastest)

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


def rounded(one: Ranked) -> float:
    """Tokens/s/GPU, as far as they are compared."""
    return round(one.summary.tokens_per_s_per_gpu, 1)
