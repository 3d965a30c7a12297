"""The cluster that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from overlapkit.config.installation import Installation
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import Assumptions
from overlapkit.hardware import data_sheet, find_gpu
from overlapkit.plan.estimate.machine import Machine, machine_of
from overlapkit.plan.network import Network, gpus_of_node, tcp_link
from overlapkit.plan.rates.measured import measured_machine
from overlapkit.plan.rates.reading import check_gpu, read_rates


@dataclass(frozen=True)
class Cluster:
    """The GPUs of a job.

    Attributes:
        world_size: GPUs of the job.
        machine: rates and links, for estimates.
        assumptions: GPU and software, for the rules.
        notes: what the numbers given for it were taken for, as sentences.
    """

    world_size: int
    machine: Machine
    assumptions: Assumptions
    notes: tuple[str, ...] = ()

    @property
    def nvlink_domain(self) -> int:
        """GPUs that NVLink connects. TP groups do not reach beyond it."""
        return self.machine.nvlink_domain

    @property
    def gpu(self) -> str:
        """Short name of the GPU."""
        return self.assumptions.gpu_name


def cluster_of(
    gpu: str,
    world_size: int,
    *,
    gpus_per_node: int | None = None,
    network: Network | None = None,
    te: str | None = None,
    installation: Installation | None = None,
    rates: str | None = None,
) -> Cluster:
    """A cluster of one kind of GPU.

    Args:
        gpu: such as h100; see `find_gpu`.
        world_size: GPUs of the job.
        gpus_per_node: None takes the GPU's reference system.
        network: between nodes, as stated; None takes the reference system's.
        te, installation: the job's Transformer Engine, as in `explain.assumptions.assume`.
        rates: a file of rates that were measured on such a machine; None for none.

    Raises:
        InputError: the GPU is not known, the network is not as `Network.check` wants it, or the
            rates cannot be read or are of another GPU.
    """
    network = network or Network()
    network.check()
    name, _ = find_gpu(gpu)
    data = data_sheet(gpu, network_gbps=network.gbps)
    domain = nvlink_domain(data.nvlink_domain, gpus_per_node)
    node = gpus_of_node(data.nvlink_domain, gpus_per_node)
    gbps = network.per_gpu(node)
    machine = machine_of(name, network_gbps=gbps, nvlink_domain=domain)
    if network.kind == "tcp":
        machine = replace(machine, links=(*machine.links[:-1], tcp_link(data, gbps)))
    if rates is not None:
        found = read_rates(rates)
        check_gpu(found, name, f"--rates {rates}")
        machine = measured_machine(machine, found, rates)
    assumptions = plan_assumptions(name, te, installation)
    return Cluster(world_size, machine, assumptions, network.notes(node))


def nvlink_domain(reference: int, gpus_per_node: int | None) -> int:
    """GPUs that NVLink connects: a node's, where nodes are smaller than the reference system's.

    Args:
        reference: GPUs in one NVLink domain of the GPU's reference system.
        gpus_per_node: None means those of the reference system.
    """
    if gpus_per_node is None or reference > 8:
        # A rack-wide domain spans its trays.
        return reference
    return min(reference, gpus_per_node)


def plan_assumptions(
    gpu: str, te: str | None = None, installation: Installation | None = None
) -> Assumptions:
    """A Transformer Engine on this GPU, by default a recent one, and no environment yet.

    Raises:
        InputError: the GPU is not known, or `te` is not what the option takes.
    """
    assumed = assume(gpu, te, None, installation=installation)
    return replace(assumed, environment={}, environment_source="the launcher")
