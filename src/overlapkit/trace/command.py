"""The command `overlapkit trace`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overlapkit.config.reading import Reading
from overlapkit.errors import InputError
from overlapkit.output.console import write_json
from overlapkit.output.files import Output, outputs, real_path
from overlapkit.trace.read.files.folders import SUFFIXES, find_traces
from overlapkit.trace.read.parallel_read import read_ahead

if TYPE_CHECKING:
    from overlapkit.config.run import Settings
    from overlapkit.trace.document import TraceDocument


def run(
    files: Sequence[str],
    *,
    steps: str,
    rank_from: str | None,
    rank: int | None,
    config: str | None,
    comm: Sequence[str],
    group: Sequence[str],
    reading: Reading,
    as_json: bool,
    html: str | None,
    annotate: str | None,
    merge: bool,
) -> int:
    """Report where the time of the steps goes; return the exit status.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    if merge:
        from overlapkit.trace.merge import check_options
        from overlapkit.trace.merge import merge as merge_documents

        outputs_given = {"--html": html, "--annotate": annotate}
        given = {"--config": config, "--comm": comm, "--group": group, **outputs_given}
        check_options(("--steps", steps), given)
        _show(merge_documents(files, rank_from), rank, as_json=as_json)
        return 0
    traces = find_traces(files)
    paths = traces.paths
    read = [*files, *paths, *([config] if config is not None else [])]
    page, annotated = trace_outputs({"--html": html, "--annotate": annotate}, files, read)
    if annotate is not None and len(paths) > 1:
        raise InputError("--annotate: takes one trace file at a time")
    ahead = read_ahead(paths[0]) if len(paths) == 1 else None
    # Imported here: numpy takes as long as reading a small file, which goes on beside it.
    from overlapkit.trace.analyse import analyse, layout_of
    from overlapkit.trace.document import trace_document
    from overlapkit.trace.rank_report import Options
    from overlapkit.trace.ranks import settle_ranks
    from overlapkit.trace.read.stated import read_stated

    settings = _configuration(config, reading) if config is not None else None
    layout = layout_of(settings) if settings is not None else None
    options = Options(
        steps=steps,
        layout=layout,
        stated=read_stated(comm, group),
        timeline=page is not None,
        annotate=annotated,
        packed=as_json,
    )
    reports = settle_ranks(analyse(paths, options, ahead), rank_from)
    document = trace_document(reports, settings, traces.notes)
    if page is not None:
        from overlapkit.trace.page import trace_page

        page.write(trace_page(document, [r.timeline for r in reports], rank))
    _show(document, rank, as_json=as_json)
    return 0


def _configuration(config: str, reading: Reading) -> Settings:
    # Imported here: a profile alone does not need what reads configurations.
    from overlapkit.config.sources import read_configuration

    return read_configuration(config, reading)


def _show(document: TraceDocument, rank: int | None, *, as_json: bool) -> None:
    document.detailed(rank)
    if as_json:
        write_json(document)
        return
    from overlapkit.output.console import console
    from overlapkit.trace.tables import show_trace

    show_trace(document, console(), rank)


def trace_outputs(
    named: Mapping[str, str | None], files: Sequence[str], inputs: Iterable[str]
) -> list[Output | None]:
    """The output files of a command that reads traces, checked before minutes of reading.

    Args:
        named: option to file.
        files: traces and folders of traces, as the user named them.
        inputs: every file that is read.

    Raises:
        InputError: as `overlapkit.output.files.outputs`; or a later run on the same folder would
            read the output as one of its traces.
    """
    checked = outputs(named, inputs)
    for output in checked:
        if output is not None and output.target.endswith(SUFFIXES):
            folder = real_path(str(Path(output.target).absolute().parent))
            for name in files:
                if real_path(name) == folder:
                    raise InputError(
                        f"{output.option} {output.target}: would be read as one of the traces in "
                        f"{name}; write it to another folder"
                    )
    return checked
