"""What the user names on the command line, as settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overlapkit.config.run import Settings
from overlapkit.config.sizes import LARGEST
from overlapkit.config.sources import (
    name_sources,
    read_configuration,
    read_sources,
    world_size_of,
    world_sizes_of,
)
from overlapkit.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "data" / "megatron_lm"
EXAMPLES = Path(__file__).parents[3] / "examples"
RUN = "model: {num_layers: 4}\nddp: {}\n"
FLAGS = ["--num-layers", "4", "--hidden-size", "64"]
COMMANDS: dict[str, list[str]] = {
    "explain": ["--world-size", "8"],
    "doctor": ["--world-size", "8"],
    "plan": ["--world-size", "8", "--gpu", "h100"],
}
"""Commands whose arguments name a configuration, with options that make them complete."""


def layers(settings: Settings) -> Any:
    return (settings.values["model"] or {})["num_layers"]


def test_a_file_with_overrides(config: Callable[..., str]) -> None:
    (read,) = read_sources([config(RUN), "model.num_layers=8"], command="explain")
    assert layers(read) == 8 and read.framework == "megatron-bridge"


def test_overrides_of_both_configurations_and_of_the_second_alone(
    config: Callable[..., str],
) -> None:
    names = [config(RUN, "a.yaml"), config(RUN, "b.yaml")]
    overrides = ["model.hidden_size=64", "b:model.num_layers=8"]
    first, second = read_sources([*names, *overrides], command="explain", most=2)
    assert [layers(first), layers(second)] == [4, 8]
    assert [each.flat()["model.hidden_size"] for each in (first, second)] == [64, 64]


def test_without_a_second_configuration_a_copy_of_the_first_is_changed(
    config: Callable[..., str],
) -> None:
    first, second = read_sources([config(RUN), "b:model.num_layers=8"], command="explain", most=2)
    assert [layers(first), layers(second)] == [4, 8]


def test_variables_and_overrides_of_a_script() -> None:
    script = str(SCRIPTS / "mistakes.sh")
    (source,) = name_sources(
        [script, "GPUS=8", "model.num_layers=6"], command="doctor", from_megatron_lm=True
    )
    read = source.read()
    assert read.framework == "megatron-lm" and layers(read) == 6
    assert world_size_of(read, None) == 4 * 8


def test_a_script_is_known_by_its_name_or_its_first_line(tmp_path: Path) -> None:
    script = SCRIPTS / "llama3_70b_slurm.sh"
    unnamed = tmp_path / "launch"
    unnamed.write_text("#!/bin/bash\n" + script.read_text())
    for name in (str(script), str(unnamed), str(tmp_path / "a.slurm:12")):
        (source,) = name_sources([name], command="explain")
        assert source.kind == "script" and source.name == name


@pytest.mark.parametrize("named", [True, False], ids=["with the option", "without it"])
def test_a_script_beside_a_file_of_settings(config: Callable[..., str], named: bool) -> None:
    """Each gets the overrides that it can have: of sections, of Megatron-Bridge's, variables."""
    script, overrides = (
        str(SCRIPTS / "mistakes.sh"),
        ["GPUS=8", "model.num_layers=6", "comm_overlap.tp_comm_overlap=true", "ddp=null"],
    )
    for names in ([script, config(RUN)], [config(RUN, "run"), script]):
        sources = name_sources(
            [*names, *overrides], command="explain", most=2, from_megatron_lm=named
        )
        by_kind = {source.kind: source for source in sources}
        assert by_kind["script"].given == ("GPUS=8", "model.num_layers=6")
        assert by_kind["yaml"].given == tuple(overrides[1:])
        assert {source.read().framework for source in sources} == {
            "megatron-lm",
            "megatron-bridge",
        }


def test_arguments_after_a_launcher_and_overrides() -> None:
    words = ["model.num_layers=6", "torchrun", "--nproc-per-node", "8", "pretrain_gpt.py", *FLAGS]
    (read,) = read_sources(words, command="doctor", from_megatron_lm=True)
    assert layers(read) == 6 and world_size_of(read, None) == 8
    words.insert(0, "b:model.num_layers=2")
    first, second = read_sources(words, command="explain", from_megatron_lm=True, most=2)
    assert [layers(first), layers(second)] == [6, 2]


def test_short_names_are_written_out(config: Callable[..., str]) -> None:
    (source,) = name_sources(
        [config(RUN), "n=8"], command="plan", spell=lambda text: f"model.num_layers={text[2:]}"
    )
    assert layers(source.read()) == 8


def test_nothing_named_is_no_configuration() -> None:
    assert read_sources([], command="doctor") == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model.num_layers=2"], ["model.num_layers=2", "after the configuration file"]),
        (["b:model.num_layers=2"], ["b:model.num_layers=2"]),
        (["RUN", "b:model.num_layers=2"], ["b:model.num_layers=2", "takes one configuration"]),
        (["RUN", "model.num_layers"], ["write model.num_layers=VALUE"]),
        (["RUN", "b.yaml", "c.yaml"], ["b.yaml", "takes one configuration"]),
        (["train.sh"], ["train.sh", "no such file"]),
        (["train.slurm:12"], ["train.slurm", "no such file"]),
        (["--", "--num-layers", "3"], ["--from-megatron-lm -- --num-layers"]),
        (["--from-megatron-lm", "--", "x", *FLAGS], ["a script or its arguments, not both"]),
        (["--from-megatron-lm", "a.sh", "b.sh", "c.sh"], ["takes one configuration"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_gets_one_message_whatever_the_command(
    arguments: list[str], named: list[str], overlapkit: Any, config: Callable[..., str]
) -> None:
    run = config(RUN)
    given = [run if text == "RUN" else text for text in arguments]
    told = set()
    for command, options in COMMANDS.items():
        if command == "explain" and "takes one configuration" in named:
            continue  # It takes two.
        result = overlapkit(command, *options, *given)
        assert (result.status, result.out) == (2, "") and result.err.count("\n") == 1
        for words in named:
            assert words in result.err
        told.add(result.err.replace(f"{command} takes", "COMMAND takes"))
    assert len(told) == 1


def test_an_option_reads_a_script_by_its_name(config: Callable[..., str]) -> None:
    script = SCRIPTS / "llama3_8b_string.sh"
    assert read_configuration(str(script)).framework == "megatron-lm"
    job = config(script.read_text(encoding="utf-8"), "job.sbatch")
    assert read_configuration(job).framework == "megatron-lm"
    assert read_configuration(config(RUN)).framework == "megatron-bridge"
    script = config(f"torchrun pretrain_gpt.py {' '.join(FLAGS)} --seq-length $LENGTH", "job.sh")
    with pytest.raises(InputError, match="set LENGTH in a copy of the script"):
        read_configuration(script)


def test_the_number_of_gpus_given_wins_over_the_scripts_and_that_over_the_profiles(
    config: Callable[..., str],
) -> None:
    script = read_configuration(str(SCRIPTS / "llama3_8b_string.sh"))
    assert [world_size_of(script, given, 4) for given in (None, 16)] == [8, 16]
    run = read_configuration(config(RUN))
    assert world_size_of(run, None, 4) == 4
    with pytest.raises(InputError, match="--world-size N is missing"):
        world_size_of(run, None)
    with pytest.raises(InputError, match=f"{LARGEST}"):
        world_size_of(run, LARGEST + 1)


def test_one_number_of_gpus_is_for_both_configurations(config: Callable[..., str]) -> None:
    run = read_configuration(config(RUN))
    assert world_sizes_of([run, run], [8]) == [8, 8]
    assert world_sizes_of([run, run], [8, 16]) == [8, 16]
    with pytest.raises(InputError, match="more often"):
        world_sizes_of([run], [8, 16])
