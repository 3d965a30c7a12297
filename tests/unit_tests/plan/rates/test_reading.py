"""The file of measured rates, and the plan that rests on one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from overlapkit import library
from overlapkit.errors import InputError
from overlapkit.plan.rates.document import RatesDocument
from overlapkit.plan.rates.reading import read_rates

Command = Callable[..., Any]
GEMM = {"precision": "bf16", "m": 4096, "n": 8192, "k": 8192, "seconds": 1e-3}
HEAD = {"gpu": "h100", "measured": "training", "source": "a test"}
RUN = ("--model", "llama3_8b", "--gpu", "h100", "--world-size", "8", "tp=2", "mbs=1", "gbs=32")


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    def write(**parts: Any) -> str:
        path = tmp_path / "rates.json"
        path.write_text(json.dumps(HEAD | parts), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"gpu": None}, "Expected `str`, got `null`"),
        ({"measured": "guessed"}, "Invalid enum value 'guessed'"),
        ({"schema": "overlapkit/plan/v1"}, "overlapkit/plan/v1"),
        ({"gemms": [GEMM | {"m": 0}]}, "$.gemms[0].m"),
        ({"gemms": [GEMM, GEMM | {"precision": "fp9"}]}, "gemms[1].precision: 'fp9'"),
        ({"gemms": [GEMM | {"tflops": 3}]}, "gemms[0]: give seconds or tflops"),
        ({"gemms": [GEMM | {"seconds": None}]}, "gemms[0]: give seconds or tflops"),
        ({"gemms": [GEMM | {"seconds": -1}]}, "$.gemms[0].seconds"),
        ({"collectives": [{"kind": "send", "link": "node"}]}, "give bytes and seconds"),
        (
            {"collectives": [{"kind": "send", "link": "node", "bytes": 4, "seconds": 1}]},
            "a message needs ranks",
        ),
    ],
)
def test_a_file_that_is_none_says_where(
    written: Callable[..., str], parts: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as error:
        read_rates(written(**parts))
    assert said in str(error.value)
    assert str(error.value).startswith("--rates ")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_rates(str(tmp_path / "none.json"))
    other = tmp_path / "other.json"
    other.write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="overlapkit schema rates"):
        read_rates(str(other))


def test_keys_of_a_later_version_are_passed_over(written: Callable[..., str]) -> None:
    found = read_rates(written(gemms=[GEMM | {"kernel": "nvjet"}], clock_mhz=1980))
    assert found.gemms[0].m == 4096


def test_a_file_is_read_as_it_is_written(written: Callable[..., str], tmp_path: Path) -> None:
    first = read_rates(written(gemms=[GEMM]))
    again = tmp_path / "again.json"
    again.write_bytes(msgspec.json.encode(first))
    assert read_rates(str(again)) == first
    assert isinstance(first, RatesDocument)


@pytest.mark.parametrize(
    ("gpu", "said"), [("b200", "measured on b200, but --gpu is h100"), ("cpu", "on a CPU")]
)
def test_rates_of_another_machine_are_refused(
    plan: Command, written: Callable[..., str], gpu: str, said: str
) -> None:
    done = plan(*RUN, "--rates", written(gpu=gpu))
    assert done.status == 2
    assert said in done.err


def test_a_plan_says_what_rests_on_the_file(plan: Command, written: Callable[..., str]) -> None:
    path = written(gemms=[GEMM])
    lines = plan(*RUN, "--rates", path).out.splitlines()
    (said,) = [line for line in lines if path in line]
    assert "% of the step with overlap rests on rates measured in" in said
    assert "matrix products" in said
    document = json.loads(plan(*RUN, "--rates", path, "--json").out)
    measured = document["estimate"]["measured"]
    assert measured["rates"] == path
    assert measured["share"] == pytest.approx(measured["shares"]["gemms"])
    assert 0.3 < measured["share"] < 1
    assert json.loads(plan(*RUN, "--json").out)["estimate"]["measured"] is None


def test_a_slow_machine_is_planned_slower_everywhere(
    plan: Command, written: Callable[..., str]
) -> None:
    """In the plan, in a sweep and in the library."""
    path = written(gemms=[GEMM | {"seconds": 1.0}])

    def step(*arguments: str) -> tuple[float, float]:
        document = json.loads(plan(*RUN, "--sweep", "tp", "--json", *arguments).out)
        return document["estimate"]["step_ms"]["with"], document["sweep"]["layouts"][0]["step_ms"]

    for slow, fast in zip(step("--rates", path), step(), strict=True):
        assert slow > 10 * fast
    overrides = ["tp=2", "mbs=1", "gbs=32"]
    found = library.plan(
        model="llama3_8b", gpu="h100", world_size=8, overrides=overrides, rates=path
    )
    assert found.estimate is not None
    assert found.estimate.step_ms.with_ == step("--rates", path)[0]
