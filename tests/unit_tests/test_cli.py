"""How the commands are declared: what they hand on, and how their help reads."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import click
import pytest

from overlapkit.cli import cli
from overlapkit.config.reading import Reading
from overlapkit.fix.command import run as run_fix
from overlapkit.lab.request import LabRequest
from overlapkit.options import READING

WIDTH = 80
ROOMS = {
    "explain": "overlapkit.explain.command",
    "audit": "overlapkit.audit.command",
    "plan": "overlapkit.plan.command",
    "doctor": "overlapkit.doctor.command",
    "trace": "overlapkit.trace.command",
    "compare": "overlapkit.trace.compare.command",
    "skill check": "overlapkit.skill.check.command",
}


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command and group, with its words."""
    yield path, group
    for name, command in group.commands.items():
        words = f"{path} {name}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, words)
        else:
            yield words, command


LINTERS = ("explain", "audit", "skill check")
"""The commands that have --format."""

COMMANDS = dict(commands(cli))


def parameters(name: str) -> set[str]:
    """The values that a command hands on."""
    return {p.name or "" for p in COMMANDS[name].params if p.expose_value}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_takes_what_its_command_declares(name: str) -> None:
    handed = parameters(name)
    if handed & set(READING):
        assert set(READING) <= handed, "a configuration is read alike everywhere"
        handed = handed - set(READING) | {"reading"}
    if name in LINTERS:
        # --json is the short form of --format json.
        handed -= {"as_json"}
    if name == "explain":
        assert set(inspect.signature(run_fix).parameters) == handed
        handed -= {"fix", "diff"}
    assert set(inspect.signature(import_module(ROOMS[name]).run).parameters) == handed


def test_every_command_that_reads_a_configuration_reads_it_alike() -> None:
    reads = ("explain", "plan", "doctor", "trace", "compare")
    assert all(set(READING) <= parameters(name) for name in reads)
    assert {f.name for f in dataclasses.fields(Reading)} == set(READING)


def test_the_labs_request_has_what_its_command_declares() -> None:
    fields = {field.name for field in dataclasses.fields(LabRequest)}
    # --debug is every command's; the options of how a configuration is read are one field.
    assert fields - {"reading", "debug"} | {*READING} == parameters("lab")


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name or "overlapkit")
def test_help_fits_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch, overlapkit: Any) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    result = overlapkit(*name.split(), "--help")
    assert result.status == 0
    assert max(map(len, result.out.splitlines())) <= WIDTH


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name or "overlapkit")
def test_every_option_is_explained(name: str) -> None:
    for option in COMMANDS[name].params:
        if isinstance(option, click.Option):
            assert (option.help or "").rstrip().endswith((".", "...")), option.name


def test_no_summary_of_a_command_is_cut(monkeypatch: pytest.MonkeyPatch, overlapkit: Any) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    listed = overlapkit("--help").out.partition("Commands:")[2].splitlines()
    assert len(listed) > len(cli.commands) and not any(line.endswith("...") for line in listed)
