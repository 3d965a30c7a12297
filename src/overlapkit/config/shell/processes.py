"""Processes of a followed script: subshells, substitutions, what they print."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from overlapkit.config.gaps import Gap
from overlapkit.config.shell.commands.builtins import Builtins
from overlapkit.config.shell.commands.programs import echoed
from overlapkit.config.shell.commands.status import Status, Stop
from overlapkit.config.shell.grammar.parser import parse_script
from overlapkit.config.shell.grammar.quotes import Quotes
from overlapkit.config.shell.grammar.syntax import Assignment, Command, CommandList, Simple
from overlapkit.config.shell.handover import Lost
from overlapkit.config.shell.slurm import slurm_variables
from overlapkit.config.shell.state import State, Variable
from overlapkit.config.shell.values import (
    Field,
    Piece,
    Unknown,
    known,
    not_known,
    part_of,
)
from overlapkit.errors import InputError

MOST_COMMANDS = 20_000
"""Commands that are followed at most; those of a function count each time that it is called."""
_DEEPEST_CALL = 20


@dataclass(frozen=True)
class Started:
    """A program that the script would start.

    Attributes:
        words: its name and arguments.
        outer: words of the programs that receive it as text, such as srun's.
        environment: what the script exports to it, by name.
        not_exported: variables of the script that it does not see.
        line: its line.
        file: the file that the line is in; empty for the script itself.
        gaps: what is not known of the commands before it, and may set variables that are missing.
        lost: variables that a program before it did not hand on, or perhaps not.
        beyond: why its environment may have more variables; empty where it has none.
        calls: the script's lines that call the functions and files which start it, the outermost
            first.
    """

    words: tuple[Field, ...]
    outer: tuple[Field, ...]
    environment: dict[str, Field]
    not_exported: dict[str, Field]
    line: int
    file: str = ""
    gaps: tuple[Gap, ...] = ()
    lost: Mapping[str, Lost] = field(default_factory=dict)
    beyond: str = ""
    calls: tuple[int, ...] = ()


@dataclass
class Output:
    """What commands print.

    Attributes:
        pieces: the text so far.
        unknown: why not all of it is known; None where it is.
    """

    pieces: list[Piece] = field(default_factory=list)
    unknown: Unknown | None = None


class Processes(Builtins):
    """Everything that happens in, or makes, another process."""

    def __init__(self, path: str, state: State) -> None:
        super().__init__(path, state)
        self.started: list[Started] = []
        self.outer: tuple[Field, ...] = ()
        self.output: Output | None = None
        self.calls = 0
        self.call_lines: tuple[int, ...] = ()
        self.substituted: tuple[Status, int | None] | None = None

    def block(self, block: CommandList) -> Status:
        """Follow commands in order."""
        raise NotImplementedError

    # ----------------------------------------------------------------------- other processes

    @contextmanager
    def own_process(self) -> Iterator[None]:
        """What happens in a process of its own: nothing of it stays."""
        before, stream, loops = self.expander.state, self.input, self.loops
        conditions = (self.conditions, self.negations)
        # A break leaves no loop of another process.
        self.expander.state, self.loops = before.copy(), 0
        try:
            yield
        finally:
            self.expander.state, self.input, self.loops = before, stream, loops
            self.conditions, self.negations = conditions

    @contextmanager
    def printing(self, output: Output | None) -> Iterator[None]:
        """Collect what commands print; None for a file or the terminal."""
        before, self.output = self.output, output
        try:
            yield
        finally:
            self.output = before

    def ended(self, block: CommandList) -> Status:
        """Follow the commands of a process up to its end, which ends nothing else."""
        try:
            return self.block(block)
        except Stop as stop:
            self.code = stop.code
            return stop.status

    def captured(self, command: object) -> Field:
        """What a command substitution gives."""
        assert isinstance(command, Command)
        lines = command.text.strip().splitlines() or [""]
        why = f"it is set by the command {lines[0][:50]!r}, which is not run"
        lacking = Unknown(None, why, command.line)
        self._deeper(command.line, "commands in values nest without end")
        output = Output()
        try:
            if command.body is None:
                output.unknown = lacking
            else:
                with self.own_process(), self.printing(output):
                    if "inherit_errexit" not in self.state.options:
                        self.state.options.discard("errexit")
                    status = self.ended(command.body)
                    self.substituted = (status, self.code)
        finally:
            self.calls -= 1
        if output.unknown is not None:
            return not_known(lacking if output.unknown.name is None else output.unknown)
        value = Field(tuple(output.pieces))
        return part_of(value, 0, len(value.text.rstrip("\n")))

    def _deeper(self, line: int, problem: str) -> None:
        if self.calls >= _DEEPEST_CALL:
            raise InputError(f"{self.state.source}:{line}: {problem}")
        self.calls += 1

    def printed(self, value: Field) -> None:
        """What a command prints, for a substitution or the next command of a pipeline."""
        if self.output is None:
            return
        self.output.pieces += value.pieces
        if value.unknown is not None and self.output.unknown is None:
            self.output.unknown = value.unknown

    def do_echo(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        if self.output is None:
            # Shown to the user: the program is listed, as others are.
            self.start(node, words)
            return Status.YES
        rest = words[1:]
        if rest and re.fullmatch(r"-[neE]+", rest[0].text):
            lacking = next((w.unknown for w in rest if w.unknown is not None), None)
            text = echoed([w.text for w in rest])
            self.printed(known(text, node.line) if lacking is None else not_known(lacking))
            return Status.YES
        pieces: list[Piece] = []
        for number, word in enumerate(rest):
            pieces += [Piece(" ", node.line)] if number else []
            pieces += word.pieces
        self.printed(Field((*pieces, Piece("\n", node.line))))
        return Status.YES

    def do_cd(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        names = [w for w in words[1:] if not re.fullmatch(r"--|-[LPe@]+", w.text)]
        target = names[0] if names else None
        here = self.state.folder
        if target is None or target.unknown is not None or target.text[:1] in ("-", "~", ""):
            self.state.folder = None
        elif target.text.startswith("/") or here is not None:
            self.state.folder = os.path.normpath(Path(here or "/", target.text))
        return Status.YES

    def do_popd(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        self.state.folder = None
        return Status.YES

    def do_pwd(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        folder = self.state.folder
        unknown = Unknown(None, "the working folder is not known", node.line)
        self.printed(not_known(unknown) if folder is None else known(f"{folder}\n", node.line))
        return Status.YES

    def come_from(self, line: int) -> None:
        """Record a line that calls a function or reads another file, where the script has it."""
        if self.state.source == self.state.path:
            self.call_lines = (*self.call_lines, line)

    def start(self, node: Simple, words: list[Field]) -> None:
        """Record a program that is started."""
        state = self.state
        visible = state.exported()
        every = state.every()
        hidden = {n: v for n, v in every.items() if n not in visible and isinstance(v, Field)}
        file = "" if state.source == state.path else state.source
        self.started.append(
            Started(
                tuple(words),
                self.outer,
                visible,
                hidden,
                node.line,
                file,
                state.gaps,
                state.lost,
                state.beyond,
                self.call_lines,
            )
        )

    def set_up_slurm(self, text: str, words: Sequence[Field], line: int) -> None:
        """The variables that Slurm sets for a batch script."""
        for name, value in slurm_variables(text, words).items():
            if self.state.value(name) is None:
                self.state.put(name, known(value, line))
            self.state.mark(name, exported=True)

    def nested(self, text: list[Field], line: int) -> Status:
        """Commands in a value, such as ``eval``'s arguments."""
        self._deeper(line, "commands in values nest without end")
        source, lines = "", list[int]()
        names = self.state.scopes[0]
        quotes = Quotes()
        for value in text:
            for piece in (*value.pieces, Piece(" ", 0)):
                shown = piece.text
                if piece.unknown is not None:
                    # It stays unknown where it is used, and is reported there.
                    name = f"__unknown_{len(names)}"
                    shown = f"${{{name}}}"
                    # In single quotes it would be text.
                    shown = f"'\"{shown}\"'" if quotes.single else shown
                    names[name] = Variable(Field((piece,)))
                else:
                    quotes.after(shown)
                source += shown
                lines += [piece.line or line] * len(shown)
        try:
            block = parse_script(
                source, self.state.source, lambda at: lines[at] if at < len(lines) else line
            )
            return self.block(block)
        finally:
            self.calls -= 1
