"""Finds the events in text that does not decode, token by token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

EVENT_LIMIT = 1 << 20
"""Bytes of one event beyond which the text is taken to be damaged where the event began."""

DEPTH_LIMIT = 100
"""Brackets open at once, beyond which the same holds: the arguments of an event nest a few deep."""

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["{}\[\]]', re.DOTALL)
EVENT_KEYS = b"ph|cat|name|pid|tid|ts|dur|args|id|s|bp"
"""Keys that an event can begin with, as alternatives of a regular expression."""

_EVENT_START = re.compile(rb'\{\s*"(?:%b)"\s*:' % EVENT_KEYS)
_MARKED_EVENT = re.compile(rb'\{\s*"ph"\s*:')


class EventWalk:
    """A walk through text from inside the list of events.

    Args:
        buffer: the text.
        final: whether the file ends with it. Otherwise an event that has not ended yet is left for
            a walk through more text.
        on_damage: called for each unreadable stretch that is skipped, with the number of bytes that
            were walked through and are walked through again.

    Attributes:
        done: number of bytes that are dealt with, once the walk has ended.
        ended: whether the list of events ends there.
        dropped: whether the text ends with something unreadable, which no event follows.
    """

    def __init__(self, buffer: bytes, *, final: bool, on_damage: Callable[[int], None]) -> None:
        self.done = 0
        self.ended = False
        self.dropped = False
        self._buffer = buffer
        self._final = final
        self._on_damage = on_damage
        self._position = 0
        # Where the event began that is being walked through.
        self._start: int | None = None
        # The closing brackets of those that are open.
        self._closing: list[bytes] = []

    def events(self) -> Iterator[bytes]:
        """The text of each event, in order."""
        while not self.ended:
            match = _TOKEN.search(self._buffer, self._position)
            if match is None and not self._closing:
                self.done = len(self._buffer)
                return
            # A quote alone begins a string without an end.
            unfinished = match is None or match.group() == b'"'
            reached = len(self._buffer) if match is None or unfinished else match.end()
            too_long = reached - self._anchor > EVENT_LIMIT and (unfinished or self._closing)
            too_long = too_long or len(self._closing) > DEPTH_LIMIT
            if unfinished and not too_long and not self._final:
                return
            if match is None or unfinished or too_long or self._is_unbalanced(match):
                if not self._skip(reached):
                    self.done, self.dropped = len(self._buffer), True
                    return
            elif (event := self._take(match)) is not None:
                yield event

    @property
    def _anchor(self) -> int:
        """Where the text begins that is not dealt with."""
        return self.done if self._start is None else self._start

    def _is_unbalanced(self, match: re.Match[bytes]) -> bool:
        token = match.group()
        return token in (b"}", b"]") and bool(self._closing) and self._closing[-1] != token

    def _skip(self, reached: int) -> bool:
        """Go on at the next text that looks like an event; False if there is none."""
        begun = self._position if self._start is None else self._start
        following = _next_event(self._buffer, max(self._anchor, begun) + 1)
        if following is None:
            return False
        self._on_damage(max(0, reached - following))
        self._closing.clear()
        self._resume(following)
        return True

    def _resume(self, position: int) -> None:
        """Go on at a position between two events."""
        self._start, self.done, self._position = None, position, position

    def _take(self, match: re.Match[bytes]) -> bytes | None:
        """Go past a token; the text of the event that ends with it."""
        token, begin, end = match.group(), match.start(), match.end()
        self._position = end
        if token in (b"{", b"["):
            if not self._closing and token == b"{":
                self._start = begin
            self._closing.append(b"}" if token == b"{" else b"]")
        elif token in (b"}", b"]"):
            if not self._closing:
                self._close_too_many(token)
                return None
            self._closing.pop()
            if not self._closing:
                event = None if self._start is None else self._buffer[self._start : end]
                self._resume(end)
                return event
        return None

    def _close_too_many(self, token: bytes) -> None:
        """A bracket that closes nothing ends the list, unless events follow."""
        following = _MARKED_EVENT.search(self._buffer, self._position)
        if token == b"]" and following is None:
            self.done, self.ended = self._position, True
            return
        self._on_damage(0)
        self._resume(following.start() if following else self._position)


def _next_event(buffer: bytes, position: int) -> int | None:
    """Where the next text begins that looks like an event after a comma."""
    for match in _EVENT_START.finditer(buffer, position):
        start = match.start()
        if buffer[max(0, start - 200) : start].rstrip(b" \t\r\n").endswith(b","):
            return start
    return None
