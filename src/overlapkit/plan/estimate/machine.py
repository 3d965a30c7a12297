"""What a cluster can do: rates, bandwidths and latencies, from data sheets or from measurement.

A `Machine` is plain data. `machine_of` makes one from a GPU's data sheet. A measured machine has
the same fields, filled in with `given(name, value, unit, source)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

from overlapkit.errors import InputError
from overlapkit.hardware import DataSheet, data_sheet, find_gpu
from overlapkit.plan.estimate.constants import (
    COLLECTIVE_S,
    CONSTANTS,
    KERNEL_S,
    LAUNCH_S,
    NETWORK_HOP_S,
    NVLINK_HOP_S,
    PASS_S,
    SAME_CHIP,
    TILE,
    Constants,
    constant,
)
from overlapkit.plan.figure import Figure, given, smallest

if TYPE_CHECKING:
    from overlapkit.plan.rates.measured import Measured
    from overlapkit.plan.workload.gemms import Gemm

ALL_RANKS = 2**31
"""A domain larger than any job."""


NO_LAUNCH = given("launch of a kernel", 0, "s", "not counted")
NO_PASS = given("start and end of a memory-bound kernel", 0, "s", "not counted")
NO_START = given("start of a collective", 0, "s", "not counted")


@dataclass(frozen=True)
class Link:
    """One level of the network.

    Attributes:
        name: such as "NVLink" or "network".
        domain: consecutive ranks that it connects; `ALL_RANKS` for all.
        bandwidth: bytes/s that each rank sends while receiving as many.
        hop: seconds of latency for each step of a collective.
    """

    name: str
    domain: int
    bandwidth: Figure
    hop: Figure


@dataclass(frozen=True)
class Host:
    """The memory of a GPU's host.

    Attributes:
        link: bytes/s between GPU and host, in each direction.
        memory: bytes/s of the host's memory that one GPU's share of its CPUs sustains.
    """

    link: Figure
    memory: Figure


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A cluster of equal GPUs (or other processors).

    Attributes:
        name: shown in messages.
        rates: FLOP/s that large GEMMs sustain, by `Precision.rate`.
        attention_forward, attention_backward: FLOP/s of attention's products, of many heads and a
            long sequence.
        shares: of these rates that a training step sustains, by `Precision.name`; all where none
            is given.
        launch: seconds that the host needs to start a kernel.
        exponentials: 1/s; None where they cost nothing.
        attention_rows: query positions that one block of attention works on.
        memory_bandwidth: bytes/s of a memory-bound kernel.
        operand_bandwidth: bytes/s at which GEMMs read; None where it is the same.
        scan: bytes/s of the kernels of Mamba's scan; None where memory alone bounds them.
        memory: bytes.
        host: its memory; None where that is not known.
        links: nearest first.
        communication_share: share of a rank's arithmetic that a running collective takes.
        kernel: seconds between one kernel and the next.
        pass_start: seconds of a memory-bound kernel beyond its bytes over the bandwidth.
        collective_start: seconds until all members of a collective run its kernel.
        makes_room: whether a GEMM leaves SMs to a collective that its layer starts before it,
            without userbuffers. With CUDA_DEVICE_MAX_CONNECTIONS=1 the collective gets its SMs
            first (github.com/NVIDIA/Megatron-LM/issues/533), and Megatron-LM asks for that on
            Hopper and older. On Blackwell it does not, the recipes set 32, and steps on B200 with
            TP 8 and no userbuffers took as long as if nothing were hidden, even with one connection
            (origin simumax-b200 in `benchmarks/plan_vs_published.py`).
        processors: SMs that a GEMM's tiles are spread over; 1 where that does not matter.
        tile: rows and columns of a GEMM's result that one of them computes.
        step_compute: measured seconds of a step's arithmetic and memory traffic on one rank of the
            workload to estimate. All compute of a step is scaled to it. None: not measured.
        measured: the times of operators that were measured on such a machine, which are asked
            before the rates above; None where none were.
        known: the times of GEMMs that were already asked for, which a sweep's layouts share. A
            machine made with `replace` starts anew.
    """

    name: str
    rates: Mapping[str, Figure]
    attention_forward: Figure
    attention_backward: Figure
    memory_bandwidth: Figure
    memory: Figure
    links: tuple[Link, ...]
    communication_share: Figure
    kernel: Figure
    launch: Figure = NO_LAUNCH
    pass_start: Figure = NO_PASS
    collective_start: Figure = NO_START
    shares: Mapping[str, Figure] = field(default_factory=dict)
    exponentials: Figure | None = None
    operand_bandwidth: Figure | None = None
    scan: Figure | None = None
    attention_rows: int = 1
    makes_room: bool = True
    processors: int = 1
    tile: tuple[int, int] = (1, 1)
    step_compute: Figure | None = None
    measured: Measured | None = None
    host: Host | None = None
    known: dict[Gemm, Figure] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def nvlink_domain(self) -> int:
        """Consecutive ranks on the nearest link."""
        return self.links[0].domain

    def rate(self, kind: str) -> Figure:
        """The sustained rate of a kind of GEMM.

        Raises:
            InputError: the machine has no such rate.
        """
        if kind not in self.rates:
            raise InputError(
                f"{self.name} has no {kind} tensor cores; set mixed_precision to a recipe for one "
                f"of {', '.join(self.rates)}, such as bf16_mixed"
            )
        return self.rates[kind]


ROWS, BLACKWELL_ROWS = 128, 256
"""Query positions of a thread block of flash attention; on Blackwell it works on two tiles in turn
(FlashAttention-2, 2023, and FlashAttention-4, 2025)."""

NETWORK_GBPS = (1e-3, 1e6)
"""Gbit/s of network per GPU that are accepted: far beyond any adapter, in both directions."""


def machine_of(
    gpu: str,
    *,
    network_gbps: float | None = None,
    nvlink_domain: int | None = None,
    constants: Constants = CONSTANTS,
) -> Machine:
    """The machine of a GPU's reference system.

    Args:
        gpu: such as h100; see `find_gpu`.
        network_gbps: Gbit/s of network per GPU; None takes the reference system's adapter.
        nvlink_domain: GPUs connected by NVLink; None takes the reference system's.
        constants: the efficiencies.

    Raises:
        InputError: an unknown GPU, or a bandwidth or a domain that is out of range.
    """
    name, found = find_gpu(gpu)
    least, most = NETWORK_GBPS
    if network_gbps is not None and not least <= network_gbps <= most:
        raise InputError(
            f"--network {network_gbps:g}: want Gbit/s per GPU, from {least:g} to {most:,.0f}"
        )
    if nvlink_domain is not None and nvlink_domain < 1:
        raise InputError(f"NVLink domain of {nvlink_domain} GPUs: want 1 or more")
    data = data_sheet(gpu, network_gbps=network_gbps)
    sheet = f"{name} data sheet"
    peaks = _peaks(data, sheet)
    power = given("power", data.tdp_watt, "W", sheet)
    tensor = constant("tensor-core efficiency", constants.tensor)
    forward = constant("attention forward efficiency", constants.attention_forward)
    backward = constant("attention backward efficiency", constants.attention_backward)
    own = constant(
        f"attention's share, {found.arch}", constants.shares.get(f"attention {found.arch}", 1.0)
    )
    memory = given("memory bandwidth peak", data.hbm_tbps * 1e12, "B/s", sheet)
    reading = constant("share of the memory's bandwidth that GEMMs read at", constants.memory)
    passing = constant("memory efficiency", constants.passes)
    taken = constant("SMs that a collective takes", constants.processors)
    return Machine(
        name=name,
        rates={
            kind: _sustained(kind, peak, power, tensor, constants) for kind, peak in peaks.items()
        },
        attention_forward=(peaks["bf16"] * forward * own).called("attention forward", "FLOP/s"),
        attention_backward=(peaks["bf16"] * backward * own).called("attention backward", "FLOP/s"),
        shares=_shares(name, constants),
        exponentials=_exponentials(data, peaks["bf16"]),
        scan=_scan(data, peaks["bf16"], constants),
        attention_rows=BLACKWELL_ROWS if found.sm100_or_newer else ROWS,
        makes_room=not found.sm100_or_newer,
        memory_bandwidth=(memory * passing).called("memory bandwidth sustained", "B/s"),
        operand_bandwidth=(memory * reading).called("bandwidth of operands", "B/s"),
        memory=given("memory", data.memory_bytes, "B", sheet),
        links=(
            Link(
                name="NVLink",
                domain=nvlink_domain or data.nvlink_domain,
                bandwidth=_bandwidth("NVLink", data.nvlink_gbps_per_dir * 1e9, sheet, constants),
                hop=constant("NVLink hop", NVLINK_HOP_S, "s"),
            ),
            _network(network_gbps, data, sheet, constants),
        ),
        communication_share=(taken / given("SMs", data.sm, "", sheet)).called(
            "share of SMs that a collective takes"
        ),
        kernel=constant("kernel start", KERNEL_S, "s"),
        launch=constant("launch of a kernel", LAUNCH_S, "s"),
        pass_start=constant("start and end of a memory-bound kernel", PASS_S, "s"),
        collective_start=constant("start of a collective", COLLECTIVE_S, "s"),
        processors=data.sm,
        tile=TILE,
        host=_host(data, sheet, constants),
    )


def _network(gbps: float | None, data: DataSheet, sheet: str, constants: Constants) -> Link:
    """The network at `gbps` Gbit/s per GPU; None takes the data sheet's adapter."""
    source = sheet if gbps is None else "--network"
    return Link(
        name="network",
        domain=ALL_RANKS,
        bandwidth=_bandwidth("network", (gbps or data.nic_gbps) / 8 * 1e9, source, constants),
        hop=constant("network hop", NETWORK_HOP_S, "s"),
    )


def _host(data: DataSheet, sheet: str, constants: Constants) -> Host | None:
    """The host's memory, as far as its data sheets tell."""
    if data.host_link_gbps_per_dir is None or data.host_memory_gbps is None:
        return None
    memory = given("host memory peak", data.host_memory_gbps * 1e9, "B/s", sheet)
    streaming = constant("memory efficiency", constants.memory)
    return Host(
        _bandwidth("host link", data.host_link_gbps_per_dir * 1e9, sheet, constants),
        (memory * streaming).called("host memory sustained", "B/s"),
    )


_SHEETS = "overlapkit/data/hardware.json"


def _peaks(data: DataSheet, sheet: str) -> dict[str, Figure]:
    """The data sheet's FLOP/s by `Precision.rate`, for those that the GPU has."""
    tflops = {
        "bf16": data.bf16_tflops,
        "fp8": data.fp8_tflops,
        # Block scaling was introduced with the generation that has FP4.
        "mxfp8": data.fp8_tflops if data.nvfp4_tflops else None,
        "nvfp4": data.nvfp4_tflops,
        # TF32, which fp32 matrix products can use, runs at half the rate of BF16.
        "fp32": data.bf16_tflops / 2,
    }
    return {
        kind: given(f"{kind} peak", rate * 1e12, "FLOP/s", sheet)
        for kind, rate in tflops.items()
        if rate is not None
    }


OPERAND_BITS = {"fp32": 32, "fp8": 8, "mxfp8": 8.25, "nvfp4": 4.5}
"""Bits of one element of a GEMM's operand, with its share of the scales: one byte for 32 elements
of MXFP8 and for 16 of NVFP4."""


def _sustained(
    kind: str, peak: Figure, power: Figure, tensor: Figure, constants: Constants
) -> Figure:
    """What tensor cores sustain, or what power allows, whichever is less."""
    if kind == "bf16":
        energy = constant("bf16 energy", constants.bf16_energy * 1e-12, "J/FLOP")
    else:
        bits = given(f"{kind} operand bits", OPERAND_BITS[kind], "", "the format, with its scales")
        energy = (
            constant("energy of an operation", constants.flop_energy * 1e-12, "J/FLOP")
            + constant("energy of an operand bit", constants.bit_energy * 1e-12, "J/FLOP") * bits
        ).called(f"{kind} energy", "J/FLOP")
    return smallest(peak * tensor, power / energy).called(f"{kind} sustained", "FLOP/s")


def _shares(gpu: str, constants: Constants) -> dict[str, Figure]:
    """The shares of a GPU by the name of a precision."""
    chip = f"{SAME_CHIP.get(gpu, gpu)} "
    return {
        key.removeprefix(chip): constant(f"share of {key} in training", share)
        for key, share in constants.shares.items()
        if key.startswith(chip)
    }


def _exponentials(gpu: DataSheet, peak: Figure) -> Figure:
    """Exponentials per second of all special-function units."""
    unit = given("exponentials per SM and clock", gpu.exp_per_clock, "", _SHEETS)
    return (_clocks(gpu, peak) * unit).called("exponentials", "1/s")


def _scan(gpu: DataSheet, peak: Figure, constants: Constants) -> Figure:
    """Bytes per second of the scan's kernels on all SMs."""
    each = constant("bytes of a scan per SM and clock", constants.scan, "B")
    return (_clocks(gpu, peak) * each).called("rate of a scan", "B/s")


def _clocks(gpu: DataSheet, peak: Figure) -> Figure:
    """Clocks per second of all SMs together.

    Args:
        gpu: the data sheet.
        peak: FLOP/s of the data sheet in BF16, which gives the clock.
    """
    each = given("BF16 operations per SM and clock", gpu.bf16_flop_per_clock, "FLOP", _SHEETS)
    return (peak / each).called("clocks of all SMs", "1/s")


def _bandwidth(name: str, peak: float, source: str, constants: Constants) -> Figure:
    share = constant("link efficiency", constants.link)
    return (given(f"{name} peak", peak, "B/s", source) * share).called(f"{name} sustained", "B/s")


def filled(machine: Machine, m: int, n: int, batch: int, k: int) -> float:
    """Share of the processors' time that a GEMM's tiles use, from 0 to 1.

    The result is cut into tiles, which the processors compute in waves. Edges that do not fill a
    tile, and a last wave that does not fill the GPU, waste time. With fewer tiles than processors
    the inner dimension is cut as well (split-K), as libraries do.
    """
    if machine.processors == 1:
        return 1.0
    best = 0.0
    for rows, columns in (machine.tile, machine.tile[::-1], (machine.tile[0],) * 2):
        tiles = ceil(m / rows) * ceil(n / columns) * batch
        splits = max(1, min(machine.processors // tiles, k // 1024))
        waves = ceil(tiles * splits / machine.processors)
        covered = waves * machine.processors * rows * columns / splits
        best = max(best, m * n * batch / covered)
    return min(best, 1.0)


def slowest_link(machine: Machine, ranks: int, stride: int) -> Link:
    """The link between the neighbours of a group that are farthest apart.

    Where the group spans several domains, some neighbours are in different ones, and all wait for
    these. Each message has one sender, and therefore one adapter.
    """
    reaches_out = (ranks - 1) * stride + 1 > machine.nvlink_domain
    return machine.links[-1 if reaches_out else 0]


def link_between(machine: Machine, ranks: int, stride: int) -> tuple[Figure, Figure, int]:
    """How a group of `ranks`, `stride` apart, is connected.

    A ring over several domains enters and leaves each of them once per member in it, so that the
    adapters of these members carry it together, up to the bandwidth of the inner link.

    Returns:
        Bytes/s of each rank, seconds of latency over the entire ring, members within a domain.
    """
    inner = machine.links[0]
    span = (ranks - 1) * stride + 1
    if span <= inner.domain or len(machine.links) == 1:
        return inner.bandwidth, (inner.hop * max(ranks - 1, 1)).called("latency", "s"), ranks
    outer = machine.links[-1]
    near = max(1, min(ranks, inner.domain // stride))
    hops = given(
        "hops between domains", max(ceil(ranks / near) - 1, 1), "", f"{ranks} ranks, {near} in each"
    )
    latency = outer.hop * hops
    bandwidth = outer.bandwidth
    if near > 1:
        members = given("members of the group in a domain", near, "", "stride of the group")
        bandwidth = smallest(inner.bandwidth, outer.bandwidth * members)
        latency = latency + inner.hop * (near - 1)
    return bandwidth.called("bandwidth of the group", "B/s"), latency.called("latency", "s"), near
