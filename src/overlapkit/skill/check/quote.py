"""Quoted lines against the lines of a file: where they stand, and where something like them does.

Indentation, blank lines and fences are not compared: a quotation is often written without them.
"..." or "…" alone in a line, or at the start of a comment, stands for any lines that were left out.
Within a line it stands for the rest of that statement: the line is quoted in part. A file that has
the dots themselves is preferred.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property

_COMMENT = re.compile(r"^(?:#+|//+|--+|/\*+|<!--|;+|%+)\s*|\s*(?:\*+/|-->)$")
_DOTS = re.compile(r"\.\.\.|\u2026")
_LONGEST_STATEMENT = 12
"""Lines of a file that dots within a quoted line can stand for."""
_TELLS = 4
"""Letters and digits that a line in part needs to be found by."""
_CANDIDATES = 12
"""Places that are compared letter by letter."""
_COMMON = 200
"""Lines with a word that are looked at."""
_EDITED = 0.7
"""A line so similar to a quoted one is that line, edited."""
_WORD = re.compile(r"\w{3,}")
_DEFINITION = re.compile(r"(?:async def|def|class|func|fn|function|struct) (\w+)")
ALIKE = 0.5
"""Below this similarity a place is another one, unless a quoted line stands in it."""


@dataclass(frozen=True)
class Span:
    """Lines of a file, from 1, both ends included."""

    start: int
    end: int

    def within(self, other: Span) -> bool:
        """Whether all its lines are lines of the other."""
        return other.start <= self.start and self.end <= other.end


@dataclass(frozen=True)
class Source:
    """The lines of a file."""

    lines: tuple[str, ...]

    @cached_property
    def filled(self) -> list[tuple[int, str]]:
        """Number and text of the lines that are not blank, without indentation."""
        return [(n, text) for n, line in enumerate(self.lines, 1) if (text := _plain(line))]

    @cached_property
    def text(self) -> str:
        """All lines, with one blank between words."""
        return "\n".join(map(_plain, self.lines))

    @cached_property
    def positions(self) -> dict[str, list[int]]:
        """Where in `filled` each text stands."""
        found: dict[str, list[int]] = {}
        for index, (_, text) in enumerate(self.filled):
            found.setdefault(text, []).append(index)
        return found

    @cached_property
    def words(self) -> dict[str, list[int]]:
        """Where in `filled` each word stands."""
        found: dict[str, list[int]] = {}
        for index, (_, text) in enumerate(self.filled):
            for word in set(_WORD.findall(text)):
                found.setdefault(word, []).append(index)
        return found

    def index_at(self, line: int) -> int:
        """The index in `filled` of the first line from that number on."""
        return sum(1 for number, _ in self.filled if number < line)


def source_of(text: str) -> Source:
    """The lines of a text, numbered as an editor does."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return Source(tuple(lines[:-1] if lines[-1] == "" else lines))


def _plain(line: str) -> str:
    """A line as it is compared; empty for a fence, which a quotation in a fence leaves out."""
    text = " ".join(line.split())
    return "" if text.startswith(("```", "~~~")) else text


@dataclass(frozen=True)
class _Piece:
    """A quoted line that is not left out: its text, and whether there are dots in it."""

    text: str

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """What a statement must be of which the line is a part; None where it has no dots.

        None too where what is left says too little to be found by: ``(...)`` is everywhere.
        """
        parts = [part.strip() for part in _DOTS.split(self.text)]
        if len(parts) == 1 or sum(map(str.isalnum, "".join(parts))) < _TELLS:
            return None
        # Blanks may be line ends in the file; brackets may stand at them.
        written = [r"\s*".join(map(re.escape, re.findall(r"\w+|\S", part))) for part in parts]
        return re.compile(r"\s*.*?\s*".join(written) + (r"\Z" if parts[-1] else ""))

    def lengths(self, source: Source, index: int, *, in_part: bool) -> Iterator[int]:
        """How many filled lines it can stand for from an index on, the fewest first."""
        if source.filled[index][1] == self.text:
            yield 1
        if self.pattern is None or not in_part:
            return
        joined = ""
        for length in range(1, _LONGEST_STATEMENT + 1):
            if index + length > len(source.filled):
                return
            joined = f"{joined} {source.filled[index + length - 1][1]}".strip()
            if self.pattern.match(joined):
                yield length


@dataclass(frozen=True)
class Quote:
    """Quoted lines in their parts: each part stands together, and lines are left out between.

    Attributes:
        parts: the pieces of each part; no part is empty.
        open_end: whether lines are left out after the last part.
    """

    parts: tuple[tuple[_Piece, ...], ...]
    open_end: bool

    @property
    def has_dots(self) -> bool:
        """Whether a line is quoted in part."""
        return any(piece.pattern for part in self.parts for piece in part)

    @property
    def texts(self) -> list[str]:
        """The quoted lines that are not left out."""
        return [piece.text for part in self.parts for piece in part]


def quote_of(lines: Sequence[str]) -> Quote:
    """Quoted lines in their parts; no parts where every line is left out."""
    parts: list[list[_Piece]] = [[]]
    for line in lines:
        text = _plain(line)
        if not text:
            continue
        if _is_left_out(text):
            parts.append([])
        else:
            piece = _Piece(text)
            parts[-1].append(piece)
            if _DOTS.split(text)[-1].strip() == "" and piece.pattern:
                # The rest of the statement is left out as well.
                parts.append([])
    return Quote(tuple(tuple(part) for part in parts if part), open_end=not parts[-1])


def _is_left_out(text: str) -> bool:
    plain = _COMMENT.sub("", text).strip()
    if plain in ("...", "\u2026"):
        return True
    # "# ... the checks ..." says what is left out.
    return plain != text and _DOTS.match(plain) is not None


def places(quote: Quote, source: Source, *, literal: bool = False) -> list[Span]:
    """Where all quoted lines stand in a file in their order.

    Args:
        quote: the lines.
        source: the file.
        literal: whether dots within a line are those of the text, as in lines of an older version;
            else they stand for what was left out where no line has them.
    """
    found = _places(quote, source, in_part=False)
    return found or ([] if literal else _places(quote, source, in_part=True))


def _places(quote: Quote, source: Source, *, in_part: bool) -> list[Span]:
    if not quote.parts or (in_part and not quote.has_dots):
        return []
    ends: dict[int, int] = {}
    for start in _starts(quote.parts[0][0], source, 0, in_part=in_part):
        end = _end(quote, source, start, in_part=in_part)
        if end is not None:
            # The latest start for an end is the shortest stretch.
            ends[end] = start
    return [Span(source.filled[s][0], source.filled[e - 1][0]) for e, s in ends.items()]


def _starts(piece: _Piece, source: Source, first: int, *, in_part: bool) -> Iterator[int]:
    """The indexes from `first` on where a piece can stand."""
    if piece.pattern is None or not in_part:
        found = source.positions.get(piece.text, [])
        yield from found[bisect_left(found, first) :]
        return
    for index in range(first, len(source.filled)):
        if next(piece.lengths(source, index, in_part=True), None):
            yield index


def _end(quote: Quote, source: Source, start: int, *, in_part: bool) -> int | None:
    """The index after the last quoted line, where the first part stands at `start`."""
    here = _part_end(quote.parts[0], source, start, in_part=in_part)
    for part in quote.parts[1:]:
        if here is None:
            return None
        starts = _starts(part[0], source, here, in_part=in_part)
        ends = (_part_end(part, source, index, in_part=in_part) for index in starts)
        here = next((end for end in ends if end is not None), None)
    return here


def _part_end(part: Sequence[_Piece], source: Source, start: int, *, in_part: bool) -> int | None:
    """The index after a part that stands at `start`; None where it does not."""
    if not part:
        return start
    if start >= len(source.filled):
        return None
    for length in part[0].lengths(source, start, in_part=in_part):
        end = _part_end(part[1:], source, start + length, in_part=in_part)
        if end is not None:
            return end
    return None


@dataclass(frozen=True)
class Near:
    """The place of a file that is most like quoted lines.

    Attributes:
        span: its lines.
        similarity: share of the letters that both have in order, 0 to 1, as difflib's ratio.
        kept: whether a quoted line that says something stands in it, as it is or a little edited.
    """

    span: Span
    similarity: float
    kept: bool

    @property
    def is_near(self) -> bool:
        """Whether it is what the quoted lines became, rather than another place."""
        return self.kept or self.similarity >= ALIKE


def nearest(quote: Quote, source: Source, around: int) -> Near | None:
    """The place most like quoted lines; None for an empty file.

    Args:
        quote: with at least one line.
        source: the file.
        around: the line where they stood; that place is compared too.
    """
    texts = quote.texts
    filled = source.filled
    if not filled:
        return None
    wanted = "\n".join(texts)
    alike = [_alike(text, source) for text in texts]
    votes: Counter[int] = Counter()
    for offset, indexes in enumerate(alike):
        for index, ratio in indexes.items():
            votes[max(0, index - offset)] += round(ratio * min(len(texts[offset]), 60))
    starts = [index for index, _ in votes.most_common(_CANDIDATES)]
    starts.append(min(source.index_at(around), len(filled) - 1))
    best: Near | None = None
    for start in dict.fromkeys(starts):
        window = filled[start : start + len(texts)]
        shown = "\n".join(text for _, text in window)
        ratio = SequenceMatcher(None, wanted, shown, autojunk=False).ratio()
        inside = range(start, start + len(window))
        kept = any(
            index in inside and share >= _EDITED and _is_telling(text)
            for text, indexes in zip(texts, alike, strict=True)
            for index, share in indexes.items()
        )
        near = Near(Span(window[0][0], window[-1][0]), ratio, kept)
        if best is None or (near.is_near, ratio) > (best.is_near, best.similarity):
            best = near
    return best


def _alike(text: str, source: Source) -> dict[int, float]:
    """The lines of a file that are most like a quoted line, and how much, from 0 to 1."""
    exact = source.positions.get(text)
    if exact:
        return dict.fromkeys(exact[:_CANDIDATES], 1.0)
    votes: Counter[int] = Counter()
    for word in set(_WORD.findall(text)):
        having = source.words.get(word, [])
        # A word of half the file tells nothing.
        votes.update({index: 1000 // len(having) for index in having[:_COMMON]})
    name = _DEFINITION.match(text)
    found = {}
    for index, _ in votes.most_common(3):
        line = source.filled[index][1]
        other = _DEFINITION.match(line)
        same = name is not None and other is not None and name[1] == other[1]
        found[index] = 1.0 if same else SequenceMatcher(None, text, line, autojunk=False).ratio()
    return found


def _is_telling(text: str) -> bool:
    """Whether a line is hardly found anywhere by chance, as ``else:`` is."""
    return sum(map(str.isalnum, text)) >= 8
