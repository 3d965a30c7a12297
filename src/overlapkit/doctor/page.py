"""The page of `overlapkit doctor`: self-contained, no network, no script, every name escaped."""

from __future__ import annotations

from typing import Any

from overlapkit.doctor import text
from overlapkit.doctor.document import doctor_document
from overlapkit.doctor.examine import Examination
from overlapkit.doctor.finding import MOST
from overlapkit.output.html import environment


def doctor_page(x: Examination) -> str:
    """The verdict, the findings, the profile's step, and what was examined."""
    return (
        environment("overlapkit.doctor")
        .get_template("doctor.html")
        .render(
            x=x,
            text=text,
            findings=x.findings[:MOST],
            # The GPUs and the rest are single lines; packages get a table.
            examined=[e for e in text.examined(x) if e[0] != "packages" or not x.trains_here],
            packages=doctor_document(x).packages if x.trains_here else [],
            **_step(x),
        )
    )


def _step(x: Examination) -> dict[str, Any]:
    """The median step of the slowest rank as a bar, and the key of its colors."""
    if x.profile is None:
        return {"bars": [], "kinds": []}
    # Imported here: it brings numpy, which only a profile needs.
    from overlapkit.trace.labels import label_of
    from overlapkit.trace.measure.step_times import PARTS
    from overlapkit.trace.step_bars import KEY, StepTime, step_bars

    median = x.profile.slowest.median
    parts = {part: getattr(median, f"{part}_us") for part in PARTS}
    return {
        "bars": step_bars([StepTime("median step", median.step_us, parts)]),
        "kinds": KEY,
        "label": label_of(x.profile.slowest, x.profile.ranks),
    }
