"""What the user requests: scenarios, the rate of the link, and what is said of values that fail."""

from __future__ import annotations

import pytest

from overlapkit.errors import InputError
from overlapkit.lab.request import LabRequest, chosen_scenarios, link_rate, make_setting
from overlapkit.lab.scenarios import DEFAULT, SCENARIOS


def names(*scenarios: str, config: str | None = None) -> list[str]:
    request = LabRequest(arguments=scenarios, config=config)
    return [scenario.name for scenario in chosen_scenarios(request)]


def test_scenarios_are_the_users_in_their_order_each_once() -> None:
    assert names("pp", "dp", "pp") == ["pp", "dp"]
    assert names() == list(DEFAULT)
    assert names(config="run.yaml") == ["config"]
    assert names("all") == [name for name in SCENARIOS if name != "config"]
    assert names("all", config="run.yaml") == list(SCENARIOS)


@pytest.mark.parametrize(
    ("arguments", "kind", "name", "given"),
    [
        (("run.yaml",), "yaml", "run.yaml", ()),
        (("folder/run", "model.num_layers=4"), "yaml", "folder/run", ("model.num_layers=4",)),
        (("train.sh:12", "NODES=8"), "script", "train.sh:12", ("NODES=8",)),
    ],
)
def test_what_has_a_paths_form_is_a_configuration(
    arguments: tuple[str, ...], kind: str, name: str, given: tuple[str, ...]
) -> None:
    request = LabRequest(arguments=arguments)
    source = request.named.source
    assert source is not None
    assert (source.kind, source.name, source.given) == (kind, name, given)
    assert [scenario.name for scenario in chosen_scenarios(request)] == ["config"]


def test_a_scenario_stays_one_beside_a_configuration() -> None:
    assert names("dp", "run.yaml") == ["dp"]
    assert names("dp", "config", "run.yaml") == ["dp", "config"]


def test_megatron_lms_arguments_follow_their_option() -> None:
    request = LabRequest(arguments=("launch", "NODES=2"), from_megatron_lm=True)
    assert request.named.source is not None
    assert (request.named.source.kind, request.named.source.name) == ("script", "launch")
    flags = LabRequest(arguments=("--num-layers", "4"), from_megatron_lm=True)
    assert flags.named.source is not None
    assert flags.named.source.kind == "arguments"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (LabRequest(arguments=("ddp",)), "unknown scenario 'ddp'"),
        (LabRequest(arguments=("config",)), "overlapkit lab CONFIG"),
        (LabRequest(arguments=("model.num_layers=4",)), "comes after the configuration file"),
        (LabRequest(arguments=("a.yaml", "b.yaml")), "lab takes one configuration"),
        (LabRequest(arguments=("--num-layers", "4")), "--from-megatron-lm -- --num-layers"),
        (LabRequest(from_megatron_lm=True), "name the launch script"),
        (LabRequest(arguments=("dp",), as_written=True), "--as-written: is about a configuration"),
        (LabRequest(gpu="h100"), "--gpu: is about a configuration"),
    ],
)
def test_what_names_no_configuration_is_one_line(request_: LabRequest, said: str) -> None:
    with pytest.raises(InputError) as raised:
        chosen_scenarios(request_)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("link", "rate"),
    [
        (None, "auto"),
        ("none", None),
        ("400mbit", 400.0),
        ("400Mbit", 400.0),
        ("1.5g", 1500.0),
        ("2gbit", 2000.0),
        ("800kbit", 0.8),
        ("250", 250.0),
    ],
)
def test_a_rate_is_in_mbit(link: str | None, rate: float | str | None) -> None:
    assert link_rate(link) == rate


@pytest.mark.parametrize("link", ["fast", "", "0", "-5mbit", "nan", "inf", "99kbit", "1001gbit"])
def test_what_is_not_a_rate_is_refused(link: str) -> None:
    with pytest.raises(InputError, match="--link"):
        link_rate(link)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (LabRequest(steps=0), "--steps 0"),
        (LabRequest(arguments=("dp",), ranks=1), "--ranks 1: overlap needs at least 2"),
        (
            LabRequest(arguments=("dp", "pp", "tp"), ranks=4),
            "pp, tp have a fixed layout; --ranks applies to dp, bucket, ",
        ),
        (LabRequest(corpus="/no/such/file"), "/no/such/file: no such file"),
        (LabRequest(device="cuda"), "omit --device"),
    ],
    ids=["steps", "ranks", "layout", "corpus", "device"],
)
def test_values_that_cannot_be_used_are_one_line(request_: LabRequest, said: str) -> None:
    with pytest.raises(InputError) as raised:
        make_setting(request_, chosen_scenarios(request_), gpus=0, compute_capability=None)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_only_what_differs_from_the_defaults_is_given() -> None:
    assert LabRequest().given() == []
    assert LabRequest(arguments=("dp",), as_json=True, steps=3, debug=True).given() == [
        "arguments",
        "steps",
        "as_json",
    ]


def test_an_executors_ranks_use_the_machines_own_link() -> None:
    for request, shaped in (
        (LabRequest(), True),
        (LabRequest(link="none"), False),
        (LabRequest(executor="local"), False),
    ):
        setting = make_setting(request, chosen_scenarios(request), gpus=0, compute_capability=None)
        assert setting.shaped is shaped
