"""Flags set and omitted in a launch script, and its exports, where they are written.

Bash has many ways to build a command line, so that a change is proposed at each place where it may
be right, the likeliest first, and the script is followed again: a proposal counts where the flag is
as wanted and everything else is as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from overlapkit.config.megatron_lm.flag_edits import words_of
from overlapkit.config.places import Place
from overlapkit.fix.splice import (
    CannotEdit,
    Splice,
    indentation,
    line_break,
    line_end,
    line_start,
    next_line,
    spliced,
)
from overlapkit.fix.words import (
    Written,
    assignments_of,
    flags,
    is_alone_on_line,
    on_one_line,
    uses_of,
    variable_of,
    with_value,
    word_at,
    words_after,
)

_MOST_TRIED = 24
"""Proposals that are followed for one change."""
_ANCHORS = 6
"""Flags beside which a new one is tried."""
_COMMON = frozenset({"", "layers", "model", "no", "num", "size", "use"})
"""Parts of flags' names that say nothing of what they are about."""
_OPENS = re.compile(r"^[ \t]*(?:if|case|for|while|until|select)\b|\{[ \t]*$")
_CLOSES = re.compile(r"^[ \t]*(?:fi|esac|done|\})")

Accepts = Callable[[str], bool]
"""Whether a text of the script has the change, and nothing else changed."""


@dataclass(frozen=True)
class Script:
    """A script that is changed.

    Attributes:
        text: as it is now.
        passed: the flags that its job is given, with the place of each.
        given: variables that the caller gave, which the script's own text does not decide.
        launch: the line of the job's launch, from 1; None where the script starts none.
    """

    text: str
    passed: dict[str, Place]
    given: frozenset[str] = frozenset()
    launch: int | None = None

    def place(self, flag: str) -> tuple[int, int | None] | None:
        """Line and column of a flag that is passed."""
        place = self.passed.get(flag)
        return (place.line, place.column) if place is not None and place.line else None

    def written(self, flag: str) -> list[Written]:
        """Where a flag is written, the likeliest place first."""
        spellings = (flag, f"--{flag.removeprefix('--').replace('-', '_')}")
        return flags(self.text, tuple(dict.fromkeys(spellings)), self.place(flag))

    def own_words(self, flag: Written) -> list[list[Written]]:
        """The words after a flag that may be its own: those on its line, and those below too."""
        following: list[Written] = []
        for word in words_after(self.text, flag.end):
            if word.text.startswith("--"):
                break
            following.append(word)
            if len(following) > 64:
                break
        own = following[: words_of(flag.text, [word.text for word in following])]
        here = on_one_line(self.text, flag.end, own)
        return [here, own] if here and len(here) < len(own) else [own]


def accepted(proposals: Iterator[str], accepts: Accepts, what: str) -> str:
    """The first proposal that is accepted.

    Raises:
        CannotEdit: none is.
    """
    tried = set()
    for text in proposals:
        if text in tried:
            continue
        tried.add(text)
        if accepts(text):
            return text
        if len(tried) >= _MOST_TRIED:
            break
    raise CannotEdit(what)


# ---------------------------------------------------------------------------------------- flags


def without_flag(script: Script, flag: str) -> Iterator[str]:
    """The script without a flag and its words, at one place where it is written, or at all."""
    for written in script.written(flag):
        for start, end in (*_whole(script, written), (written.start, written.end)):
            yield without(script.text, start, end)
    text = script.text
    places = [_whole(script, written)[0] for written in script.written(flag)]
    for start, end in sorted(places, reverse=True):
        text = without(text, start, end)
    yield text


def _whole(script: Script, flag: Written) -> list[tuple[int, int]]:
    """What may be the range of a flag with its words."""
    return [(flag.start, own[-1].end if own else flag.end) for own in script.own_words(flag)]


def without(text: str, start: int, end: int) -> str:
    """A text without a word; its line goes too where nothing else is on it."""
    if is_alone_on_line(text, start, end):
        after = text[end : line_end(text, end)].strip()
        if not after.startswith("#"):
            return _without_lines(text, start, end, continued=after == "\\")
    blank = re.compile(r"[ \t]+").match(text, end)
    before = re.search(r"[ \t]+$", text[line_start(text, start) : start])
    if blank is not None:
        return spliced(text, [Splice(start, blank.end(), "")])
    return spliced(text, [Splice(start - (len(before[0]) if before else 0), end, "")])


def _without_lines(text: str, start: int, end: int, *, continued: bool) -> str:
    first, last = line_start(text, start), next_line(text, end)
    above = re.search(r"[ \t]*\\(\r?\n)$", text[:first])
    if above is not None and not continued:
        # It was the last line of a command: the one above is now.
        return text[: above.start()] + above[1] + text[last:]
    return text[:first] + text[last:]


def with_new_words(script: Script, flag: str, words: Sequence[str]) -> Iterator[str]:
    """The script with other words after a flag that is passed.

    Raises:
        CannotEdit: the value is a variable that the caller gave.
    """
    for written in script.written(flag):
        name, inline, value = written.text.partition("=")
        if inline:
            at = written.start + len(name) + 1 + (1 if written.quote else 0)
            word = word_at(script.text, at)
            yield from _with_own(script, written, [word] if word and value else [], words)
        else:
            for own in script.own_words(written):
                yield from _with_own(script, written, own, words)


def _with_own(
    script: Script, flag: Written, own: Sequence[Written], words: Sequence[str]
) -> Iterator[str]:
    text = script.text
    if not own:
        yield spliced(text, [Splice(flag.end, flag.end, f" {' '.join(words)}")])
    elif len(own) == 1 and len(words) == 1:
        variable = variable_of(own[0].text)
        if variable is not None and variable in script.given:
            raise CannotEdit(f"{variable} is given on the command line: give {variable}={words[0]}")
        yield from _assigned(text, variable, words[0])
        yield spliced(text, [Splice(own[0].start, own[0].end, own[0].with_text(words[0]))])
    else:
        new = " ".join(own[0].with_text(word) for word in words)
        yield spliced(text, [Splice(own[0].start, own[-1].end, new)])


def _assigned(text: str, variable: str | None, value: str) -> Iterator[str]:
    """The value changed where its variable is set, if the variable is used for this alone."""
    if variable is None or uses_of(text, variable) != 1:
        return
    own = assignments_of(text, variable)
    if len(own) == 1:
        inner = variable_of(own[0].text)
        if inner is not None and inner != variable and ":-" not in own[0].text:
            yield from _assigned(text, inner, value)
        word = own[0]
        yield spliced(text, [Splice(word.start, word.end, with_value(word, value))])


def with_flag(script: Script, flag: str, words: Sequence[str]) -> Iterator[str]:
    """The script with one more flag, beside those that it resembles."""
    new = " ".join((flag, *words))
    for anchor in _anchors(script, flag):
        for _, end in _whole(script, anchor):
            yield from _beside(script.text, anchor, end, new)
    text = script.text
    if script.launch is not None:
        at = _offset(text, script.launch)
        for program in re.finditer(r"[\w./${}\"'-]+\.py\b[\"']?", text[at : at + 4000]):
            yield spliced(text, [Splice(at + program.end(), at + program.end(), f" {new}")])


def _anchors(script: Script, flag: str) -> list[Written]:
    """Flags beside which another can be written, the best first."""
    depth = _depths(script.text)
    candidates: list[tuple[tuple[int, int, int], Written]] = []
    for name, place in script.passed.items():
        if place.line is None or place.column is None:
            continue
        written = next(iter(script.written(name)), None)
        if written is None or not written.text.startswith("--"):
            continue
        line = script.text.count("\n", 0, written.start)
        alike = _words_in_common(name, flag)
        candidates.append(((depth[line], -alike, -written.start), written))
    return [written for _, written in sorted(candidates, key=lambda each: each[0])][:_ANCHORS]


def _words_in_common(one: str, other: str) -> int:
    return len(set(one.split("-")) & set(other.split("-")) - _COMMON)


def _depths(text: str) -> list[int]:
    """How many branches, loops and functions each line is in."""
    depths, depth = [], 0
    for line in text.split("\n"):
        if _CLOSES.match(line):
            depth = max(0, depth - 1)
        depths.append(depth)
        if _OPENS.search(line) and not re.search(r"\b(?:fi|esac|done)\s*$", line):
            depth += 1
    return depths


def _beside(text: str, anchor: Written, end: int, new: str) -> Iterator[str]:
    """A flag written after another: on a line of its own where the other is."""
    rest = text[end : line_end(text, end)]
    indent, broken = indentation(text, anchor.start), line_break(text)
    if is_alone_on_line(text, anchor.start, end):
        if rest.strip() == "\\":
            yield spliced(text, [Splice(end, end, f" \\{broken}{indent}{new}")])
        elif rest.strip():
            after = line_end(text, end)
            yield spliced(text, [Splice(after, after, f"{broken}{indent}{new}")])
        else:
            yield spliced(text, [Splice(end, end, f"{broken}{indent}{new}")])
            yield spliced(text, [Splice(end, end, f" \\{broken}{indent}{new}")])
    yield spliced(text, [Splice(end, end, f" {new}")])
    yield spliced(text, [Splice(anchor.start, anchor.start, f"{new} ")])


# ---------------------------------------------------------------------------------- environment


def with_variable(script: Script, name: str, value: str, line: int | None) -> Iterator[str]:
    """The script with another value of a variable that its job sees.

    Args:
        name: the variable.
        value: its value.
        line: where the script sets it, from 1; None where it does not.
    """
    text = script.text
    for start, end, form in _set_at(text, name, line):
        yield spliced(text, [Splice(start, end, form(value))])
    word = value if re.fullmatch(r"[\w@%+=:,./-]*", value) else f'"{value}"'
    for assigned in assignments_of(text, name):
        at = line_start(text, assigned.start) + len(indentation(text, assigned.start))
        if text.startswith(name, at):
            # It is set and not exported.
            whole = [Splice(at, at, "export "), Splice(assigned.start, assigned.end, word)]
            yield spliced(text, whole)
    for at in _before_launch(script):
        new = f"{indentation(text, at)}export {name}={word}{line_break(text)}"
        yield spliced(text, [Splice(at, at, new)])
    if script.launch is not None:
        # For this job alone.
        at = _offset(text, script.launch)
        at += len(indentation(text, at))
        yield spliced(text, [Splice(at, at, f"{name}={word} ")])


def without_variable(script: Script, name: str, line: int | None) -> Iterator[str]:
    """The script without a variable that its job sees."""
    text = script.text
    for start, end, _ in _set_at(text, name, line):
        before = text[line_start(text, start) : start]
        alone = re.fullmatch(r"[ \t]*(?:(?:export|declare -x)[ \t]+)?", before)
        rest = text[end : line_end(text, end)].strip()
        if alone is not None and (not rest or rest.startswith("#")):
            yield text[: line_start(text, start)] + text[next_line(text, end) :]
        comma = 1 if before.endswith(",") else 0
        yield without(text, start - comma, end)
        option = re.search(r"(?:-e|--env)[ =]$", before)
        if option is not None:
            yield without(text, start - len(option[0]), end)
    for at in _before_launch(script):
        new = f"{indentation(text, at)}unset {name}{line_break(text)}"
        yield spliced(text, [Splice(at, at, new)])


_Form = Callable[[str], str]


def _set_at(text: str, name: str, line: int | None) -> Iterator[tuple[int, int, _Form]]:
    """Where ``NAME=value`` or ``"NAME": "value"`` is written: its range, and how to write it."""
    found: list[tuple[int, int, int, _Form]] = []
    for match in re.finditer(rf"(?<!\w){re.escape(name)}=", text):
        if text[line_start(text, match.start()) : match.start()].lstrip().startswith("#"):
            continue
        word = word_at(text, match.end())
        end, quote = (word.end, word.quote) if word is not None else (match.end(), "")
        quotes: list[tuple[int, str]] = [(end, quote)]
        if word is not None and "," in word.text and not quote:
            # --export=ALL,NAME=value,OTHER=value
            quotes.insert(0, (match.end() + word.text.index(","), ""))
        for stop, mark in quotes:
            here = text.count("\n", 0, match.start()) + 1
            found.append((here, match.start(), stop, _assignment(name, mark)))
    for match in re.finditer(
        rf"(?P<q>\\?[\"']){re.escape(name)}(?P=q)(?P<colon>\s*:\s*)(?P<v>\\?[\"']|)[^\\\"',}}]*(?P=v)",
        text,
    ):
        here = text.count("\n", 0, match.start()) + 1
        found.append((here, match.start(), match.end(), _json_entry(name, match)))
    found.sort(key=lambda each: (abs(each[0] - (line or each[0])), each[1]))
    yield from (each[1:] for each in found)


def _assignment(name: str, quote: str) -> _Form:
    return lambda value: f"{name}={quote}{value}{quote}"


def _json_entry(name: str, match: re.Match[str]) -> _Form:
    q, v = match["q"], match["v"]
    return lambda value: f"{q}{name}{q}{match['colon']}{v}{value}{v}"


def _before_launch(script: Script) -> Iterator[int]:
    """Where an export can be written: after the last one before the launch, or before that."""
    if script.launch is None:
        return
    launch = _offset(script.text, script.launch)
    depth = _depths(script.text)
    exports = [
        match.start()
        for match in re.finditer(r"^[ \t]*export[ \t]+\w+=[^\n]*\n", script.text[:launch], re.M)
        if depth[script.text.count("\n", 0, match.start())] == 0
        and not match[0].rstrip().endswith("\\")
    ]
    if exports:
        yield next_line(script.text, exports[-1])
    yield launch


def _offset(text: str, line: int) -> int:
    """Where a line begins."""
    at = 0
    for _ in range(line - 1):
        at = next_line(text, at)
    return at
