"""The commands that declare, export and unset variables."""

from __future__ import annotations

import re

from overlapkit.config.shell.commands.assignments import ELEMENT, NAME, Assignments
from overlapkit.config.shell.commands.status import Status
from overlapkit.config.shell.expansion.words import NotKnown
from overlapkit.config.shell.grammar.syntax import Assignment, Simple, Word
from overlapkit.config.shell.state import Variable
from overlapkit.config.shell.values import (
    Array,
    Field,
    Map,
    Unknown,
    known,
    not_known,
    part_of,
)

_ATTRIBUTES = {"x": "exported", "r": "readonly", "i": "integer", "l": "lower", "u": "upper"}


class Declarations(Assignments):
    """The commands, each as ``do_<name>(command, its expanded words, its assignments)``."""

    def do_export(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        removes = any(w.text == "-n" for w in words[1:2])
        of_functions = any(w.text == "-f" for w in words[1:2])
        for a in assigned:
            self.assign(a)
        names = [w.text for w in words[1:] if not w.text.startswith("-")]
        names += [a.name for a in assigned]
        for word in words[1:]:
            if word.first is not None and word.first.unknown is not None:
                self._export_unknown(node.line, word.first.unknown)
        for assignment in [n for n in names if "=" in n]:
            # export "NAME=value", quoted entirely, or from a value.
            name, _, _ = assignment.partition("=")
            word = next(w for w in words if w.text == assignment)
            if NAME.fullmatch(name):
                self.state.put(name, part_of(word, len(name) + 1))
                names.append(name)
        for name in [n for n in names if NAME.fullmatch(n) and not of_functions]:
            self.state.mark(name, exported=not removes)
        return Status.YES

    def _export_unknown(self, line: int, why: Unknown) -> None:
        """``export $(cat file)``: any variable may be exported."""
        if why.unset:
            return
        self.note(line, f"what is exported is not known: {why.why}")
        remedy = f"give {why.name}=value" if why.name else "give what it exports as NAME=value"
        self.gap(line, "an export of names that are not known", remedy)

    def do_declare(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        command = words[0].text
        options = [w.text for w in words[1:] if re.fullmatch(r"[-+]\w+", w.text)]
        on = "".join(o[1:] for o in options if o[0] == "-")
        off = "".join(o[1:] for o in options if o[0] == "+")
        if "f" in on or "F" in on or "p" in on:
            shown = Unknown(None, f"{command} -{on} is not followed", node.line)
            self.printed(not_known(shown))
            return Status.YES
        if "c" in on:
            self.note(node.line, f"{command} -c is not followed")
        inside = bool(self.state.called)
        if command == "local" and not inside:
            self.note(node.line, "local outside a function is an error, and sets nothing")
            return Status.NO
        local = inside and command in ("local", "declare", "typeset") and "g" not in on
        attributes = {name: True for key, name in _ATTRIBUTES.items() if key in on}
        attributes |= {name: False for key, name in _ATTRIBUTES.items() if key in off}
        locked = attributes.pop("readonly", False) or command == "readonly"
        bare = [w.text for w in words[1:] if w.text not in options]
        several = [(name, None) for name in bare] + [(a.name, a) for a in assigned]
        for text, assignment in several:
            name, _, rest = text.partition("=")
            if not NAME.fullmatch(name):
                continue
            self._declare_one(name, assignment, on, attributes, local=local)
            if assignment is None and "=" in text and rest[:1] == "(" and ("a" in on or "A" in on):
                # declare -a "A=(1 2)": the value is read again.
                self.nested([known(text, node.line)], node.line)
            elif assignment is None and "=" in text:
                self.state.put(name, known(rest, node.line))
            if locked:
                self.state.mark(name, readonly=True)
        return Status.YES

    def _declare_one(
        self,
        name: str,
        assignment: Assignment | None,
        on: str,
        attributes: dict[str, bool],
        *,
        local: bool,
    ) -> None:
        scope = self.state.scopes[-1]
        if "n" in on and assignment is not None and isinstance(assignment.value, Word):
            target = self.expander.scalar(assignment.value)
            self.state.mark(name, local=local, refers=target.text)
            if not NAME.fullmatch(target.text):
                self.state.mark(name, local=local, refers="")
                why = f"it stands for {target.text[:40] or 'what is not known'!r}, not followed"
                self.note(assignment.line, f"{name} is a name for another one: {why}")
                self.state.put(name, not_known(Unknown(name, why, assignment.line)))
            return
        if "n" in on and assignment is None:
            # Its first value is the name that it stands for.
            self.state.mark(name, local=local, refers=name)
            return
        # The value comes first: local X=$X reads the outer one.
        value = None
        if assignment is not None and isinstance(assignment.value, Word) and not assignment.index:
            value = self._value_of_declared(assignment, assignment.value, attributes)
        if local and name not in scope:
            given = name in self.state.given
            outer = self.state.find(name) or Variable()
            # A variable that is exported stays so where a function has its own.
            scope[name] = outer if given else Variable(exported=outer.exported)
        self.state.mark(name, local=local, **attributes)
        if "A" in on and not isinstance(self.state.value(name), Map):
            self.state.put(name, Map({}), scope=scope if local else None)
        elif "a" in on and self.state.value(name) is None:
            self.state.put(name, Array(()), scope=scope if local else None)
        if value is not None:
            # With its note, where the caller gave another value.
            if name in self.state.given and assignment is not None:
                self.assign(assignment)
            else:
                self.state.put(name, value, scope=scope if local else None)
        elif assignment is not None:
            self.assign(assignment)

    def _value_of_declared(self, a: Assignment, word: Word, attributes: dict[str, bool]) -> Field:
        if attributes.get("integer"):
            old = self.expander.look_up(a.name) if a.append else None
            return self._number(self.expander.scalar(word), old, a.line)
        return self._assigned(a, word)

    def do_unset(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        names = [w.text for w in words[1:] if not w.text.startswith("-")]
        functions = any(w.text == "-f" for w in words[1:])
        for name in names:
            element = ELEMENT.fullmatch(name)
            if element is not None:
                self._unset_element(element[1], element[2], node.line)
            elif functions or (self.state.find(name) is None and name in self.state.functions):
                self.state.functions.pop(name, None)
            elif any(w.text == "-n" for w in words[1:]):
                self.state.scope_of(name).pop(name, None)
            else:
                self.state.unset(name)
        return Status.YES

    def _unset_element(self, name: str, index: str, line: int) -> None:
        value = self.state.value(name)
        if index in ("@", "*"):
            self.state.unset(name)
            return
        try:
            key = self.expander.key_of(name, index, line)
        except NotKnown as problem:
            self.state.put(name, not_known(problem.unknown))
            return
        if isinstance(value, Map):
            self.state.put(name, Map({k: v for k, v in value.fields.items() if k != str(key)}))
        elif isinstance(value, Array):
            fields = list(value.fields)
            at = int(key)
            if -len(fields) <= at < len(fields):
                fields[at] = None
                while fields and fields[-1] is None:
                    fields.pop()
                self.state.put(name, Array(tuple(fields)))
