"""What the user requests: scenarios, the rate of the link, and what is said of values that fail."""

from __future__ import annotations

import pytest

from overlapkit.errors import InputError
from overlapkit.lab.request import LabRequest, chosen_scenarios, link_rate, make_setting
from overlapkit.lab.scenarios import DEFAULT, SCENARIOS


def names(*scenarios: str, config: str | None = None) -> list[str]:
    request = LabRequest(scenarios=scenarios, config=config)
    return [scenario.name for scenario in chosen_scenarios(request)]


def test_scenarios_are_the_users_in_their_order_each_once() -> None:
    assert names("pp", "dp", "pp") == ["pp", "dp"]
    assert names() == list(DEFAULT)
    assert names(config="run.yaml") == ["config"]
    assert names("all") == [name for name in SCENARIOS if name != "config"]
    assert names("all", config="run.yaml") == list(SCENARIOS)


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
        (LabRequest(scenarios=("dp",), ranks=1), "--ranks 1: overlap needs at least 2"),
        (
            LabRequest(scenarios=("dp", "pp", "tp"), ranks=4),
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
    assert LabRequest(scenarios=("dp",), as_json=True, steps=3).given() == [
        "scenarios",
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
