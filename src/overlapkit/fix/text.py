"""What was fixed, as plain lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from overlapkit.config.megatron_lm.doubt import not_known
from overlapkit.config.megatron_lm.flag_words import KeyWords
from overlapkit.fix.document import diff_of
from overlapkit.fix.mend import UNSET, Change, Fix, Mended
from overlapkit.output.numbers import setting_text

_WIDTH = 80


def fix_lines(mended: Mended, *, writes: bool) -> Iterator[str]:
    """The diff where nothing is written, and what becomes of each finding.

    Args:
        mended: the configuration.
        writes: whether the changes are written to its file.
    """
    diff = "" if writes else diff_of(mended)
    if diff:
        yield from diff.removesuffix("\n").split("\n")
        yield ""
    yield _verdict(mended, writes=writes)
    for fix in mended.fixes:
        keeps = writes and mended.before.source.kind != "arguments"
        yield from _fix_lines(fix, mended.words, writes=keeps)
    source = mended.after.source
    if source.kind == "arguments" and mended.is_changed:
        yield ""
        yield "The arguments are in no file. With the changes they are:"
        yield from wrapped(shlex.join(source.arguments), "  ")


def _verdict(mended: Mended, *, writes: bool) -> str:
    name = mended.report.source
    fixed, left = len(mended.fixed), len(mended.left)
    if not mended.fixes:
        unknown = not_known(mended.report.gaps)
        return f"{name}: nothing to fix" + (f" in what was read; {unknown}" if unknown else "")
    done = "fixed" if writes and mended.before.source.kind != "arguments" else "would be fixed"
    return f"{name}: {_count(fixed)} {done}, {left} left"


def _count(number: int) -> str:
    return "1 finding" if number == 1 else f"{number} findings"


def _fix_lines(fix: Fix, words: KeyWords, *, writes: bool) -> Iterator[str]:
    decision = fix.decision
    what = "left " if fix.why else "fixed" if writes else "fix  "
    yield f"{what}  {words.short(decision.knob)} [{decision.rule}]"
    if fix.why:
        yield from wrapped(fix.why, "  ")
    elif not fix.changes:
        yield "  with the changes for another finding"
    # One flag may set several keys.
    for line in dict.fromkeys(_changed(change, words) for change in fix.changes):
        yield from wrapped(line, "  ")


def _changed(change: Change, words: KeyWords) -> str:
    place = f" ({change.place})" if change.place is not None else ""
    old, new = (_shown(words.value(change.key, value)) for value in (change.old, change.new))
    return f"{words.name(change.key)}: {old} -> {new}{place}"


def _shown(value: Any) -> str:
    return "not set" if value is UNSET else setting_text(value)


def wrapped(text: str, indent: str) -> list[str]:
    """Lines that fit a terminal."""
    return wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
