"""Parses a shell script into its commands; nothing is executed.

Bash's grammar as launch scripts use it: quotes, expansions, arrays, heredocs, functions, branches
and loops. It follows the grammar of POSIX.1-2017 (Shell Command Language) and bash's manual.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

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
from overlapkit.config.shell.words import WordReader

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\[[^\]\n]*\])?(\+?)=")
_FUNCTION = re.compile(r"(?:function[ \t]+)?([A-Za-z_][\w.:-]*)[ \t]*\([ \t]*\)\s*")
_FUNCTION_WORD = re.compile(r"function[ \t]+([A-Za-z_][\w.:-]*)\s*")
_REDIRECTION = re.compile(r"\d*(?:<<<|<<-?|<>|<&|<|>>|>&|>\||>|&>>|&>)")
_NAME = re.compile(r"[A-Za-z_]\w*")
_DECLARES = frozenset({"export", "declare", "local", "readonly", "typeset"})
_CLOSERS = frozenset({"then", "elif", "else", "fi", "do", "done", "esac", "}", ";;"})
_OPERATORS = re.compile(r"&&|\|\||;;&|;;|;&|\|&|[;|&\n]")


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


class _Parser(WordReader):
    """Commands, on top of the words that `WordReader` reads."""

    def block(self, closers: frozenset[str]) -> CommandList:
        """Commands up to one of `closers`, which is not read, or to the end."""
        self.deeper()
        start, commands, connector = self.at, [], ";"
        while True:
            self.skip_lines()
            if self.at >= len(self.text) or self.closes(closers):
                break
            commands.append((connector, self.command()))
            self.skip_blanks()
            found = _OPERATORS.match(self.text, self.at)
            if found is None or found[0].startswith(";;") or found[0] == ";&":
                connector = ";"
                if found is None and self.at < len(self.text) and not self.closes(closers):
                    raise self.problem(f"{self.text[self.at : self.at + 20]!r} is not expected")
                if found is not None:
                    break
                continue
            connector = found[0] if found[0] in ("&&", "||") else "|" if "|" in found[0] else ";"
            if found[0] == "\n":
                self.newline()
            else:
                self.at = found.end()
        self.depth -= 1
        return CommandList(tuple(commands), self.text[start : self.at])

    def closes(self, closers: frozenset[str]) -> bool:
        """Whether one of `closers` comes next; another block's closer is an error."""
        if ")" in closers and self.text[self.at] == ")":
            return True
        for closer in _CLOSERS:
            if self.text.startswith(closer, self.at) and self.ends_word(self.at + len(closer)):
                if closer in closers:
                    return True
                raise self.problem(f"{closer!r} is not expected here")
        return False

    def keyword(self, *words: str) -> str:
        """Read one of these reserved words."""
        self.skip_lines()
        for word in words:
            if self.text.startswith(word, self.at) and self.ends_word(self.at + len(word)):
                self.at += len(word)
                return word
        raise self.problem(f"{' or '.join(words)} is missing")

    def command(self) -> Node:
        line, text = self.line, self.text
        word = self.peek_word()
        if text.startswith("((", self.at):
            content = self.counting()
            if content is not None:
                return Counting(content, line)
        if text.startswith("(", self.at):
            self.at += 1
            body = self.block(frozenset({")"}))
            self.expect(")")
            return self.redirected(Group(body, line, own_process=True))
        defined = _FUNCTION.match(text, self.at) or (
            _FUNCTION_WORD.match(text, self.at) if word == "function" else None
        )
        if defined is not None:
            self.at = defined.end()
            return Function(defined[1], self.command(), line)
        if word == "!":
            self.at += 1
            self.skip_blanks()
            return Negated(self.command(), line)
        if word == "{":
            self.at += 1
            body = self.block(frozenset({"}"}))
            self.keyword("}")
            return self.redirected(Group(body, line))
        compound = {
            "if": self.if_command,
            "case": self.case_command,
            "for": self.for_command,
            "select": self.for_command,
            "while": self.while_command,
            "until": self.until_command,
            "[[": self.test_command,
        }.get(word)
        if compound is not None:
            self.at += len(word)
            return self.redirected(compound(line))
        if word in ("time", "coproc", "then", "do"):
            self.at += len(word)
            self.skip_blanks()
            return self.command()
        return self.simple(line)

    def redirected(self, node: Node) -> Node:
        """A compound command; the redirections after it are skipped."""
        while True:
            self.skip_blanks()
            if _REDIRECTION.match(self.text, self.at) is None:
                return node
            self.redirection()

    def if_command(self, line: int) -> Node:
        branches = []
        condition = self.block(frozenset({"then"}))
        while True:
            self.keyword("then")
            body = self.block(frozenset({"elif", "else", "fi"}))
            branches.append((condition, body))
            if self.keyword("elif", "else", "fi") != "elif":
                break
            condition = self.block(frozenset({"then"}))
        otherwise = CommandList()
        if self.text[: self.at].endswith("else"):
            otherwise = self.block(frozenset({"fi"}))
            self.keyword("fi")
        return If(tuple(branches), otherwise, line)

    def case_command(self, line: int) -> Node:
        self.skip_blanks()
        word = self.word()
        self.keyword("in")
        items: list[tuple[tuple[Word, ...], CommandList]] = []
        while True:
            self.skip_lines()
            if self.peek_word() == "esac":
                self.at += 4
                return Case(word, tuple(items), line)
            if self.at < len(self.text) and self.text[self.at] == "(":
                self.at += 1
            patterns = [self.pattern()]
            while self.text.startswith("|", self.at):
                self.at += 1
                patterns.append(self.pattern())
            self.expect(")")
            body = self.block(frozenset({"esac"}))
            found = re.compile(r";;&|;;|;&").match(self.text, self.at)
            if found is not None:
                self.at = found.end()
            items.append((tuple(patterns), body))

    def pattern(self) -> Word:
        self.skip_blanks()
        word = self.word()
        self.skip_blanks()
        return word

    def for_command(self, line: int) -> Node:
        self.skip_blanks()
        start = self.at
        words: list[Word] = []
        name = ""
        if self.text.startswith("((", self.at):
            self.counting()
        else:
            found = _NAME.match(self.text, self.at)
            if found is None:
                raise self.problem("a loop's variable is missing")
            name, self.at = found[0], found.end()
            self.skip_lines()
            if self.peek_word() == "in":
                self.at += 2
                self.skip_blanks()
                while self.at < len(self.text) and self.text[self.at] not in ";\n":
                    words.append(self.word())
                    self.skip_blanks()
        head = f"for {self.text[start : self.at].strip()}"
        self.skip_separators()
        return Loop("for", name, tuple(words), self.loop_body(), line, head)

    def while_command(self, line: int) -> Node:
        return self.conditional_loop("while", line)

    def until_command(self, line: int) -> Node:
        return self.conditional_loop("until", line)

    def conditional_loop(self, kind: Literal["while", "until"], line: int) -> Node:
        condition = self.block(frozenset({"do"}))
        head = f"{kind} {condition.source.strip().rstrip(';')}"
        return Loop(kind, "", (), self.loop_body(), line, head, condition)

    def loop_body(self) -> CommandList:
        self.keyword("do")
        body = self.block(frozenset({"done"}))
        self.keyword("done")
        return body

    def test_command(self, line: int) -> Node:
        words: list[Word] = []
        while True:
            self.skip_lines()
            if self.at >= len(self.text):
                raise self.problem("]] is missing")
            if self.text.startswith("]]", self.at):
                self.at += 2
                return Test(tuple(words), line)
            words.append(self.test_word())

    def simple(self, line: int) -> Node:
        assignments: list[Assignment] = []
        words: list[Word | Assignment] = []
        inputs: list[Word] = []
        declares = writes = False
        while True:
            self.skip_blanks()
            if self.at >= len(self.text) or self.text[self.at] in "\n;|)" or self.at_background():
                break
            if redirected := _REDIRECTION.match(self.text, self.at):
                writes = writes or redirected[0] in (">", ">>", ">|", "1>", "1>>")
                fed = self.redirection()
                inputs += [fed] if fed is not None else []
                continue
            if self.text[self.at] == "(":
                raise self.problem("'(' is not expected here")
            found = _ASSIGNMENT.match(self.text, self.at)
            if found is not None and not words:
                assignments.append(self.assignment(found))
            elif found is not None and declares:
                words.append(self.assignment(found))
            else:
                word = self.word()
                declares = declares or (not words and word.literal in _DECLARES)
                words.append(word)
        # A heredoc's text is on the lines after this one, and is read now.
        command = Simple(tuple(assignments), tuple(words), line, tuple(inputs), writes)
        return self.with_heredocs(command)

    def at_background(self) -> bool:
        return self.text[self.at] == "&" and not self.text.startswith(("&>", "&>>"), self.at)

    def assignment(self, found: re.Match[str]) -> Assignment:
        line = self.line
        name, index, plus = found[1], (found[2] or "")[1:-1], bool(found[3])
        self.at = found.end()
        if self.text.startswith("(", self.at):
            self.at += 1
            words: list[Word] = []
            while True:
                self.skip_lines()
                if self.at >= len(self.text):
                    raise self.problem(f"the ')' of {name}=( is missing", line)
                if self.text[self.at] == ")":
                    self.at += 1
                    return Assignment(name, line, tuple(words), plus, index)
                if self.text[self.at] in "(;&|<>":
                    raise self.problem(f"{self.text[self.at]!r} is not expected in {name}=( )")
                words.append(self.word())
        return Assignment(name, line, self.word(), plus, index)

    def redirection(self) -> Word | None:
        """Read a redirection; the text that it feeds in, where that is on this line."""
        found = _REDIRECTION.match(self.text, self.at)
        assert found is not None
        operator = found[0].lstrip("0123456789")
        self.at = found.end()
        if operator in ("<", ">") and self.text.startswith("(", self.at):
            self.at += 1
            self.closing("(", ")")
            return None
        self.skip_blanks()
        if operator in ("<<", "<<-"):
            self.pending_heredoc(strip_tabs=operator == "<<-")
            return None
        word = self.word()
        return word if operator == "<<<" else None
