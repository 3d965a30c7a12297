"""The page of `overlapkit compare`: self-contained, no network, no script, every name escaped."""

from __future__ import annotations

from overlapkit.output.html import environment
from overlapkit.trace.compare import text
from overlapkit.trace.compare.document import CompareDocument
from overlapkit.trace.step_bars import KEY, StepTime, step_bars


def compare_page(document: CompareDocument) -> str:
    """Both steps as bars, what changed, exposed communication by dimension, decisions."""
    base = {part.part: part.base_us for part in document.parts}
    new = {part.part: part.new_us for part in document.parts}
    steps = [
        StepTime(f"base: {document.base.name}", document.base.step_us, base),
        StepTime(f"new: {document.new.name}", document.new.step_us, new),
    ]
    return (
        environment("overlapkit.trace.compare")
        .get_template("compare.html")
        .render(document=document, text=text, bars=step_bars(steps), kinds=KEY)
    )
