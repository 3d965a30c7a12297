"""The command `overlapkit doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings
from overlapkit.config.sources import check_world_size, read_sources
from overlapkit.doctor.examine import Examination, Question, examine
from overlapkit.errors import EXIT_FINDING
from overlapkit.output.console import write_json, write_text
from overlapkit.output.files import Output, outputs

if TYPE_CHECKING:
    from overlapkit.trace.document import TraceDocument


def run(
    *,
    arguments: Sequence[str],
    from_megatron_lm: bool,
    traces: Sequence[str],
    world_size: int | None,
    gpu: str | None,
    te: str | None,
    reading: Reading,
    env_file: str | None,
    as_json: bool,
    html: str | None,
) -> int:
    """Examine a job; returns the exit status.

    Args:
        arguments: a configuration and overrides, or nothing; see `config.sources.name_sources`.
        from_megatron_lm: the configuration is a launch script of Megatron-LM, or its arguments.
        reading: for which versions and how strictly it is read.
        traces: profiles, and folders with one per rank.
        world_size, gpu, te, env_file: see `doctor.examine.Question`.
        as_json: whether to print the JSON document instead of text.
        html: file for the page; None for none.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    page = _page(html, arguments, env_file, traces)
    check_world_size(world_size)
    named = read_sources(
        arguments, command="doctor", from_megatron_lm=from_megatron_lm, reading=reading
    )
    settings = named[0] if named else None
    profile = _profile(traces, settings) if traces else None
    x = examine(Question(settings, world_size, gpu, te, env_file, profile, reading.installation))
    if page is not None:
        from overlapkit.doctor.page import doctor_page

        page.write(doctor_page(x))
    if as_json:
        from overlapkit.doctor.document import doctor_document

        write_json(doctor_document(x))
    else:
        _show(x)
    return EXIT_FINDING if x.findings else 0


def _page(
    html: str | None, arguments: Sequence[str], env_file: str | None, traces: Sequence[str]
) -> Output | None:
    """The page, if one is to be written, checked before any work."""
    # A launch script can be given with a line: FILE:LINE.
    inputs = [*arguments, *(text.rpartition(":")[0] for text in arguments), env_file or ""]
    if not traces:
        return outputs({"--html": html}, inputs)[0]
    from overlapkit.trace.command import trace_outputs
    from overlapkit.trace.read.files.folders import find_traces

    return trace_outputs({"--html": html}, traces, [*inputs, *traces, *find_traces(traces).paths])[
        0
    ]


def _show(x: Examination) -> None:
    if sys.stdout.isatty():
        from overlapkit.doctor.tables import show_examination
        from overlapkit.output.console import console

        show_examination(x, console())
    else:
        from overlapkit.doctor.text import examination_lines

        write_text("".join(f"{line}\n" for line in examination_lines(x)))


def _profile(traces: Sequence[str], settings: Settings | None) -> TraceDocument:
    """The document of `overlapkit trace` on these files.

    Its diagnoses are combined with the findings of the configuration later.
    """
    from overlapkit.trace.read.files.folders import find_traces
    from overlapkit.trace.read.parallel_read import read_ahead

    found = find_traces(traces)
    paths = found.paths
    ahead = read_ahead(paths[0]) if len(paths) == 1 else None
    # Imported here: numpy takes as long as everything else but the profile.
    from overlapkit.trace.analyse import analyse, layout_of
    from overlapkit.trace.document import trace_document
    from overlapkit.trace.rank_report import Options
    from overlapkit.trace.ranks import settle_ranks

    layout = None if settings is None else layout_of(settings)
    reports = settle_ranks(analyse(paths, Options(layout=layout), ahead), None)
    return trace_document(reports, settings, found.notes, explained=False)
