"""The parts of a shell script that are needed to read its variables and launches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Text:
    """Literal characters; quoted ones are never split into words."""

    text: str
    line: int
    quoted: bool


@dataclass(frozen=True)
class Parameter:
    """``$NAME`` or ``${NAME…}``.

    Attributes:
        name: a variable, a digit, or one of @ * # ? $ ! - 0.
        operator: "" for the plain value; "length", "indirect", a default's operator such as
            ``:-``, one that removes text or changes case such as ``%%``, or "other".
        argument: the word after the operator.
        index: the text in brackets, "" for none.
    """

    name: str
    line: int
    quoted: bool
    operator: str = ""
    argument: Word | None = None
    index: str = ""


@dataclass(frozen=True)
class Command:
    """``$(…)`` or backticks: never run, so its value is not known."""

    text: str
    line: int
    quoted: bool


@dataclass(frozen=True)
class Arithmetic:
    """``$((…))``."""

    text: str
    line: int
    quoted: bool


Part = Text | Parameter | Command | Arithmetic


@dataclass(frozen=True)
class Word:
    """One word, before expansion."""

    parts: tuple[Part, ...]
    line: int

    @property
    def literal(self) -> str | None:
        """Its text, where it has no expansions; else None."""
        if all(isinstance(part, Text) for part in self.parts):
            return "".join(part.text for part in self.parts if isinstance(part, Text))
        return None


@dataclass(frozen=True)
class Assignment:
    """``NAME=word``, ``NAME+=word`` or ``NAME=(words)``; `value` is None for a bare name."""

    name: str
    line: int
    value: Word | tuple[Word, ...] | None
    append: bool = False
    index: str = ""


@dataclass(frozen=True)
class Simple:
    """A simple command: assignments before it, its words, and the text of its input.

    `writes` is whether its output goes to a file.
    """

    assignments: tuple[Assignment, ...]
    words: tuple[Word | Assignment, ...]
    line: int
    inputs: tuple[Word, ...] = ()
    writes: bool = False


@dataclass(frozen=True)
class Test:
    """``[[ … ]]``; its words include operators and parentheses."""

    words: tuple[Word, ...]
    line: int


@dataclass(frozen=True)
class Counting:
    """``(( … ))``."""

    text: str
    line: int


@dataclass(frozen=True)
class If:
    """Conditions with their bodies, and the commands where no condition holds."""

    branches: tuple[tuple[CommandList, CommandList], ...]
    otherwise: CommandList
    line: int


@dataclass(frozen=True)
class Case:
    """``case word in pattern) … ;; esac``."""

    word: Word
    items: tuple[tuple[tuple[Word, ...], CommandList], ...]
    line: int


@dataclass(frozen=True)
class Loop:
    """``for``, ``while``, ``until`` or ``select``.

    `words` are those of a ``for … in``, and `condition` is that of the others, None for a ``for``.
    `head` is the text of its first line, for messages.
    """

    kind: Literal["for", "while", "until"]
    name: str
    words: tuple[Word, ...]
    body: CommandList
    line: int
    head: str
    condition: CommandList | None = None


@dataclass(frozen=True)
class Function:
    """A function's definition."""

    name: str
    body: Node
    line: int


@dataclass(frozen=True)
class Group:
    """``{ … }``, or ``( … )``, which discards its variables at its end."""

    body: CommandList
    line: int
    own_process: bool = False


@dataclass(frozen=True)
class Negated:
    """``! command``."""

    command: Node
    line: int


Node = Simple | Test | Counting | If | Case | Loop | Function | Group | Negated


@dataclass(frozen=True)
class CommandList:
    """Commands in order, each with the connector before it: ``;``, ``&&``, ``||`` or ``|``.

    `source` is their text, which shows whether skipping them matters.
    """

    commands: tuple[tuple[str, Node], ...] = field(default=())
    source: str = ""
