"""Judges an anchor: whether the lines that it names are those that it shows, and else where."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from overlapkit.skill.check.address import At, examined
from overlapkit.skill.check.checkout import Checkout
from overlapkit.skill.check.finding import (
    UNCOMPARED,
    Edit,
    Finding,
    Place,
    State,
    lines_text,
)
from overlapkit.skill.check.history import History, Then, moved_to
from overlapkit.skill.check.quote import (
    Quote,
    Source,
    Span,
    nearest,
    places,
    quote_of,
    source_of,
)
from overlapkit.skill.check.references import Reference

_SURELY_ALIKE = 0.75
"""A block that only follows an anchor is about it where it is so similar to lines of the file."""
_TELLING = 12
"""Letters and digits that lines need to be looked for in other files."""


class AnchorJudge:
    """Judges the anchors of one page.

    Args:
        checkout: what they point into.
        page: the page's file, with links resolved.
    """

    def __init__(self, checkout: Checkout, page: Path) -> None:
        self._checkout = checkout
        self._folder = page.parent
        self._history = History(checkout, page)

    def judge(self, reference: Reference) -> Finding | None:
        """Whether an anchor is right, moved, changed or gone.

        None for an address that is not known to be of the checkout's repository.
        """
        quote = quote_of(reference.quote or ())
        if reference.address is not None:
            at = examined(reference.address, self._checkout)
            return None if at is None else self._on_github(reference, quote, at)
        found = self._checkout.resolve(reference.path, self._folder)
        own = self._checkout.in_skill(reference.path, self._folder)
        if found.path is None and own is None:
            return self._absent(reference, quote, found.problem, unknown=found.unknown)
        finding = self._in_file(reference, quote, found.path or own or "")
        if found.path and own and finding.state == "gone" and not quote.parts:
            # A skill that brings its source may name files of it as the checkout names its own.
            return self._in_file(reference, quote, own)
        return finding

    def _on_github(self, reference: Reference, quote: Quote, at: At) -> Finding:
        """The answer for lines on GitHub: of a commit that git has, else of the checkout's file."""
        if at.absent:
            problem = f"the checkout does not have commit {at.ref[:10]}: not examined"
            return _finding(reference, "unknown", problem)
        if at.commit is None:
            if not self._checkout.has(at.path):
                problem = f"the checkout has no {at.path}; {at.ref} was not examined"
                return _finding(reference, "gone", problem)
            found = self._in_file(replace(reference, path=at.path), quote, at.path)
            said = f"compared with the checkout's file, not with {at.ref}"
            return replace(found, message=f"{found.message}; {said}" if found.message else said)
        text = self._checkout.git.text_at(at.commit, at.path)
        if text is None:
            return _finding(reference, "gone", f"{at.ref} has no {at.path}")
        return self._at_commit(reference, quote, at.ref, source_of(text))

    def _at_commit(self, reference: Reference, quote: Quote, ref: str, source: Source) -> Finding:
        """The answer for lines of a file as it was: the address stays what it is for ever."""
        here = Span(reference.start, reference.end)
        if not 1 <= here.start <= here.end <= len(source.lines):
            return _finding(reference, "gone", f"the file has {len(source.lines)} lines in {ref}")
        spans = places(quote, source)
        if not spans or any(span.within(here) for span in spans):
            # Other lines in a block that only follows need not be those of the address.
            return _finding(reference, "right", f"compared with {ref}")
        tight = _tightest(spans)
        chosen = min(tight, key=lambda span: abs(span.start - reference.start))
        text = f"the lines stand at {lines_text(chosen)} in {ref}"
        new = reference.write(reference.path, chosen.start, chosen.end)
        edit = Edit(reference.line, reference.column, reference.text, new)
        return Finding(
            reference.line,
            "anchor",
            "moved",
            reference.text,
            text,
            edit=edit if len(tight) == 1 else None,
        )

    def _in_file(self, reference: Reference, quote: Quote, path: str) -> Finding:
        """The answer for an anchor whose name means this file."""
        source = self._checkout.source(path)
        if source is None:
            return _finding(reference, "unknown", f"{path} is not a text file")
        finding = self._quoted(reference, quote, path, source) if quote.parts else None
        return finding or self._unquoted(reference, path, source)

    def _quoted(
        self, reference: Reference, quote: Quote, path: str, source: Source
    ) -> Finding | None:
        """The answer where lines are quoted; None where the block is not about the anchor."""
        here = Span(reference.start, reference.end)
        spans = places(quote, source)
        if here.end <= len(source.lines) and any(span.within(here) for span in spans):
            return _finding(reference, "right", "")
        if spans:
            return self._moved(reference, path, source, spans)
        near = nearest(quote, source, reference.start)
        if not reference.surely and (near is None or near.similarity < _SURELY_ALIKE):
            return None
        if near is None or not near.is_near:
            problem = f"the quoted lines are not in {path}"
            return self._in_another(reference, quote, path, problem) or _finding(
                reference, "gone", problem
            )
        place = Place(path, near.span)
        text = f"the nearest are lines {lines_text(near.span)}, {_percent(near.similarity)} alike"
        return _finding(reference, "changed", text, place, similarity=near.similarity)

    def _moved(
        self, reference: Reference, path: str, source: Source, spans: Sequence[Span]
    ) -> Finding:
        """The answer where the lines stand elsewhere in the file, perhaps in several places."""
        tight = _tightest(spans)
        if len(tight) > 1:
            then = self._history.then(reference.line, path)
            by_history = (
                then and moved_to(then.source, source, Span(reference.start, reference.end))[0]
            )
            overlapping = [s for s in tight if by_history and _overlap(s, by_history)]
            tight = overlapping if len(overlapping) == 1 else tight
        chosen = min(tight, key=lambda span: abs(span.start - reference.start))
        text = f"the lines stand at {lines_text(chosen)} now"
        if len(tight) > 1:
            others = ", ".join(lines_text(span) for span in tight if span != chosen)
            text = f"the lines stand {len(tight)} times: at {lines_text(chosen)} and {others}"
        name = reference.path if len(tight) == 1 else None
        return _finding(reference, "moved", text, Place(path, chosen), name=name)

    def _absent(
        self, reference: Reference, quote: Quote, problem: str, *, unknown: bool
    ) -> Finding:
        """The answer where no file has the anchor's name."""
        olds = self._names(reference.path)
        for old in olds:
            new = self._history.new_name(reference.line, old)
            if new is not None and self._checkout.has(new):
                return self._renamed(reference, quote, old, new)
        elsewhere = self._in_another(reference, quote, olds[0], problem)
        if elsewhere is not None:
            return elsewhere
        if unknown and not any(self._history.then(reference.line, old) for old in olds):
            return _finding(reference, "unknown", problem)
        return _finding(reference, "gone", problem)

    def _names(self, written: str) -> list[str]:
        """What a name can mean, relative to the checkout: from its root, or from the page."""
        beside = os.path.relpath(self._folder / written, self._checkout.root)
        return [os.path.normpath(written.lstrip("/")), beside]

    def _written(self, reference: Reference, path: str) -> str:
        """Another file as the anchor would name it: from the page where it does so now."""
        if reference.path.startswith(("./", "../")):
            return os.path.relpath(self._checkout.root / path, self._folder)
        return path

    def _in_another(
        self, reference: Reference, quote: Quote, path: str, problem: str
    ) -> Finding | None:
        """The answer where exactly one other file has the quoted lines; else None."""
        if not reference.surely or sum(map(str.isalnum, "".join(quote.texts))) < _TELLING:
            return None
        holders = self._holders(quote, path.rpartition("/")[2])
        if len(holders) != 1:
            return None
        new, spans = holders[0]
        tight = _tightest(spans)
        text = f"{problem}; they stand in {Place(new, tight[0])}"
        name = self._written(reference, new) if len(tight) == 1 else None
        return _finding(reference, "moved", text, Place(new, tight[0]), name=name)

    def _renamed(self, reference: Reference, quote: Quote, old: str, new: str) -> Finding:
        """The answer where git tells the file's new name."""
        source = self._checkout.source(new)
        if source is None:
            return _finding(reference, "gone", f"{new}, its new name, is not a text file")
        span = Span(reference.start, reference.end)
        text = f"the file is {new} now"
        written = self._written(reference, new)
        spans = places(quote, source)
        if spans:
            tight = [span] if any(s.within(span) for s in spans) else _tightest(spans)
            place = Place(new, tight[0])
            name = written if len(tight) == 1 else None
            return _finding(reference, "moved", f"{text}, the lines {place}", place, name=name)
        if quote.parts and reference.surely:
            near = nearest(quote, source, reference.start)
            if near is None or not near.is_near:
                return _finding(reference, "gone", f"{text}, without the lines")
            text += f"; the nearest are lines {lines_text(near.span)}"
            place = Place(new, near.span)
            return _finding(reference, "changed", text, place, similarity=near.similarity)
        then = self._history.then(reference.line, old)
        now, whole = _now(then, source, span) if then else (None, False)
        if now is None:
            return _finding(reference, "gone", f"{text}, without the lines")
        place = Place(new, now)
        state: State = "moved" if whole else "changed"
        name = written if whole else None
        return _finding(reference, state, f"{text}, the lines {place}", place, name=name)

    def _holders(self, quote: Quote, name: str) -> list[tuple[str, list[Span]]]:
        """The files that have the quoted lines: those of the same name, else any of the kind."""
        longest = max(quote.texts, key=len)
        same = self._checkout.by_name.get(name, [])
        ending = name.rpartition(".")[2]
        others = [path for path in self._checkout.files if path.endswith(f".{ending}")]
        for paths in (same, others):
            found = []
            for path in paths:
                source = self._checkout.source(path)
                # Most files are sorted out by one line.
                spans = places(quote, source) if source and longest in source.text else []
                if spans:
                    found.append((path, spans))
            if found:
                return found
        return []

    def _unquoted(self, reference: Reference, path: str, source: Source) -> Finding:
        """The answer where nothing is quoted: by what the lines were when the page named them."""
        here = Span(reference.start, reference.end)
        if not 1 <= here.start <= here.end:
            return _finding(reference, "gone", f"{lines_text(here)} are no lines")
        then = self._history.then(reference.line, path)
        lines = then.lines(here) if then else None
        if then is not None and lines is not None:
            return self._since(reference, path, source, then, lines)
        if here.end > len(source.lines):
            # A name without folders may be that of a file of another repository.
            state: State = "gone" if "/" in reference.path or reference.path == path else "unknown"
            return _finding(reference, state, f"{path} has {len(source.lines)} lines")
        return _finding(reference, "right", UNCOMPARED)

    def _since(
        self,
        reference: Reference,
        path: str,
        source: Source,
        then: Then,
        lines: tuple[str, ...],
    ) -> Finding:
        """The answer for lines that a commit tells."""
        here = Span(reference.start, reference.end)
        now, whole = _now(then, source, here)
        quote = quote_of(lines)
        if now is not None and not whole and now.within(here) and here.end <= len(source.lines):
            return _finding(reference, "right", f"edited since commit {then.commit[:10]}")
        if now is not None and whole:
            if now == here:
                return _finding(reference, "right", "")
            text = f"the lines of commit {then.commit[:10]} stand at {lines_text(now)} now"
            return _finding(reference, "moved", text, Place(path, now), name=reference.path)
        near = nearest(quote, source, reference.start) if quote.parts else None
        if near is None or not near.is_near:
            return _finding(reference, "gone", f"the lines of commit {then.commit[:10]} are gone")
        if near.span.start == here.start:
            return _finding(reference, "right", f"edited since commit {then.commit[:10]}")
        text = (
            f"edited since commit {then.commit[:10]}; the nearest are lines "
            f"{lines_text(near.span)}, {_percent(near.similarity)} alike"
        )
        return _finding(
            reference, "changed", text, Place(path, near.span), similarity=near.similarity
        )


def _finding(
    reference: Reference,
    state: State,
    message: str,
    place: Place | None = None,
    *,
    similarity: float | None = None,
    name: str | None = None,
) -> Finding:
    """A finding; with the file's `name` as the anchor is to write it, what puts it right."""
    edit = None
    if name is not None and place is not None:
        new = reference.write(name, place.span.start, place.span.end)
        edit = Edit(reference.line, reference.column, reference.text, new)
    return Finding(
        reference.line, "anchor", state, reference.text, message, place, similarity, edit
    )


def _now(then: Then, source: Source, span: Span) -> tuple[Span | None, bool]:
    """Where lines of an older text are, and whether all are: by a difference, else by search."""
    now, whole = moved_to(then.source, source, span)
    quote = quote_of(then.lines(span) or ())
    if not whole and sum(map(str.isalnum, "".join(quote.texts))) >= _TELLING:
        # A difference does not follow lines past others.
        spans = places(quote, source, literal=True)
        if len(spans) == 1:
            return spans[0], True
    return now, whole


def _tightest(spans: Sequence[Span]) -> list[Span]:
    """The shortest stretches: a quotation with parts left out is found from far apart as well."""
    least = min(span.end - span.start for span in spans)
    short = [span for span in spans if span.end - span.start <= 2 * least + 8]
    return [s for s in short if not any(o != s and o.within(s) for o in short)]


def _overlap(one: Span, other: Span) -> bool:
    return one.start <= other.end and other.start <= one.end


def _percent(share: float) -> str:
    """A share below one, so that lines that differ are not called the same."""
    return f"{min(int(share * 100), 99)} %"
