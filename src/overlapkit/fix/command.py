"""`overlapkit explain --fix` and `--diff`."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings
from overlapkit.config.sources import Source, name_sources, world_sizes_of
from overlapkit.config.text_file import MAX_BYTES, decoded
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.lint.linted import LINT_FORMS, Form
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.fix.mend import Mended, mend
from overlapkit.fix.target import Target
from overlapkit.input_file import read_input
from overlapkit.output.console import write_json, write_text
from overlapkit.output.files import check_rewritable, rewrite

if TYPE_CHECKING:
    from overlapkit.output.files import Output


def run(
    *,
    fix: bool,
    diff: bool,
    arguments: Sequence[str],
    world_sizes: Sequence[int],
    gpu: str | None,
    te: str | None,
    reading: Reading,
    env_file: str | None,
    form: Form,
    html: str | None,
    from_megatron_lm: bool,
    buckets: bool = False,
    brief: bool = False,
) -> int:
    """Fix one configuration; returns the exit status.

    Args:
        fix: whether its file is changed.
        diff: whether the changes are printed as a diff instead, and nothing is written.
        arguments, world_sizes, gpu, te, reading, env_file, html, from_megatron_lm: as in
            `explain.command.run`.
        form: text or json.
        buckets: not to be given here.
        brief: changes nothing: what is printed here is brief.

    Raises:
        InputError: see `overlapkit.errors`; the file is one that is not written.
    """
    writes = fix and not diff
    option = "--fix" if writes else "--diff"
    if form in LINT_FORMS:
        raise InputError(f"{option} has no form {form}: use --format text or json")
    if buckets:
        raise InputError(f"{option} prints no buckets: give --buckets without it")
    page = None if html is None else _page(html, arguments, env_file)
    source = named(arguments, option=option, from_megatron_lm=from_megatron_lm)
    assumptions = assume(gpu, te, env_file, installation=reading.installation)
    target, raw = opened(source, reading, option if writes else None)
    mended = mend_with(target, world_sizes, assumptions)
    if writes and mended.is_changed and target.source.kind != "arguments":
        mark = codecs.BOM_UTF8 if raw.startswith(codecs.BOM_UTF8) else b""
        rewrite(option, target.file, raw, mark + mended.after.text.encode())
    _show(mended, page, writes=writes, as_json=form == "json")
    changes = mended.is_changed and (not writes or target.source.kind == "arguments")
    return EXIT_FINDING if mended.left or changes else 0


def named(arguments: Sequence[str], *, option: str, from_megatron_lm: bool) -> Source:
    """The one configuration that is fixed.

    Raises:
        InputError: as `name_sources`, or there are two.
    """
    sources = name_sources(arguments, command="explain", from_megatron_lm=from_megatron_lm, most=2)
    if len(sources) > 1:
        raise InputError(
            f"{option} takes one configuration, and there are two: fix {sources[0].name} and "
            f"{sources[1].name} one after the other"
            if sources[0].name != sources[1].name
            else f"{option} takes one configuration: give the override without b:"
        )
    return sources[0]


def opened(source: Source, reading: Reading, writes: str | None) -> tuple[Target, bytes]:
    """A configuration as it is fixed, and the bytes of its file.

    Args:
        source: the configuration.
        reading: how it is read.
        writes: the option by which its file will be written; None where it will not.

    Raises:
        InputError: its file cannot be read, or not be written.
    """
    target = Target(source, reading)
    if source.kind == "arguments":
        return target, b""
    if writes is not None:
        check_rewritable(writes, target.file)
    what = "run configuration" if source.kind == "yaml" else "launch script"
    raw = read_input(target.file, what, most=MAX_BYTES, pipes=True)
    return Target(source, reading, decoded(target.file, raw, what=what)), raw


def mend_named(
    arguments: Sequence[str],
    world_sizes: Sequence[int],
    assumptions: Assumptions,
    reading: Reading,
    *,
    from_megatron_lm: bool,
) -> Mended:
    """The configuration that arguments name, mended in memory.

    Raises:
        InputError: as `named` and `opened`.
    """
    source = named(arguments, option="diff=True", from_megatron_lm=from_megatron_lm)
    target, _ = opened(source, reading, None)
    return mend_with(target, world_sizes, assumptions)


def mend_with(target: Target, world_sizes: Sequence[int], assumptions: Assumptions) -> Mended:
    """The configuration mended for a job of that size and these assumptions."""
    sizes: list[int] = []

    def judge(settings: Settings) -> Report:
        if not sizes:
            sizes.extend(world_sizes_of([settings], world_sizes))
        return explain(settings, sizes[0], assumptions, other_versions=False)

    return mend(target, judge)


def _page(html: str, arguments: Sequence[str], env_file: str | None) -> Output | None:
    # Imported here: most runs write no page.
    from overlapkit.output.files import outputs

    files = [*arguments, *(text.rpartition(":")[0] for text in arguments), env_file or ""]
    return outputs({"--html": html}, files)[0]


def _show(mended: Mended, page: Output | None, *, writes: bool, as_json: bool) -> None:
    if page is not None:
        from overlapkit.explain.page import explain_page

        page.write(explain_page(mended.report))
    if as_json:
        from overlapkit.fix.document import fix_document

        write_json(fix_document(mended))
        return
    from overlapkit.fix.text import fix_lines

    write_text("".join(f"{line}\n" for line in fix_lines(mended, writes=writes)))
