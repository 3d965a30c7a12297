"""Each construct of bash by itself: followed as bash does it, or said where it is not followed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from overlapkit.config.shell.follow import follow_script
from overlapkit.config.shell.grammar.parser import parse_script
from support.shell_scripts import BASH, starts, starts_by_bash

pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash, to compare with")
DATA = Path(__file__).parents[3] / "data" / "bash"


def parts_of(path: Path) -> dict[str, str]:
    """The scripts in a file, each after a line with ### and its name."""
    parts = ("\n" + path.read_text(encoding="utf-8")).split("\n### ")[1:]
    return {f"{path.stem}: {name}": text for name, _, text in (p.partition("\n") for p in parts)}


PARTS = {name: text for path in sorted(DATA.glob("*.sh")) for name, text in parts_of(path).items()}


@pytest.mark.parametrize("name", PARTS)
def test_a_construct_is_followed_as_in_bash(name: str) -> None:
    expected = starts_by_bash(PARTS[name])
    assert expected
    assert starts(follow_script(PARTS[name], "t.sh", {})) == expected


@pytest.mark.parametrize("name", PARTS)
def test_what_bash_accepts_is_parsed(name: str) -> None:
    command = [str(BASH), "-n", "-O", "extglob", "-c", PARTS[name]]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    parse_script(PARTS[name], "t.sh")


SAID = {
    "an alias": ("shopt -s expand_aliases\nalias go='run --x'\ngo 1", "aliases are not followed"),
    "a trap": ("trap 'run --bye' EXIT\nrun --a", "trap 'run --bye' is not followed"),
    "a pattern of files": ("run --data *.bin", "*.bin may stand for files"),
    "a pattern in an array": (
        "A=(data/*.bin)\nrun --data ${A[@]}",
        "data/*.bin may stand for files",
    ),
    "a pattern in a value": ("A='*.bin'\nrun --data $A", "*.bin may stand for files"),
    "a loop over files": ("for f in conf/*.sh; do A=$f; done", "is followed once"),
    "set -u": (
        "set -u\nA=$NONE\nrun --a",
        "NONE is not set in the script, and set -u would end it",
    ),
    "set -u in a function": (
        "set -u\nf() { local x; run --a; echo $x; run --b; }\nf\nrun --c",
        "x has no value: set -u ends the script here",
    ),
    "a value that is needed": (": ${NONE:?is missing}\nrun --a", "NONE is not set in the script"),
    "a value that is needed and empty": (
        "A=\n: ${A:?is missing}\nrun --a",
        "A has no value: ${A:?} ends the script here",
    ),
    "a file that is not here": ("source conf.sh\nrun --a", "conf.sh is not read"),
    "a file of a command": ("source <(echo A=1)\nrun --a $A", "is not read"),
    "a readonly variable": ("readonly A=1\nA=2\nrun --a $A", "A is readonly: it keeps its value"),
    "local outside a function": ("local A=1\nrun --a ${A-}", "local outside a function"),
    "a name for an element": (
        "A=(1 2)\ndeclare -n r='A[1]'\nr=3\nrun --a",
        "r is a name for another",
    ),
    "patterns without case": ("shopt -s nocasematch\nrun --a", "nocasematch is not followed"),
    "capitals": ("declare -c A=abc\nrun --a", "declare -c is not followed"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_not_followed_is_said(name: str) -> None:
    text, told = SAID[name]
    notes = follow_script(text, "t.sh", {}).notes
    assert any(told in note for note in notes), notes


UNKNOWN = {
    "a process substitution": "run --a <(echo x)",
    "a variable of bash": "run --seed $RANDOM",
    "a host's name": "A=${HOSTNAME%%.*}\nrun --a $A",
    "a status that is not known": "run --a $!",
    "the output of a program": "A=$(nproc)\nrun --a $A",
    "eval of what is not known": 'A=$(nproc)\neval "B=$A"\nrun --b $B',
    "what depends on a version": "A=abc\nrun --a ${A/b/[&]}",
    "no expansion of bash": "run --a ${(M)A}",
    "a description of a variable": "A=1\nB=$(declare -p A)\nrun --b $B",
    "a search that is not followed": "[[ v1.2 =~ ^v([0-9]+\\.)* ]]\nrun --a ${BASH_REMATCH[1]}",
    "lines that are not known": "mapfile -t A < list.txt\nrun --a ${A[@]}",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_no_value(name: str) -> None:
    unknown = follow_script(UNKNOWN[name], "t.sh", {}).started[-1].words[-1].unknown
    assert unknown is not None and not unknown.unset
