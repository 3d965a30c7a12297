"""The cluster that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from overlapkit.config.installation import Installation
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import Assumptions
from overlapkit.hardware import data_sheet, find_gpu
from overlapkit.plan.estimate.machine import Machine, machine_of


@dataclass(frozen=True)
class Cluster:
    """The GPUs of a job.

    Attributes:
        world_size: GPUs of the job.
        machine: rates and links, for estimates.
        assumptions: GPU and software, for the rules.
    """

    world_size: int
    machine: Machine
    assumptions: Assumptions

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
    network_gbps: float | None = None,
    te: str | None = None,
    installation: Installation | None = None,
) -> Cluster:
    """A cluster of one kind of GPU.

    Args:
        gpu: such as h100; see `find_gpu`.
        world_size: GPUs of the job.
        gpus_per_node: None takes the GPU's reference system.
        network_gbps: Gbit/s of network per GPU; None takes the reference system's adapter.
        te, installation: the job's Transformer Engine, as in `explain.assumptions.assume`.

    Raises:
        InputError: the GPU is not known, or the bandwidth is out of range.
    """
    name, _ = find_gpu(gpu)
    data = data_sheet(gpu, network_gbps=network_gbps)
    domain = nvlink_domain(data.nvlink_domain, gpus_per_node)
    machine = machine_of(name, network_gbps=network_gbps, nvlink_domain=domain)
    return Cluster(world_size, machine, plan_assumptions(name, te, installation))


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
