"""Commands that a program receives as text, such as ``srun bash -c "torchrun …"``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from overlapkit.config.shell.values import Field, without_start

SHELLS = frozenset({"bash", "sh", "zsh"})
SHOWS_TEXT = frozenset({"echo", "printf", "cat", "logger", "tee", "grep", "sed", "awk"})
"""Programs that only handle text, even if that is a command."""

_PROGRAM = re.compile(r"(\.py|\btorchrun|\btorch\.distributed\.\w+)(?=\s)")
_OPTION = re.compile(r"\s-|[\s\"]\$")
"""An option, or a variable, which may have some."""
_VARIABLE = re.compile(r"\$\{?[A-Za-z_@*0-9]")
_SCRIPT = re.compile(r"(?:^|[\s;&|'\"])[\w./${}-]*\w\.(?:sh|bash|slurm|sbatch)(?=$|[\s;&|'\"])")
_AFTER_C = re.compile(r"-[a-zA-Z]*c")
_SHELL_VALUES = frozenset({"-o", "+o", "-O", "+O", "--rcfile", "--init-file"})
_REMOTE = {
    "ssh": "bcDEeFIiJLlmOopQRSWwB",
    "pdsh": "wxltufRgX",
    "clush": "wxgXltufoO",
    "pssh": "hHlpoetOxX",
}
"""Programs that join their last words to a command for a shell elsewhere, and the letters of their
options that a value follows."""
_LOGIN = frozenset({"su", "runuser", "script"})


@dataclass(frozen=True)
class Passed:
    """A command in the words of another one.

    Attributes:
        outer: the words of the programs that receive it.
        text: its words or its text, in parts that blanks separate.
        positional: its ``$1`` and successors; None where they are those of the script.
    """

    outer: tuple[Field, ...]
    text: tuple[Field, ...]
    positional: tuple[Field, ...] | None = None


def is_command_line(text: str) -> bool:
    """Whether a value looks like ``torchrun … -…``, as in ``bash -c "torchrun …"``."""
    program = _PROGRAM.search(text)
    return program is not None and _OPTION.search(text, program.end()) is not None


def passed_by(words: Sequence[Field]) -> Passed | None:
    """The command that the words of another one contain as text; None where there is none."""
    if words[0].text in SHOWS_TEXT:
        return None
    for at, word in enumerate(words):
        found = _passed_at(words, at, PurePosixPath(word.text).name)
        if found is not None and _starts_something(found):
            return found
    script = next((word for word in words if is_command_line(word.text)), None)
    if script is None:
        return None
    outer = tuple(word for word in words if word is not script)
    return Passed(outer, (without_start(script, _wrap(script)),))


def _starts_something(passed: Passed) -> bool:
    text = " ".join(word.text for word in passed.text)
    if _PROGRAM.search(f"{text} ") and any(word.unknown for word in passed.text):
        # A value that is not known may have the options.
        return True
    # A variable that the shell expands may have the whole command.
    return is_command_line(text) or any(p.search(text) for p in (_SCRIPT, _VARIABLE))


def _passed_at(words: Sequence[Field], at: int, name: str) -> Passed | None:
    """What the program at an index receives."""
    before = tuple(words[: at + 1])
    rest = words[at + 1 :]
    if name in SHELLS:
        skipped = 0
        while skipped < len(rest) and rest[skipped].text[:1] in ("-", "+"):
            option = rest[skipped].text
            skipped += 2 if option in _SHELL_VALUES else 1
            if _AFTER_C.match(option) and not option.startswith("--"):
                options = tuple(rest[:skipped])
                # bash -c 'commands' name first second
                positional = tuple(rest[skipped + 2 :])
                return Passed((*before, *options), tuple(rest[skipped : skipped + 1]), positional)
        return None
    if name in _LOGIN:
        for n, word in enumerate(rest[:-1]):
            if word.text in ("-c", "--command", "-qc", "-lc"):
                return Passed((*before, *rest[: n + 1]), (rest[n + 1],))
        return None
    if name == "sbatch":
        for n, word in enumerate(rest):
            if word.text == "--wrap" and n + 1 < len(rest):
                outer = (*before, *rest[:n], *rest[n + 2 :])
                return Passed(outer, (rest[n + 1],))
            if _wrap(word):
                outer = (*before, *rest[:n], *rest[n + 1 :])
                return Passed(outer, (without_start(word, _wrap(word)),))
        return None
    if name == "env":
        for n, word in enumerate(rest[:-1]):
            if word.text in ("-S", "--split-string"):
                return Passed((*before, *rest[:n]), tuple(rest[n + 1 :]))
        return None
    return _remote(before, rest, name) if name in _REMOTE else None


def _wrap(word: Field) -> str:
    return "--wrap=" if word.text.startswith("--wrap=") else ""


def _remote(before: tuple[Field, ...], rest: Sequence[Field], name: str) -> Passed:
    skipped = 0
    while skipped < len(rest) and rest[skipped].text.startswith("-"):
        option = rest[skipped].text
        skipped += 2 if len(option) == 2 and option[1] in _REMOTE[name] else 1
    if name == "ssh":
        skipped += 1
        if skipped < len(rest) and rest[skipped].text == "--":
            skipped += 1
    return Passed((*before, *rest[:skipped]), tuple(rest[skipped:]))
