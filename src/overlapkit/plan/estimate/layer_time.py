"""One layer's microbatch on a machine: compute, and which communication it leaves exposed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.estimate.overlap import Overlap
from overlapkit.plan.estimate.roofline import collective_time, gemm_time, traffic_time
from overlapkit.plan.figure import Figure, given, largest, total
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.step import LayerWork

RECOMPUTE = "model.recompute_num_layers"


@dataclass(frozen=True)
class Communication:
    """Seconds of communication, and those of them that no compute hides."""

    dimension: str
    total: Figure
    exposed: Figure


@dataclass(frozen=True)
class PhaseTime:
    """Seconds of a layer's forward or backward for one microbatch.

    Attributes:
        gemms, attention, traffic: compute, with what is recomputed.
        communication: by dimension (TP, CP, EP), where there is any.
        contention: by how much hidden communication slows the compute that it runs beside, since it
            takes a share of the SMs.
    """

    gemms: Figure
    attention: Figure
    traffic: Figure
    communication: tuple[Communication, ...]
    contention: Figure

    @property
    def compute(self) -> Figure:
        """Without communication and contention."""
        return (self.gemms + self.attention + self.traffic).called("compute of a layer", "s")

    @property
    def all(self) -> Figure:
        """Everything."""
        exposed = (one.exposed for one in self.communication)
        return total([self.gemms, self.attention, self.traffic, self.contention, *exposed]).called(
            "time of a layer", "s"
        )


@dataclass(frozen=True)
class LayerTime:
    """Seconds of a layer for one microbatch."""

    forward: PhaseTime
    backward: PhaseTime

    @property
    def all(self) -> Figure:
        return (self.forward.all + self.backward.all).called("time of a layer, both ways", "s")


def layer_time(work: LayerWork, machine: Machine, overlap: Overlap) -> LayerTime:
    """The time of a layer whose kind is `work`."""
    forward = _phase(work, machine, overlap, "forward", None)
    return LayerTime(forward, _phase(work, machine, overlap, "backward", forward))


def _phase(
    work: LayerWork,
    machine: Machine,
    overlap: Overlap,
    phase: str,
    forward: PhaseTime | None,
) -> PhaseTime:
    each = {
        f"{gemm.name} {gemm.which}": gemm_time(gemm, machine)
        for gemm in work.gemms
        if gemm.forward == (phase == "forward")
    }
    gemms = total(each.values(), "s").called(f"{work.name} GEMMs, {phase}", "s")
    attention = given("no attention", 0, "s", "the output layer has none")
    if work.attention:
        flops = getattr(work.attention, phase)
        rate = getattr(machine, f"attention_{phase}")
        attention = (flops / rate).called(f"{work.name} attention, {phase}", "s")
    moved = (traffic_time(getattr(one, phase), machine) for one in work.traffic)
    traffic = total(moved, "s").called(f"{work.name} memory-bound kernels, {phase}", "s")

    again = work.recompute
    repeated: list[Communication] = []
    if forward is not None and again.whole_layers:
        share = given("share of layers recomputed", again.whole_layers, "", RECOMPUTE)
        gemms = (gemms + share * forward.gemms).called(gemms.name)
        attention = (attention + share * forward.attention).called(attention.name)
        traffic = (traffic + share * forward.traffic).called(traffic.name)
        repeated = [
            Communication(
                one.dimension,
                (share * one.total).called(f"{one.dimension} communication recomputed", "s"),
                (share * one.exposed).called(f"{one.dimension} recomputed, exposed", "s"),
            )
            for one in forward.communication
        ]
    elif forward is not None:
        twice = [gemm_time(g, machine) for g in work.gemms if g.forward and g.name in again.gemms]
        gemms = total([gemms, *twice]).called(gemms.name)
        if again.attention:
            attention = (attention + forward.attention).called(attention.name)

    compute = (gemms + attention + traffic).called(f"{work.name} compute, {phase}", "s")
    own = [one for one in work.collectives if one.phase == phase]
    communication = []
    for dimension in ("TP", "CP", "EP"):
        timed = [(one, collective_time(one, machine)) for one in own if one.dimension == dimension]
        if not timed:
            continue
        if dimension == "TP":
            exposed = [_beside(one, time, each, overlap.tp) for one, time in timed]
        elif dimension == "CP":
            exposed = [_ring(one, time, attention, overlap.cp) for one, time in timed]
        else:
            exposed = _under_a_microbatch(timed, compute, overlap.ep)
        times = (_counted(time, one.count) for one, time in timed)
        communication.append(_named(dimension, work.name, phase, times, exposed, repeated))
    hidden = total((one.total - one.exposed for one in communication), "s")
    contention = (hidden * machine.communication_share).called(
        f"{work.name} contention, {phase}", "s"
    )
    return PhaseTime(gemms, attention, traffic, tuple(communication), contention)


def _named(
    dimension: str,
    name: str,
    phase: str,
    times: Iterable[Figure],
    exposed: Iterable[Figure],
    repeated: Iterable[Communication],
) -> Communication:
    of_dimension = [one for one in repeated if one.dimension == dimension]
    at = f"{name} {dimension} communication, {phase}"
    return Communication(
        dimension,
        total([*times, *(one.total for one in of_dimension)]).called(at, "s"),
        total([*exposed, *(one.exposed for one in of_dimension)]).called(f"{at}, exposed", "s"),
    )


def _counted(time: Figure, count: int) -> Figure:
    return time if count == 1 else time * count


def _beside(one: Collective, time: Figure, gemms: dict[str, Figure], on: bool) -> Figure:
    """What is left of a TP collective beside its GEMM.

    tp_comm_overlap cuts both into as many chunks as there are ranks and lets each chunk travel
    while another is multiplied; one chunk at the start or the end has nothing to hide under. What
    the linear layer starts by itself is independent of the GEMM that it runs beside.
    """
    beside = gemms.get(one.beside)
    if beside is None:
        return time
    if one.always_hidden:
        return largest(time - beside, 0)
    if not on:
        return time
    return largest(time / given("chunks", one.ranks, "", "one for each TP rank"), time - beside)


def _ring(one: Collective, time: Figure, attention: Figure, on: bool) -> Figure:
    """What is left of a ring exchange, each of whose steps hides under one step of attention."""
    if one.kind != "send" or not on:
        return _counted(time, one.count)
    # All of CP, but for a2a+p2p, whose all-to-all has gathered the sequence of its ranks before.
    steps = given("steps of the ring", one.ranks, "", "model.cp_comm_type, CP")
    step = (attention / steps).called("attention of a ring step", "s")
    return one.count * largest(time - step, 0)


def _under_a_microbatch(
    timed: list[tuple[Collective, Figure]], compute: Figure, on: bool
) -> list[Figure]:
    """What is left of dispatch and combine beside the compute of another microbatch's layer."""
    together = total(time for _, time in timed)
    return [largest(together - compute, 0) if on else together]
