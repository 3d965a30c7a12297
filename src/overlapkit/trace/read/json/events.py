"""Splits the JSON of a trace into chunks of complete events, without keeping the file in memory.

Blocks of bytes are cut between one event and the next. A cut is a guess from a few bytes. A chunk
that decodes as a list proves that its cuts are right, since its braces and quotes balance. One that
does not is repaired where what is wrong is known, then read event by event. Only what is left of it
is walked through token by token.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

import msgspec

from overlapkit.errors import InputError
from overlapkit.trace.read.byte_source import ByteSource
from overlapkit.trace.read.files.foreign import name_of_document, name_of_kind
from overlapkit.trace.read.json.event_walk import EVENT_KEYS, EVENT_LIMIT, EventWalk
from overlapkit.trace.read.json.lost_events import DEVICE_EVENT, LostEvents
from overlapkit.trace.read.json.repair import UNESCAPED, repair_chunk, repair_strings

HEAD_LIMIT = 64 << 20
"""Bytes allowed before the list of events, and after it."""

MAX_DAMAGED = 1000
"""Unreadable stretches beyond which a file is refused."""

MAX_REPEATED = 8 << 20
"""Bytes read more than once because of damage, beyond which a file is refused."""

_WHITE = b" \t\r\n"
_LIST = re.compile(rb'"traceEvents"\s*:\s*\[')
_FIRST_KEY = re.compile(rb'\s*\{\s*"(\w{1,20})"\s*:')

_LIST_END = re.compile(rb"(?<=\})\s*\](?=\s*[,}])")

EventT = TypeVar("EventT")


class NotInShares(Exception):
    """The file cannot be read in shares."""


class EventReader(Generic[EventT]):
    """The events of one file, a chunk at a time.

    Args:
        source: the file's bytes.
        kind: type of one event; all its fields have defaults.
        lenient: makes an event from a mapping whose values can have any type.
        share: (i, n) to decode only every n-th chunk, from the i-th. What follows the last cut
            belongs to share 0. This works only on undamaged files.

    Attributes:
        metadata: the other keys at the top level; complete after the last chunk.
        problems: what was omitted or repaired, with counts.
        lost: the device events that could not be read.
        cut: whether the file ends before its list of events does.
    """

    def __init__(
        self,
        source: ByteSource,
        kind: type[EventT],
        lenient: Callable[[dict[str, Any]], EventT],
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.source = source
        self.metadata: dict[str, Any] = {}
        self.problems: Counter[str] = Counter()
        self.lost = LostEvents()
        self.cut = False
        self._decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
        self._lenient = lenient
        self._share = share
        self._repeated = 0
        self._event_start: re.Pattern[bytes] | None = None

    def chunks(self) -> Iterator[list[EventT]]:
        """The events of each chunk.

        Raises:
            InputError: it is not a trace, or too damaged to read.
            NotInShares: a share alone does not show where chunks begin.
        """
        blocks = iter(self.source)
        buffer = self._head(blocks)
        ended = False
        mine, shares = self._share
        for number, block in enumerate(blocks):
            buffer = (buffer + block).lstrip(_WHITE + b",")
            boundary = _last_boundary(buffer)
            if shares > 1 and boundary is not None and number % shares != mine:
                buffer = buffer[boundary[1] :]
                continue
            if boundary is None and len(buffer) <= 2 * EVENT_LIMIT:
                continue
            if boundary is not None:
                end, following = boundary
                decoded = self._decode(b"[%b]" % buffer[:end])
                if decoded is not None:
                    yield decoded
                    buffer = buffer[following:]
                    continue
            self._refuse_shares()
            events, done, ended = self._salvage(buffer, final=False)
            yield events
            buffer = buffer[done:]
            if ended:
                break
        if mine:
            return
        if not ended:
            events, done, ended = self._salvage(buffer, final=True)
            yield events
            buffer = buffer[done:]
        self.cut = not ended or self.source.cut
        if ended:
            self._tail(buffer, blocks)

    def _refuse_shares(self) -> None:
        """A reader that skips chunks cannot continue from a cut that may be wrong."""
        if self._share[1] > 1:
            raise NotInShares

    def _head(self, blocks: Iterator[bytes]) -> bytes:
        """Read up to the list of events; return what was read of the list."""
        head, rest = split_head(self.source.path, blocks)
        if head.endswith(b"["):
            before = head.strip(b"\xef\xbb\xbf" + _WHITE)
            if before != b"[":
                start = [m for m in _LIST.finditer(before) if m.end() == len(before)][-1].start()
                self.metadata.update(_loads(_closed(before[:start])) or {})
        return rest

    def _tail(self, buffer: bytes, blocks: Iterator[bytes]) -> None:
        for block in blocks:
            if len(buffer) > HEAD_LIMIT:
                self.problems["metadata after the events too long, omitted"] += 1
                return
            buffer += block
        text = buffer.strip().removeprefix(b",").strip()
        if not text:
            return
        tail = _loads(b"{" + text)
        if tail is None:
            self.problems["metadata after the events not readable"] += 1
        else:
            if tail.pop("traceEvents", None):
                self.problems["second list traceEvents, not read"] += 1
            self.metadata.update(tail)

    def _decode(self, chunk: bytes) -> list[EventT] | None:
        """The events of a chunk; None if it is not a list of events."""
        decoded = self._plain(chunk)
        if decoded is not None:
            return decoded
        repaired = repair_chunk(chunk)
        if repaired is None:
            return None
        text, found = repaired
        decoded = self._plain(text)
        if decoded is not None:
            self.problems.update(found)
        return decoded

    def _plain(self, chunk: bytes) -> list[EventT] | None:
        try:
            return self._decoder.decode(chunk)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _salvage(self, buffer: bytes, *, final: bool) -> tuple[list[EventT], int, bool]:
        """Read the events one by one.

        Args:
            buffer: text that is not a list of events.
            final: whether the file ends with it. Otherwise its last event is left.

        Returns:
            The events, how many bytes are dealt with, and whether the list ends there.
        """
        starts = self._starts(buffer)
        if not final and not starts:
            return self._walk(buffer, final=False)
        events: list[EventT] = []
        unread: int | None = None
        begin = 0
        for start in starts:
            found = self._one(buffer[begin:start].rstrip(_WHITE + b","))
            if found is None:
                unread = begin if unread is None else unread
            else:
                if unread is not None:
                    # Events follow: a bracket in between does not end the list.
                    events += self._between(buffer[unread:begin])
                    unread = None
                events += found
            begin = start
        if not final:
            if unread is not None:
                events += self._between(buffer[unread:begin])
            return events, begin, False
        if unread is None and (last := self._last(buffer[begin:])) is not None:
            return events + last[0], begin + last[1], True
        unread = begin if unread is None else unread
        more, done, ended = self._walk(buffer[unread:], final=True)
        return events + more, unread + done, ended

    def _last(self, text: bytes) -> tuple[list[EventT], int] | None:
        """The last event of the list, and where the list ends; None if either is not clear."""
        for match in islice(_LIST_END.finditer(text), 10):
            if (
                found := self._one(text[: match.start()])
            ) is not None and b'"traceEvents"' not in text:
                return found, match.end()
        return None

    def _starts(self, buffer: bytes) -> list[int]:
        """Where events seem to begin after others, by the key that the first event begins with."""
        if self._event_start is None:
            first = _FIRST_KEY.match(buffer)
            keys = EVENT_KEYS if first is None else first.group(1)
            self._event_start = re.compile(rb',\s*(?=\{\s*"(?:%b)"\s*:)' % keys)
        return [match.end() for match in self._event_start.finditer(buffer)]

    def _between(self, text: bytes) -> list[EventT]:
        """The events of unreadable text that others follow."""
        return self._walk(text, final=True, followed=True)[0]

    def _walk(
        self, buffer: bytes, *, final: bool, followed: bool = False
    ) -> tuple[list[EventT], int, bool]:
        """Go through the text token by token.

        Args:
            buffer: the text.
            final: whether no more text of it comes.
            followed: whether events follow that can be read. Otherwise text without an end is
                where the file is truncated.

        Returns:
            The events, how many bytes are dealt with, and whether the list ends there.
        """
        walk = EventWalk(buffer, final=final, on_damage=self._damaged)
        events: list[EventT] = []
        seen = 0
        for text in walk.events():
            found = self._one(text)
            if found is None:
                self.problems["unreadable event, omitted"] += 1
            else:
                events += found
                seen += len(DEVICE_EVENT.findall(text))
        if walk.dropped and followed:
            self._damaged(0)
        self.lost.add(buffer[: walk.done], read=seen)
        return events, walk.done, walk.ended

    def _damaged(self, repeated: int) -> None:
        self.problems["unreadable stretch, skipped"] += 1
        self._repeated += repeated
        if (
            self.problems["unreadable stretch, skipped"] > MAX_DAMAGED
            or self._repeated > MAX_REPEATED
        ):
            raise InputError(f"{self.source.path}: too damaged to read; export the trace again")

    def _one(self, text: bytes) -> list[EventT] | None:
        """The event in the text of one; None if it cannot be read."""
        decoded = self._decode(b"[" + text + b"]")
        if decoded is not None:
            return decoded
        escaped = repair_strings(text)
        if escaped is not None and escaped != text:
            decoded = self._decode(b"[" + escaped + b"]")
            if decoded is not None:
                self.problems[UNESCAPED] += 1
                return decoded
        plain = _loads(text)
        return None if plain is None else [self._lenient(plain)]


def split_head(path: str, blocks: Iterator[bytes]) -> tuple[bytes, bytes]:
    """The text up to and including the bracket of the list of events, and what was read after it.

    Args:
        path: the file, for messages.
        blocks: its content.

    Raises:
        InputError: there is no such list.
    """
    buffer = b""
    tried = failed = 0
    for block in blocks:
        buffer += block
        text = buffer.lstrip(b"\xef\xbb\xbf" + _WHITE)
        if text.startswith(b"["):
            offset = len(buffer) - len(text) + 1
            return buffer[:offset], buffer[offset:]
        if text and not text.startswith(b"{"):
            raise _not_json(path, text)
        for match in _LIST.finditer(buffer, tried):
            if _loads(_closed(buffer[: match.start()])) is not None:
                return buffer[: match.end()], buffer[match.end() :]
            # Each try parses everything before it: text that repeats the key would take forever.
            tried, failed = match.end(), failed + match.start()
            if failed > MAX_REPEATED:
                break
        if len(buffer) > HEAD_LIMIT or failed > MAX_REPEATED:
            break
    if not buffer.strip():
        raise InputError(f"{path}: contains nothing but white space")
    if _LIST.search(buffer):
        raise InputError(f"{path}: not valid JSON before its list of events, traceEvents")
    known = name_of_document(buffer)
    raise InputError(
        f"{path}: is {known}"
        if known is not None
        else f"{path}: has no list traceEvents; give a trace of torch.profiler, or export it again "
        "if it is truncated"
    )


def _not_json(path: str, text: bytes) -> InputError:
    known = name_of_kind(path, text)
    return InputError(
        f"{path}: is {known}"
        if known is not None
        else f"{path}: is neither JSON nor an SQLite export of Nsight Systems; give a trace of "
        "torch.profiler (.json, .json.gz) or the output of nsys export --type sqlite"
    )


def _closed(head: bytes) -> bytes:
    """The text before a key, closed to an object."""
    text = head.strip(b"\xef\xbb\xbf" + _WHITE)
    return text.removesuffix(b",") + b"}"


def _last_boundary(buffer: bytes) -> tuple[int, int] | None:
    """The end of the last `}` before a `, {`, and the position of that `{`."""
    position = len(buffer)
    for _ in range(200):
        position = buffer.rfind(b"{", 0, position)
        if position <= 0:
            return None
        before = buffer[max(0, position - 64) : position].rstrip(_WHITE)
        if before.endswith(b","):
            closed = before[:-1].rstrip(_WHITE)
            if closed.endswith(b"}"):
                end = max(0, position - 64) + len(closed)
                return end, position
    return None


def _loads(text: bytes) -> dict[str, Any] | None:
    """A JSON object, or None. Control characters, NaN and invalid UTF-8 are accepted.

    Numbers with a fraction remain text, so that no digit is lost.
    """
    try:
        value = json.loads(
            text.decode(errors="replace"),
            strict=False,
            parse_float=str,
            parse_constant=lambda _: None,
        )
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
