"""The parts of a shell script that are needed to read its variables and launches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from overlapkit.config.shell.values import Piece


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
        operator: "" for the plain value; "length", "keys" (``${!A[@]}``), "names" (``${!A@}``), a
            default's operator such as ``:-``, one that removes or replaces text or changes case
            such as ``%%`` or ``//``, ``:`` for a part, ``@`` for a transformation, or "other".
        argument: the word after the operator; of a replacement, what is replaced.
        index: the text in brackets, "" for none.
        second: of a replacement the new text, of a part its length; None where there is none.
        indirect: whether ``!`` is before the name: the variable's value is the name that is meant.
    """

    name: str
    line: int
    quoted: bool
    operator: str = ""
    argument: Word | None = None
    index: str = ""
    second: Word | None = None
    indirect: bool = False


@dataclass(frozen=True)
class Command:
    """``$(…)`` or backticks.

    Programs in it are never run, so that its value is known only where it needs none.

    Attributes:
        text: what is between the brackets.
        body: its commands; None where they cannot be parsed.
    """

    text: str
    line: int
    quoted: bool
    body: CommandList | None = None


@dataclass(frozen=True)
class Arithmetic:
    """``$((…))``; in its word only ``$`` is special."""

    text: Word
    line: int
    quoted: bool


@dataclass(frozen=True)
class Expanded:
    """What a word became before its command: ``export A=1 B=$A`` expands all words first."""

    pieces: tuple[Piece, ...]
    line: int
    quoted: bool = True


Part = Text | Parameter | Command | Arithmetic | Expanded


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
    """A simple command: assignments before it, and its words.

    Attributes:
        inputs: the texts of its heredocs and ``<<<``, and the commands of ``< <(…)``.
        writes: whether its output goes to a file.
        reads: whether its input comes from a file.
    """

    assignments: tuple[Assignment, ...]
    words: tuple[Word | Assignment, ...]
    line: int
    inputs: tuple[Word, ...] = ()
    writes: bool = False
    reads: bool = False


@dataclass(frozen=True)
class Test:
    """``[[ … ]]``; its words include operators and parentheses."""

    words: tuple[Word, ...]
    line: int


@dataclass(frozen=True)
class Counting:
    """``(( … ))``; in its word only ``$`` is special."""

    text: Word
    line: int


@dataclass(frozen=True)
class If:
    """Conditions with their bodies, and the commands where no condition holds."""

    branches: tuple[tuple[CommandList, CommandList], ...]
    otherwise: CommandList
    line: int


@dataclass(frozen=True)
class Case:
    """``case word in pattern) … ;; esac``.

    Each item has its patterns, its commands and its end: ``;;``, ``;&`` or ``;;&``.
    """

    word: Word
    items: tuple[tuple[tuple[Word, ...], CommandList, str], ...]
    line: int


@dataclass(frozen=True)
class Loop:
    """``for``, ``while``, ``until`` or ``select``.

    Attributes:
        words: those of a ``for … in``; None where it has none, and loops over the arguments.
        head: the text of its first line, for messages.
        condition: that of a ``while`` or ``until``; None for the others.
        counting: the three expressions of a ``for ((…))``; None for the others.
    """

    kind: Literal["for", "while", "until", "select"]
    name: str
    words: tuple[Word, ...] | None
    body: CommandList
    line: int
    head: str
    condition: CommandList | None = None
    counting: tuple[Word, Word, Word] | None = None


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
class Redirected:
    """A compound command with its input: texts of heredocs and ``<<<``, commands of ``< <(…)``.

    `reads` is whether its input comes from a file.
    """

    command: Node
    inputs: tuple[Word, ...]
    reads: bool
    line: int


@dataclass(frozen=True)
class Negated:
    """``! command``."""

    command: Node
    line: int


@dataclass(frozen=True)
class Pipeline:
    """``a | b``: each command in a process of its own."""

    commands: tuple[Node, ...]
    line: int


@dataclass(frozen=True)
class AndOr:
    """``a && b || c``: a first command, and the others each with their connector."""

    first: Node
    others: tuple[tuple[str, Node], ...]
    line: int


@dataclass(frozen=True)
class Background:
    """``a &``: in a process of its own, which is not waited for."""

    command: Node
    line: int


Node = (
    Simple
    | Test
    | Counting
    | If
    | Case
    | Loop
    | Function
    | Group
    | Redirected
    | Negated
    | Pipeline
    | AndOr
    | Background
)


@dataclass(frozen=True)
class CommandList:
    """Commands in order; `source` is their text, which shows whether skipping them matters."""

    commands: tuple[Node, ...] = field(default=())
    source: str = ""
