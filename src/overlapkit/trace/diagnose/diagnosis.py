"""A diagnosis, and what every diagnosis is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.diagnose.framework import Detected
from overlapkit.trace.diagnose.remedies import Problem, remedy
from overlapkit.trace.intervals import NOTHING, Spans, both, union
from overlapkit.trace.measure.collectives import SlowedCompute
from overlapkit.trace.measure.dimensions import Layout
from overlapkit.trace.measure.longer_steps import longer_than_others
from overlapkit.trace.measure.step_times import Times, WorkSpans, span_of
from overlapkit.trace.measure.units import A_UNIT, Unit
from overlapkit.trace.read.recorded import Window

NOTABLE = 0.02
"""Share of the step from which a diagnosis is made."""


DIAGNOSES: dict[str, tuple[str, ...]] = {
    "single-bucket": ("core.single-bucket",),
    "grad-reduce-after-backward": ("dp.defaults",),
    "param-gather-exposed": ("core.param-gather-needs",),
    "one-queue": ("launch.env-one-queue",),
    "layernorm-waits": ("launch.layernorm-margin",),
    "tp-overlap-off": ("tp.off-unless-asked", "tp.needs-sequence-parallel"),
    "pipeline-bubble": ("pp.not-interleaved",),
    "pipeline-exposed": ("pp.not-interleaved", "pp.interleaved"),
    "expert-exchange-exposed": ("ep.off-unless-asked",),
    "compute-slowed": (),
    "copies-exposed": (),
    "bandwidth-bound": (),
    "exposed-communication": ("core.cp-exchange-exposed",),
    "waits-for-data": (),
    "waits-for-host": (),
    "device-idle": (),
    "late-rank": (),
}
"""Every diagnosis by its id, and the rules of `explain` that it can refer to."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A cause of lost time.

    Attributes:
        id: stable name.
        rule: id of the rule of `explain` that applies; None where none does.
        message: what the profile shows.
        evidence: the figures that it is based on; times in microseconds per step.
        cost_us: time per step that it accounts for, in microseconds.
        remedy: what to try.
        flags: for settings of Megatron, the same in flags of Megatron-LM; empty otherwise.
        confidence: "likely" or "possible".
        ranks: the ranks whose profiles show it.
        devices: where one process uses several GPUs, those whose work shows it; empty otherwise.
        shared_us: other diagnoses that count some of this time too, by id, and how much at most.
        longer_steps: the names of steps longer than the others, without which it would not be made.
    """

    id: str
    rule: str | None
    message: str
    evidence: dict[str, Any]
    cost_us: float
    remedy: str
    confidence: Literal["likely", "possible"] = "likely"
    ranks: list[int] = field(default_factory=list)
    flags: str = ""
    devices: list[int] = field(default_factory=list)
    shared_us: dict[str, float] = field(default_factory=dict)
    longer_steps: list[str] = field(default_factory=list)

    @property
    def advice(self) -> str:
        """What to try, also in flags where it is not known that the run takes none."""
        return f"{self.remedy}; in Megatron-LM: {self.flags}" if self.flags else self.remedy


@dataclass(frozen=True, kw_only=True)
class Counted(Diagnosis):
    """A diagnosis with the time that it counts, which others may count too.

    Attributes:
        time: exposed communication that the cost is, or is a part of.
        slowed_us: the part of the cost that is lost in kernels that run, and so not in `time`.
    """

    time: Spans = field(default=NOTHING, repr=False, compare=False)
    slowed_us: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One rank's profile, and questions about it.

    Attributes:
        m: its device work.
        windows: the steps, or the whole trace where it marks none.
        times: what their time is made of.
        scope: the time that they cover.
        slowed: compute beside communication.
        layout: the parallel sizes; None without a configuration.
        framework: the software that ran.
        marked: whether the windows are steps, or iterations.
        unit: what they are.
        followed: the indices of the steps that run to the start of another one, or of all.
        are_followed: whether those do run to the start of another one.
    """

    m: WorkSpans
    windows: Sequence[Window]
    times: Sequence[Times]
    scope: Spans
    slowed: SlowedCompute
    layout: Layout | None
    framework: Detected
    marked: bool
    unit: Unit
    followed: Sequence[int]
    are_followed: bool

    @property
    def is_megatron(self) -> bool:
        """Whether Megatron's settings and rules apply."""
        return self.framework.name == "megatron"

    @property
    def a_step(self) -> str:
        """What follows a time per step; nothing where there are no steps."""
        return f" {A_UNIT[self.unit]}" if self.marked else ""

    @property
    def the_whole(self) -> str:
        """What shares are of."""
        return f"the {self.unit}" if self.marked else "the trace"

    @property
    def trains(self) -> bool:
        return self.framework.trains

    def megatrons(self, text: str, end: str = ".") -> str:
        """The end of a sentence that is true of Megatron alone; only `end` for other software."""
        return f"{text}{end}" if self.is_megatron else end

    def diagnosis(
        self,
        id: str,
        problem: Problem,
        message: str,
        cost_ns: float,
        evidence: dict[str, Any],
        *,
        time: Spans,
        confidence: Literal["likely", "possible"] = "likely",
    ) -> Counted:
        """A diagnosis with the remedy of the software that ran; `cost_ns` is of all steps."""
        found = remedy(problem, self.framework.name)
        return Counted(
            id=id,
            rule=found.rule,
            message=message,
            evidence=evidence,
            cost_us=self.per_step_us(cost_ns),
            remedy=found.text,
            flags=found.flags,
            confidence=confidence,
            time=time,
        )

    @property
    def steps(self) -> int:
        return len(self.windows)

    @property
    def step_ns(self) -> float:
        return sum(t.step for t in self.times) / max(1, self.steps)

    def of_followed(self) -> Case:
        """The steps whose idle time is whole: of the others, that before the next step is not."""
        return self._of_steps(self.followed)

    def of_usual(self) -> tuple[Case | None, list[str]]:
        """The steps that are not longer than the others, and the names of those that are.

        Returns:
            None where all are alike.
        """
        longer = longer_than_others([t.step for t in self.times]) if self.marked else []
        if not longer:
            return None, []
        usual = [i for i in range(self.steps) if i not in longer]
        return self._of_steps(usual), [self.windows[i].name for i in longer]

    def _of_steps(self, indices: Sequence[int]) -> Case:
        windows = [self.windows[i] for i in indices]
        return replace(
            self,
            windows=windows,
            times=[self.times[i] for i in indices],
            scope=span_of(windows),
            followed=[n for n, i in enumerate(indices) if i in self.followed],
        )

    def per_step_us(self, total_ns: float) -> float:
        return round(total_ns / max(1, self.steps) / 1000, 3)

    def notable(self, total_ns: float, share: float = NOTABLE) -> bool:
        return total_ns / max(1, self.steps) > share * self.step_ns

    def events(self, dimensions: Sequence[str], operations: Sequence[str] = ()) -> NDArray[np.intp]:
        """Communication events that start in the steps, but none whose dimension is a guess."""
        kinds = [
            i
            for i, t in enumerate(self.m.traffic)
            if t.dimension in dimensions
            and (not operations or t.operation in operations)
            and t.confidence != "guess"
        ]
        chosen = self.m.events_of(kinds)
        start = self.m.work.start[chosen]
        return chosen[self.scope.within(start, start + 1) > 0]

    def exposed_of(self, events: NDArray[np.intp]) -> Spans:
        work = self.m.work
        return both(both(union(work.start[events], work.end[events]), self.m.exposed), self.scope)

    def dimension_exposed(self, dimension: str) -> Spans:
        """The exposed communication of a dimension in the steps."""
        return both(self.m.dimension_exposed.get(dimension, NOTHING), self.scope)

    def beside_comm(self, event: int) -> bool:
        """Whether communication runs during a tenth of the event or more."""
        start, end = self.m.work.start[[event]], self.m.work.end[[event]]
        return 10 * int(self.m.comm.within(start, end)[0]) > int(end[0] - start[0])

    def is_guess(self, dimension: str) -> bool:
        """Whether nothing but the operation tells some communication of a dimension."""
        return any(t.dimension == dimension and t.confidence == "guess" for t in self.m.traffic)

    def has(self, *dimensions: str) -> bool:
        return any(d in self.m.dimension_comm for d in dimensions)
