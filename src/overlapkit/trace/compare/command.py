"""The command `overlapkit compare`."""

from __future__ import annotations

from overlapkit.errors import EXIT_FINDING
from overlapkit.output.console import write_json
from overlapkit.trace.analyse import analyse_each
from overlapkit.trace.command import expand, trace_outputs
from overlapkit.trace.compare.comparison import compare, side_of
from overlapkit.trace.compare.decisions import add_decisions, read_configurations
from overlapkit.trace.compare.document import compare_document
from overlapkit.trace.document import merged_warnings
from overlapkit.trace.rank_report import Options
from overlapkit.trace.ranks import settle_ranks


def run(
    base: str,
    new: str,
    *,
    steps: str,
    config_base: str | None,
    config_new: str | None,
    force: bool,
    as_json: bool,
    html: str | None,
) -> int:
    """Explain the change of the median step time; returns the exit status.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    settings = read_configurations(config_base, config_new)
    files = [expand([base]), expand([new])]
    configs = [name for name in (config_base, config_new) if name is not None]
    (page,) = trace_outputs({"--html": html}, (base, new), [*files[0], *files[1], *configs])
    options = Options(steps=steps, owners=True)
    by_file = analyse_each([*files[0], *files[1]], options)
    # By their places: a file may belong to both runs.
    split = len(files[0])
    reports = [
        settle_ranks([report for one in part for report in one], None)
        for part in (by_file[:split], by_file[split:])
    ]
    sides = [side_of(name, part) for name, part in zip((base, new), reports, strict=True)]
    comparison = compare(sides[0], sides[1], force=force)
    for name, part in zip((base, new), reports, strict=True):
        comparison.warnings += [f"{name}: {w}" for w in merged_warnings(part)]
    comparison.warnings = list(dict.fromkeys(comparison.warnings))
    if settings:
        add_decisions(comparison, settings)
    document = compare_document(comparison)
    if page is not None:
        from overlapkit.trace.compare.page import compare_page

        page.write(compare_page(document))
    if as_json:
        write_json(document)
    else:
        from overlapkit.output.console import console
        from overlapkit.trace.compare.tables import show_comparison

        show_comparison(document, console())
    return EXIT_FINDING if comparison.verdict == "slower" else 0
