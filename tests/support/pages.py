"""Reads a page that a command wrote, and checks that it is well-formed and self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

_VOID = {"meta", "br"}
_LOADING = {"src", "href", "srcset", "action", "data", "poster", "background"}


class Page(HTMLParser):
    """A page: its text, its tags and the titles of its sections.

    Raises:
        AssertionError: a tag is not closed in order, or the page would run or load something.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.sections: list[str] = []
        self._open: list[str] = []
        source = file.read_text(encoding="utf-8")
        assert source.startswith("<!doctype html>") and source.rstrip().endswith("</html>")
        assert not re.search(r"url\(|@import", source)
        self.feed(source)
        self.close()
        assert self._open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "iframe", "img", "object", "embed"}
        assert not {name for name, _ in attrs if name in _LOADING or name.startswith("on")}
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self.sections.append(data)
        if "style" not in self._open:
            self.text += data
