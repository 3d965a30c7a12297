"""The network between nodes as the command line states it: bandwidth, per what, and transport."""

from __future__ import annotations

from dataclasses import dataclass

from overlapkit.errors import InputError
from overlapkit.hardware import DataSheet
from overlapkit.plan.estimate.constants import TCP_HOP_S, TCP_LINK, constant
from overlapkit.plan.estimate.machine import ALL_RANKS, NETWORK_GBPS, Link
from overlapkit.plan.figure import given

PER = ("gpu", "node")
KINDS = ("infiniband", "roce", "tcp")
"""Transports. The first two have RDMA and the same efficiency; tcp is Ethernet without it."""


@dataclass(frozen=True)
class Network:
    """What `--network`, `--network-per` and `--network-kind` state.

    Attributes:
        gbps: Gbit/s; None takes the adapter of the GPU's reference system.
        per: "gpu" or "node", which `gbps` belongs to; None if not stated, which is taken as "gpu".
        kind: of `KINDS`; None takes the reference system's, which has RDMA.
    """

    gbps: float | None = None
    per: str | None = None
    kind: str | None = None

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: an unknown word, a bandwidth out of range, or --network-per alone.
        """
        for option, value, known in (
            ("--network-per", self.per, PER),
            ("--network-kind", self.kind, KINDS),
        ):
            if value is not None and value not in known:
                ethernet = "; Ethernet is roce with RDMA, and tcp without" if known is KINDS else ""
                raise InputError(f"{option} {value}: unknown; give {' or '.join(known)}{ethernet}")
        least, most = NETWORK_GBPS
        if self.gbps is not None and not least <= self.gbps <= most:
            raise InputError(f"--network {self.gbps:g}: want Gbit/s, from {least:g} to {most:,.0f}")
        if self.per is not None and self.gbps is None:
            raise InputError(
                f"--network-per {self.per} says what --network GBPS is for, which is not given"
            )

    def per_gpu(self, gpus_per_node: int) -> float | None:
        """Gbit/s of each GPU; None where the reference system's adapter is taken.

        Args:
            gpus_per_node: GPUs that share a node's adapters.
        """
        if self.gbps is None or self.per != "node":
            return self.gbps
        return self.gbps / gpus_per_node

    def notes(self, gpus_per_node: int) -> tuple[str, ...]:
        """What the numbers were taken for, as sentences."""
        said = []
        if self.gbps is not None and self.per == "node":
            said.append(
                f"--network {self.gbps:g} is taken as a node's: {self.gbps / gpus_per_node:g} "
                f"Gbit/s for each of its {gpus_per_node} GPUs"
            )
        elif self.gbps is not None and self.per is None:
            said.append(
                f"--network {self.gbps:g} is taken as each GPU's, {self.gbps * gpus_per_node:g} "
                f"Gbit/s for a node of {gpus_per_node}; if it is a node's, add --network-per node"
            )
        if self.kind == "tcp":
            said.append(
                f"--network-kind tcp: collectives are taken to sustain {TCP_LINK:.0%} of the "
                "bandwidth, as NCCL does over sockets; a profile shows what your network sustains"
            )
        return tuple(said)


def tcp_link(data: DataSheet, gbps: float | None) -> Link:
    """The network between nodes where NCCL uses sockets.

    Args:
        data: the GPU's data sheet, whose adapter is taken where `gbps` is None.
        gbps: Gbit/s of each GPU.
    """
    source = "GPU data sheet" if gbps is None else "--network"
    peak = given("network peak", (gbps or data.nic_gbps) / 8 * 1e9, "B/s", source)
    share = constant("efficiency of sockets", TCP_LINK)
    return Link(
        name="network",
        domain=ALL_RANKS,
        bandwidth=(peak * share).called("network sustained", "B/s"),
        hop=constant("network hop over sockets", TCP_HOP_S, "s"),
    )


def gpus_of_node(nvlink_domain: int, stated: int | None) -> int:
    """GPUs of a machine, which share its adapters.

    Args:
        nvlink_domain: of the GPU's reference system.
        stated: from --nodes; None if not given.
    """
    if stated is not None:
        return stated
    # A rack-wide NVLink domain consists of trays with 4 GPUs each (GB200 NVL72).
    return 4 if nvlink_domain > 8 else nvlink_domain
