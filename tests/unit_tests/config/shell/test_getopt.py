"""getopt's arrangement of arguments, which scripts evaluate."""

from __future__ import annotations

import shutil
import subprocess
from random import Random

import pytest

from overlapkit.config.shell.commands.getopt import arranged
from overlapkit.config.shell.follow import follow_script

GETOPT = shutil.which("getopt")

DECLARED = [
    ["-o", "ab:c::", "--long", "tp:,pp::,verbose,tensor-size:", "-n", "x", "--"],
    ["--options=hx:", "--longoptions=alpha,beta:", "--"],
    ["-o", "", "-l", "tp:", "-l", "pp:", "--"],
    ["ab:"],
]
WORDS = ["-a", "-b", "5", "-b5", "-ab", "-cz", "-h", "--tp", "4", "--tp=4", "--pp=2", "--verb"]
WORDS += ["--tensor-size", "--alpha", "--be", "it's", "a b", "", "--", "--tp=", "--pp"]


@pytest.mark.skipif(GETOPT is None, reason="needs getopt, to compare with")
def test_arguments_are_arranged_as_getopt_does() -> None:
    random = Random(7)
    arrangements = 0
    for _ in range(150):
        words = [*random.choice(DECLARED), *random.choices(WORDS, k=random.randint(0, 5))]
        done = subprocess.run(
            [str(GETOPT), *words], capture_output=True, text=True, check=False, timeout=60
        )
        assert arranged(words) == (None if done.returncode else done.stdout), words
        arrangements += not done.returncode
    assert arrangements > 20


@pytest.mark.parametrize("words", [[], ["-o"], ["-o", "+a", "--"], ["--unknown", "--"]])
def test_other_uses_are_not_guessed(words: list[str]) -> None:
    assert arranged(words) is None


def test_a_script_with_options_is_followed() -> None:
    script = (
        'OPTIONS=$(getopt -o n: --long tp:,pp: -- "$@") || exit 1\n'
        'eval set -- "$OPTIONS"\nTP=1\nPP=1\nNODES=1\n'
        "while true; do\n  case $1 in\n"
        "    --tp) TP=$2; shift 2 ;;\n    --pp) PP=$2; shift 2 ;;\n    -n) NODES=$2; shift 2 ;;\n"
        "    --) shift; break ;;\n  esac\ndone\n"
        'run $TP $PP $NODES "$@"\n'
    )
    given = {"1": "--tp=4", "2": "more", "3": "-n", "4": "2"}
    for values, words in (({}, ["1", "1", "1"]), (given, ["4", "1", "2", "more"])):
        started = follow_script(script, "t.sh", values).started
        assert [word.text for word in started[-1].words] == ["run", *words]
