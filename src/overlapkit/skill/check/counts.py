"""Promised numbers of passing tests, against what pytest collects.

Collecting imports the tests: it runs code of the checkout, and so happens only on request.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from overlapkit.skill.check.finding import Finding
from overlapkit.skill.check.markdown import Page, headings

_PROMISE = re.compile(r"(?<![\w.])(\d+)(?: tests?)? passed\b")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_ORDINAL = re.compile(rf"\b({'|'.join(_ORDINALS)})\b(?: \w+)? command", re.IGNORECASE)
_SPAN = re.compile(r"`([^`]+)`")
_RUNNERS = (
    ("uv", "run", "python", "-m", "pytest"),
    ("uv", "run", "pytest"),
    ("python", "-m", "pytest"),
    ("python3", "-m", "pytest"),
    ("pytest",),
)
"""What may start pytest: nothing else of a page is run."""
_QUIET = re.compile(r"^(?:-[qvs]+|--quiet|--verbose|-x|--exitfirst)$")
_COLLECTED = re.compile(r"^(?:(\d+)|no)(?:/\d+)? tests? collected|^(\d+) deselected", re.MULTILINE)
_TIMEOUT = 300
"""Seconds of one collection."""


@dataclass(frozen=True)
class Promise:
    """A number of passing tests that a page promises.

    Attributes:
        line: of the page, from 1.
        text: as written.
        number: of tests.
        command: the words of the command that it is about; None where the page does not say.
    """

    line: int
    text: str
    number: int
    command: tuple[str, ...] | None


def promises(page: Page) -> Iterator[Promise]:
    """Every promised number of a page, with the command of its line or its section."""
    commands = sorted(_commands(page), key=lambda each: each[0])
    starts = [1, *(line for line, _ in headings(page)), len(page.lines) + 1]
    for number, line in enumerate(page.prose, 1):
        for match in _PROMISE.finditer(line):
            first = max(start for start in starts if start <= number)
            last = min(start for start in starts if start > number)
            here = [words for at, words in commands if at == number]
            section = [words for at, words in commands if first <= at < last]
            yield Promise(number, match[0], int(match[1]), _meant(line, here, section))


def _meant(
    line: str, here: Sequence[tuple[str, ...]], section: Sequence[tuple[str, ...]]
) -> tuple[str, ...] | None:
    """The command that a promise is about, where the page says it."""
    if here:
        return here[0] if len(here) == 1 else None
    ordinal = _ORDINAL.search(line)
    if ordinal:
        index = _ORDINALS.index(ordinal[1].lower())
        return section[index] if index < len(section) else None
    return section[0] if len(section) == 1 else None


def _commands(page: Page) -> Iterator[tuple[float, tuple[str, ...]]]:
    """Every command with pytest on a page, with its line."""
    for number, line in enumerate(page.prose, 1):
        for span in _SPAN.findall(line):
            yield from ((number, words) for words in _pytest_of(span))
    for fence in page.fences:
        whole = "\n".join(fence.body)
        for at, text in enumerate(whole.replace("\\\n", " ").split("\n")):
            for more, words in enumerate(_pytest_of(text)):
                # Several commands of one line keep their order.
                yield fence.line + 1 + at + more / 100, words


def _pytest_of(text: str) -> Iterator[tuple[str, ...]]:
    for part in re.split(r"&&|\|\||[;|]", text):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:
            continue
        if "pytest" in words and words[0] not in ("pip", "grep", "rg", "cat"):
            yield tuple(words)


def judge_promise(promise: Promise, root: Path) -> Finding:
    """Whether pytest collects as many tests as a page promises.

    Args:
        promise: what the page says.
        root: the checkout, where the command is run.
    """

    def answer(state: str, message: str) -> Finding:
        assert state in ("right", "changed", "unknown")
        return Finding(promise.line, "count", state, promise.text, message)  # type: ignore[arg-type]

    if promise.command is None:
        return answer("unknown", "the page does not say which command is meant")
    number, problem = _collected(promise.command, root)
    if number is None:
        return answer("unknown", problem)
    if number == promise.number:
        return answer("right", "")
    return answer("changed", f"pytest collects {number}")


@cache
def _collected(command: tuple[str, ...], root: Path) -> tuple[int | None, str]:
    """How many tests the command of a page collects, or why that is not known."""
    plain = [word for word in command if not re.match(r"^\w+=", word)]
    at = plain.index("pytest")
    runner = tuple(plain[: at + 1])
    if runner not in _RUNNERS:
        return None, f"{' '.join(runner)} is not run: only python -m pytest, also through uv run"
    words = [word for word in plain[at + 1 :] if not _QUIET.match(word)]
    try:
        done = subprocess.run(
            [*runner, *words, "--collect-only", "-q", "-p", "no:cacheprovider"],
            cwd=root,
            env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or f"it took longer than {_TIMEOUT} s"
        return None, f"{runner[0]} cannot collect: {reason}"
    found = _COLLECTED.search(done.stdout)
    if found is None or done.returncode not in (0, 5):
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return None, f"pytest cannot collect: {last[-1] if last else 'it printed nothing'}"
    return int(found[1] or 0), ""
