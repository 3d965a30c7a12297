"""What one hardware queue costs, and what breaks its overlap."""

from __future__ import annotations

import pytest

from megatron.bridge.recipes.launch_settings import LaunchSettings
from megatron.bridge.recipes.one_queue import Overlapped, one_queue_consequences
from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.versions import NEWEST

ONE = "CUDA_DEVICE_MAX_CONNECTIONS"
GRADIENTS = Overlapped(gradients=True, sends=False)


def told(
    variables: dict[str, str],
    *,
    complete: bool = False,
    tp: int = 2,
    overlapped: Overlapped = GRADIENTS,
    demanded: bool = False,
) -> dict[str, tuple[str, str]]:
    needs = LaunchSettings(False, tp_size=tp, num_gpus=16)
    job = JobEnvironment(variables, complete)
    decisions = one_queue_consequences(needs, overlapped, job, NEWEST, demanded=demanded)
    return {d.rule: (str(d.outcome.value), d.remedy or "") for d in decisions}


@pytest.mark.parametrize(
    ("variables", "complete", "price"),
    [
        ({ONE: "1"}, True, True),
        ({ONE: " 1 "}, True, True),
        ({}, False, True),
        ({}, True, False),
        ({ONE: "8"}, True, False),
    ],
)
def test_the_price_is_that_of_the_one_queue(
    variables: dict[str, str], complete: bool, price: bool
) -> None:
    assert ("launch.one-queue-price" in told(variables, complete=complete)) is price


def test_nothing_is_paid_where_nothing_overlaps_or_no_order_is_needed() -> None:
    nothing = Overlapped(gradients=False, sends=False)
    assert told({ONE: "1"}, overlapped=nothing) == {}
    assert told({ONE: "1"}, tp=1) == {}


def test_the_way_out_is_one_that_the_framework_permits() -> None:
    free, demanded = (
        told({ONE: "1"}, demanded=each)["launch.one-queue-price"][1] for each in (False, True)
    )
    assert "2 to 8" in free
    assert "2 to 8" not in demanded and "does not start" in demanded


@pytest.mark.parametrize(
    ("variables", "outcome"),
    [
        ({ONE: "1", "TORCH_NCCL_ENABLE_TIMING": "1"}, "refused"),
        ({ONE: "1", "NCCL_ENABLE_TIMING": "yes"}, "refused"),
        ({"TORCH_NCCL_ENABLE_TIMING": "TRUE"}, "note"),
        ({ONE: "1", "TORCH_NCCL_ENABLE_TIMING": "0"}, None),
        ({ONE: "2", "TORCH_NCCL_ENABLE_TIMING": "1"}, None),
    ],
)
def test_the_timing_of_collectives(variables: dict[str, str], outcome: str | None) -> None:
    found = told(variables).get("launch.nccl-timing-one-queue")
    assert (found and found[0]) == outcome
