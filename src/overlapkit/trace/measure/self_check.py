"""How far a report's own figures can be relied on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overlapkit.trace.intervals import both
from overlapkit.trace.measure.step_times import WorkSpans, span_of
from overlapkit.trace.measure.units import Unit
from overlapkit.trace.read.recorded import Window

LEAST_IN_STEPS = 0.8
"""Share of the device's busy time inside steps below which the steps do not stand for the trace."""

LEAST_IN_REPEATED = 0.4
"""The same for steps that are repeated sequences of kernels: the recording begins and ends inside
one of them, and three are enough."""

LEAST_KNOWN = 0.8
"""Share of the communication with a known operation and dimension below which nothing can be said
of the rest."""


@dataclass(frozen=True)
class SelfCheck:
    """Shares that a report rests on, between 0 and 1.

    Attributes:
        work_in_steps: busy time of the device inside steps; None without steps.
        steps_of_trace: the steps together, of the time from the first step or device work to the
            last; None without steps.
        known_communication: communication with a known operation and dimension, by the durations of
            kernels in the steps; None without communication.
        repeated: whether the steps are repeated sequences of kernels.
        unknown_names: the names of the communication that is not known, the longest first.
        unknown_operations: whether there is any whose operation is not known.
        unit: what the steps are.
    """

    work_in_steps: float | None
    steps_of_trace: float | None
    known_communication: float | None
    repeated: bool = False
    unknown_names: tuple[str, ...] = ()
    unknown_operations: bool = False
    unit: Unit = "step"

    @property
    def steps_stand_for_trace(self) -> bool:
        """Whether verdicts may rest on the steps."""
        least = LEAST_IN_REPEATED if self.repeated else LEAST_IN_STEPS
        return self.work_in_steps is None or self.work_in_steps >= least

    @property
    def communication_is_known(self) -> bool:
        """Whether verdicts may rest on what the communication is."""
        return self.known_communication is None or self.known_communication >= LEAST_KNOWN

    @property
    def doubts(self) -> list[str]:
        """What is below its threshold, in sentences."""
        result = []
        if not self.steps_stand_for_trace:
            result.append(
                f"Only {100 * (self.work_in_steps or 0):.0f} % of the device's work is inside "
                f"{self.unit}s: the {self.unit}s do not stand for the trace, and no diagnosis "
                "rests on them."
            )
        if not self.communication_is_known:
            unknown = 1 - (self.known_communication or 0)
            lacks = "operation or dimension" if self.unknown_operations else "dimension"
            result.append(
                f"{100 * unknown:.0f} % of the communication has no known {lacks} "
                f"({', '.join(self.unknown_names[:3])}): no diagnosis says what it is for. Give "
                "--config, or name the groups with --group."
            )
        return result


def self_check(
    m: WorkSpans, windows: Sequence[Window], *, repeated: bool = False, unit: Unit = "step"
) -> SelfCheck:
    """Check what a report rests on.

    Args:
        m: the measured work.
        windows: the steps; empty where the profile has none.
        repeated: whether they are repeated sequences of kernels.
        unit: what they are.
    """
    work = m.work
    scope = span_of(windows or [work.whole])
    in_steps = of_trace = None
    if windows:
        in_steps = both(m.busy, span_of(m.work.steps)).total / max(1, m.busy.total)
        first = min(work.whole.start, *(w.start for w in work.steps))
        last = max(work.whole.end, *(w.end for w in work.steps))
        of_trace = sum(w.end - w.start for w in work.steps) / max(1, last - first)
    lengths = []
    for index in range(len(m.traffic)):
        chosen = m.events_of([index])
        ran = scope.within(work.start[chosen], work.end[chosen])
        lengths.append(int(np.sum(ran)))
    total = sum(lengths)
    unknown: dict[str, int] = {}
    for traffic, length in zip(m.traffic, lengths, strict=True):
        if traffic.operation == "other" or traffic.confidence == "unknown":
            # Without its group, a user cannot name what it is.
            name = f"{traffic.name} of {traffic.group}" if traffic.group else traffic.name
            unknown[name] = unknown.get(name, 0) + length
    known = 1 - sum(unknown.values()) / total if total else None
    names = tuple(sorted(unknown, key=lambda name: -unknown[name]))
    other = any(traffic.operation == "other" for traffic in m.traffic)
    return SelfCheck(in_steps, of_trace, known, repeated, names, other, unit)
