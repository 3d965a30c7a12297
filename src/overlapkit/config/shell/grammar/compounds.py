"""Reads the compound commands of a shell script: branches, loops, tests."""

from __future__ import annotations

import re
from typing import Literal

from overlapkit.config.shell.grammar.syntax import (
    Case,
    CommandList,
    If,
    Loop,
    Node,
    Part,
    Test,
    Text,
    Word,
)
from overlapkit.config.shell.grammar.words import WordReader

_NAME = re.compile(r"[A-Za-z_]\w*")
ITEM_ENDS = (";;&", ";;", ";&")


class CompoundReader(WordReader):
    """Compound commands, each from the word after its first."""

    def block(self, closers: frozenset[str]) -> CommandList:
        """Commands up to one of `closers`, which is not read, or to the end."""
        raise NotImplementedError

    def keyword(self, *words: str) -> str:
        """Read one of these reserved words."""
        self.skip_lines()
        for word in words:
            if self.text.startswith(word, self.at) and self.ends_word(self.at + len(word)):
                self.at += len(word)
                return word
        raise self.problem(f"{' or '.join(words)} is missing")

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
        items: list[tuple[tuple[Word, ...], CommandList, str]] = []
        while True:
            self.skip_lines()
            if self.peek_word() == "esac":
                self.at += 4
                return Case(word, tuple(items), line)
            if self.at >= len(self.text):
                raise self.problem("esac is missing")
            if self.at < len(self.text) and self.text[self.at] == "(":
                self.at += 1
            patterns = [self.pattern()]
            while self.text.startswith("|", self.at):
                self.at += 1
                patterns.append(self.pattern())
            self.expect(")")
            body = self.block(frozenset({"esac", ";;"}))
            end = next((e for e in ITEM_ENDS if self.text.startswith(e, self.at)), "")
            self.at += len(end)
            items.append((tuple(patterns), body, end or ";;"))

    def pattern(self) -> Word:
        """A pattern of a case item, in which ``@(a|b)`` belongs to it."""
        self.skip_lines()
        parts: list[Part] = []
        line = self.line
        while True:
            word = self.word()
            parts += word.parts
            opened = self.at > 0 and self.text[self.at - 1] in "?*+@!"
            if not (opened and self.text.startswith("(", self.at)):
                break
            self.at += 1
            parts.append(Text(f"({self.closing('(', ')')})", line, False))
        self.skip_blanks()
        return Word(tuple(parts), line)

    def select_command(self, line: int) -> Node:
        return self.for_command(line, "select")

    def for_command(self, line: int, kind: Literal["for", "select"] = "for") -> Node:
        self.skip_blanks()
        start = self.at
        words: list[Word] | None = None
        counting: tuple[Word, Word, Word] | None = None
        name = ""
        if self.text.startswith("((", self.at):
            counting = self.counted_head(line)
        else:
            found = _NAME.match(self.text, self.at)
            if found is None:
                raise self.problem("a loop's variable is missing")
            name, self.at = found[0], found.end()
            self.skip_lines()
            if self.peek_word() == "in":
                self.at += 2
                self.skip_blanks()
                words = []
                while self.at < len(self.text) and self.text[self.at] not in ";\n":
                    before = self.at
                    words.append(self.word())
                    if self.at == before:
                        raise self.problem(f"{self.text[before : before + 20]!r} is not expected")
                    self.skip_blanks()
        head = f"{kind} {self.text[start : self.at].strip()}"
        self.skip_separators()
        its = None if words is None else tuple(words)
        return Loop(kind, name, its, self.loop_body(), line, head, counting=counting)

    def counted_head(self, line: int) -> tuple[Word, Word, Word]:
        """``((i=0; i<3; i++))``."""
        start = self.at + 2
        self.at = start
        content = self.closing("(", ")")
        if not self.text.startswith(")", self.at):
            raise self.problem("a (( is not closed", line)
        self.at += 1
        texts = content.split(";")
        if len(texts) != 3:
            raise self.problem("for (( )) needs three expressions", line)
        words, offset = list[Word](), start
        for text in texts:
            words.append(self.expression(text, offset))
            offset += len(text) + 1
        return words[0], words[1], words[2]

    def while_command(self, line: int) -> Node:
        return self.conditional_loop("while", line)

    def until_command(self, line: int) -> Node:
        return self.conditional_loop("until", line)

    def conditional_loop(self, kind: Literal["while", "until"], line: int) -> Node:
        condition = self.block(frozenset({"do"}))
        head = f"{kind} {condition.source.strip().rstrip(';')}"
        return Loop(kind, "", (), self.loop_body(), line, head, condition)

    def loop_body(self) -> CommandList:
        self.skip_lines()
        if self.peek_word() == "{":
            # An old form of bash: for x in a b; { …; }
            self.at += 1
            body = self.block(frozenset({"}"}))
            self.keyword("}")
            return body
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
            expression = bool(words) and words[-1].literal == "=~"
            words.append(self.word(frozenset(" \t\n")) if expression else self.test_word())
