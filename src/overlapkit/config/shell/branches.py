"""Conditions and branches of a followed script, and what is assumed where one is not known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from overlapkit.config.gaps import Doubt
from overlapkit.config.shell.commands.status import CODES, Grounds, Status
from overlapkit.config.shell.grammar.scan import (
    assigned_names,
    exported_names,
    flags_in,
    leaves,
    matters,
    sets,
    sets_or_starts,
    sourced,
    starts_program,
)
from overlapkit.config.shell.grammar.syntax import (
    AndOr,
    Case,
    CommandList,
    Counting,
    Group,
    If,
    Node,
    Pipeline,
    Redirected,
    Simple,
    Test,
    Word,
)
from overlapkit.config.shell.launches import Programs
from overlapkit.config.shell.state import ReadOnly, State
from overlapkit.config.shell.values import EMPTY, Field, Unknown, not_known

_SAFE = frozenset(
    ("cd", "mkdir", "pushd", "popd", "echo", "printf", "export", "source", ".", "set", "module")
)
"""Commands that a launch script relies on: no note says that they are assumed to succeed."""


def _given(names: Sequence[str], where: str = "otherwise") -> str:
    """What to give where another branch is taken."""
    return f"; give {' '.join(f'{name}=value' for name in names)} {where}" if names else ""


class Branches(Programs):
    """Lists, ``if`` and ``case``."""

    def __init__(self, path: str, state: State) -> None:
        super().__init__(path, state)
        self.passed_over: list[tuple[int, str]] = []
        self.final: AndOr | None = None

    def node(self, node: Node) -> Status:
        """Follow one command."""
        raise NotImplementedError

    @contextmanager
    def in_condition(self, *, negated: bool = False) -> Iterator[None]:
        """While a condition is evaluated, where a failure ends nothing."""
        before = (self.conditions, self.negations)
        self.conditions += 1
        self.negations += negated
        try:
            yield
        finally:
            self.conditions, self.negations = before

    @contextmanager
    def grounds(self) -> Iterator[Callable[[], Grounds]]:
        """While a condition is evaluated; what is yielded gives what it depended on."""
        expander = self.expander
        unset, read = expander.unset, expander.read
        expander.unset, expander.read = [], {}

        def found() -> Grounds:
            names = tuple(name for name in expander.read or () if self.can_be_given(name))
            return Grounds(tuple(dict.fromkeys(expander.unset)), names)

        try:
            yield found
        finally:
            # A condition around this one depends on the same.
            unset += expander.unset
            if read is not None:
                read |= expander.read
            expander.unset, expander.read = unset, read

    def can_be_given(self, name: str) -> bool:
        """Whether a value that the caller gives decides, instead of the script's."""
        if name.isdecimal():
            return not self.state.has_all_arguments
        return not any(name in scope for scope in self.state.scopes[1:])

    def judged(self, condition: Node | CommandList) -> tuple[Status, Grounds]:
        """How a condition ends, and what it depends on."""
        before = len(self.started)
        with self.grounds() as found:
            with self.in_condition():
                if isinstance(condition, CommandList):
                    status = self.block(condition)
                else:
                    status = self.node(condition)
            if self.launched(before):
                # How a job ends depends on no variable that could be given.
                return status, Grounds()
            return status, found()

    def launched(self, before: int) -> bool:
        """Whether a program that looks like a training job was started since."""
        return any(
            word.text.endswith((".py", "torchrun"))
            for started in self.started[before:]
            for word in started.words
        )

    @contextmanager
    def guarded(self, grounds: Grounds) -> Iterator[None]:
        """While commands are followed that a condition led to."""
        before = self.guards
        unset = tuple(dict.fromkeys(before.unset + grounds.unset))
        if grounds.unset or not grounds.read:
            self.guards = Grounds(unset, before.read)
        else:
            # What the script itself sets decides most directly.
            self.guards = Grounds((), grounds.read)
        try:
            yield
        finally:
            self.guards = before

    def deciding(self, grounds: Grounds) -> tuple[str, ...]:
        """The variables whose value is not known, of those that a condition depends on."""
        values = ((name, self.state.value(name)) for name in grounds.read)
        unknown = (n for n, v in values if isinstance(v, Field) and v.unknown is not None)
        return tuple(dict.fromkeys((*unknown, *grounds.unset)))

    def leaves(self, node: Node | CommandList) -> bool:
        return leaves(node, self.state.functions)

    def and_or(self, node: AndOr) -> Status:
        status, grounds = self.judged(node.first)
        former, final = node.first, False
        for number, (connector, command) in enumerate(node.others):
            self.remember(status)
            wanted = Status.YES if connector == "&&" else Status.NO
            if status in (Status.YES, Status.NO):
                if status is not wanted:
                    self.left_to(grounds, command, line=command.line)
                    continue
                if grounds.unset and self.leaves(command):
                    self.set_otherwise(command.line, grounds.unset)
                    status = Status.NO if wanted is Status.YES else Status.YES
                    continue
            elif not self.continues(connector, command, former, status, grounds):
                continue
            last = number == len(node.others) - 1
            final = last
            with self.guarded(grounds):
                if last:
                    former, status = command, self.node(command)
                else:
                    former, (status, more) = command, self.judged(command)
                    grounds = grounds.and_of(more)
        self.final = node if final else None
        return status

    def remember(self, status: Status) -> None:
        """What ``$?`` is after a command."""
        exact = status is Status.NO and self.code is not None
        self.expander.status = self.code if exact else CODES.get(status)

    def may_end(self, node: Node) -> bool:
        """Whether ``set -e`` ends the script where this command fails."""
        if isinstance(node, Redirected):
            return self.may_end(node.command)
        if isinstance(node, AndOr):
            return self.final is node and self.may_end(node.others[-1][1])
        own = isinstance(node, Group) and node.own_process
        return own or isinstance(node, (Simple, Test, Counting, Pipeline))

    def continues(
        self, connector: str, command: Node, former: Node, status: Status, grounds: Grounds
    ) -> bool:
        """Whether the next command of a list runs, after one whose end is assumed or unknown."""
        if status is Status.ASSUMED:
            succeeded = connector == "&&"
            name = former.words[0] if isinstance(former, Simple) and former.words else None
            literal = (name.literal or "") if isinstance(name, Word) else ""
            if sets(command) and literal not in _SAFE and not self.leaves(command):
                shown = literal or "the command"
                self.note(command.line, f"whether {shown} succeeds is not known: taken as true")
                if not succeeded:
                    what = f"the command after {shown}, where that fails"
                    self.skipped(command.line, what, (), command, doubt=Doubt.ASSUMED)
            return succeeded
        if self.leaves(command):
            return False
        if connector == "&&" and self.reads_here(command):
            return True
        if sets_or_starts(command):
            names = self.deciding(grounds)
            self.note(
                command.line,
                f"whether this test holds is not known: taken as false{_given(names)}",
            )
            if connector == "&&":
                what = "the command after a test"
                self.skipped(command.line, what, names, command)
        return connector == "||"

    def reads_here(self, node: Node | CommandList) -> bool:
        """Whether commands read a file that is here, so that a test for it holds."""
        for each in sourced(node):
            words = [word for word in each.words[1:2] if isinstance(word, Word)]
            name = self.expander.scalar(words[0]) if words else EMPTY
            if name.unknown is None and self.find_file(name.text) is not None:
                return True
        return False

    def skipped(
        self,
        line: int,
        what: str,
        names: tuple[str, ...],
        *commands: Node | CommandList,
        doubt: Doubt = Doubt.UNREAD,
    ) -> None:
        """Record what commands may set that are not followed.

        Args:
            line: that of their condition.
            what: these commands, as the subject of a sentence.
            names: the variables that decide on it.
            commands: those that are not followed.
            doubt: how much that weakens an answer.
        """
        remedy = "keep only the commands that are run, without their condition"
        if names:
            remedy = f"give {' '.join(f'{name}=value' for name in names)}"
        anything = any(True for each in commands for _ in sourced(each))
        self.gap(
            line,
            what,
            remedy,
            variables=None if anything else assigned_names(*commands) | exported_names(*commands),
            flags=flags_in(*commands),
            doubt=doubt,
        )

    def set_otherwise(self, line: int, names: tuple[str, ...]) -> None:
        """Note that a guard on variables that nothing sets is passed."""
        self.state.has_some |= any(name.isdecimal() for name in names)
        shown = " and ".join(f"argument {n}" if n.isdecimal() else n for n in names)
        several = len(names) > 1
        self.note(
            line,
            f"{shown} {'are' if several else 'is'} not set in the script: taken as set, since the "
            "script would end here",
        )

    def if_command(self, node: If) -> Status:
        every = Grounds()
        for number, (condition, body) in enumerate(node.branches):
            status, grounds = self.judged(condition)
            every = every.and_of(grounds)
            names = grounds.unset
            last = number == len(node.branches) - 1
            shown = " ".join(condition.source.split()).rstrip("; ")[:80]
            line = condition.commands[0].line if condition.commands else node.line
            if status in (Status.YES, Status.NO):
                if status is Status.YES and names and self.leaves(body):
                    self.set_otherwise(line, names)
                    status = Status.NO
                elif status is Status.NO and self.is_only_way(node, number) and names:
                    self.set_otherwise(line, names)
                    status = Status.YES
                elif names:
                    later = [body for _, body in node.branches[number + 1 :]]
                    skipped = [body] if status is Status.NO else [*later, node.otherwise]
                    self.as_unset(line, shown, names, status, skipped)
            elif self.leaves(body):
                deciding = _given(self.deciding(grounds))
                self.note(
                    line,
                    f"whether {shown!r} holds is not known: taken as false, since the script "
                    f"would end here{deciding}",
                )
                status = Status.NO
            elif self.reads_here(body):
                self.note(line, f"{shown!r} is taken as true: the file is here")
                status = Status.YES
            elif last and self.leaves(node.otherwise):
                self.note(line, f"whether {shown!r} holds is not known: taken as true")
                status = Status.YES
            else:
                if matters(body, node.otherwise):
                    what = f"whether {shown!r} holds is not known without running it"
                    of = self.deciding(grounds)
                    self.note(line, f"{what}: taken as false{_given(of)}")
                    self.skipped(line, f"the branch where {shown!r} holds", of, body)
                status = Status.NO
            if status is Status.YES:
                later = [each for _, each in node.branches[number + 1 :]]
                self.left_to(every, *later, node.otherwise, line=node.line)
                with self.guarded(every):
                    return self.block(body)
            self.left_to(every, body, line=line)
        with self.guarded(every):
            return self.block(node.otherwise)

    def left_to(self, grounds: Grounds, *skipped: Node | CommandList, line: int) -> None:
        """Record what decides what the commands skipped would set, and whether they start a job."""
        if grounds.names and starts_program(*skipped, functions=self.state.functions):
            self.passed_over.append((line, grounds.names[0]))
        if grounds.unset:
            for name in assigned_names(*skipped):
                self.state.deciders.setdefault(name, grounds.unset)

    def is_only_way(self, node: If, number: int) -> bool:
        """Whether a script ends unless this branch is taken; of several, each would do."""
        others = [body for n, (_, body) in enumerate(node.branches) if n != number]
        return all(map(self.leaves, [*others, node.otherwise]))

    def as_unset(
        self,
        line: int,
        shown: str,
        names: tuple[str, ...],
        status: Status,
        skipped: Sequence[CommandList],
    ) -> None:
        """Note that a condition was decided by variables that nothing sets.

        Args:
            line, shown: the condition.
            names: the variables.
            status: how it was decided.
            skipped: the commands that are not followed for that.
        """
        if not matters(*skipped):
            return
        truth = "true" if status is Status.YES else "false"
        several = len(names) > 1
        self.note(
            line,
            f"{' and '.join(names)} {'are' if several else 'is'} not set in the script, so "
            f"{shown!r} is {truth}{_given(names, 'where set')}",
        )
        what = f"the branch where {shown!r} is {'false' if truth == 'true' else 'true'}"
        self.skipped(line, what, names, *skipped, doubt=Doubt.ASSUMED)

    def case(self, node: Case) -> Status:
        with self.grounds() as found:
            value = self.expander.scalar(node.word)
            self.expander.note_unset(value)
            grounds = found()
        if value.unknown is not None and value.unknown.unset:
            value = EMPTY
        bodies = [body for _, body, _ in node.items]
        if value.unknown is not None:
            if matters(*bodies):
                text = "which branch of this case is taken is not known: none is followed"
                name = value.unknown.name
                names = (name,) if name is not None else ()
                self.note(node.line, f"{text}{_given(names)}")
                self.skipped(node.line, "a branch of its case", names, *bodies)
                self.obscure(value.unknown, *bodies)
                if value.unknown.name is not None:
                    self.left_to(Grounds((), (value.unknown.name,)), *bodies, line=node.line)
            return Status.UNKNOWN
        status, falls, left = Status.YES, False, list(bodies)
        self.left_to(grounds, *bodies, line=node.line)
        for patterns, body, end in node.items:
            if not falls and not self.fits(value, patterns):
                continue
            left.remove(body)
            with self.guarded(grounds):
                status = self.block(body)
            falls = end == ";&"
            if end == ";;":
                break
        unset = grounds.unset
        if unset and matters(*left):
            self.note(
                node.line,
                f"{' and '.join(unset)} {'are' if len(unset) > 1 else 'is'} not set in the "
                f"script: this case is decided so{_given(unset, 'where set')}",
            )
            what = "another branch of its case"
            self.skipped(node.line, what, unset, *left, doubt=Doubt.ASSUMED)
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
