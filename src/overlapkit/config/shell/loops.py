"""Loops of a followed script, and what is assumed where their rounds are not known."""

from __future__ import annotations

from dataclasses import replace

from overlapkit.config.gaps import Doubt
from overlapkit.config.shell.branches import Branches
from overlapkit.config.shell.commands.status import Grounds, Status, Stop
from overlapkit.config.shell.expansion.words import NotKnown
from overlapkit.config.shell.grammar.scan import (
    matters,
)
from overlapkit.config.shell.grammar.syntax import (
    CommandList,
    Loop,
    Word,
)
from overlapkit.config.shell.state import is_all_arguments
from overlapkit.config.shell.values import EMPTY, Field, Unknown, not_known

_MOST_ROUNDS = 200


class Loops(Branches):
    """``for``, ``while``, ``until`` and ``select``."""

    body_status = Status.YES

    def loop(self, node: Loop) -> Status:
        if node.condition is not None:
            return self.conditional_loop(node, node.condition)
        if node.words is None:
            fields = [EMPTY if each is None else each for each in self.state.positional]
        else:
            fields = [f for word in node.words for f in self._of_head(node, word)]
        is_open = any(map(is_all_arguments, fields))
        fields = [field for field in fields if not is_all_arguments(field)]
        lacking = next((f.unknown for f in fields if f.unknown is not None), None)
        self.body_status = Status.YES
        if is_open and not fields and not self.state.has_some:
            what = "the loop over the script's own arguments"
            self.skipped(node.line, what, ("1",), node.body, doubt=Doubt.ASSUMED)
        if not fields and self.state.has_some and _is_of_arguments(node):
            lacking = replace(self.expander.unset_one("1", node.line), unset=False)
        if node.kind == "select" or (lacking is not None and not lacking.unset):
            why = lacking or Unknown(node.name, "it is chosen when the script runs", node.line)
            return self.once(node, why)
        if lacking is not None and lacking.name:
            self.left_to(Grounds((lacking.name,)), node.body, line=node.line)
        fields = [each for each in fields if each.unknown is None]
        for number, value in enumerate(fields):
            before = len(self.started)
            variable = self.state.find(node.name)
            if variable is not None and variable.refers:
                # Each round, it stands for another variable.
                self.state.mark(node.name, refers=value.text)
            else:
                self.put(node.name, value, node.line)
            if self.round(node.body):
                break
            if self.launched(before) and number + 1 < len(fields):
                once = f"is followed once, with {node.name}={value.text}"
                self.note(node.line, f"the loop {node.head[:60]!r} {once}")
                break
        return self.body_status

    def _of_head(self, node: Loop, word: Word) -> list[Field]:
        """What a word of ``for … in`` becomes: not known where it stands for files."""
        fields = self.expander.fields(word)
        pattern = self.expander.file_pattern(word, fields)
        why = f"it is one of the files {pattern}, which are not looked at"
        return [not_known(Unknown(node.name, why, node.line))] if pattern else fields

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
        self.body_status = Status.YES
        self.counting(start)
        for _ in range(_MOST_ROUNDS * 5):
            try:
                holds = self.expander.count(condition) != 0 if condition.parts else True
            except NotKnown as problem:
                return self.once(node, problem.unknown)
            before = len(self.started)
            if not holds or self.round(node.body):
                return self.body_status
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
        self.body_status = Status.YES
        wanted = Status.YES if node.kind == "while" else Status.NO
        for number in range(_MOST_ROUNDS):
            before = len(self.started)
            status, grounds = self.judged(condition)
            if status not in (Status.YES, Status.NO):
                if status is Status.ASSUMED and node.kind == "until":
                    if self.launched(before):
                        self.note(node.line, f"the loop {node.head[:60]!r} is followed once")
                    return Status.YES
                if number == 0:
                    name = grounds.unset[0] if grounds.unset else None
                    why = Unknown(name, f"the loop {node.head[:60]!r} sets it", node.line)
                    return self.once(node, why)
                return Status.YES
            ended = status is not wanted or self.round(node.body)
            if self.launched(before):
                self.note(node.line, f"the loop {node.head[:60]!r} is followed once")
            if ended:
                return self.body_status
            if self.launched(before):
                self.note(node.line, f"the loop {node.head[:60]!r} is followed once")
            if self.launched(before):
                return Status.YES
        self.many(node)
        return Status.YES

    def round(self, body: CommandList) -> bool:
        """Follow a loop's body once; whether that ends the loop."""
        self.loops += 1
        self.body_status = Status.YES
        try:
            self.body_status = self.block(body)
        except Stop as stop:
            if stop.kind not in ("break", "continue"):
                raise
            if stop.levels > 1:
                raise Stop(stop.kind, stop.line, levels=stop.levels - 1) from None
            return stop.kind == "break"
        finally:
            self.loops -= 1
        return False


def _is_of_arguments(node: Loop) -> bool:
    """Whether a loop is over the script's arguments."""
    parts = [part for word in node.words or () for part in word.parts]
    return node.words is None or [getattr(part, "name", "") for part in parts] in (["@"], ["*"])
