"""What is said of a script in which no Megatron-LM job is started, as far as it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from overlapkit.config.gaps import unread
from overlapkit.config.launchers.others import refuse_program
from overlapkit.config.megatron_lm.arguments import (
    Arguments,
    UnknownValue,
    ask_for,
    place,
    read_arguments,
    values_of,
)
from overlapkit.config.megatron_lm.flags import known_flag
from overlapkit.config.megatron_lm.launch_line import (
    has_flags,
    only_megatrons,
    script_elsewhere,
    split_launch,
)
from overlapkit.config.shell.follow import Followed, Started
from overlapkit.config.shell.values import Field, fields_of, split_into_fields
from overlapkit.errors import InputError, NoConfiguration

_TRAINS = re.compile(
    r"(^|/)pretrain[\w.-]*\.py$|megatron[^/]*/([^/]+/)*train[\w.-]*\.py$", re.IGNORECASE
)
"""Names of Megatron-LM's training programs and those of its forks."""
_MOST_SHOWN = 8
"""Scripts of others that one message names."""


def ask_for_arguments(programs: Sequence[Started], path: str) -> None:
    """Ask for the arguments of a training program that has no flag of which the text is known.

    Raises:
        UnknownValue: there is such a program.
    """
    for started in programs:
        head, words = split_launch(started)
        name = next((w.text for w in reversed(head) if _TRAINS.search(w.text)), None)
        unknown = next((w.unknown for w in words if w.unknown is not None), None)
        if name is not None and unknown is not None:
            where = place(path, next(w for w in words if w.unknown is not None), started.line)
            raise ask_for(unknown, f"the list of arguments of {name[-60:]}", where)


def ask_for_branch(followed: Followed, path: str, lines: Sequence[str]) -> None:
    """Ask for what decides on a branch that was not taken and may start the job.

    Raises:
        UnknownValue: there is such a branch, and the script has flags that only Megatron-LM has.
    """
    if not followed.passed_over or followed.exits is not None or not has_flags("\n".join(lines)):
        return
    line, name = followed.passed_over[0]
    shown = f"argument {name}" if name.isdecimal() else name
    raise UnknownValue(f"{path}:{line}: {shown} decides whether the job is started here", name)


def choices_of(followed: Followed, name: str | None) -> list[str]:
    """The values that a script names of a variable, besides the one that it has there."""
    value = followed.variables.get(name or "")
    now = value.text if isinstance(value, Field) and value.unknown is None else None
    return [each for each in followed.choices.get(name or "", ()) if each != now]


def without_launch(
    followed: Followed, path: str, lines: Sequence[str], allow_unknown: bool
) -> tuple[Arguments, list[str]]:
    """The arguments in a script's variables, where it only sets them for another."""
    fields: list[Field] = []
    names: list[str] = []
    for name, value in followed.variables.items():
        if name in followed.given:
            continue
        words = split_into_fields(value.pieces) if isinstance(value, Field) else fields_of(value)
        if any(known_flag(field.text) for field in words):
            fields += words
            names.append(name)
    if followed.exits is not None and followed.decided_by:
        named = ", ".join(
            f"{name}={values_of(choices_of(followed, name))}" for name in followed.decided_by
        )
        raise InputError(
            f"{path}:{followed.exits}: the script ends here, before it starts a Megatron-LM job; "
            f"give {named}, which decide{'s' * (len(followed.decided_by) == 1)} on that"
        )
    elsewhere = [each for each in map(script_elsewhere, followed.started) if each]
    if not fields or (elsewhere and not any(map(only_megatrons, (f.text for f in fields)))):
        for started in followed.started:
            refuse_program([word.text for word in started.words], f"{path}:{started.line}")
        if elsewhere:
            raise NoConfiguration(
                f"{path}: starts no Megatron-LM job itself, but {_shown(elsewhere)}"
            )
        missing = [gap for gap in unread(followed.gaps) if gap.variables is None]
        if missing:
            raise NoConfiguration(
                f"{path}: starts no Megatron-LM job, as far as it can be read: {missing[-1]} is "
                f"not read; {missing[-1].remedy}, or explain the script that starts the job"
            )
        raise NoConfiguration(
            f"{path}: starts no Megatron-LM job and sets no arguments for one; is it a launch "
            "script? The arguments themselves can be given after --"
        )
    note = f"{path} starts no job: the arguments in {', '.join(names)} are combined"
    read = read_arguments(fields, path, lines, allow_unknown=allow_unknown, whole=False)
    return read, [note]


def _shown(scripts: Sequence[str]) -> str:
    """Scripts that are not here, in the order of their start, and what to do with them."""
    names = [name[:200] for name in dict.fromkeys(scripts)]
    if len(names) == 1:
        return f"{names[0]}, which is not here; explain that script"
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return (
        f"{', '.join(names[:_MOST_SHOWN])}{more}, which are not here; explain the one that trains"
    )
