"""The command `overlapkit compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from overlapkit.config.reading import Reading
from overlapkit.errors import EXIT_FINDING
from overlapkit.output.console import write_json
from overlapkit.trace.analyse import analyse_each, layout_of
from overlapkit.trace.command import trace_outputs
from overlapkit.trace.compare.comparison import compare
from overlapkit.trace.compare.decisions import (
    Installed,
    add_contradictions,
    add_decisions,
    read_configurations,
)
from overlapkit.trace.compare.document import CompareDocument, compare_document
from overlapkit.trace.compare.side import side_of
from overlapkit.trace.document import merged_warnings
from overlapkit.trace.measure.dimensions import Layout
from overlapkit.trace.rank_report import Options
from overlapkit.trace.ranks import settle_ranks
from overlapkit.trace.read.files.folders import Traces, find_traces
from overlapkit.trace.read.stated import Stated, read_stated

if TYPE_CHECKING:
    from overlapkit.config.run import Settings


def run(
    base: str,
    new: str,
    *,
    steps: str,
    config_base: str | None,
    config_new: str | None,
    comm: Sequence[str],
    group: Sequence[str],
    te: str | None,
    reading: Reading,
    force: bool,
    as_json: bool,
    html: str | None,
) -> int:
    """Explain the change of the median step; return the exit status.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    settings = read_configurations(config_base, config_new, reading)
    found = [find_traces([base]), find_traces([new])]
    files = [each.paths for each in found]
    configs = [name for name in (config_base, config_new) if name is not None]
    (page,) = trace_outputs(
        {"--html": html}, (base, new), [base, new, *files[0], *files[1], *configs]
    )
    software = Installed(te, reading.installation if settings else None)
    document = compare_runs(
        (base, new),
        found,
        steps=steps,
        stated=read_stated(comm, group),
        settings=settings,
        software=software,
        force=force,
    )
    if page is not None:
        from overlapkit.trace.compare.page import compare_page

        page.write(compare_page(document))
    if as_json:
        write_json(document)
    else:
        from overlapkit.output.console import console
        from overlapkit.trace.compare.tables import show_comparison

        show_comparison(document, console())
    return EXIT_FINDING if document.verdict == "slower" and document.verdict_holds else 0


def compare_runs(
    names: tuple[str, str],
    found: Sequence[Traces],
    *,
    steps: str,
    stated: Stated,
    settings: Sequence[Settings],
    software: Installed,
    force: bool,
    forking: bool = True,
) -> CompareDocument:
    """Compare the profiles of two runs.

    Args:
        names: what the base and the new run are called.
        found: the traces of each.
        steps: see `choose_steps`.
        stated: what the user says of communication.
        settings: the configuration of each; empty where they are not known.
        software: the Transformer Engine of both jobs.
        force: whether to compare runs that differ in more than their speed.
        forking: see `analyse_each`.

    Raises:
        InputError: a trace cannot be read, or the runs are not comparable.
    """
    layouts: list[Layout | None] = [layout_of(each) for each in settings]
    files = [each.paths for each in found]
    options = [
        Options(steps=steps, stated=stated, layout=layout, owners=True)
        for paths, layout in zip(files, layouts or [None, None], strict=True)
        for _ in paths
    ]
    by_file = analyse_each([*files[0], *files[1]], options, forking=forking)
    # By position, since a file can belong to both runs.
    split = len(files[0])
    reports = [
        settle_ranks([report for one in part for report in one], None)
        for part in (by_file[:split], by_file[split:])
    ]
    sides = [side_of(name, part) for name, part in zip(names, reports, strict=True)]
    comparison = compare(sides[0], sides[1], force=force)
    for name, part in zip(names, reports, strict=True):
        comparison.warnings += [f"{name}: {w}" for w in merged_warnings(part)]
    comparison.warnings += [note for each in found for note in each.notes]
    comparison.warnings = list(dict.fromkeys(comparison.warnings))
    if settings:
        add_decisions(comparison, settings, software)
        add_contradictions(comparison, settings, reports)
    return compare_document(comparison)
