"""How fast a layout can be at most, which costs far less than its estimate.

The slowest stage of a pipeline takes at least as long as the mean of all. The estimate of a step
adds to its compute what is exposed, contention and the optimizer; the bound leaves out what
depends on data and pipeline parallelism, and takes every overlap as granted. What remains differs
only with TP, CP, EP, the micro-batch and what is recomputed, so that layouts share it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heapreplace

from overlapkit.config.effective import make_effective
from overlapkit.config.run import Run, Settings
from overlapkit.plan.advise.draft import EP_OVERLAP, draft, run_in_precision
from overlapkit.plan.cluster import Cluster
from overlapkit.plan.estimate.costs import Costs, costs_of_run, overlap_in
from overlapkit.plan.estimate.layer_time import layer_time
from overlapkit.plan.estimate.overlap import DIMENSIONS, EP, Overlap
from overlapkit.plan.search.candidates import LayoutChoice, model_changes, with_layout
from overlapkit.plan.search.measures import NONE, SAVINGS

_ALL = frozenset(DIMENSIONS)
"""Every overlap. None makes a layer take longer: what it hides costs at most a share of its time in
contention, and what the chunks of tensor parallelism's overlap cost is left out."""


Known = dict[tuple[LayoutChoice, bool], float | None]
"""Seconds of a microbatch through all layers, by what else a layout is than its pipeline, and
whether the experts' exchange may be overlapped; None where there is no estimate."""


class Bounds:
    """Bounds of the layouts of one sweep.

    Args:
        settings: of the run.
        cluster: the GPUs.
        layouts: that divide it.
        known: what the bounds of other layouts of the run found, to which these add.
    """

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        layouts: Sequence[LayoutChoice],
        known: Known | None = None,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._layouts = layouts
        self._run: Run | None = None
        self._seconds: Known = {} if known is None else known
        self._granted: dict[tuple[bool, bool, str], bool] = {}

    def fastest_first(self) -> Iterator[tuple[float, LayoutChoice]]:
        """Tokens/s/GPU that a layout reaches at most, and the layout, in decreasing order.

        A layout that recomputes is no faster than the same without. Its own bound is found only
        where none of those before it, by that of the same without, end the search.
        """
        kinds = dict.fromkeys(layout.recompute for layout in self._layouts)
        order = {each: number for number, each in enumerate(kinds)}
        # Of variants that are as fast, the one that recomputes less comes first.
        waiting = [
            (-self._most(layout, lighter), order[layout.recompute], layout, lighter.recompute)
            for layout in self._layouts
            for lighter in [replace(layout, recompute=NONE) if NONE in order else layout]
        ]
        heapify(waiting)
        while waiting:
            most, number, layout, bounded_as = waiting[0]
            if bounded_as == layout.recompute:
                heappop(waiting)
                yield -most, layout
            else:
                own = max(most, -self.most(layout))
                heapreplace(waiting, (own, number, layout, layout.recompute))

    def most(self, layout: LayoutChoice) -> float:
        """Tokens/s/GPU that a layout cannot exceed; infinite where it cannot be estimated."""
        return self._most(layout, layout)

    def _most(self, layout: LayoutChoice, lighter: LayoutChoice) -> float:
        """`most` of a layout, where its layers take as long as those of another.

        Args:
            layout: that is bounded.
            lighter: the same, which may recompute less.
        """
        seconds = self._of_microbatch(lighter, hides=self._hides_experts(layout))
        if seconds is None:
            return float("inf")
        world_size = self._cluster.world_size
        model, train = self._base(layout).model, self._base(layout).train
        passes = train.global_batch_size // (layout.mbs * (world_size // layout.ranks))
        step = seconds / layout.pp * (passes + (layout.pp - 1) / layout.vp)
        return float(train.global_batch_size * (model.seq_length or 1024) / step / world_size)

    def costs(self, layout: LayoutChoice) -> Costs | str:
        """The costs of a layout before the rules: enough for its memory."""
        return costs_of_run(
            self._with(layout), self._cluster.world_size, self._cluster.machine, cut=False
        )

    def _of_microbatch(self, layout: LayoutChoice, *, hides: bool) -> float | None:
        """Seconds of one microbatch through all layers, at least.

        Args:
            layout: whose layers they are.
            hides: whether the experts' exchange may be overlapped.
        """
        # What is offloaded or sharded takes no time of the layers themselves.
        precision = tuple(one for one in layout.saving if one not in SAVINGS)
        shared = replace(layout, pp=1, vp=1, saving=precision), hides
        if shared not in self._seconds:
            overlap = _ALL if hides else _ALL - {EP}
            self._seconds[shared] = self._least(layout, overlap_in(overlap))
        return self._seconds[shared]

    def _least(self, layout: LayoutChoice, overlap: Overlap) -> float | None:
        costs = self.costs(layout)
        if isinstance(costs, str):
            return None
        machine, work = self._cluster.machine, costs.work
        layers = sum(work.stages, start=type(work.stages[0])())

        kinds = [(work.layers[kind], count) for kind, count in layers.items()]
        return sum(
            count * layer_time(layer, machine, overlap, priced=False).all.value
            for layer, count in [*kinds, (work.vocabulary, work.heads)]
        )

    def _hides_experts(self, layout: LayoutChoice) -> bool:
        """Whether the rules may grant the overlap of the experts' exchange.

        Of a layout, their conditions concern only whether it has a pipeline, whether that is
        interleaved, and what is recomputed: layouts that agree in these share the answer.
        """
        if layout.ep == 1:
            return False
        key = layout.pp > 1, layout.vp > 1, layout.recompute
        if key not in self._granted:
            assumptions, world_size = self._cluster.assumptions, self._cluster.world_size
            drafted = draft(with_layout(self._settings, layout), world_size, assumptions)
            run, _ = make_effective(drafted.settings(), world_size, assumptions.software)
            self._granted[key] = bool(getattr(run.model, EP_OVERLAP, False))
        return self._granted[key]

    def _with(self, layout: LayoutChoice) -> Run:
        base = self._base(layout)
        model, train = copy.copy(base.model), copy.copy(base.train)
        changes = model_changes(vars(model), layout)
        for name in changes.dropped:
            setattr(model, name, None)
        for name, value in changes.set.items():
            setattr(model, name, value)
        train.micro_batch_size = layout.mbs
        return replace(base, model=model, train=train)

    def _base(self, layout: LayoutChoice) -> Run:
        """A run in its precision, made once: a layout changes only its model and micro-batch."""
        if self._run is None:
            # Where nothing is exchanged the optimizer is not sharded.
            replicated = (
                one for one in self._layouts if one.tp * one.pp < self._cluster.world_size
            )
            first = next(replicated, layout)
            drafted = draft(
                with_layout(self._settings, first),
                self._cluster.world_size,
                self._cluster.assumptions,
            )
            self._run = run_in_precision(drafted.settings(), self._cluster.assumptions)
        return self._run
