"""One microbatch of one layer on a machine: compute, and which communication is exposed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.estimate.overlap import Overlap
from overlapkit.plan.estimate.roofline import (
    attention_time,
    chunking_time,
    collective_time,
    gemm_time,
    host_time,
    traffic_time,
)
from overlapkit.plan.figure import Figure, given, largest, total
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.layers import LayerWork
from overlapkit.plan.workload.recompute import Recompute

FILLING = "PP / microbatches: while the pipeline fills and drains"


@dataclass(frozen=True)
class Communication:
    """Seconds of communication, and those of them that no compute hides."""

    dimension: str
    total: Figure
    exposed: Figure


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """Seconds of a layer's forward or backward for one microbatch.

    Attributes:
        gemms, attention, traffic: compute, including what is recomputed.
        communication: by dimension (TP, CP, EP), where there is any.
        host: waiting for the host to start kernels.
        contention: by how much hidden communication slows the compute beside it, since it takes a
            share of the SMs, and a GEMM in chunks fills the others less well.
    """

    gemms: Figure
    attention: Figure
    traffic: Figure
    communication: tuple[Communication, ...]
    contention: Figure
    host: Figure

    @property
    def compute(self) -> Figure:
        """Without communication and contention."""
        return (self.gemms + self.attention + self.traffic).called("compute of a layer", "s")

    @property
    def all(self) -> Figure:
        """Everything."""
        exposed = (one.exposed for one in self.communication)
        parts = (self.gemms, self.attention, self.traffic, self.host, self.contention, *exposed)
        return total(parts).called("time of a layer", "s")


@dataclass(frozen=True)
class LayerTime:
    """Seconds of a layer for one microbatch."""

    forward: PhaseTime
    backward: PhaseTime

    @property
    def all(self) -> Figure:
        return (self.forward.all + self.backward.all).called("time of a layer, both ways", "s")


def layer_time(
    work: LayerWork,
    machine: Machine,
    overlap: Overlap,
    *,
    alone: float = 0,
    priced: bool = True,
) -> LayerTime:
    """The time of a layer whose kind is `work`.

    Args:
        work: the layer.
        machine: rates and links.
        overlap: what is hidden.
        alone: share of the microbatches that have no other's pass beside them.
        priced: whether overlap costs what it does: TP's cuts GEMMs into chunks, EP's keeps the host
            longer. Without, a time with overlap is never above one without.
    """

    forward = _phase(work, machine, overlap, "forward", None, alone, priced=priced)
    backward = _phase(work, machine, overlap, "backward", forward, alone, priced=priced)
    return LayerTime(forward, backward)


def _phase(
    work: LayerWork,
    machine: Machine,
    overlap: Overlap,
    phase: str,
    forward: PhaseTime | None,
    alone: float,
    *,
    priced: bool,
) -> PhaseTime:
    """One phase.

    Args:
        work: the layer.
        machine: rates and links.
        overlap: what is hidden.
        phase: "forward" or "backward".
        forward: for the backward, what it may repeat.
        alone: share of the microbatches that have no other's pass beside them.
        priced: whether overlap costs what it does.
    """
    gemms = {
        f"{gemm.name} {gemm.which}": gemm_time(gemm, machine)
        for gemm in work.gemms
        if gemm.forward == (phase == "forward")
    }
    times = _compute(work, machine, phase, gemms)
    if forward is not None:
        times = _with_recomputation(work, machine, times, forward)
    compute = (times.gemms + times.attention + times.traffic).called(
        f"{work.name} compute, {phase}", "s"
    )
    beside = _Beside(gemms, times.attention, compute, overlap, alone, machine.makes_room)
    repeated = [] if forward is None else _repeated(work.recompute, forward)
    communication = tuple(_communication(work, machine, phase, beside, repeated))
    hidden = total((one.total - one.exposed for one in communication), "s")
    longer = _chunked(work, machine, phase) if priced and overlap.tp else []
    contention = total([hidden * machine.communication_share, *longer]).called(
        f"{work.name} contention, {phase}", "s"
    )
    # What is exposed keeps the GPU's queue as busy as compute does.
    exposed = (one.exposed for one in communication)
    busy = total([compute, contention, *exposed]).called(
        f"{work.name} kernels and exchanges, {phase}", "s"
    )
    return PhaseTime(
        gemms=times.gemms,
        attention=times.attention,
        traffic=times.traffic,
        communication=communication,
        contention=contention,
        host=host_time(work, machine, phase, busy, overlapped=priced and overlap.ep),
    )


def _chunked(work: LayerWork, machine: Machine, phase: str) -> list[Figure]:
    """By how much longer the GEMMs take that tp_comm_overlap cuts into chunks."""
    cut = {
        one.beside: one.ranks
        for one in work.collectives
        if one.dimension == "TP" and one.phase == phase and one.beside and not one.asynchronous
    }
    at = ((gemm, cut.get(f"{gemm.name} {gemm.which}")) for gemm in work.gemms)
    return [chunking_time(gemm, chunks, machine) for gemm, chunks in at if chunks]


class _Times(NamedTuple):
    """Seconds of a phase's compute."""

    gemms: Figure
    attention: Figure
    traffic: Figure


def _compute(work: LayerWork, machine: Machine, phase: str, gemms: Mapping[str, Figure]) -> _Times:
    attention = given("no attention", 0, "s", "the output layer has none")
    if work.attention:
        attention = attention_time(work.attention, machine, phase, work.precision).called(
            f"{work.name} attention, {phase}"
        )
    moved = (traffic_time(one, machine, phase, work.precision) for one in work.traffic)
    return _Times(
        total(gemms.values(), "s").called(f"{work.name} GEMMs, {phase}", "s"),
        attention,
        total(moved, "s").called(f"{work.name} memory-bound kernels, {phase}", "s"),
    )


def _with_recomputation(
    work: LayerWork, machine: Machine, times: _Times, forward: PhaseTime
) -> _Times:
    """A backward's compute with what it repeats of the forward."""
    gemms, attention, traffic = times
    again = work.recompute
    if again.full_layers:
        share = _share_recomputed(again)
        return _Times(
            (gemms + share * forward.gemms).called(gemms.name),
            (attention + share * forward.attention).called(attention.name),
            (traffic + share * forward.traffic).called(traffic.name),
        )
    repeated = [gemm_time(g, machine) for g in work.gemms if g.forward and g.name in again.gemms]
    gemms = total([gemms, *repeated]).called(gemms.name)
    if again.attention:
        attention = (attention + forward.attention).called(attention.name)
    return _Times(gemms, attention, traffic)


def _repeated(again: Recompute, forward: PhaseTime) -> list[Communication]:
    """The communication of the forward that full recomputation repeats."""
    if not again.full_layers:
        return []
    share = _share_recomputed(again)
    return [
        Communication(
            one.dimension,
            (share * one.total).called(f"{one.dimension} communication recomputed", "s"),
            (share * one.exposed).called(f"{one.dimension} recomputed, exposed", "s"),
        )
        for one in forward.communication
    ]


def _share_recomputed(again: Recompute) -> Figure:
    return given("share of layers recomputed", again.full_layers, "", "model.recompute_num_layers")


@dataclass(frozen=True)
class _Beside:
    """What a phase's communication can hide under, and whether it does.

    Attributes:
        gemms: seconds of each GEMM, as ``name which``.
        attention: seconds of attention.
        compute: seconds of all compute.
        overlap: what is hidden.
        alone: share of the microbatches that have no other's pass beside them.
        makes_room: whether a GEMM leaves SMs to a collective that was started before it.
    """

    gemms: Mapping[str, Figure]
    attention: Figure
    compute: Figure
    overlap: Overlap
    alone: float
    makes_room: bool

    def exposed(self, dimension: str, timed: Sequence[tuple[Collective, Figure]]) -> list[Figure]:
        """What is left of a dimension's collectives, given with their times."""
        if dimension == "TP":
            return [self._tensor(one, time) for one, time in timed]
        if dimension == "CP":
            return [self._context(one, time) for one, time in timed]
        together = total(time for _, time in timed)
        if not self.overlap.ep:
            return [together]
        # Dispatch and combine hide under another microbatch's layer, where there is one.
        alone = given("microbatches without another beside", self.alone, "", FILLING)
        return [(1 - alone) * largest(together - self.compute, 0) + alone * together]

    def _tensor(self, one: Collective, time: Figure) -> Figure:
        """What is left of a TP collective beside its GEMM.

        tp_comm_overlap cuts both into as many chunks as there are ranks, and sends each chunk while
        another is multiplied. One chunk at the start or the end has nothing to hide under. What the
        linear layer starts by itself is independent of the GEMM that it runs beside: userbuffers
        send all of it beside the GEMM, NCCL where the GEMM makes room.
        """
        gemm = self.gemms.get(one.beside)
        if gemm is None:
            return time
        if one.asynchronous and (self.overlap.tp or self.makes_room):
            return largest(time - gemm, 0)
        if not self.overlap.tp:
            return time
        chunks = given("chunks", one.ranks, "", "one for each TP rank")
        return largest(time / chunks, time - gemm)

    def _context(self, one: Collective, time: Figure) -> Figure:
        """What is left of a ring exchange, each step of which hides under a step of attention."""
        if one.kind != "send" or not self.overlap.cp:
            return _counted(time, one.count)
        # All of CP; with a2a+p2p fewer, since its all-to-all has gathered part of the sequence.
        steps = given("steps of the ring", one.ranks, "", "model.cp_comm_type, CP")
        step = (self.attention / steps).called("attention of a ring step", "s")
        return one.count * largest(time - step, 0)


def _communication(
    work: LayerWork,
    machine: Machine,
    phase: str,
    beside: _Beside,
    repeated: Sequence[Communication],
) -> Iterator[Communication]:
    """A phase's communication by dimension, with what is repeated."""
    own = [one for one in work.collectives if one.phase == phase]
    for dimension in ("TP", "CP", "EP"):
        timed = [(one, collective_time(one, machine)) for one in own if one.dimension == dimension]
        if not timed:
            continue
        again = [one for one in repeated if one.dimension == dimension]
        times = [_counted(time, one.count) for one, time in timed]
        exposed = beside.exposed(dimension, timed)
        name = f"{work.name} {dimension} communication, {phase}"
        yield Communication(
            dimension,
            total([*times, *(one.total for one in again)]).called(name, "s"),
            total([*exposed, *(one.exposed for one in again)]).called(f"{name}, exposed", "s"),
        )


def _counted(time: Figure, count: int) -> Figure:
    return time if count == 1 else time * count
