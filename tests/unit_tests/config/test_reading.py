"""The versions that the user states: which of them win, and what is said about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.training.versions import NEWEST, Stack
from overlapkit.config.reading import Reading
from overlapkit.config.remarks import remarks
from overlapkit.config.run import Settings
from overlapkit.config.sources import read_sources
from overlapkit.errors import InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.stack_document import stack_text
from support.checkouts import bridge, core, installed

RUN = "model: {num_layers: 4}\nddp: {}\n"
EXAMPLE = str(Path(__file__).parents[3] / "examples/gpt_1b_8xh100.yaml")


@pytest.fixture
def checkout(tmp_path: Path) -> str:
    root = tmp_path / "checkout"
    bridge(root, 0, 5, 1)
    core(root / "3rdparty/Megatron-LM", 0, 18, 2)
    installed(root / ".venv/lib/python3.12/site-packages", "transformer-engine", "2.9.0")
    installed(root / ".venv/lib/python3.12/site-packages", "torch", "2.10.0")
    return str(root)


@pytest.fixture
def dated(config: Callable[..., str]) -> Callable[..., Settings]:
    """`dated(**reading)`: the settings of a small file, read like this."""

    def read(**reading: Any) -> Settings:
        (settings,) = read_sources([config(RUN)], command="explain", reading=Reading(**reading))
        return settings

    return read


def test_nothing_given_is_the_newest_and_unknown(dated: Callable[..., Settings]) -> None:
    settings = dated()
    assert settings.stack == NEWEST and settings.basis.source == "unknown"
    assert stack_text(settings.basis) == "main on core 0.20.0, assumed: see --core"
    assert remarks(settings) == ()


def test_a_checkout_gives_both_versions(dated: Callable[..., Settings], checkout: str) -> None:
    basis = dated(stack=checkout).basis
    assert (basis.stack, basis.source) == (Stack("0.18.2", "0.5.1"), "path")
    assert stack_text(basis) == f"0.5.1 on core 0.18.2, as in {checkout}"


def test_a_version_that_is_given_wins_over_the_checkouts(
    dated: Callable[..., Settings], checkout: str
) -> None:
    settings = dated(stack=checkout, core="0.19.0")
    assert settings.stack == Stack("0.19.0", "0.5.1")
    assert stack_text(settings.basis) == (f"0.5.1 on core 0.19.0, given and as in {checkout}")
    assert remarks(settings) == (f"--core wins over {checkout}, which has 0.18.2",)
    both = dated(stack=checkout, core="main", bridge="main")
    assert len(remarks(both)) == 2


def test_a_checkout_gives_transformer_engine_too_unless_te_does(checkout: str) -> None:
    found = Reading(stack=checkout).installation
    here = assume("h100", None, None, installation=found)
    assert here.te == f"2.9.0, as in {checkout}"
    assert here.software.is_te_min_version("2.9.0")
    assert not here.software.is_te_min_version("2.10.0")
    assert not here.software.is_torch_min_version("2.11")
    given = assume("h100", "2.14.0", None, installation=found)
    assert given.software.is_te_min_version("2.14.0")
    assert not given.software.is_torch_min_version("2.11")


@pytest.mark.parametrize(
    ("reading", "remark"),
    [
        ({"core": "0.15.3"}, "core 0.15.3 is older than all that are known here"),
        ({"core": "0.21"}, "core 0.21 is newer than all that are known here"),
        ({"core": "0.18.0"}, "0.18.2 is the nearest"),
        ({"bridge": "0.2.0"}, "Megatron-Bridge 0.2.0 is older than all"),
        ({"core": "0.16.1"}, None),
        ({"core": "0.20.0rc0"}, None),
        ({"core": "HEAD", "bridge": "main"}, None),
    ],
)
def test_versions_that_the_rules_were_not_checked_against(
    reading: dict[str, str], remark: str | None, dated: Callable[..., Settings]
) -> None:
    notes = remarks(dated(**reading))
    if remark is None:
        assert notes == ()
    else:
        assert len(notes) == 1 and remark in notes[0]
        assert "0.16.1, 0.17.1, 0.18.2, 0.19.0 and 0.20.0" in notes[0] or "0.3.1" in notes[0]


@pytest.mark.parametrize("option", ["core", "bridge"])
def test_what_is_not_a_version_is_refused(option: str, dated: Callable[..., Settings]) -> None:
    with pytest.raises(InputError, match=f"--{option} newest: 'newest' is not a version"):
        dated(**{option: "newest"})


COMMANDS = {
    "explain": ["--world-size", "8"],
    "plan": ["--gpu", "h100", "--world-size", "8"],
    "doctor": ["--world-size", "8"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_which_versions_and_why(
    command: str, overlapkit: Any, checkout: str
) -> None:
    options = [*COMMANDS[command], "--stack", checkout]
    shown = overlapkit(command, EXAMPLE, *options)
    assert f"0.5.1 on core 0.18.2, as in {checkout}" in shown.out
    document = overlapkit(command, EXAMPLE, *options, "--json").document
    assert document["stack"] == {
        "core": "0.18.2",
        "bridge": "0.5.1",
        "source": "path",
        "candidates": ["0.18.2"],
        "path": checkout,
    }
    refused = overlapkit(command, EXAMPLE, *COMMANDS[command], "--stack", "/no/such")
    assert refused.status == 2 and refused.err.count("\n") == 1


TRACES = Path(__file__).parents[2] / "data/traces"
SLOW, FAST = (str(TRACES / f"megatron-{name}.rank0.json.gz") for name in ("no-overlap", "overlap"))


def test_a_profiles_configuration_is_read_alike(overlapkit: Any, checkout: str) -> None:
    shown = overlapkit("trace", SLOW, "--config", EXAMPLE, "--stack", checkout)
    assert f"Configuration: 0.5.1 on core 0.18.2, as in {checkout}" in shown.out.replace("\n", "")
    document = overlapkit("trace", SLOW, "--config", EXAMPLE, "--core", "0.18.0", "--json").document
    assert document["stack"]["core"] == "0.18.0"
    assert any("core 0.18.0 is not known" in warning for warning in document["warnings"])
    assert overlapkit("trace", SLOW, "--json").document["stack"] is None


def test_two_profiles_configurations_are_read_alike(overlapkit: Any, checkout: str) -> None:
    both = ["--config-base", EXAMPLE, "--config-new", EXAMPLE]
    options = [*both, "--stack", checkout, "--bridge", "0.6.0"]
    document = overlapkit("compare", SLOW, FAST, *options, "--json").document
    for side in ("base", "new"):
        assert document["stacks"][side]["bridge"] == "0.6.0"
        assert document["stacks"][side]["core"] == "0.18.2"
    note = f"--bridge wins over {checkout}, which has 0.5.1"
    assert document["warnings"].count(note) == 1
    assert "stacks" not in overlapkit("compare", SLOW, FAST, "--json").document


@pytest.mark.parametrize("te", ["none", "2.14.0"])
def test_compare_takes_transformer_engine(
    te: str, overlapkit: Any, config: Callable[..., str]
) -> None:
    run = """\
model: {num_layers: 4, tensor_model_parallel_size: 2, sequence_parallel: true}
ddp: {}
comm_overlap: {tp_comm_overlap: %s}
"""
    both = ["--config-base", config(run % "false", "a.yaml"), "--config-new", config(run % "true")]
    document = overlapkit("compare", SLOW, FAST, *both, "--te", te, "--json").document
    knobs = {each["knob"] for each in document["decisions"] if each["kind"] == "knob"}
    assert ("model.tp_comm_overlap" in knobs) is (te != "none")
