"""The network between nodes as the command line states it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from overlapkit.errors import InputError
from overlapkit.plan.cluster import cluster_of
from overlapkit.plan.figure import Figure
from overlapkit.plan.network import KINDS, Network

Command = Callable[..., Any]
RUN = ("--model", "llama3_8b", "--gpu", "h100", "--world-size", "32", "tp=1", "mbs=1")


def bandwidth(network: Network, gpu: str = "h100", per_node: int | None = None) -> Figure:
    return cluster_of(gpu, 32, network=network, gpus_per_node=per_node).machine.links[-1].bandwidth


def document(plan: Command, *arguments: str) -> dict[str, Any]:
    done = plan(*RUN, *arguments, "--json")
    assert done.status == 0, done.err
    result: dict[str, Any] = json.loads(done.out)
    return result


@pytest.mark.parametrize(
    ("gpu", "per_node", "gpus"),
    [("h100", None, 8), ("a100", 4, 4), ("gb200", None, 4), ("b200", 8, 8)],
)
def test_a_nodes_bandwidth_is_shared_by_its_gpus(gpu: str, per_node: int | None, gpus: int) -> None:
    of_node = bandwidth(Network(800, "node"), gpu, per_node)
    assert of_node.value == pytest.approx(bandwidth(Network(800 / gpus), gpu, per_node).value)
    (said,) = cluster_of(gpu, 32, network=Network(800, "node"), gpus_per_node=per_node).notes
    assert f"{800 / gpus:g} Gbit/s for each of its {gpus} GPUs" in said


def test_what_a_bandwidth_was_taken_for_is_said(plan: Command) -> None:
    def notes(*arguments: str) -> str:
        return "\n".join(document(plan, *arguments)["notes"])

    assert "is taken as each GPU's" in notes("--network", "200")
    assert "--network" not in notes("--network", "200", "--network-per", "gpu")
    assert "25 Gbit/s for each of its 8 GPUs" in notes("--network", "200", "--network-per", "node")
    assert "--network" not in notes()


def test_a_nodes_bandwidth_makes_a_longer_step_than_a_gpus(plan: Command) -> None:
    def step(*arguments: str) -> float:
        value: float = document(plan, *arguments)["estimate"]["step_ms"]["without"]
        return value

    gpus = step("--network", "200", "--network-per", "gpu")
    assert step("--network", "200", "--network-per", "node") > gpus == step("--network", "200")
    assert step("--network", "1600", "--network-per", "node") == pytest.approx(gpus)


def test_ethernet_without_rdma_sustains_less_and_takes_longer_to_start() -> None:
    fabrics = {kind: cluster_of("h100", 32, network=Network(400, "gpu", kind)) for kind in KINDS}
    links = {kind: each.machine.links[-1] for kind, each in fabrics.items()}
    assert links["infiniband"] == links["roce"]
    assert links["tcp"].bandwidth.value < 0.6 * links["roce"].bandwidth.value
    assert links["tcp"].hop.value > links["roce"].hop.value
    assert "over sockets" in "".join(fabrics["tcp"].notes) and not fabrics["roce"].notes
    # Within a node nothing changes.
    assert fabrics["tcp"].machine.links[0] == fabrics["roce"].machine.links[0]


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (Network(0), "--network 0"),
        (Network(float("nan")), "--network nan"),
        (Network(200, "rack"), "--network-per rack"),
        (Network(200, "gpu", "ethernet"), "--network-kind ethernet"),
        (Network(None, "node"), "which is not given"),
    ],
)
def test_what_cannot_be_meant_is_refused(network: Network, named: str) -> None:
    with pytest.raises(InputError, match=named):
        cluster_of("h100", 32, network=network)
