"""Follows a shell script without running it: which programs it would start, and with what.

Assignments, arrays, expansions, functions, branches, loops and the environment are followed as in
bash. Nothing is executed. A program is assumed to succeed, and its output is not known; a condition
that depends on either is taken as false, unless the script would end there. Notes say what was
assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron.bridge.training.edits import listed
from overlapkit.config.gaps import Gap
from overlapkit.config.shell.commands.builtins import BUILTINS
from overlapkit.config.shell.commands.conditions import evaluate_test
from overlapkit.config.shell.commands.status import Status, Stop
from overlapkit.config.shell.commands.stream import Stream
from overlapkit.config.shell.expansion.braces import braces_expanded
from overlapkit.config.shell.grammar.choices import choices
from overlapkit.config.shell.grammar.parser import parse_script
from overlapkit.config.shell.grammar.syntax import (
    AndOr,
    Assignment,
    Background,
    Case,
    CommandList,
    Counting,
    Expanded,
    Function,
    Group,
    If,
    Loop,
    Negated,
    Node,
    Parameter,
    Pipeline,
    Redirected,
    Simple,
    Test,
    Word,
)
from overlapkit.config.shell.loops import Loops
from overlapkit.config.shell.passed import SHOWS_TEXT
from overlapkit.config.shell.processes import MOST_COMMANDS, Output, Started
from overlapkit.config.shell.state import ReadOnly, State, Variable, state_of
from overlapkit.config.shell.values import Field, Piece, Value, known
from overlapkit.errors import InputError

__all__ = ["SHOWS_TEXT", "Followed", "Started", "follow_script"]


_ASKS = frozenset({("command", "-v"), ("command", "-V")})
"""How a script asks whether a command exists."""


def is_command(words: list[Field]) -> bool:
    """Whether the arguments of a command may reach a job."""
    name = words[0].text
    flags = any(word.text.startswith("--") for word in words[1:])
    return name == "set" or (flags and name not in SHOWS_TEXT and name not in BUILTINS)


_MOST_NAMED = 6
"""Variables that one note names."""


@dataclass
class Followed:
    """What a script does.

    Attributes:
        started: the programs, in order.
        variables: the values of its variables at its end, by name.
        exported: those of them that programs see.
        given: names of variables that the caller gave.
        notes: what was assumed, each with its file and line.
        exits: the line of the ``exit`` that ends it; None where it runs to its end.
        decided_by: variables that decide whether it ends there.
        passed_over: the lines of branches that were not taken and start a program, each with the
            variable that decides on it.
        gaps: what is not known of it, and may set more than is here.
        choices: by the name of a variable, the values that the script's conditions name.
    """

    started: list[Started]
    variables: dict[str, Value]
    exported: dict[str, Field]
    given: frozenset[str]
    notes: list[str] = field(default_factory=list)
    exits: int | None = None
    decided_by: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()
    passed_over: tuple[tuple[int, str], ...] = ()
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def follow_script(
    text: str,
    path: str,
    given: Mapping[str, str],
    surroundings: Mapping[str, str] | None = None,
) -> Followed:
    """Follow a script from its start to its end.

    Args:
        text: the script.
        path: its name, for messages and for files beside it.
        given: values of variables, which win over the script's own; "1" is ``$1``.
        surroundings: variables that are set where it runs, and that it may change.

    Raises:
        InputError: it cannot be read as a script, or is larger than a launch script can be.
    """
    state = state_of(path, given)
    state.folder = str(Path.cwd())
    for name, value in (surroundings or {}).items():
        if state.value(name) is None:
            state.put(name, Field((Piece(value, 0),)))
            state.mark(name, exported=True)
    follower = _Follower(path, state)
    block, end = parse_script(text, path), None
    try:
        follower.block(block)
    except Stop as stop:
        end = stop
    except RecursionError:
        raise InputError(f"{path}: nested too deeply for a launch script") from None
    return Followed(
        follower.started,
        state.every(),
        state.exported(),
        frozenset(given),
        list(dict.fromkeys([*follower.notes, *_on_defaults(path, state.defaulted)])),
        None if end is None or end.kind != "exit" else end.line,
        () if end is None else end.names,
        state.gaps,
        tuple(follower.passed_over),
        choices(block),
    )


def _on_defaults(path: str, defaulted: Mapping[str, str]) -> Iterator[str]:
    """Notes on defaults that were taken, one for each file that is not read."""
    for why in dict.fromkeys(defaulted.values()):
        names = [name for name, other in defaulted.items() if other == why]
        more = len(names) - _MOST_NAMED
        shown = listed([*names[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])])
        plural = "s" * (len(names) > 1)
        reason = why.replace("may set it", "may set them") if plural else why
        yield f"{path}: the default{plural} of {shown} {'are' if plural else 'is'} taken: {reason}"


class _Follower(Loops):
    """Control flow, on top of what commands do."""

    def __init__(self, path: str, state: State) -> None:
        super().__init__(path, state)
        self.commands = 0

    def block(self, block: CommandList) -> Status:
        status = Status.YES
        for node in block.commands:
            before = len(self.expander.unset)
            status = self.node(node)
            self.remember(status)
            strict = "errexit" in self.state.options and not self.conditions
            if strict and status is Status.NO and self.may_end(node):
                names = tuple(dict.fromkeys(self.expander.unset[before:]))
                if not names:
                    code = self.expander.status
                    raise Stop("exit", node.line, Status.NO, 1, self.guards.names, code)
                self.set_otherwise(node.line, names)
        return status

    def node(self, node: Node) -> Status:
        self.commands += 1
        if self.commands > MOST_COMMANDS:
            raise InputError(f"{self.path}: runs more commands than a launch script does")
        self.code = None
        if isinstance(node, Simple):
            return self.simple(node)
        if isinstance(node, AndOr):
            return self.and_or(node)
        if isinstance(node, If):
            return self.if_command(node)
        if isinstance(node, Case):
            return self.case(node)
        if isinstance(node, Loop):
            return self.counted(node) if node.counting is not None else self.loop(node)
        if isinstance(node, Function):
            self.state.functions[node.name] = node.body
            return Status.YES
        if isinstance(node, Negated):
            with self.in_condition(negated=True):
                return self.node(node.command).negated
        if isinstance(node, Test):
            status = Status.of(evaluate_test(node.words, self.expander))
            self.code = None
            return status
        if isinstance(node, Counting):
            status = self.counting(node.text)
            self.code = None
            return status
        return self.process(node)

    def process(self, node: Group | Redirected | Pipeline | Background) -> Status:
        """Commands with their own input or in their own processes."""
        if isinstance(node, Redirected):
            before = self.input
            self.input = Stream(self.fed(node.inputs[-1]) if node.inputs else None)
            try:
                return self.node(node.command)
            finally:
                self.input = before
        if isinstance(node, Pipeline):
            return self.pipeline(node)
        if isinstance(node, Background):
            with self.own_process():
                self.ended(CommandList((node.command,)))
            return Status.YES
        if not node.own_process:
            return self.block(node.body)
        with self.own_process():
            return self.ended(node.body)

    def pipeline(self, node: Pipeline) -> Status:
        fed, failed = self.input, False
        for command in node.commands[:-1]:
            output = Output()
            with self.own_process(), self.printing(output):
                self.input = fed
                failed = self.ended(CommandList((command,))) is Status.NO or failed
            fed = Stream(None if output.unknown is not None else Field(tuple(output.pieces)))
        if "lastpipe" in self.state.options:
            before, self.input = self.input, fed
            try:
                status = self.node(node.commands[-1])
            finally:
                self.input = before
        else:
            with self.own_process():
                self.input = fed
                status = self.ended(CommandList(node.commands[-1:]))
        if failed and "pipefail" in self.state.options and status is not Status.NO:
            self.code = None
            return Status.NO
        return status

    # ------------------------------------------------------------------------------- branches

    # -------------------------------------------------------------------------------- commands

    def simple(self, node: Simple) -> Status:
        words: list[Field] = []
        assigned: list[Assignment] = []
        pattern = ""
        for word in node.words:
            if isinstance(word, Assignment):
                assigned += self.alternatives(word)
                if len(assigned) > 1:
                    # export A=1 B=$A: all words are expanded before the first one is set.
                    assigned = [self.expanded(each) for each in assigned]
            else:
                found = self.expander.fields(word)
                pattern = pattern or self.expander.file_pattern(word, found)
                words += found
        try:
            if not words:
                return self.assignments(node)
            if words[0].unknown is not None and words[0].unknown.name == "@":
                # The whole command is in the script's arguments.
                self.passed_over.append((node.line, "1"))
            self.code = None
            if pattern and is_command(words):
                self.note_pattern(pattern, node.line)
            with self.with_assignments(node.assignments):
                if node.writes and self.output is not None:
                    with self.printing(None):
                        return self.command(node, words, assigned)
                return self.command(node, words, assigned)
        except ReadOnly as problem:
            self.note(node.line, f"{problem} is readonly: it keeps its value")
            return Status.NO

    def alternatives(self, a: Assignment) -> list[Assignment]:
        """``export A={1,2}``, whose braces make two words as those of any command do."""
        if not isinstance(a.value, Word):
            return [a]
        return [replace(a, value=word) for word in braces_expanded(a.value)]

    def expanded(self, a: Assignment) -> Assignment:
        """An assignment with its value."""
        if not isinstance(a.value, Word) or a.value.literal is not None:
            return a
        line = a.value.line
        parts = (Expanded(self.expander.scalar(a.value).pieces, line),)
        return replace(a, value=Word(parts, line))

    def assignments(self, node: Simple) -> Status:
        self.substituted = None
        for assignment in node.assignments:
            self.assign(assignment)
        if self.substituted is None:
            return Status.YES
        # The status of the last command substitution.
        status, self.code = self.substituted
        return Status.ASSUMED if status is Status.UNKNOWN else status

    def command(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        name = words[0].text
        if (name, *(w.text for w in words[1:2])) in _ASKS and len(words) > 2:
            return self.asked(node, words)
        if name in ("command", "builtin") and len(words) > 1 and words[1].text[:1] != "-":
            return self.command(node, words[1:], assigned)
        if name == "exec" and len(words) > 1:
            self.command(node, words[1:], assigned)
            raise Stop("exit", node.line, Status.ASSUMED, names=self.guards.names)
        body = self.state.functions.get(name)
        if body is not None:
            return self.call(node, body, words)
        builtin = getattr(self, f"do_{BUILTINS.get(name, '')}", None)
        if builtin is not None:
            result: Status = builtin(node, words, assigned)
            return result
        return self.program(node, words)

    def asked(self, node: Simple, words: list[Field]) -> Status:
        """``command -v NAME``: known for functions and commands of the shell."""
        name = words[-1].text
        if name in self.state.functions or name in BUILTINS:
            self.printed(known(f"{name}\n", node.line))
            return Status.YES
        return self.program(node, words)

    def call(self, node: Simple, body: Node, words: list[Field]) -> Status:
        self._deeper(node.line, "functions call each other without end")
        state = self.state
        former, scope = state.arguments, dict[str, Variable]()
        calls = self.call_lines
        state.called = (words[0].text, *state.called)
        self.come_from(node.line)
        # A function's break leaves no loop of its caller.
        loops, self.loops = self.loops, 0
        own, known_of_own = not state.has_all_arguments, len(state.positional)
        state.pass_on(words[1:])
        if own and state.has_all_arguments and _passes_all(node):
            # More of the script's arguments may follow those that were given.
            state.has_all_arguments = False
            state.shifted -= len(words) - 1 - known_of_own
        state.scopes.append(scope)
        try:
            return self.node(body)
        except Stop as stop:
            if stop.kind != "return":
                raise
            self.code = stop.code
            return stop.status
        finally:
            state.called = state.called[1:]
            self.leave(scope)
            self.loops, self.call_lines = loops, calls
            state.restore(former)
            self.calls -= 1


def _passes_all(node: Simple) -> bool:
    """Whether a command ends with ``"$@"``."""
    last = node.words[-1]
    parts = list(last.parts) if isinstance(last, Word) else []
    return len(parts) == 1 and isinstance(parts[0], Parameter) and parts[0].name in ("@", "*")
