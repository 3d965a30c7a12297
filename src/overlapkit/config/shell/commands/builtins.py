"""The shell's built-in commands that set variables or control what is executed."""

from __future__ import annotations

import re

from overlapkit.config.shell.commands.assignments import ELEMENT
from overlapkit.config.shell.commands.conditions import evaluate_test
from overlapkit.config.shell.commands.inputs import Inputs
from overlapkit.config.shell.commands.programs import formatted
from overlapkit.config.shell.commands.status import Status, Stop
from overlapkit.config.shell.expansion.words import NotKnown
from overlapkit.config.shell.grammar.syntax import Assignment, Simple, Word
from overlapkit.config.shell.values import (
    Field,
    Unknown,
    known,
    not_known,
)

_LETTERS = {"a": "allexport", "e": "errexit", "f": "noglob", "u": "nounset", "o": "", "x": "xtrace"}
_OFF = frozenset(
    {"extglob", "nullglob", "failglob", "dotglob", "globstar", "nocasematch", "lastpipe"}
)
"""Options of ``shopt`` that are off where a script starts."""
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)\s*(?:\+\+|--|[-+*/%&|^]?=(?!=))")
_SETS_UP = re.compile(r"\b(conda|mamba|micromamba|module|modulecmd|spack|pixi|pyenv|ssh-agent)\b")
"""In a command whose output is run: it sets up programs and libraries."""


class Builtins(Inputs):
    """The commands, each as ``do_<name>(command, its expanded words, its assignments)``."""

    def counting(self, text: Word) -> Status:
        """``(( … ))``."""
        try:
            return Status.of(self.expander.count(text) != 0)
        except NotKnown:
            self._obscure_counted(_plain(text), text.line)
            return Status.UNKNOWN

    def _obscure_counted(self, text: str, line: int) -> None:
        """What an expression may assign is not known."""
        for name in _ASSIGNED.findall(text):
            why = f"it is set by (({text.strip()[:40]})), whose value is not known"
            self.state.put(name, not_known(Unknown(name, why, line)))

    def do_let(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        status = Status.UNKNOWN
        for word in words[1:]:
            try:
                if word.unknown is not None:
                    raise NotKnown(word.unknown)
                status = Status.of(self.expander.count_text(word.text, node.line) != 0)
            except NotKnown:
                self._obscure_counted(word.text, node.line)
                status = Status.UNKNOWN
        return status

    def do_set(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        rest = list(words[1:])
        if any(re.fullmatch(r"-\w*n\w*", w.text) for w in rest[:1]):
            raise Stop("exit", node.line, Status.YES, names=self.guards.names)
        while rest and re.fullmatch(r"[-+]\w+", rest[0].text):
            word = rest.pop(0).text
            on = word[0] == "-"
            if on and ("e" in word or [w.text for w in rest[:1]] == ["errexit"]):
                # Set behind a !, it counts from here on: bash 5.2.
                self.conditions, self.negations = self.conditions - self.negations, 0
            names = [_LETTERS.get(letter, letter) for letter in word[1:]]
            if "o" in word[1:] and rest:
                names.append(rest.pop(0).text)
            for name in filter(None, names):
                (self.state.options.add if on else self.state.options.discard)(name)
        if rest:
            marked = rest[0].text in ("--", "-")
            self.state.pass_on(rest[1:] if marked else rest)
        return Status.YES

    def do_shopt(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        options = "".join(w.text for w in words[1:] if w.text.startswith("-"))
        names = [w.text for w in words[1:] if not w.text.startswith("-")]
        if "q" in options:
            known_off = all(n in self.state.options or n in _OFF for n in names)
            holds = all(n in self.state.options for n in names)
            return Status.of(holds if known_off else None)
        for name in names:
            if "s" in options:
                self.state.options.add(name)
                if name == "nocasematch":
                    self.note(node.line, "shopt -s nocasematch is not followed")
            elif "u" in options:
                self.state.options.discard(name)
        return Status.YES

    def do_eval(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        lacking = next((w.first.unknown for w in words[1:2] if w.first is not None), None)
        if lacking is not None and _SETS_UP.search(lacking.why):
            self.sets_up(node.line, [words[0], known(lacking.why, node.line)])
        elif lacking is not None and not lacking.unset:
            self.note(node.line, f"eval is not followed: {lacking.why}")
            self.may_set_anything(node.line, "the text that eval runs")
        return self.nested(words[1:], node.line)

    def may_set_anything(self, line: int, what: str) -> None:
        """Record that something which is not read may set or export any variable."""
        raise NotImplementedError

    def sets_up(self, line: int, words: list[Field]) -> None:
        """Record a command that sets up programs and libraries."""
        raise NotImplementedError

    def do_exit(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        kind = words[0].text
        argument = words[1].text if len(words) > 1 else ""
        code = self.expander.status
        if len(words) > 1:
            number = re.fullmatch(r"[-+]?\d{1,9}", argument) and words[1].unknown is None
            code = int(argument) & 255 if number else None
        status = Status.UNKNOWN if code is None else Status.of(code == 0)
        levels = int(argument) if argument.isdecimal() and len(argument) < 3 else 1
        if kind in ("break", "continue"):
            if not self.loops:
                return Status.YES
            levels = min(levels, self.loops)
        if kind == "return" and self.runs_script():
            # An error that ends nothing; the author meant the end, if what nobody gave led here.
            if self.guards.unset:
                raise Stop("exit", node.line, status, names=self.guards.names, code=code)
            self.note(node.line, "return outside a function: bash goes on behind it")
            self.code = 2
            return Status.NO
        raise Stop(kind, node.line, status, max(levels, 1), self.guards.names, code)

    def runs_script(self) -> bool:
        """Whether the script itself is followed now: no function, and no file that it sources."""
        state = self.state
        return not state.called and state.source == (state.name or state.path)

    def do_test(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        inside = [w for w in node.words[1:] if isinstance(w, Word)]
        if words[0].text == "[" and inside and inside[-1].literal == "]":
            inside = inside[:-1]
        return Status.of(evaluate_test(tuple(inside), self.expander, double=False))

    def do_printf(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        name = words[2].text if len(words) > 2 and words[1].text == "-v" else ""
        arguments = words[3:] if name else words[1:]
        if arguments and arguments[0].text == "--":
            arguments = arguments[1:]
        lacking = next((w.unknown for w in arguments if w.unknown is not None), None)
        text = None if lacking is not None else formatted([w.text for w in arguments])
        if text is None:
            why = "printf's format is not followed"
            value = not_known(lacking or Unknown(None, why, node.line))
        else:
            value = known(text, node.line)
        if not name:
            self.printed(value)
        elif (element := ELEMENT.fullmatch(name)) is not None:
            self.state.put_element(
                element[1], int(element[2]) if element[2].isdecimal() else element[2], value
            )
        else:
            self.state.put(name, value)
        return Status.YES

    def do_trap(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        if len(words) > 2 and re.search(r"\w\+?=|(?<![\w-])--\w|\w+", words[1].text):
            self.note(node.line, f"trap {words[1].text[:40]!r} is not followed")
        return Status.YES

    def do_alias(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        if "expand_aliases" in self.state.options and any("=" in w.text for w in words[1:]):
            self.note(node.line, "an alias is defined: aliases are not followed")
        return Status.YES

    def do_true(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        return Status.YES

    def do_false(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        return Status.NO


def _plain(text: Word) -> str:
    return "".join(str(getattr(part, "text", "")) for part in text.parts)


BUILTINS = {
    "export": "export",
    "declare": "declare",
    "local": "declare",
    "readonly": "declare",
    "typeset": "declare",
    "unset": "unset",
    "set": "set",
    "shopt": "shopt",
    "shift": "shift",
    "getopts": "getopts",
    "source": "source",
    ".": "source",
    "eval": "eval",
    "let": "let",
    "read": "read",
    "mapfile": "array",
    "readarray": "array",
    "exit": "exit",
    "return": "exit",
    "break": "exit",
    "continue": "exit",
    "[": "test",
    "test": "test",
    "printf": "printf",
    "trap": "trap",
    "alias": "alias",
    "unalias": "true",
    ":": "true",
    "true": "true",
    "false": "false",
    "cd": "cd",
    "pushd": "cd",
    "popd": "popd",
    "pwd": "pwd",
    "echo": "echo",
}
"""The method of each command."""
