"""Follows a shell script without running it: which programs it would start, and with what.

Assignments, arrays, expansions, functions, branches and the environment are followed as in bash.
Nothing is executed or looked up. A command is assumed to succeed, its output is not known, and a
condition that depends on either is taken as false. Notes say what was assumed.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from overlapkit.config.shell.builtins import BUILTINS, Builtins, Status, Stop
from overlapkit.config.shell.conditions import evaluate_test
from overlapkit.config.shell.parser import parse_script
from overlapkit.config.shell.slurm import slurm_variables
from overlapkit.config.shell.syntax import (
    Assignment,
    Case,
    CommandList,
    Counting,
    Function,
    Group,
    If,
    Loop,
    Negated,
    Node,
    Simple,
    Test,
    Word,
)
from overlapkit.config.shell.values import Field, Piece, without_start
from overlapkit.config.shell.variables import Variables
from overlapkit.errors import InputError

MOST_COMMANDS = 20_000
"""Commands that are followed at most; those of a function count each time that it is called."""
_DEEPEST_CALL = 20
_MOST_ROUNDS = 200

_MATTERS = re.compile(r"\w\+?=|(?<![\w-])--\w")
"""Found in a part of a script that must not be skipped silently, since it may change the answer."""


@dataclass(frozen=True)
class Started:
    """A program that the script would start.

    Attributes:
        words: its name and arguments.
        outer: words of the programs that receive it as text, such as srun's.
        environment: what the script exports to it, by name.
        not_exported: variables of the script that it does not see.
        line: its line in the script.
    """

    words: tuple[Field, ...]
    outer: tuple[Field, ...]
    environment: dict[str, Field]
    not_exported: dict[str, Field]
    line: int


@dataclass
class Followed:
    """What a script does.

    Attributes:
        started: the programs, in order.
        variables: their values at the end of the script.
        notes: what was assumed, each with its file and line.
        exits: the line of the ``exit`` that ends it; None where it runs to its end.
    """

    started: list[Started]
    variables: Variables
    notes: list[str] = field(default_factory=list)
    exits: int | None = None


def follow_script(
    text: str,
    path: str,
    given: Mapping[str, str],
    surroundings: Mapping[str, str] | None = None,
) -> Followed:
    """Follow a script from its start to its end.

    Args:
        text: the script.
        path: its name, for messages.
        given: values of variables, which win over the script's own; "1" is ``$1``.
        surroundings: variables that are set where it runs, and that it may change.

    Raises:
        InputError: it cannot be read as a script, or is larger than a launch script can be.
    """
    follower = _Follower(path, given)
    for name, value in (surroundings or {}).items():
        follower.variables.values.setdefault(name, Field((Piece(value, 0),)))
    block, exits = parse_script(text, path), None
    try:
        follower.block(block)
    except Stop as stop:
        exits = stop.line
    except RecursionError:
        raise InputError(f"{path}: nested too deeply for a launch script") from None
    notes = [*follower.notes, *follower.variables.replaced.values()]
    return Followed(follower.started, follower.variables, list(dict.fromkeys(notes)), exits)


class _Follower(Builtins):
    def __init__(self, path: str, given: Mapping[str, str]) -> None:
        super().__init__(path, Variables(path, given))
        self.functions: dict[str, Node] = {}
        self.started: list[Started] = []
        self.calls = 0
        self.outer: tuple[Field, ...] = ()
        self.commands = 0

    def block(self, block: CommandList) -> Status:
        status: Status = True
        former: Node | None = None
        for connector, node in block.commands:
            # A program is assumed to succeed, and a test whose result is not known to fail.
            unknown = status is None and _is_test(former)
            succeeded = status is not False and not unknown
            if connector in ("&&", "||") and unknown and _sets_or_starts(node):
                self.note(node.line, "whether this test holds is not known: taken as false")
            if (connector == "&&" and not succeeded) or (connector == "||" and succeeded):
                continue
            former, status = node, self.node(node)
        return status

    def node(self, node: Node) -> Status:
        self.commands += 1
        if self.commands > MOST_COMMANDS:
            raise InputError(f"{self.path}: runs more commands than a launch script does")
        if isinstance(node, Simple):
            return self.simple(node)
        if isinstance(node, Group):
            return self.group(node)
        if isinstance(node, If):
            return self.if_command(node)
        if isinstance(node, Case):
            return self.case(node)
        if isinstance(node, Loop):
            return self.loop(node)
        if isinstance(node, Function):
            self.functions[node.name] = node.body
            return True
        if isinstance(node, Negated):
            status = self.node(node.command)
            return None if status is None else not status
        if isinstance(node, Test):
            return evaluate_test(node.words, self.variables)
        return self.counting(node.text, node.line)

    def group(self, node: Group) -> Status:
        if not node.own_process:
            return self.block(node.body)
        values, exported = dict(self.variables.values), set(self.variables.exported)
        try:
            return self.block(node.body)
        except Stop:
            return None
        finally:
            self.variables.values, self.variables.exported = values, exported

    # ------------------------------------------------------------------------------- branches

    def if_command(self, node: If) -> Status:
        for condition, body in node.branches:
            status = self.block(condition)
            if status is None and _MATTERS.search(body.source + node.otherwise.source):
                shown = " ".join(condition.source.split()).rstrip("; ")
                self.note(
                    condition.commands[0][1].line if condition.commands else node.line,
                    f"whether {shown[:80]!r} holds is not known without running it: taken as false",
                )
            if status:
                return self.block(body)
        return self.block(node.otherwise)

    def case(self, node: Case) -> Status:
        value = self.variables.scalar(node.word)
        if value.unknown is not None and value.unknown.why.startswith("it is not set"):
            value = Field(())
        if value.unknown is not None:
            if any(_MATTERS.search(body.source) for _, body in node.items):
                self.note(
                    node.line, "which branch of this case is taken is not known: none is followed"
                )
            return None
        for patterns, body in node.items:
            for pattern in patterns:
                wanted = self.variables.scalar(pattern)
                if wanted.unknown is None and fnmatch.fnmatchcase(value.text, wanted.text):
                    return self.block(body)
        return True

    def loop(self, node: Loop) -> Status:
        matters = _MATTERS.search(node.body.source) is not None
        if node.condition is not None:
            return self.conditional_loop(node, node.condition, matters)
        fields = [f for word in node.words for f in self.variables.fields(word)]
        if not fields or any(field.unknown is not None for field in fields):
            if matters:
                self.note(node.line, f"the loop {node.head[:60]!r} is skipped")
            return True
        for number, value in enumerate(fields):
            before = len(self.started)
            self.variables.put(node.name, value)
            if self.round(node.body):
                break
            if self.launched(before) and number + 1 < len(fields):
                once = f"is followed once, with {node.name}={value.text}"
                self.note(node.line, f"the loop {node.head[:60]!r} {once}")
                break
        return True

    def conditional_loop(self, node: Loop, condition: CommandList, matters: bool) -> Status:
        wanted = node.kind == "while"
        for _ in range(_MOST_ROUNDS):
            status = self.block(condition)
            if status is None and matters:
                self.note(node.line, f"the loop {node.head[:60]!r} is skipped")
            before = len(self.started)
            if status is not wanted or self.round(node.body) or self.launched(before):
                return True
        if matters:
            text = f"the loop {node.head[:60]!r} is followed for {_MOST_ROUNDS} rounds only"
            self.note(node.line, text)
        return True

    def launched(self, before: int) -> bool:
        """Whether a job was started since: a loop starts jobs in sequence, or restarts one."""
        return any(_launches(started) for started in self.started[before:])

    def round(self, body: CommandList) -> bool:
        """Follow a loop's body once; whether that ends the loop."""
        try:
            self.block(body)
        except Stop as stop:
            if stop.kind not in ("break", "continue"):
                raise
            return stop.kind == "break"
        return False

    # -------------------------------------------------------------------------------- commands

    def simple(self, node: Simple) -> Status:
        words: list[Field] = []
        assigned: list[Assignment] = []
        for word in node.words:
            if isinstance(word, Assignment):
                assigned.append(word)
            else:
                words += self.variables.fields(word)
        if not words:
            for assignment in node.assignments:
                self.variables.assign(assignment)
                if self.export_all:
                    self.variables.exported.add(assignment.name)
            return True
        name = words[0].text
        builtin = getattr(self, f"do_{BUILTINS.get(name, '')}", None)
        if builtin is not None:
            result: Status = builtin(node, words, assigned)
            return result
        if name in self.functions:
            return self.call(self.functions[name], words[1:], node.line)
        fed = self.fed(node, words)
        inner = [w for w in words if _is_command_line(w.text)] if name not in SHOWS_TEXT else []
        if fed is not None or inner:
            return self.pass_on(node, words, inner[0] if fed is None else fed)
        self.start(node, words)
        return True if name in _ALWAYS else False if name == "false" else None

    def fed(self, node: Simple, words: list[Field]) -> Field | None:
        """A script that a heredoc passes to a shell or a scheduler, or writes to a file."""
        names = {PurePosixPath(word.text).name for word in words}
        if not node.inputs or not (names & _TAKES_SCRIPT or (names & _WRITES and node.writes)):
            return None
        text = self.variables.scalar(node.inputs[-1])
        return text if _is_command_line(text.text) else None

    def pass_on(self, node: Simple, words: list[Field], script: Field) -> Status:
        """Commands that are passed to another program, such as ``srun bash -c "torchrun …"``."""
        outer, self.outer = self.outer, (*self.outer, *(w for w in words if w is not script))
        exported = set(self.variables.exported)
        for name, value in slurm_variables(script.text, words).items():
            self.variables.values.setdefault(name, Field((Piece(value, node.line),)))
            self.variables.exported.add(name)
        for a in node.assignments:
            self.variables.assign(a)
            self.variables.exported.add(a.name)
        wrapped = script.text.startswith("--wrap=")
        try:
            return self.nested([without_start(script, "--wrap=") if wrapped else script], node.line)
        except Stop:
            return None
        finally:
            self.outer, self.variables.exported = outer, exported

    def call(self, body: Node, arguments: list[Field], line: int) -> Status:
        if self.calls >= _DEEPEST_CALL:
            raise InputError(f"{self.path}:{line}: functions call each other without end")
        former = self.variables.positional
        self.calls += 1
        self.variables.positional = arguments
        try:
            return self.node(body)
        except Stop as stop:
            if stop.kind != "return":
                raise
            return None
        finally:
            self.variables.positional = former
            self.calls -= 1

    def start(self, node: Simple, words: list[Field]) -> None:
        values = self.variables.values
        visible = {n: v for n in self.variables.exported if isinstance(v := values.get(n), Field)}
        visible |= {
            a.name: self.variables.scalar(a.value)
            for a in node.assignments
            if isinstance(a.value, Word)
        }
        hidden = {n: v for n, v in values.items() if n not in visible and isinstance(v, Field)}
        self.started.append(Started(tuple(words), self.outer, visible, hidden, node.line))

    def nested(self, text: list[Field], line: int) -> Status:
        """Commands in a value, such as ``eval``'s arguments."""
        if self.calls >= _DEEPEST_CALL:
            raise InputError(f"{self.path}:{line}: commands in values nest without end")
        source, lines = "", list[int]()
        for value in text:
            for piece in (*value.pieces, Piece(" ", 0)):
                shown = piece.text
                if piece.unknown is not None:
                    # It stays unknown where it is used, and is reported there.
                    shown = f"${{{_PLACEHOLDER}{len(self.variables.values)}}}"
                    self.variables.values[shown[2:-1]] = Field((piece,))
                source += shown
                lines += [piece.line or line] * len(shown)
        block = parse_script(source, self.path, lambda at: lines[at] if at < len(lines) else line)
        self.calls += 1
        try:
            return self.block(block)
        finally:
            self.calls -= 1


def _is_test(node: Node | None) -> bool:
    if isinstance(node, Negated):
        return _is_test(node.command)
    if isinstance(node, Simple) and node.words and isinstance(node.words[0], Word):
        return node.words[0].literal in ("[", "test")
    return isinstance(node, (Test, Counting))


def _sets_or_starts(node: Node) -> bool:
    """Whether skipping a command may change the answer."""
    if not isinstance(node, Simple):
        return True
    words = [word for word in node.words if isinstance(word, Word)]
    flags = any((word.literal or "").startswith("--") for word in words)
    return bool(node.assignments) or len(words) < len(node.words) or flags


def _launches(started: Started) -> bool:
    """Whether a program looks like a training job."""
    return any(word.text.endswith((".py", "torchrun")) for word in started.words)


def _is_command_line(text: str) -> bool:
    """Whether a value looks like ``torchrun … -…``, as in ``bash -c "torchrun …"``."""
    program = _PROGRAM.search(text)
    return program is not None and _OPTION.search(text, program.end()) is not None


_PLACEHOLDER = "__unknown_"
SHOWS_TEXT = frozenset({"echo", "printf", "cat", "logger", "tee", "grep", "sed", "awk"})
"""Programs that only handle text, even if that is a command."""
_TAKES_SCRIPT = frozenset({"bash", "sh", "zsh", "ssh", "sbatch", "salloc", "qsub", "bsub"})
_WRITES = frozenset({"cat", "tee"})
_PROGRAM = re.compile(r"(\.py|\btorchrun|\btorch\.distributed\.\w+)(?=\s)")
_OPTION = re.compile(r"\s-")
_ALWAYS = frozenset({":", "true", "echo", "printf", "cd", "mkdir", "shopt", "ulimit", "umask"})
