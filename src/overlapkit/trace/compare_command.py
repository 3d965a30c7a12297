"""The command `overlapkit compare`."""

from __future__ import annotations

from overlapkit.output import write_json
from overlapkit.trace.command import check_target, expand
from overlapkit.trace.compare import compare, compare_json, side_of
from overlapkit.trace.compare_decisions import add_decisions, check_configs
from overlapkit.trace.job import analyse
from overlapkit.trace.report import Options, settle_ranks

EXIT_SLOWER = 1


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
    check_configs(config_base, config_new)
    files = [expand([base]), expand([new])]
    if html is not None:
        check_target("--html", html, [*files[0], *files[1]])
    options = Options(steps=steps, owners=True)
    reports = analyse([*files[0], *files[1]], options)
    first = set(files[0])
    # A file held against itself is read twice: tell the two by their order.
    split = len([r for r in reports if r.path in first])
    if files[0] == files[1]:
        split = len(reports) // 2
    sides = [
        side_of(name, settle_ranks(part, None))
        for name, part in ((base, reports[:split]), (new, reports[split:]))
    ]
    comparison = compare(sides[0], sides[1], force=force)
    for part in (reports[:split], reports[split:]):
        for report in part:
            comparison.warnings += [f"{report.path}: {w}" for w in report.warnings]
    comparison.warnings = list(dict.fromkeys(comparison.warnings))
    if config_base is not None and config_new is not None:
        add_decisions(comparison, config_base, config_new)
    document = compare_json(comparison)
    if html is not None:
        from overlapkit.trace.page import compare_page, write_whole

        write_whole(html, compare_page(document))
    if as_json:
        write_json(document)
    else:
        from overlapkit.output import console
        from overlapkit.trace.compare_render import show_comparison

        show_comparison(document, console())
    return EXIT_SLOWER if comparison.verdict == "slower" else 0
