"""Sends and receives of a pipeline: exposed in its steady state, and where it fills and drains."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.diagnose.diagnosis import NOTABLE, Case, Diagnosis
from overlapkit.trace.intervals import Spans, both, minus, union

BUBBLE = 0.05
"""Share of the step from which a bubble is told: every schedule has one."""


def _steady(case: Case) -> Spans:
    """The time of the steps but for the first and the last sixth, where the pipeline fills and
    drains."""
    sixth = [(w.end - w.start) // 6 for w in case.windows]
    return union(
        np.asarray([w.start + s for w, s in zip(case.windows, sixth, strict=True)], np.int64),
        np.asarray([w.end - s for w, s in zip(case.windows, sixth, strict=True)], np.int64),
    )


def _transfers(case: Case) -> NDArray[np.intp]:
    """The sends and receives; none where nothing says where a step begins."""
    events = case.events(("PP",))
    return events if case.marked and len(events) >= 4 * case.steps else events[:0]


def _split(case: Case, events: NDArray[np.intp]) -> tuple[float, float]:
    """Exposed transfers in nanoseconds: of a full pipeline, and what its ends have beyond that."""
    exposed, steady = case.exposed_of(events), _steady(case)
    full = both(exposed, steady).total
    ends = exposed.total - full
    # What is exposed all the time is so at the ends too.
    as_full = full * (case.scope.total - steady.total) / max(1, steady.total)
    bubble = max(0.0, ends - as_full)
    return exposed.total - bubble, bubble


def pipeline_exposed(case: Case) -> Diagnosis | None:
    """Sends and receives that nothing hides while the pipeline is full."""
    events = _transfers(case)
    steady, bubble = _split(case, events)
    if not len(events) or not case.notable(steady, NOTABLE):
        return None
    exposed = case.exposed_of(events)
    interleaved = case.layout is not None and (case.layout.vpp or 1) > 1
    message = "Send and receive are exposed in the steady state of the pipeline"
    if interleaved:
        message += ", although the schedule is interleaved: overlap_p2p_comm is off, or the stages "
        message += "are uneven"
    elif case.layout is not None:
        message += ": without interleaving, nothing runs beside them"
    return case.diagnosis(
        "pipeline-exposed",
        "interleaved pipeline" if interleaved else "pipeline",
        f"{message}.",
        steady,
        {
            "transfers_per_step": round(len(events) / case.steps, 1),
            "exposed_us": case.per_step_us(exposed.total),
            "steady_us": case.per_step_us(steady),
        },
        time=both(exposed, _steady(case)) if case.notable(bubble, BUBBLE) else exposed,
    )


def pipeline_bubble(case: Case) -> Diagnosis | None:
    """Receives that wait at the start and the end of a step, while no compute is left to run.

    A receive runs on the device until the data is there, so a bubble is exposed communication, not
    idle time.
    """
    events = _transfers(case)
    _, bubble = _split(case, events)
    if not len(events) or not case.notable(bubble, BUBBLE):
        return None
    share = 100 * bubble / max(1, sum(t.step for t in case.times))
    return case.diagnosis(
        "pipeline-bubble",
        "pipeline bubble",
        f"The pipeline fills and drains: in the first and the last sixth of the step, sends and "
        f"receives run while nothing computes, for {share:.0f} % of the step more than between.",
        bubble,
        {"exposed_us": case.per_step_us(bubble), "share_pct": round(share, 1)},
        time=minus(case.exposed_of(events), _steady(case)),
        confidence="possible",
    )
