"""Shows what the ranks do while they run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from overlapkit.lab.protocol import Block


def turns(block: Block) -> int:
    """Number of progress events that a block's rank 0 sends."""
    steps = len(block.variants) * (1 + block.rounds)
    return steps + (len(block.variants) if block.rounds and block.profiled else 0)


@contextmanager
def progress(total: int) -> Iterator[Callable[[Any], None]]:
    """Show on standard error, if that is a terminal, what rank 0 does; takes the ranks' events."""
    if not sys.stderr.isatty():
        yield lambda event: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=total)

        def on_event(event: Any) -> None:
            if event.rank != 0:
                return
            what = event.data.get("event", "")
            if "variant" in event.data:
                bar.update(
                    task, description=f"{event.data['block']}: {event.data['variant']}, {what}"
                )
                bar.advance(task)
            else:
                bar.update(task, description=what)

        yield on_event
