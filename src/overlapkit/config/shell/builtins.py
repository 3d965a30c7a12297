"""The shell's built-in commands that set variables or control what is executed."""

from __future__ import annotations

import re
from typing import NoReturn

from overlapkit.config.shell.conditions import evaluate_test
from overlapkit.config.shell.syntax import Assignment, Simple, Word
from overlapkit.config.shell.values import Array, Field, Piece, Unknown, stripped
from overlapkit.config.shell.variables import NotKnown, Variables

Status = bool | None
"""Whether a command succeeds; None where that is not known without running it."""

_NAME = re.compile(r"[A-Za-z_]\w*")
_COUNTED = re.compile(
    r"\s*(?:(?P<first>\+\+|--)?\s*(?P<name>[A-Za-z_]\w*)\s*"
    r"(?:(?P<then>\+\+|--)|(?P<sign>[-+*/%]?)=(?!=)(?P<by>.*))?)\s*",
    re.DOTALL,
)


class Stop(Exception):
    """exit, return, break or continue."""

    def __init__(self, kind: str, line: int) -> None:
        self.kind = kind
        self.line = line


class Builtins:
    """The commands, each as ``do_<name>(command, its expanded words, its assignments)``."""

    def __init__(self, path: str, variables: Variables) -> None:
        self.path = path
        self.variables = variables
        self.notes: list[str] = []
        self.export_all = False

    def note(self, line: int, text: str) -> None:
        """Record what was assumed at a line."""
        self.notes.append(f"{self.path}:{line}: {text}")

    def nested(self, text: list[Field], line: int) -> Status:
        """Follow commands in a value."""
        raise NotImplementedError

    def counting(self, text: str, line: int) -> Status:
        """``(( … ))`` or ``let …``: a value, or an assignment such as ``+=`` and ``++``."""
        found = _COUNTED.fullmatch(text)
        name = found["name"] if found and text.strip() != found["name"] else None
        if found is not None and found["by"] is not None:
            text = f"{name} {found['sign']} ({found['by']})" if found["sign"] else found["by"]
        elif found is not None and name is not None:
            text = f"{name} {(found['first'] or found['then'])[0]} 1"
        try:
            value = self.variables.count(text, line)
        except NotKnown as problem:
            if name is not None:
                self.variables.put(name, Field((Piece("", line, unknown=problem.unknown),)))
            return None
        if name is not None:
            self.variables.put(name, Field((Piece(str(value), line),)))
        after = found is not None and found["then"]
        return value - {"++": 1, "--": -1}.get(after or "", 0) != 0

    def do_let(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        status: Status = None
        for word in words[1:]:
            status = None if word.unknown is not None else self.counting(word.text, node.line)
        return status

    def do_export(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        for a in assigned:
            self.variables.assign(a)
        names = [w.text for w in words[1:] if not w.text.startswith("-")]
        names += [a.name for a in assigned]
        for assignment in [n for n in names if "=" in n]:
            # export "NAME=value", quoted entirely.
            name, _, value = assignment.partition("=")
            self.variables.put(name, Field((Piece(value, node.line),)))
            names.append(name)
        if any(w.text == "-n" for w in words[1:2]):
            self.variables.exported -= set(names)
        else:
            self.variables.exported |= set(names)
        return True

    def do_declare(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        flags = "".join(w.text for w in words[1:] if w.text.startswith("-"))
        for a in assigned:
            self.variables.assign(a)
            if "x" in flags:
                self.variables.exported.add(a.name)
        return True

    def do_unset(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        for word in words[1:]:
            if word.text not in self.variables.given:
                self.variables.values.pop(word.text, None)
                self.variables.exported.discard(word.text)
        return True

    def do_set(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        options = [w.text for w in words[1:]]
        if "-a" in options or ("-o" in options and "allexport" in options):
            self.export_all = True
        if "+a" in options or ("+o" in options and "allexport" in options):
            self.export_all = False
        if "--" in options:
            self.variables.positional = words[options.index("--") + 2 :]
        return True

    def do_shift(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        count = words[1].text if len(words) > 1 else "1"
        by = int(count) if count.isdecimal() and len(count) < 5 else 1
        self.variables.positional = self.variables.positional[by:]
        return True

    def do_source(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        name = words[1].text if len(words) > 1 else ""
        self.note(
            node.line, f"{name or 'another file'} is not read: give what it sets as NAME=value"
        )
        return None

    def do_eval(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        return self.nested(words[1:], node.line)

    def do_read(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        names = [w.text for w in words[1:] if _NAME.fullmatch(w.text)]
        unknown = Unknown(None, "it is read when the script runs", node.line)
        value = self.variables.scalar(node.inputs[-1]) if node.inputs else None
        if names and value is not None and len(names) == 1:
            all_lines = any(w.text.startswith("-") and "d" in w.text for w in words[1:])
            self.variables.put(names[0], stripped(value, first_line=not all_lines))
            return True
        for name in names:
            self.variables.put(name, Field((Piece("", node.line, unknown=unknown),)))
        return None

    def do_array(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        name = words[-1].text
        if _NAME.fullmatch(name):
            unknown = Unknown(name, "it is read when the script runs", node.line)
            self.variables.put(name, Array((Field((Piece("", node.line, unknown=unknown),)),)))
        return None

    def do_exit(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> NoReturn:
        raise Stop(words[0].text, node.line)

    def do_test(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        inside = [w for w in node.words[1:] if isinstance(w, Word)]
        if words[0].text == "[" and inside and inside[-1].literal == "]":
            inside = inside[:-1]
        return evaluate_test(tuple(inside), self.variables)


BUILTINS = {
    "export": "export",
    "declare": "declare",
    "local": "declare",
    "readonly": "declare",
    "typeset": "declare",
    "unset": "unset",
    "set": "set",
    "shift": "shift",
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
}
"""The method of each command."""
