"""What ``ray job submit`` hands to a job: the variables of its runtime environment.

A job of ray starts on the cluster, in processes of ``ray start``. The variables of the shell that
submits it are not theirs, those of ``env_vars`` in the runtime environment are (ray's
documentation, "Environment Dependencies").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from overlapkit.config.shell.follow import Started
from overlapkit.config.shell.handover import Handed
from overlapkit.config.shell.values import Field, Piece
from overlapkit.config.text_file import exists, read_text
from overlapkit.config.yaml_file import YamlProblem, load_yaml
from overlapkit.errors import InputError

_UNKNOWN = "__not_known_here__"
_MOST_BYTES = 64 * 1024
_SHOWN = 60


@dataclass
class JobVariables:
    """The variables that a job of ray has.

    Attributes:
        values: those that are known, by name.
        unknown: those that may be set, to a value that is not known.
        whole: whether any other variable is certainly not set.
        source: where they are, as a sentence names it.
        notes: what is not known, for the user.
    """

    values: dict[str, Field]
    source: str
    unknown: set[str] = field(default_factory=set)
    whole: bool = True
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: Field) -> None:
        """A variable that the job has for certain."""
        if value.unknown is None:
            self.values[name] = value
            self.unknown.discard(name)
        else:
            self.values.pop(name, None)
            self.unknown.add(name)

    def add_json(self, text: Field, what: str, where: str, *, of_runtime: bool) -> None:
        """The variables in a JSON text, or a note that it is not known.

        Args:
            text: the JSON; parts of it may be unknown.
            what: the option that it is the value of.
            where: the place of that, for the note.
            of_runtime: whether it is a runtime environment, in which env_vars has the variables.
        """
        shown, lines = _with_placeholders(text)
        try:
            content = json.loads(shown)
        except (ValueError, RecursionError):
            unknown = text.unknown
            why = unknown.why if unknown is not None else "it is not valid JSON"
            self.give_up(f"{where}: {what} is not understood ({why[:_SHOWN]})")
            return
        variables = (
            content.get("env_vars", {}) if of_runtime and isinstance(content, dict) else content
        )
        if not isinstance(variables, dict):
            self.give_up(f"{where}: {what} has no mapping of variables")
            return
        for name, value in variables.items():
            if _UNKNOWN in name:
                self.give_up(f"{where}: {what} has a name that is not known")
                continue
            at = shown.find(json.dumps(name))
            piece = Piece(str(value), lines[at] if at >= 0 else text.line)
            if _UNKNOWN in str(value):
                self.values.pop(name, None)
                self.unknown.add(name)
            else:
                self.add(name, Field((piece,)))

    def give_up(self, why: str) -> None:
        self.whole = False
        self.notes.append(
            f"{why}: which variables it sets is not known, so nothing is said about one that is "
            "missing"
        )


def is_job_of_ray(started: Started) -> bool:
    """Whether a program is started by ``ray job submit``."""
    return _submit(_all_words(started)) is not None


def job_variables(
    started: Started, handed: Handed, others: Sequence[Started], path: str, folder: Path
) -> JobVariables | None:
    """The variables of a job that ``ray job submit`` starts; None for another one.

    Args:
        started: the launch of the job.
        handed: what its programs hand on: of ray's job, what its own command sets.
        others: every program that the script starts, in order: one may start ray on this node.
        path: the script, for messages.
        folder: that of the script, in which a file of the runtime environment may be.
    """
    words = _all_words(started)
    at = _submit(words)
    if at is None:
        return None
    result = JobVariables({}, f"{path} (env_vars of ray's runtime environment)")
    node = _node(others)
    for name, value in (node.environment if node is not None else {}).items():
        result.add(name, value)
    if node is None:
        # Whoever started ray may have had them; this shell does not pass them on.
        result.unknown |= handed.lost.keys()
    options = _options(words[at:])
    where = f"{path}:{started.line}"
    given = options.get("--runtime-env-json")
    if given is not None:
        result.add_json(given, "--runtime-env-json", where, of_runtime=True)
    file = options.get("--runtime-env")
    if file is not None:
        _add_file(result, file, where, folder)
    for name, value in handed.fields.items():
        # The job's own command sets them, as `env NAME=value` or in its shell.
        result.add(name, value)
    return result


def hidden_from_job(
    started: Started, handed: Handed, job: JobVariables, names: Iterable[str], path: str
) -> list[str]:
    """Notes on variables that the shell exports and ``ray job submit`` does not pass on."""
    return [
        f"{path}:{handed.lost[name].value.line or started.line}: {name} is exported in the shell "
        "that submits the job; ray passes on only env_vars of its runtime environment, so whether "
        "the job sees it is not known: set it there"
        for name in names
        if name in handed.lost and name in job.unknown and name not in job.values
    ]


def _all_words(started: Started) -> list[Field]:
    return [*started.outer, *started.words]


def _submit(words: Sequence[Field]) -> int | None:
    """Where the options of ``ray job submit`` begin."""
    texts = [word.text for word in words]
    for n in range(len(texts) - 2):
        if PurePosixPath(texts[n]).name == "ray" and texts[n + 1 : n + 3] == ["job", "submit"]:
            return n + 3
    return None


def _node(others: Sequence[Started]) -> Started | None:
    """``ray start`` in the same script: the processes of the job on this node come from it."""
    for each in others:
        texts = [word.text for word in _all_words(each)]
        for n in range(len(texts) - 1):
            if PurePosixPath(texts[n]).name == "ray" and texts[n + 1] == "start":
                return each
    return None


def _options(words: Sequence[Field]) -> dict[str, Field]:
    """The options of ``ray job submit`` that have a value, up to the job's own words."""
    found: dict[str, Field] = {}
    for n, word in enumerate(words):
        if word.text == "--":
            break
        name, is_set, _ = word.text.partition("=")
        if is_set:
            found[name] = _after_equals(word)
        elif n + 1 < len(words):
            found[name] = words[n + 1]
    return found


def _after_equals(word: Field) -> Field:
    """What follows the first = of a word."""
    pieces: list[Piece] = []
    found = False
    for piece in word.pieces:
        if found:
            pieces.append(piece)
            continue
        _, is_set, after = piece.text.partition("=")
        if is_set:
            found = True
            pieces.append(Piece(after, piece.line, piece.quoted, piece.unknown))
    return Field(tuple(pieces))


def _with_placeholders(text: Field) -> tuple[str, list[int]]:
    """A JSON text with a name for every unknown part, and the line of each of its characters."""
    shown, lines = "", list[int]()
    for piece in text.pieces:
        part = _UNKNOWN if piece.unknown is not None else piece.text
        shown += part
        lines += [piece.line] * len(part)
    return shown, lines


def _add_file(result: JobVariables, name: Field, where: str, folder: Path) -> None:
    """The variables in a YAML file of a runtime environment, where it exists here."""
    what = f"--runtime-env {name.text[:_SHOWN]}"
    candidates = [name.text, str(folder / name.text)] if name.unknown is None else []
    path = next((each for each in candidates if exists(each)), None)
    content: Any = None
    if path is not None:
        try:
            content, _ = load_yaml(read_text(path, what="runtime environment", most=_MOST_BYTES))
        except (InputError, YamlProblem):
            content = None
    variables = content.get("env_vars", {}) if isinstance(content, Mapping) else None
    if not isinstance(variables, Mapping):
        result.give_up(f"{where}: {what} is not read: there is no such file here")
        return
    for key, value in variables.items():
        result.add(str(key), Field((Piece(str(value), 0),)))
