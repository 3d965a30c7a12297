"""Whether a step is longer than those of earlier reports."""

from __future__ import annotations

from collections import deque
from statistics import median

from overlapkit.monitor.report import OverlapReport, Regression

LEAST = 3
"""Earlier reports without which nothing is called slower."""

MOST = 20
"""Earlier reports that are kept. A lasting change becomes the usual step after half of them."""

DEVIATIONS = 3.0
"""Standard deviations above the median from which a step is slower."""

LEAST_GROWTH = 0.05
"""Share of the median below which nothing is called slower, however little the others differ."""

_PARTS = {
    "compute": "compute_us",
    "exposed communication": "exposed_comm_us",
    "exposed memory": "exposed_memory_us",
    "idle": "idle_us",
}
_WAITS = {"waiting for data": "waiting_for_data_us", "waiting for the host": "waiting_for_host_us"}


class History:
    """The last reports of one rank."""

    def __init__(self) -> None:
        self._earlier: deque[OverlapReport] = deque(maxlen=MOST)

    def judge(self, report: OverlapReport) -> Regression | None:
        """Compare a report with those before it, and keep it.

        A report with doubts is neither judged nor kept.
        """
        if report.doubts:
            return None
        earlier = list(self._earlier)
        self._earlier.append(report)
        if len(earlier) < LEAST:
            return None
        steps = [r.step_us for r in earlier]
        usual = median(steps)
        # The factor makes it the standard deviation of a normal distribution.
        spread = 1.4826 * median(abs(us - usual) for us in steps)
        if report.step_us <= usual + max(DEVIATIONS * spread, LEAST_GROWTH * usual):
            return None
        growth = _growth(report, earlier, _PARTS)
        part = max(growth, key=lambda name: growth[name])
        return Regression(
            step_us=report.step_us,
            usual_us=round(usual, 3),
            spread_us=round(spread, 3),
            part=part,
            part_us=round(growth[part], 3),
            detail=_detail(part, report, earlier),
        )


def _growth(
    report: OverlapReport, earlier: list[OverlapReport], fields: dict[str, str]
) -> dict[str, float]:
    """How much each field is above its median."""
    return {
        name: getattr(report, field) - median(getattr(r, field) for r in earlier)
        for name, field in fields.items()
    }


def _detail(part: str, report: OverlapReport, earlier: list[OverlapReport]) -> str:
    """What grew most within a part; empty where nothing known did."""
    growth: dict[str, float] = {}
    if part == "idle":
        growth = _growth(report, earlier, _WAITS)
    elif part == "exposed communication":
        growth = {
            dimension: us - median(r.exposed_by_dimension.get(dimension, 0.0) for r in earlier)
            for dimension, us in report.exposed_by_dimension.items()
        }
    name = max(growth, key=lambda each: growth[each], default="")
    return name if growth.get(name, 0.0) > 0 else ""
