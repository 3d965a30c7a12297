"""Parses a shell script into its commands; nothing is executed.

Bash's grammar as launch scripts use it: quotes, expansions, arrays, heredocs, functions, branches
and loops. It follows the grammar of POSIX.1-2017 (Shell Command Language) and bash's manual.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence

from overlapkit.config.shell.grammar.compounds import CompoundReader
from overlapkit.config.shell.grammar.expansions import MOST_ATTEMPTS
from overlapkit.config.shell.grammar.syntax import (
    AndOr,
    Assignment,
    Background,
    CommandList,
    Counting,
    Function,
    Group,
    Negated,
    Node,
    Pipeline,
    Redirected,
    Simple,
    Text,
    Word,
)
from overlapkit.errors import InputError

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(?=\[|\+?=)")
_TIME_OPTION = re.compile(r"-p[ \t]+")
_COPROC_NAME = re.compile(r"[A-Za-z_]\w*[ \t]+(?=[{(]|(?:if|while|until|for|case)\b)")
_KEY_END = re.compile(r"\]\+?=")
_SIGN = re.compile(r"(\+?)=")
_FUNCTION = re.compile(r"(?:function[ \t]+)?([A-Za-z_][\w.:-]*)[ \t]*\([ \t]*\)")
_FUNCTION_WORD = re.compile(r"function[ \t]+([A-Za-z_][\w.:-]*)(?=[\s({])")
_REDIRECTION = re.compile(r"(?:\d+|\{\w+\})?(?:<<<|<<-?|<>|<&|<|>>|>&|>\||>|&>>|&>)")
_DECLARES = frozenset({"export", "declare", "local", "readonly", "typeset"})
_CLOSERS = frozenset({"then", "elif", "else", "fi", "do", "done", "esac", "}"})
ITEM_ENDS = (";;&", ";;", ";&")


def parse_script(text: str, path: str, line_of: Callable[[int], int] | None = None) -> CommandList:
    """The commands of a script.

    Args:
        text: the script.
        path: its name, for messages.
        line_of: from an offset in `text` to a line; by default lines are counted from 1.

    Raises:
        InputError: a quote, bracket or block is not closed, or the script nests too deeply.
    """
    parser = _Parser(text, path, line_of or _line_counter(text))
    block = parser.block(frozenset())
    if parser.at < len(text):
        raise parser.problem(f"{text[parser.at : parser.at + 20]!r} is not expected here")
    return block


def _line_counter(text: str) -> Callable[[int], int]:
    starts: Sequence[int] = [0, *(m.end() for m in re.finditer("\n", text))]
    return lambda offset: bisect_right(starts, offset)


class _Parser(CompoundReader):
    """Lists of commands, and simple commands."""

    def block(self, closers: frozenset[str]) -> CommandList:
        """Commands up to one of `closers`, which is not read, or to the end."""
        self.deeper()
        start, commands = self.at, list[Node]()
        while True:
            self.skip_lines()
            if self.at >= len(self.text) or self.closes(closers):
                break
            command = self.and_or()
            self.skip_blanks()
            char = self.text[self.at : self.at + 1]
            if char == "&":
                self.at += 1
                command = Background(command, self.line)
            elif char == ";" and not self.text.startswith(ITEM_ENDS, self.at):
                self.at += 1
            elif char not in ("", "\n") and not self.closes(closers):
                raise self.problem(f"{self.text[self.at : self.at + 20]!r} is not expected")
            commands.append(command)
        self.depth -= 1
        return CommandList(tuple(commands), self.text[start : self.at])

    def and_or(self) -> Node:
        """Pipelines that ``&&`` and ``||`` connect."""
        line, first, others = self.line, self.pipeline(), list[tuple[str, Node]]()
        while True:
            self.skip_blanks()
            connector = self.text[self.at : self.at + 2]
            if connector not in ("&&", "||"):
                return AndOr(first, tuple(others), line) if others else first
            self.at += 2
            self.skip_lines()
            others.append((connector, self.pipeline()))

    def pipeline(self) -> Node:
        """Commands that ``|`` connects, perhaps negated."""
        line, commands, negated = self.line, list[Node](), False
        while self.peek_word() == "!":
            self.at += 1
            self.skip_blanks()
            negated = not negated
        while True:
            commands.append(self.command())
            self.skip_blanks()
            if self.text.startswith("||", self.at) or not self.text.startswith("|", self.at):
                break
            self.at += 2 if self.text.startswith("|&", self.at) else 1
            self.skip_lines()
        node = commands[0] if len(commands) == 1 else Pipeline(tuple(commands), line)
        return Negated(node, line) if negated else node

    def closes(self, closers: frozenset[str]) -> bool:
        """Whether one of `closers` comes next; another block's closer is an error."""
        if ")" in closers and self.text[self.at] == ")":
            return True
        if self.text.startswith(ITEM_ENDS, self.at):
            if ";;" in closers:
                return True
            raise self.problem(f"{self.text[self.at : self.at + 2]!r} is not expected here")
        for closer in _CLOSERS:
            if self.text.startswith(closer, self.at) and self.ends_word(self.at + len(closer)):
                if closer in closers:
                    return True
                raise self.problem(f"{closer!r} is not expected here")
        return False

    def commands_until(self, closer: str) -> CommandList:
        """The commands up to a closing bracket, which is read too."""
        body = self.block(frozenset({closer}))
        self.expect(closer)
        return body

    def commands_in(self, text: str, line: int) -> CommandList | None:
        """The commands of a text; None where it cannot be parsed."""
        if self.attempts >= MOST_ATTEMPTS:
            return None
        inner = _Parser(text, self.path, lambda offset: line + text.count("\n", 0, offset))
        inner.depth, inner.attempts = self.depth, self.attempts + 1
        try:
            body = inner.block(frozenset())
            return body if inner.at >= len(text) else None
        except InputError:
            self.attempts += 1
            return None

    def command(self) -> Node:
        line, text = self.line, self.text
        word = self.peek_word()
        if text.startswith("((", self.at):
            content = self.counting()
            if content is not None:
                return self.redirected(Counting(content, line))
        if text.startswith("(", self.at):
            self.at += 1
            return self.redirected(Group(self.commands_until(")"), line, own_process=True))
        defined = _FUNCTION.match(text, self.at) or (
            _FUNCTION_WORD.match(text, self.at) if word == "function" else None
        )
        if defined is not None:
            self.at = defined.end()
            self.skip_lines()
            self.deeper()
            body = self.command()
            self.depth -= 1
            return Function(defined[1], body, line)
        if word == "{":
            self.at += 1
            body_of_group = self.block(frozenset({"}"}))
            self.keyword("}")
            return self.redirected(Group(body_of_group, line))
        compound = {
            "if": self.if_command,
            "case": self.case_command,
            "for": self.for_command,
            "select": self.select_command,
            "while": self.while_command,
            "until": self.until_command,
            "[[": self.test_command,
        }.get(word)
        if compound is not None:
            self.at += len(word)
            return self.redirected(compound(line))
        if word in ("time", "coproc"):
            self.at += len(word)
            self.skip_blanks()
            extra = (_TIME_OPTION if word == "time" else _COPROC_NAME).match(text, self.at)
            self.at = self.at if extra is None else extra.end()
            self.deeper()
            node = self.pipeline() if word == "time" else self.command()
            self.depth -= 1
            return node if word == "time" else Background(node, line)
        return self.simple(line)

    def redirected(self, node: Node) -> Node:
        """A compound command with the redirections after it."""
        line, inputs, reads = self.line, list[Word](), False
        while True:
            self.skip_blanks()
            found = _REDIRECTION.match(self.text, self.at)
            if found is None:
                break
            fed = self.redirection()
            reads = reads or (fed is None and found[0].lstrip("0123456789") == "<")
            inputs += [fed] if fed is not None else []
        inputs += self.heredocs()
        return Redirected(node, tuple(inputs), reads, line) if inputs or reads else node

    def simple(self, line: int) -> Node:
        assignments: list[Assignment] = []
        words: list[Word | Assignment] = []
        inputs: list[Word] = []
        declares = writes = reads = False
        while True:
            self.skip_blanks()
            if self.at >= len(self.text) or self.text[self.at] in "\n;|)" or self.at_background():
                break
            if not self.at_process() and (redirected := _REDIRECTION.match(self.text, self.at)):
                following = self.text[redirected.end() :].lstrip(" \t")[:1]
                to_errors = redirected[0] in (">&", "1>&") and following == "2"
                writes = writes or to_errors or redirected[0] in (">", ">>", ">|", "1>", "1>>")
                fed = self.redirection()
                reads = reads or (redirected[0] == "<" and fed is None)
                inputs += [fed] if fed is not None else []
                continue
            if self.text[self.at] == "(":
                raise self.problem("'(' is not expected here")
            assigned = self.assignment() if not words or declares else None
            if assigned is not None and not words:
                assignments.append(assigned)
            elif assigned is not None:
                words.append(assigned)
            else:
                word = self.word()
                declares = declares or (not words and word.literal in _DECLARES)
                words.append(word)
        # A heredoc's text is on the lines after this one, and is read now.
        inputs += self.heredocs()
        return Simple(tuple(assignments), tuple(words), line, tuple(inputs), writes, reads)

    def at_background(self) -> bool:
        return self.text[self.at] == "&" and not self.text.startswith(("&>", "&>>"), self.at)

    def assignment(self) -> Assignment | None:
        """An assignment, where one begins here; nothing is read where none does."""
        start, line = self.at, self.line
        found = _ASSIGNMENT.match(self.text, start)
        if found is None:
            return None
        name, index, self.at = found[1], "", found.end()
        if self.text.startswith("[", self.at):
            self.at += 1
            try:
                index = self.closing("[", "]")
            except InputError:
                self.at = start
                return None
        sign = _SIGN.match(self.text, self.at)
        if sign is None:
            self.at = start
            return None
        self.at = sign.end()
        plus = bool(sign[1])
        if not self.text.startswith("(", self.at):
            return Assignment(name, line, self.word(), plus, index)
        self.at += 1
        words: list[Word] = []
        while True:
            self.skip_lines()
            if self.at >= len(self.text):
                raise self.problem(f"the ')' of {name}=( is missing", line)
            if self.text[self.at] == ")":
                self.at += 1
                return Assignment(name, line, tuple(words), plus, index)
            if self.text[self.at] in "(;&|<>" and not self.at_process():
                raise self.problem(f"{self.text[self.at]!r} is not expected in {name}=( )")
            words.append(self.keyed() or self.word())

    def keyed(self) -> Word | None:
        """A word ``[key]=value``, whose key may contain blanks; None where none is here."""
        start, line = self.at, self.line
        if not self.text.startswith("[", start):
            return None
        self.at += 1
        try:
            key = self.word(frozenset("]\n"))
        except InputError:
            self.at = start
            return None
        if _KEY_END.match(self.text, self.at) is None:
            self.at = start
            return None
        return Word((Text("[", line, False), *key.parts, *self.word().parts), line)

    def redirection(self) -> Word | None:
        """Read a redirection; what it feeds in, where that is a text or a command."""
        found = _REDIRECTION.match(self.text, self.at)
        assert found is not None
        operator = re.sub(r"^(\d+|\{\w+\})", "", found[0])
        self.at = found.end()
        self.skip_blanks()
        if operator in ("<<", "<<-"):
            self.pending_heredoc(strip_tabs=operator == "<<-")
            return None
        if operator == "<" and self.text.startswith("<(", self.at):
            self.at += 2
            return Word((self.substitution(self.line, True),), self.line)
        word = self.word()
        return word if operator == "<<<" else None
