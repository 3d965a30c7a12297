"""The commands that read input and arguments: read, mapfile, getopts, shift."""

from __future__ import annotations

import re
from dataclasses import replace

from overlapkit.config.shell.commands.assignments import NAME
from overlapkit.config.shell.commands.declarations import Declarations
from overlapkit.config.shell.commands.status import Status
from overlapkit.config.shell.commands.stream import Stream, with_end
from overlapkit.config.shell.grammar.syntax import Assignment, Command, Simple, Word
from overlapkit.config.shell.values import (
    BLANKS,
    EMPTY,
    Array,
    Field,
    Unknown,
    known,
    not_known,
    part_of,
    split_into_fields,
)


class Inputs(Declarations):
    """The commands, each as ``do_<name>(command, its expanded words, its assignments)``."""

    def fed(self, word: Word) -> Field:
        """What a heredoc, ``<<<`` or ``< <(…)`` feeds in."""
        text = self.expander.scalar(word)
        prints = len(word.parts) == 1 and isinstance(word.parts[0], Command)
        nothing = prints and not text.text and text.unknown is None
        return EMPTY if nothing else with_end(text)

    def do_shift(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        count = words[1].text if len(words) > 1 else "1"
        by = int(count) if count.isdecimal() and len(count) < 5 else 1
        state = self.state
        if by > len(state.positional) and state.has_all_arguments:
            return Status.NO
        missing = by > len(state.positional)
        state.positional = state.positional[by:]
        if state.open_at is not None:
            state.open_at = max(0, state.open_at - by)
        if not state.has_all_arguments:
            state.shifted += by
        return Status.UNKNOWN if missing else Status.YES

    def do_getopts(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        if len(words) < 3:
            return Status.NO
        wanted, name, line = words[1].text, words[2].text, node.line
        arguments = list(words[3:]) if len(words) > 3 else self.state.positional
        silent = wanted.startswith(":")
        index = int(self.state.text("OPTIND", "1") or 1)
        # Where in a word such as -abc the next letter is; a script that sets OPTIND begins again.
        at = self.state.option_at if self.state.option_at[0] == index else (index, 1)
        word = arguments[index - 1] if 0 < index <= len(arguments) else None
        if word is not None and word.unknown is not None:
            lacking = replace(word.unknown, unset=False)
            for each in (name, "OPTARG"):
                self.state.put(each, not_known(lacking))
            return Status.UNKNOWN
        if word is None or not re.fullmatch(r"-.+", word.text, re.DOTALL) or word.text == "--":
            after = index + (word is not None and word.text == "--")
            self.state.put("OPTIND", known(str(after), line))
            self.state.put(name, known("?", line))
            return Status.NO
        letter, rest = word.text[at[1]], part_of(word, at[1] + 1)
        found = letter != ":" and letter in wanted
        takes = found and f"{letter}:" in wanted
        self.state.unset("OPTARG")
        if takes and not rest.text and index >= len(arguments):
            # Its argument is missing.
            found, index = False, index + 1
            self.state.put(name, known(":" if silent else "?", line))
            if silent:
                self.state.put("OPTARG", known(letter, line))
        else:
            if takes:
                value = rest if rest.text else arguments[index] or EMPTY
                self.state.put("OPTARG", value)
                index += 1 if rest.text else 2
            elif rest.text:
                self.state.option_at = (index, at[1] + 1)
            else:
                index += 1
            self.state.put(name, known(letter if found else "?", line))
            if silent and not found:
                self.state.put("OPTARG", known(letter, line))
        self.state.put("OPTIND", known(str(index), line))
        if takes or not rest.text:
            self.state.option_at = (index, 1)
        return Status.YES

    def do_read(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        names, array, delimiter, raw = list[str](), "", "\n", False
        most: int | None = None
        rest = words[1:]
        while rest:
            word = rest.pop(0)
            if not re.fullmatch(r"-\w+", word.text):
                names += [word.text] if NAME.fullmatch(word.text) else []
                continue
            raw = raw or "r" in word.text
            last = word.text[-1]
            if last in "apdntNsiu" and last != "s" and rest:
                its = rest.pop(0)
                array = its.text if last == "a" else array
                delimiter = its.text[:1] if last == "d" else delimiter
                if last in "nN" and its.text.isdecimal() and len(its.text) < 7:
                    most = int(its.text)
                    delimiter = "" if last == "N" else delimiter
        stream = self.input
        if node.inputs or node.reads:
            stream = Stream(self.fed(node.inputs[-1]) if node.inputs else None)
        found = stream.text is not None and bool(delimiter) and delimiter in stream.text.text
        row = stream.line(delimiter, most)
        if row is None or row.unknown is not None:
            at_end = stream.text is not None and row is None
            why = "it is read when the script runs"
            value: Field = EMPTY if at_end else not_known(Unknown(None, why, node.line))
            if row is not None and row.unknown is not None:
                value = row
            for name in names or ["REPLY"]:
                self.state.put(name, value)
            if array:
                self.state.put(array, value if value.unknown is not None else Array(()))
            return Status.NO if at_end else Status.UNKNOWN
        self._read_into(names, array, row if raw else _without_escapes(row))
        # Up to the end of its input, where it looks for what is not there.
        return Status.of(found)

    def _read_into(self, names: list[str], array: str, row: Field) -> None:
        separators = self.state.separators
        pieces = [piece._replace(quoted=False) for piece in row.pieces]
        if array:
            self.state.put(array, Array(tuple(split_into_fields(pieces, separators))))
            return
        if not names:
            self.state.put("REPLY", row)
            return
        blanks = "".join(char for char in BLANKS if char in separators)
        left = _stripped(row, blanks)
        for name in names[:-1]:
            text = left.text
            end = next((n for n, char in enumerate(text) if char in separators), len(text))
            self.state.put(name, part_of(left, 0, end))
            left = _stripped(part_of(left, end), blanks)
            if left.text[:1] and left.text[0] in separators:
                left = _stripped(part_of(left, 1), blanks)
        self.state.put(names[-1], left)

    def do_array(self, node: Simple, words: list[Field], assigned: list[Assignment]) -> Status:
        names = [w.text for w in words[1:] if NAME.fullmatch(w.text)]
        name = names[-1] if names else "MAPFILE"
        cut = any(re.fullmatch(r"-\w*t\w*", w.text) for w in words[1:])
        plain = all(re.fullmatch(r"-t", w.text) or w.text in names for w in words[1:])
        text = self.fed(node.inputs[-1]) if node.inputs else self.input.text
        if text is None or text.unknown is not None or not plain or node.reads:
            why = "it is read when the script runs"
            self.state.put(name, not_known(Unknown(name, why, node.line)))
            return Status.UNKNOWN
        stream, rows = Stream(text), list[Field]()
        while (row := stream.line()) is not None:
            rows.append(row if cut else Field((*row.pieces, *known("\n", node.line).pieces)))
        self.state.put(name, Array(tuple(rows)))
        return Status.YES


def _stripped(value: Field, blanks: str) -> Field:
    """A value without blanks at its ends."""
    text = value.text
    start = len(text) - len(text.lstrip(blanks)) if blanks else 0
    end = len(text.rstrip(blanks)) if blanks else len(text)
    return part_of(value, start, max(start, end))


def _without_escapes(row: Field) -> Field:
    if "\\" not in row.text:
        return row
    return Field(tuple(p._replace(text=re.sub(r"\\(.)", r"\1", p.text)) for p in row.pieces))
