"""What `trace` and `compare` answer, as a document and as one line of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import msgspec
from rich.console import Console

from overlapkit.config.reading import Reading
from overlapkit.config.sources import read_configuration
from overlapkit.trace.analyse import analyse, layout_of
from overlapkit.trace.compare.command import compare_runs
from overlapkit.trace.compare.decisions import Installed, read_configurations
from overlapkit.trace.compare.tables import show_comparison
from overlapkit.trace.document import trace_document
from overlapkit.trace.rank_report import Options
from overlapkit.trace.ranks import settle_ranks
from overlapkit.trace.read.files.folders import find_traces
from overlapkit.trace.read.stated import read_stated
from overlapkit.trace.tables import show_trace


@dataclass(frozen=True)
class Answer:
    """An answer; `text` is what a wide terminal shows, without line breaks."""

    document: dict[str, Any]
    text: str


def _shown(show: Callable[[Any, Console], None], document: Any) -> Answer:
    written = StringIO()
    show(document, Console(file=written, width=4000, no_color=True))
    return Answer(msgspec.to_builtins(document), " ".join(written.getvalue().split()))


def trace_of(
    *files: str, config: str | None = None, comm: Sequence[str] = (), group: Sequence[str] = ()
) -> Answer:
    """What `overlapkit trace` answers."""
    traces = find_traces(files)
    settings = read_configuration(config, Reading()) if config is not None else None
    layout = layout_of(settings) if settings is not None else None
    options = Options(layout=layout, stated=read_stated(comm, group))
    reports = settle_ranks(analyse(traces.paths, options), None)
    return _shown(show_trace, trace_document(reports, settings, traces.notes))


def compare_of(
    base: str, new: str, *, configs: tuple[str, str] | None = None, force: bool = False
) -> Answer:
    """What `overlapkit compare` answers."""
    document = compare_runs(
        (base, new),
        [find_traces([base]), find_traces([new])],
        steps="all",
        stated=read_stated((), ()),
        settings=read_configurations(*(configs or (None, None)), Reading()),
        software=Installed(),
        force=force,
    )
    return _shown(show_comparison, document)
