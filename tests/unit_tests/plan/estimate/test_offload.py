"""What the host does in a step, against closed forms."""

from __future__ import annotations

from typing import Any

import pytest

from overlapkit.errors import InputError
from overlapkit.plan.estimate.activations import layer_activations
from overlapkit.plan.estimate.machine import Host, Machine, machine_of
from overlapkit.plan.estimate.memory import memory
from overlapkit.plan.estimate.offload_time import UPDATE_BYTES
from overlapkit.plan.estimate.overlap import NO_OVERLAP
from overlapkit.plan.estimate.step_time import Estimate, estimate
from overlapkit.plan.figure import given
from overlapkit.plan.workload.step import Workload, workload
from support.plan_runs import effective_run, plain_machine, work_of


def beside(link: float, host_memory: float) -> Machine:
    """A machine whose host has these bytes/s."""
    host = Host(given("link", link, "B/s"), given("host memory", host_memory, "B/s"))
    return plain_machine(host=host)


def step_of(machine: Machine, **settings: Any) -> tuple[Estimate, Workload]:
    work = work_of(1, **settings)
    return estimate(work, machine, NO_OVERLAP), work


def on_host(share: float) -> dict[str, Any]:
    return {
        "optimizer": {
            "optimizer_cpu_offload": True,
            "optimizer_offload_fraction": share,
        }
    }


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_host_updates_its_share_of_the_optimizer(share: float) -> None:
    run = effective_run(1, **on_host(share))
    work = workload(run, 1)
    assert work.offload.optimizer == share
    slow = estimate(work, beside(1e15, 1e9), NO_OVERLAP).parts["optimizer"].value
    free = estimate(work, beside(1e15, 1e30), NO_OVERLAP).parts["optimizer"].value
    updated = share * work.rank_parameters.value
    assert slow - free == pytest.approx(updated * UPDATE_BYTES / 1e9, rel=1e-3)
    # A slow link is the bottleneck instead: gradients to the host.
    linked = estimate(work, beside(1e8, 1e30), NO_OVERLAP).parts["optimizer"].value
    size = work.exchange.gradient_bytes
    assert linked - free == pytest.approx(updated * size / 1e8, rel=1e-3)


def test_what_the_host_updates_is_not_on_the_gpu() -> None:
    states = []
    for settings in ({}, on_host(0.5), on_host(1.0)):
        run = effective_run(1, **settings)
        states.append(memory(run, workload(run, 1), plain_machine()).optimizer.value)
    assert states[1] == states[0] / 2 and states[2] == 0


def test_activations_that_the_link_is_too_slow_for_are_waited_for() -> None:
    settings: dict[str, Any] = {"cpu_offloading": True, "cpu_offloading_num_layers": 4}
    fast, _ = step_of(beside(1e30, 1e30), **settings)
    assert fast.parts["activation offload"].value == 0
    slow, work = step_of(beside(1e6, 1e30), **settings)
    kept = layer_activations(work, work.layers[0]).value
    copies = 2 * 4 * kept / 1e6 * work.layout.microbatches
    waited = slow.parts["activation offload"].value
    assert copies * 0.9 < waited < copies
    assert slow.step.value - fast.step.value == pytest.approx(waited)
    without, _ = step_of(beside(1e6, 1e30))
    assert "activation offload" not in without.parts


def test_a_host_that_is_not_known_takes_no_time() -> None:
    step, _ = step_of(plain_machine(), cpu_offloading=True, cpu_offloading_num_layers=4)
    assert "activation offload" not in step.parts
    assert machine_of("b300").host is None
    assert machine_of("gb200").host is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (on_host(1.5), "optimizer_offload_fraction=1.5"),
        ({"cpu_offloading": True, "cpu_offloading_num_layers": -1}, "cpu_offloading_num_layers=-1"),
    ],
)
def test_impossible_shares_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        work_of(1, **settings)
