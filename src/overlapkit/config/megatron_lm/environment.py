"""The environment of a job: its script's variables, as the programs of the launch hand them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from megatron.bridge.recipes.launch_queues import CONNECTIONS
from overlapkit.config.megatron_lm.arguments import ask_for, place
from overlapkit.config.megatron_lm.launch_line import split_launch
from overlapkit.config.shell.follow import Started
from overlapkit.config.shell.handover import Handed, hand_on
from overlapkit.config.shell.values import Field


@dataclass
class Environment:
    """What the processes of a job see.

    Attributes:
        fields: the variables that they certainly have, by name.
        unknown: names that they may have, to a value that is not known.
        beyond: why it may have others; empty where it certainly has none.
        notes: on variables that they do not see, or perhaps not.
    """

    fields: dict[str, Field]
    unknown: set[str] = field(default_factory=set)
    beyond: str = ""
    notes: list[str] = field(default_factory=list)


def handed_to_job(started: Started, read: Callable[[str], str | None]) -> Handed:
    """The variables of a script that all programs of a launch hand on, and those that one does not.

    Args:
        started: the launch.
        read: gives the text of a file beside the script; None where it is not here.
    """
    words = started.words
    head = words[: len(words) - len(split_launch(started)[1])]
    handed = hand_on(head, started.environment, read)
    lost = {**started.lost, **handed.lost}
    handed.lost = {name: each for name, each in lost.items() if name not in handed.fields}
    handed.unread = handed.unread or started.beyond
    return handed


def environment_of(started: Started, handed: Handed, path: str) -> Environment:
    """The environment of the job of a launch.

    Args:
        started: the launch.
        handed: what its programs hand on.
        path: the script, for messages.

    Raises:
        InputError: CUDA_DEVICE_MAX_CONNECTIONS is exported with a value that is not known.
    """
    fields, lost, beyond = handed.fields, handed.lost, handed.unread
    result = Environment({n: f for n, f in fields.items() if f.unknown is None})
    if CONNECTIONS in fields and (unknown := fields[CONNECTIONS].unknown) is not None:
        raise ask_for(unknown, CONNECTIONS, f"{path}:{started.line}")
    result.unknown = {n for n, f in fields.items() if f.unknown is not None}
    result.unknown |= {n for n, each in lost.items() if not each.certain}
    result.beyond = beyond
    hidden = started.not_exported.get(CONNECTIONS)
    if CONNECTIONS in lost:
        value, why, certain = lost[CONNECTIONS]
        reaches = "does not reach the job" if certain else "may not reach every process of the job"
        also = f"; {beyond}" if beyond else ""
        result.notes.append(
            f"{place(path, value)}: {CONNECTIONS}={value.text} {reaches}: {why}{also}"
        )
    elif hidden is not None and CONNECTIONS not in fields:
        result.notes.append(
            f"{place(path, hidden)}: {CONNECTIONS}={hidden.text} is not exported, so the job does "
            "not see it; write export before it"
        )
    return result
