"""How long a GEMM, a memory-bound kernel and a collective take on a machine."""

from __future__ import annotations

from overlapkit.plan.estimate.constants import ATTENTION, HEAD, OVERLAPPED_HOST, constant
from overlapkit.plan.estimate.machine import Machine, filled, link_between, slowest_link
from overlapkit.plan.figure import Figure, given, hypotenuse, largest, smallest
from overlapkit.plan.workload.attention import Attention
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.gemms import Gemm
from overlapkit.plan.workload.layers import LayerWork
from overlapkit.plan.workload.memory_traffic import MemoryTraffic
from overlapkit.plan.workload.precision import BF16, Precision

LAUNCHED = "kernels that the host starts one by one after it has learned the experts' tokens"


def gemm_time(gemm: Gemm, machine: Machine) -> Figure:
    """Seconds of arithmetic or memory, whichever takes longer (roofline), and a kernel's start.

    In a grouped GEMM each expert has few tokens for its weight. Reading the weight, or adding to
    its gradient, is not hidden under the arithmetic of so few tiles: both take their time, as in
    SimuMax's measurements on B200 (`benchmarks/plan_vs_operators.py`).
    """
    known = machine.known.get(gemm)
    if known is None:
        known = machine.known[gemm] = _gemm_time(gemm, machine)
    return known


def _gemm_time(gemm: Gemm, machine: Machine) -> Figure:
    if machine.measured is not None and (found := machine.measured.gemm(gemm)) is not None:
        return found
    at = f"{gemm.name} {gemm.which}"
    rate = _in_training(machine.rate(gemm.precision.rate), gemm.precision, machine)
    if machine.processors > 1:
        share = filled(machine, gemm.m, gemm.n, gemm.batch, gemm.k)
        rows, columns = machine.tile
        source = f"{rows} x {columns} tiles over {machine.processors} SMs"
        rate = rate * given(f"{at} tiles' use of the SMs", share, "", source)
    reading = machine.operand_bandwidth or machine.memory_bandwidth
    arithmetic, memory = gemm.flops / rate, gemm.moved / reading
    time = arithmetic + memory if gemm.batch > 1 else largest(arithmetic, memory)
    time = time + machine.kernel
    return time.called(f"{at} time", "s")


def _in_training(rate: Figure, precision: Precision, machine: Machine) -> Figure:
    """What is left of a rate in a training step of this precision."""
    share = machine.shares.get(precision.name)
    return rate if share is None else rate * share


def attention_time(
    attention: Attention, machine: Machine, phase: str, precision: Precision = BF16
) -> Figure:
    """Seconds of attention: its products, or its exponentials where these take longer.

    Exponentials of one block of scores are taken beside the products of another (FlashAttention-3,
    2024, section 3.2). The blocks of few heads and short sequences do not fill the GPU.

    Args:
        attention: of one layer.
        machine: rates.
        phase: "forward" or "backward".
        precision: of the layer.
    """
    if machine.measured is not None:
        found = machine.measured.attention(attention, phase, precision)
        if found is not None:
            return found
    rate = _in_training(getattr(machine, f"attention_{phase}"), precision, machine)
    time: Figure = getattr(attention, phase) / rate
    if machine.processors == 1:
        return time.called(f"attention, {phase}", "s")
    pace = ATTENTION[phase]
    if attention.head > HEAD:
        time = time / constant("share of the rate that wide heads sustain", pace.wide)
    if machine.exponentials is not None:
        time = largest(time, attention.exponentials / machine.exponentials)
    rows = machine.attention_rows
    waves = attention.rows / rows / machine.processors
    source = f"blocks of {rows} rows over {machine.processors} SMs"
    filled_share = given("use of the SMs by attention", waves / (waves + pace.waves), "", source)
    return (time / filled_share + machine.kernel).called(f"attention, {phase}", "s")


def host_time(
    work: LayerWork, machine: Machine, phase: str, compute: Figure, *, overlapped: bool
) -> Figure:
    """Seconds in which the GPU waits for the host to start the kernels of a layer's phase.

    The host starts the next kernel while the GPU runs one. Of each pair the slower counts, and a
    layer has short and long kernels. Its time therefore lies above the larger of the two sums, by
    most where they are equal: the root of the sum of their squares.

    Args:
        work: the layer.
        machine: rates.
        phase: "forward" or "backward".
        compute: seconds of the kernels.
        overlapped: whether overlap_moe_expert_parallel_comm is on.
    """
    name = f"{work.name} host, {phase}"
    launches = getattr(work.launches, phase)
    if machine.measured is not None and machine.measured.starts_experts(work.precision):
        launches -= getattr(work.launches, f"experts_{phase}")
    if not launches:
        return given(name, 0, "s", "the host runs ahead of the GPU")
    count = given(f"{work.name} kernels, {phase}", launches, "", LAUNCHED)
    starting = count * machine.launch
    if overlapped:
        starting = starting * constant("host's time with EP overlap", OVERLAPPED_HOST)
    starting = starting.called(f"{work.name} starts of kernels, {phase}", "s")
    return (hypotenuse(starting, compute) - compute).called(name, "s")


def chunking_time(gemm: Gemm, chunks: int, machine: Machine) -> Figure:
    """Seconds by which a GEMM takes longer when its rows are multiplied in chunks, one after
    another: the tiles of each fill the SMs less well than those of all rows."""
    at = f"{gemm.name} {gemm.which}"
    entire = filled(machine, gemm.m, gemm.n, gemm.batch, gemm.k)
    chunk = filled(machine, max(1, gemm.m // chunks), gemm.n, gemm.batch, gemm.k)
    rate = _in_training(machine.rate(gemm.precision.rate), gemm.precision, machine)
    source = f"{chunks} chunks of {gemm.m} rows"
    more = given(
        f"{at} in chunks, tiles' use of the SMs", max(0.0, 1 / chunk - 1 / entire), "", source
    )
    return (gemm.flops / rate * more).called(f"{at} in chunks, longer by", "s")


def traffic_time(
    traffic: MemoryTraffic, machine: Machine, phase: str, precision: Precision = BF16
) -> Figure:
    """Seconds of memory-bound kernels in a phase: their bytes, and the start of each.

    Args:
        traffic: of a block.
        machine: rates.
        phase: "forward" or "backward".
        precision: of the layer.
    """
    if machine.measured is not None:
        found = machine.measured.traffic(traffic, phase, precision)
        if found is not None:
            return found
    moved: Figure = getattr(traffic, phase)
    name = moved.name.replace("bytes", "time")
    rate = machine.memory_bandwidth
    if traffic.kind == "scan" and machine.scan is not None:
        rate = smallest(rate, machine.scan)
    time = moved / rate
    if traffic.kernels and machine.pass_start.value:
        what = f"{moved.name.replace('bytes', 'kernels')}"
        time = time + given(what, traffic.kernels, "", "as fused") * machine.pass_start
    return time.called(name, "s")


def wire_bytes(one: Collective) -> Figure:
    """Bytes that each rank sends in one collective.

    A ring's all-gather and reduce-scatter send everything except a rank's own part, and an
    all-reduce is both (Rabenseifner, 2004). An all-to-all keeps a rank's own part.
    """
    if one.kind == "send":
        return one.payload.called(f"{one.name} bytes sent", "B")
    ranks = given("ranks of the group", one.ranks, "", f"{one.dimension} of the layout")
    sent = one.payload * (ranks - 1) / ranks
    if one.kind == "all-reduce":
        sent = 2 * sent
    return sent.called(f"{one.name} bytes sent", "B")


def collective_time(one: Collective, machine: Machine) -> Figure:
    """Seconds of one collective, undisturbed: its start, bytes sent over bandwidth, and latency.

    A message of the pipeline has no start of its own: both stages have long been waiting for it.
    """
    if machine.measured is not None and (found := machine.measured.collective(one)) is not None:
        return found
    sent = wire_bytes(one)
    name = f"{one.name} {one.kind} time"
    if one.kind == "send":
        link = slowest_link(machine, one.ranks, one.stride)
        return (sent / link.bandwidth + link.hop).called(name, "s")
    bandwidth, latency, near = link_between(machine, one.ranks, one.stride)
    start = machine.collective_start
    if one.kind != "all-to-all":
        rounds = 2 if one.kind == "all-reduce" else 1
        return (sent / bandwidth + latency * rounds + start).called(name, "s")
    if near == one.ranks:
        return (sent / bandwidth + latency + start).called(name, "s")
    # What leaves the domain uses each rank's own adapter, whatever its neighbours do.
    leaving = _leaving(one, near)
    slowest = largest(sent / machine.links[0].bandwidth, leaving / machine.links[-1].bandwidth)
    return (slowest + latency + start).called(name, "s")


def _leaving(one: Collective, near: int) -> Figure:
    """Bytes of an all-to-all that leave a rank's domain, which has `near` of the members."""
    name = f"{one.name} bytes leaving"
    if one.routing is not None and one.ranks % near == 0:
        domains = one.ranks // near
        others = one.routing.copies_to(domains) * (domains - 1) / domains
        copies = given("other domains of a token's experts", others, "", "experts chosen at random")
        return (one.routing.copy * copies).called(name, "B")
    outside = given("members outside of the domain", one.ranks - near, "", "stride of the group")
    return (one.payload * outside / one.ranks).called(name, "B")
