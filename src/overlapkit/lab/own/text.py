"""What was made of the user's own run, in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from overlapkit.config.schema import shown
from overlapkit.lab.own.document import LabChange, LabOwnRun

if TYPE_CHECKING:
    from rich.console import Console


def own_parts(own: LabOwnRun) -> Iterator[tuple[str, list[str]]]:
    """Headings with their lines, without those that have none."""
    parts = (
        ("changed:", [changed_line(change) for change in own.changed]),
        ("kept:", own.kept),
        ("not run here, and so not proven:", own.unproven),
        ("changed by the remedies:", own.remedies),
    )
    for heading, lines in parts:
        if lines:
            yield heading, list(lines)


def own_heading(own: LabOwnRun) -> str:
    """The run, its size, and by how many ranks it is trained."""
    gpus = f"{own.world_size} GPU{'s' if own.world_size != 1 else ''}"
    assumed = " (assumed: see --world-size)" if own.world_size_assumed else ""
    trained = f"trained here by {own.ranks} ranks" if own.trained else "not trained"
    return f"{own.source}: {gpus}{assumed}, data parallelism {own.data_parallel_size}; {trained}"


def changed_line(change: LabChange) -> str:
    """What was changed, from what, to what, and why."""
    return f"{change.what}: {_said(change.before)} -> {_said(change.after)}: {change.why}"


def _said(value: object) -> str:
    return "not set" if value is None else shown(value)


def show_own(own: LabOwnRun, console: Console) -> None:
    """What was changed, and what cannot run here, each in lines of the terminal's width."""
    _show(own_heading(own), "", console)
    for heading, lines in own_parts(own):
        console.print(heading)
        for line in lines:
            _show(line, "  ", console)


def _show(text: str, indent: str, console: Console) -> None:
    if console.soft_wrap:
        # Not a terminal: lines are not broken.
        console.print(indent + text)
        return
    for line in textwrap.wrap(
        text,
        console.width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
    ):
        console.print(line)
