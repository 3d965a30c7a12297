"""What awk prints of the fields of lines is calculated, not run; any other program is not known."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from overlapkit.config.shell.follow import follow_script

AWK = shutil.which("awk")

PRINTED = {
    "the number of fields": """echo "0,1,2,3" | awk -F, '{print NF}'""",
    "a field by a separator of its own word": """echo 'a,b,c' | awk -F ',' '{ print $2 }'""",
    "the last of fields between blanks": """echo "a  b   c " | awk '{print $NF}'""",
    "the whole line": """echo " a  b" | awk '{print $0}'""",
    "every line, empty ones too": """printf ' x y \\n\\nz\\n' | awk '{print NF}'""",
    "empty fields": """echo a::b | awk -F: '{print NF}'""",
    "a field that is not there": """echo 'a|b' | awk -F'|' '{print $9}'""",
    "an empty line": "echo | awk -F, '{print NF}'",
    "nothing at all": "printf '' | awk '{print NF}'",
    "a blank as the separator": """echo " a b" | awk -F' ' '{print $1}'""",
    "a tab as the separator": """printf 'a b\\tc\\n' | awk -F'\\t' '{print $2}'""",
    "an address without its prefix": """echo 10.0.0.1/24 | awk -F/ '{print $1}'""",
}


def words_of(command: str) -> list[str | None]:
    """The words of a program that is given what a command prints, as one word."""
    started = follow_script(f'run "$({command})"\n', "t.sh", {}).started[-1]
    return [None if word.unknown is not None else word.text for word in started.words]


@pytest.mark.skipif(AWK is None, reason="needs awk, to compare with")
@pytest.mark.parametrize("name", PRINTED)
def test_fields_are_awks(name: str) -> None:
    by_awk = subprocess.run(
        ["bash", "-c", PRINTED[name]], capture_output=True, text=True, check=True
    ).stdout
    assert words_of(PRINTED[name]) == ["run", by_awk.rstrip("\n")]


@pytest.mark.parametrize(
    "program",
    [
        "awk '{sum += $1} END {print sum}'",
        "awk -F'[,:]' '{print NF}'",
        "awk '/a/ {print $1}'",
        "awk -Ft '{print $1}'",
        "awk -v n=1 '{print $n}'",
        "awk '{print $1}' other.txt",
    ],
)
def test_another_program_is_not_known(program: str) -> None:
    assert words_of(f"echo 'a b' | {program}") == ["run", None]


def test_the_gpus_of_a_node_are_counted_by_the_devices_that_are_visible() -> None:
    text = (
        'export CUDA_VISIBLE_DEVICES="0,1,2,3"\n'
        """GPUS=`echo "$CUDA_VISIBLE_DEVICES" | awk -F, '{print NF}'`\n"""
        "torchrun --nproc_per_node $((GPUS * 1)) pretrain_gpt.py\n"
    )
    started = follow_script(text, "t.sh", {}).started[-1]
    assert started.words[2].text == "4"
