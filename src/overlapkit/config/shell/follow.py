"""Follows a shell script without running it: which programs it would start, and with what.

Assignments, arrays, expansions, functions, branches, loops and the environment are followed as in
bash. Nothing is executed. A program is assumed to succeed, and its output is not known; a condition
that depends on either is taken as false, unless the script would end there. Notes say what was
assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from overlapkit.config.shell.builtins import BUILTINS, Status, Stop, Stream, with_end
from overlapkit.config.shell.conditions import evaluate_test
from overlapkit.config.shell.expand import NotKnown
from overlapkit.config.shell.parser import parse_script
from overlapkit.config.shell.processes import MOST_COMMANDS, SHOWS_TEXT, Output, Processes, Started
from overlapkit.config.shell.scan import assigned_names, leaves, matters, sets, sets_or_starts
from overlapkit.config.shell.state import ReadOnly, State, Variable, state_of
from overlapkit.config.shell.syntax import (
    AndOr,
    Assignment,
    Background,
    Case,
    CommandList,
    Counting,
    Function,
    Group,
    If,
    Loop,
    Negated,
    Node,
    Pipeline,
    Redirected,
    Simple,
    Test,
    Word,
)
from overlapkit.config.shell.values import EMPTY, Field, Piece, Unknown, Value, not_known
from overlapkit.errors import InputError

__all__ = ["SHOWS_TEXT", "Followed", "Started", "follow_script"]

_MOST_ROUNDS = 200
_SAFE = frozenset(
    ("cd", "mkdir", "pushd", "popd", "echo", "printf", "export", "source", ".", "set", "module")
)
"""Commands that a launch script relies on: no note says that they are assumed to succeed."""


_CODES = {Status.YES: 0, Status.NO: 1, Status.ASSUMED: 0}
"""What ``$?`` is after a command."""


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
        decided_by: variables that nothing sets and that decide whether it ends there.
        unread: why a variable or an argument that is missing may be set all the same; empty where
            everything was read.
    """

    started: list[Started]
    variables: dict[str, Value]
    exported: dict[str, Field]
    given: frozenset[str]
    notes: list[str] = field(default_factory=list)
    exits: int | None = None
    decided_by: tuple[str, ...] = ()
    unread: str = ""


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
        list(dict.fromkeys(follower.notes)),
        None if end is None or end.kind != "exit" else end.line,
        () if end is None else end.names,
        state.unread,
    )


class _Follower(Processes):
    """Control flow, on top of what commands do."""

    def __init__(self, path: str, state: State) -> None:
        super().__init__(path, state)
        self.commands = 0
        self.conditions = 0

    def block(self, block: CommandList) -> Status:
        status = Status.YES
        for node in block.commands:
            status = self.node(node)
            self.expander.status = _CODES.get(status)
            strict = "errexit" in self.state.options and not self.conditions
            if strict and status is Status.NO and isinstance(node, (Simple, Test, Counting)):
                raise Stop("exit", node.line, Status.NO, names=self.guards)
        return status

    def node(self, node: Node) -> Status:
        self.commands += 1
        if self.commands > MOST_COMMANDS:
            raise InputError(f"{self.path}: runs more commands than a launch script does")
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
            with self.in_condition():
                return self.node(node.command).negated
        if isinstance(node, Test):
            return Status.of(evaluate_test(node.words, self.expander))
        if isinstance(node, Counting):
            return self.counting(node.text)
        return self.process(node)

    def process(self, node: Group | Redirected | Pipeline | Background) -> Status:
        """Commands with their own input or in their own processes."""
        if isinstance(node, Redirected):
            before = self.input
            text = self.expander.scalar(node.inputs[-1]) if node.inputs else None
            self.input = Stream(None if text is None else with_end(text))
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
        fed = self.input
        for command in node.commands[:-1]:
            output = Output()
            with self.own_process(), self.printing(output):
                self.input = fed
                self.ended(CommandList((command,)))
            fed = Stream(None if output.unknown is not None else Field(tuple(output.pieces)))
        with self.own_process():
            self.input = fed
            return self.ended(CommandList(node.commands[-1:]))

    # ------------------------------------------------------------------------------- branches

    @contextmanager
    def in_condition(self) -> Iterator[None]:
        """While a condition is evaluated, where a failure ends nothing."""
        self.conditions += 1
        try:
            yield
        finally:
            self.conditions -= 1

    def judged(self, condition: Node | CommandList) -> tuple[Status, tuple[str, ...]]:
        """How a condition ends, and the variables that it read and nothing sets."""
        before, self.expander.unset = self.expander.unset, []
        try:
            with self.in_condition():
                if isinstance(condition, CommandList):
                    status = self.block(condition)
                else:
                    status = self.node(condition)
            return status, tuple(dict.fromkeys(self.expander.unset))
        finally:
            self.expander.unset = before

    @contextmanager
    def guarded(self, names: tuple[str, ...]) -> Iterator[None]:
        """While commands are followed that a condition on these variables led to."""
        before, self.guards = self.guards, tuple(dict.fromkeys((*self.guards, *names)))
        try:
            yield
        finally:
            self.guards = before

    def leaves(self, node: Node | CommandList) -> bool:
        return leaves(node, self.state.functions)

    def and_or(self, node: AndOr) -> Status:
        status, names = self.judged(node.first)
        former = node.first
        for number, (connector, command) in enumerate(node.others):
            self.expander.status = _CODES.get(status)
            wanted = Status.YES if connector == "&&" else Status.NO
            if status in (Status.YES, Status.NO):
                if status is not wanted:
                    continue
                if names and self.leaves(command):
                    self.set_otherwise(command.line, names)
                    status = Status.NO if wanted is Status.YES else Status.YES
                    continue
            elif not self.continues(connector, command, former, status):
                continue
            last = number == len(node.others) - 1
            with self.guarded(names):
                if last:
                    former, status = command, self.node(command)
                else:
                    former, (status, more) = command, self.judged(command)
                    names = (*names, *more)
        return status

    def continues(self, connector: str, command: Node, former: Node, status: Status) -> bool:
        """Whether the next command of a list runs, after one whose end is assumed or unknown."""
        if status is Status.ASSUMED:
            succeeded = connector == "&&"
            name = former.words[0] if isinstance(former, Simple) and former.words else None
            literal = (name.literal or "") if isinstance(name, Word) else ""
            if sets(command) and literal not in _SAFE and not self.leaves(command):
                shown = literal or "the command"
                self.note(command.line, f"whether {shown} succeeds is not known: taken as true")
            return succeeded
        if self.leaves(command):
            return False
        if sets_or_starts(command):
            self.note(command.line, "whether this test holds is not known: taken as false")
        return connector == "||"

    def set_otherwise(self, line: int, names: tuple[str, ...]) -> None:
        """Note that a guard on variables that nothing sets is passed."""
        shown = " and ".join(names)
        several = len(names) > 1
        self.note(
            line,
            f"{shown} {'are' if several else 'is'} not set in the script: taken as set, since the "
            "script would end here",
        )

    def if_command(self, node: If) -> Status:
        every: tuple[str, ...] = ()
        for number, (condition, body) in enumerate(node.branches):
            status, names = self.judged(condition)
            every = (*every, *names)
            last = number == len(node.branches) - 1
            shown = " ".join(condition.source.split()).rstrip("; ")[:80]
            line = condition.commands[0].line if condition.commands else node.line
            if status in (Status.YES, Status.NO):
                if status is Status.YES and names and self.leaves(body):
                    self.set_otherwise(line, names)
                    status = Status.NO
                elif status is Status.NO and last and names and self.leaves(node.otherwise):
                    self.set_otherwise(line, names)
                    status = Status.YES
            elif self.leaves(body):
                status = Status.NO
            elif last and self.leaves(node.otherwise):
                self.note(line, f"whether {shown!r} holds is not known: taken as true")
                status = Status.YES
            else:
                if matters(body, node.otherwise):
                    what = f"whether {shown!r} holds is not known without running it"
                    self.note(line, f"{what}: taken as false")
                status = Status.NO
            if status is Status.YES:
                with self.guarded(every):
                    return self.block(body)
        with self.guarded(every):
            return self.block(node.otherwise)

    def case(self, node: Case) -> Status:
        before, self.expander.unset = self.expander.unset, []
        value = self.expander.scalar(node.word)
        names, self.expander.unset = tuple(dict.fromkeys(self.expander.unset)), before
        if value.unknown is not None and value.unknown.unset:
            value = EMPTY
        bodies = [body for _, body, _ in node.items]
        if value.unknown is not None:
            if matters(*bodies):
                text = "which branch of this case is taken is not known: none is followed"
                self.note(node.line, text)
                self.obscure(value.unknown, *bodies)
            return Status.UNKNOWN
        status, falls = Status.YES, False
        for patterns, body, end in node.items:
            if not falls and not self.fits(value, patterns):
                continue
            with self.guarded(names):
                status = self.block(body)
            falls = end == ";&"
            if end == ";;":
                break
        return status

    def fits(self, value: Field, patterns: tuple[Word, ...]) -> bool:
        for word in patterns:
            pattern = self.expander.pattern(word)
            if not isinstance(pattern, Unknown) and pattern.matches(value.text[:4000]):
                return True
        return False

    def obscure(self, why: Unknown, *skipped: Node | CommandList) -> None:
        """What commands may set that are not followed, or not as often as they run, is unknown."""
        for name in sorted(assigned_names(*skipped)):
            if name in self.state.given:
                continue
            reason = f"it depends on what is not known: {why.why}"
            unknown = Unknown(why.name or name, reason, why.line)
            self.put(name, not_known(unknown), why.line)

    def put(self, name: str, value: Field, line: int) -> None:
        """Set a variable, with a note where it must not be changed."""
        try:
            self.state.put(name, value)
        except ReadOnly:
            self.note(line, f"{name} is readonly: it keeps its value")

    # ---------------------------------------------------------------------------------- loops

    def loop(self, node: Loop) -> Status:
        if node.condition is not None:
            return self.conditional_loop(node, node.condition)
        if node.words is None:
            fields = [EMPTY if each is None else each for each in self.state.positional]
        else:
            fields = [f for word in node.words for f in self.expander.fields(word)]
        lacking = next((f.unknown for f in fields if f.unknown is not None), None)
        if node.kind == "select" or (lacking is not None and not lacking.unset):
            why = lacking or Unknown(node.name, "it is chosen when the script runs", node.line)
            return self.once(node, why)
        fields = [each for each in fields if each.unknown is None]
        for number, value in enumerate(fields):
            before = len(self.started)
            self.put(node.name, value, node.line)
            if self.round(node.body):
                break
            if self.launched(before) and number + 1 < len(fields):
                once = f"is followed once, with {node.name}={value.text}"
                self.note(node.line, f"the loop {node.head[:60]!r} {once}")
                break
        return Status.YES

    def once(self, node: Loop, why: Unknown) -> Status:
        """A loop whose rounds are not known: its body once, and what it sets is not known then."""
        if matters(node.body):
            self.note(
                node.line,
                f"the loop {node.head[:60]!r} is followed once: how often it runs is not known",
            )
        before = len(self.started)
        if node.name:
            self.put(node.name, not_known(Unknown(why.name or node.name, why.why, why.line)), 0)
        self.round(node.body)
        if not self.launched(before):
            self.obscure(why, node.body)
        return Status.YES

    def counted(self, node: Loop) -> Status:
        """``for ((i=0; i<3; i++))``."""
        assert node.counting is not None
        start, condition, step = node.counting
        self.counting(start)
        for _ in range(_MOST_ROUNDS * 5):
            try:
                holds = self.expander.count(condition) != 0 if condition.parts else True
            except NotKnown as problem:
                return self.once(node, problem.unknown)
            before = len(self.started)
            if not holds or self.round(node.body):
                return Status.YES
            if self.launched(before):
                self.note(node.line, f"the loop {node.head[:60]!r} is followed once")
                return Status.YES
            self.counting(step)
        self.many(node)
        return Status.YES

    def many(self, node: Loop) -> None:
        if matters(node.body):
            text = f"the loop {node.head[:60]!r} is followed for {_MOST_ROUNDS} rounds only"
            self.note(node.line, text)

    def conditional_loop(self, node: Loop, condition: CommandList) -> Status:
        wanted = Status.YES if node.kind == "while" else Status.NO
        for number in range(_MOST_ROUNDS):
            before = len(self.started)
            status, names = self.judged(condition)
            if status not in (Status.YES, Status.NO):
                if status is Status.ASSUMED and node.kind == "until":
                    return Status.YES
                if number == 0:
                    name = names[0] if names else None
                    why = Unknown(name, f"the loop {node.head[:60]!r} sets it", node.line)
                    return self.once(node, why)
                return Status.YES
            if status is not wanted or self.round(node.body):
                return Status.YES
            if self.launched(before):
                return Status.YES
        self.many(node)
        return Status.YES

    def launched(self, before: int) -> bool:
        """Whether a job was started since: a loop starts jobs in sequence, or restarts one."""
        return any(_launches(started) for started in self.started[before:])

    def round(self, body: CommandList) -> bool:
        """Follow a loop's body once; whether that ends the loop."""
        self.loops += 1
        try:
            self.block(body)
        except Stop as stop:
            if stop.kind not in ("break", "continue"):
                raise
            if stop.levels > 1:
                raise Stop(stop.kind, stop.line, levels=stop.levels - 1) from None
            return stop.kind == "break"
        finally:
            self.loops -= 1
        return False

    # -------------------------------------------------------------------------------- commands

    def simple(self, node: Simple) -> Status:
        words: list[Field] = []
        assigned: list[Assignment] = []
        for word in node.words:
            if isinstance(word, Assignment):
                assigned.append(word)
            else:
                words += self.expander.fields(word)
        try:
            if not words:
                return self.assignments(node)
            with self.with_assignments(node.assignments):
                if node.writes and self.output is not None:
                    with self.printing(None):
                        return self.command(node, words, assigned)
                return self.command(node, words, assigned)
        except ReadOnly as problem:
            self.note(node.line, f"{problem} is readonly: it keeps its value")
            return Status.NO

    def assignments(self, node: Simple) -> Status:
        substitutes = any(
            getattr(part, "body", None) is not None
            for a in node.assignments
            if isinstance(a.value, Word)
            for part in a.value.parts
        )
        for assignment in node.assignments:
            self.assign(assignment)
        return Status.ASSUMED if substitutes else Status.YES

    def command(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        name = words[0].text
        if name in ("command", "builtin") and len(words) > 1 and words[1].text[:1] != "-":
            return self.command(node, words[1:], assigned)
        if name == "exec" and len(words) > 1:
            self.command(node, words[1:], assigned)
            raise Stop("exit", node.line, Status.ASSUMED, names=self.guards)
        body = self.state.functions.get(name)
        if body is not None:
            return self.call(body, words[1:], node.line)
        builtin = getattr(self, f"do_{BUILTINS.get(name, '')}", None)
        if builtin is not None:
            result: Status = builtin(node, words, assigned)
            return result
        return self.program(node, words)

    def call(self, body: Node, arguments: list[Field], line: int) -> Status:
        self._deeper(line, "functions call each other without end")
        state = self.state
        former, scope = (state.positional, state.has_all_arguments), dict[str, Variable]()
        # A function's break leaves no loop of its caller.
        loops, self.loops = self.loops, 0
        state.positional, state.has_all_arguments = list(arguments), True
        state.scopes.append(scope)
        try:
            return self.node(body)
        except Stop as stop:
            if stop.kind != "return":
                raise
            return stop.status
        finally:
            self.leave(scope)
            self.loops = loops
            state.positional, state.has_all_arguments = former
            self.calls -= 1


def _launches(started: Started) -> bool:
    """Whether a program looks like a training job."""
    return any(word.text.endswith((".py", "torchrun")) for word in started.words)
