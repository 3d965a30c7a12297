"""The command `overlapkit doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overlapkit.config.run import Settings
from overlapkit.config.sources import check_world_size, read_sources
from overlapkit.doctor.document import doctor_document
from overlapkit.doctor.examine import Asked, examine
from overlapkit.doctor.text import examination_lines
from overlapkit.errors import EXIT_FINDING
from overlapkit.output.console import write_json, write_text

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
    env_file: str | None,
    as_json: bool,
) -> int:
    """Examine a job; returns the exit status.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    check_world_size(world_size)
    named = read_sources(arguments, command="doctor", from_megatron_lm=from_megatron_lm)
    settings = named[0] if named else None
    asked = Asked(
        settings,
        world_size,
        gpu,
        te,
        env_file,
        _profile(traces, settings) if traces else None,
    )
    examination = examine(asked)
    if as_json:
        write_json(doctor_document(examination))
    elif sys.stdout.isatty():
        from overlapkit.doctor.tables import show_examination
        from overlapkit.output.console import console

        show_examination(examination, console())
    else:
        write_text("".join(f"{line}\n" for line in examination_lines(examination)))
    return EXIT_FINDING if examination.findings else 0


def _profile(traces: Sequence[str], settings: Settings | None) -> TraceDocument:
    """The document of `overlapkit trace` on these files."""
    from overlapkit.trace.command import expand
    from overlapkit.trace.read.parallel_read import read_ahead

    paths = expand(traces)
    ahead = read_ahead(paths[0]) if len(paths) == 1 else None
    # Imported here: numpy takes as long as everything else but the profile.
    from overlapkit.trace.analyse import analyse, layout_of
    from overlapkit.trace.document import trace_document
    from overlapkit.trace.rank_report import Options
    from overlapkit.trace.ranks import settle_ranks

    layout = None if settings is None else layout_of(settings)
    return trace_document(settle_ranks(analyse(paths, Options(layout=layout), ahead), None))
