"""The sentences that the terminal and the page share."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from overlapkit.lab.document import LabDocument, LabMachine
from overlapkit.lab.text import heading, layout, loss, machine, outcomes, summary, verdict
from support import lab_run


@pytest.fixture
def plain() -> dict[str, Any]:
    return lab_run.plain()


def read(plain: dict[str, Any]) -> LabDocument:
    return msgspec.convert(plain, LabDocument)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"confirmed": 1}, "the claim is confirmed"),
        ({"confirmed": 3}, "all 3 claims confirmed"),
        ({"not confirmed": 1}, "1 claim: 1 not confirmed"),
        ({"confirmed": 2, "not testable here": 1}, "3 claims: 2 confirmed, 1 not testable here"),
        ({}, "0 claims: "),
    ],
)
def test_the_verdict_counts_the_outcomes(counts: dict[str, int], said: str) -> None:
    assert verdict(counts) == said


def test_outcomes_that_no_claim_has_are_omitted(plain: dict[str, Any]) -> None:
    assert outcomes(read(plain).scenarios) == {
        "confirmed": 1,
        "not confirmed": 1,
        "not testable here": 1,
    }
    del plain["scenarios"][0]["claims"][1]
    assert list(outcomes(read(plain).scenarios)) == ["confirmed", "not testable here"]


def test_the_summary_compares_the_first_variant_with_the_fastest(plain: dict[str, Any]) -> None:
    off, both = plain["scenarios"][0]["blocks"][0]["variants"]
    off["step_ms"], both["step_ms"] = 400.0, 300.0
    plain["scenarios"][0]["blocks"][0]["ideal_ms"] = 250.0
    found = summary(read(plain).scenarios[0])
    assert found is not None
    assert found.sentence == "off 400 ms, both 300 ms a step: 0.75 x (ideal 250 ms)"
    both["step_ms"] = 500.0
    slower = summary(read(plain).scenarios[0])
    assert slower is not None
    assert slower.sentence == "off, the first, is the fastest: 400 ms a step"


def test_a_step_of_no_length_has_no_ratio(plain: dict[str, Any]) -> None:
    off, both = plain["scenarios"][0]["blocks"][0]["variants"]
    off["step_ms"], both["step_ms"] = 0.0, -1.0
    found = summary(read(plain).scenarios[0])
    assert found is not None
    assert " -" in found.sentence


def test_without_timed_variants_there_is_no_summary(plain: dict[str, Any]) -> None:
    plain["scenarios"][0]["blocks"] = plain["scenarios"][0]["blocks"][2:]
    assert summary(read(plain).scenarios[0]) is None


def test_only_partitioned_dimensions_are_in_the_layout() -> None:
    assert layout({"tp": 2, "pp": 1, "vpp": 1, "dp": 4}) == "TP=2 DP=4"
    assert layout({"tp": 1, "pp": 1, "vpp": 1, "dp": 1}) == "one process"


def test_the_heading_omits_what_a_block_does_not_have(plain: dict[str, Any]) -> None:
    dp, _, numbers = read(plain).scenarios[0].blocks
    assert heading(dp) == f"2 ranks, link {dp.link_mbit:,.0f} Mbit/s, 6 steps each"
    assert heading(msgspec.structs.replace(numbers, ranks=1, link_mbit=None)) == "1 rank"


def test_a_loss_is_a_number_or_says_why_not(plain: dict[str, Any]) -> None:
    variant = plain["scenarios"][0]["blocks"][2]["variants"][0]
    variant["losses"] = [1.25, None]
    found = read(plain).scenarios[0].blocks[2].variants[0]
    assert (loss(found, 0), loss(found, -1)) == ("1.250000", "not finite")
    variant["losses"] = []
    assert loss(read(plain).scenarios[0].blocks[2].variants[0], 0) == "-"


def test_the_machine_is_the_gpu_where_there_is_one() -> None:
    shown = LabMachine(
        device="cpu", device_name="cpu", processor="x86_64", cores=2, versions={"torch": "2.9"}
    )
    assert machine(shown) == "CPU (x86_64), 2 cores; torch 2.9"
    gpu = msgspec.structs.replace(shown, device="cuda", device_name="NVIDIA H100")
    assert machine(gpu) == "NVIDIA H100, 2 CPU cores; torch 2.9"
