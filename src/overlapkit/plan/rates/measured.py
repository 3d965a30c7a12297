"""A machine whose operators were measured: their times in place of those of the law.

Where a shape itself was measured, its time is the estimate. Elsewhere the law of
`overlapkit.plan.estimate.roofline` says how the time depends on the shape, and the nearest
measurements by how much the machine differs from it (`overlapkit.plan.rates.nearest`). `SHARES` are
left out where there are measurements: they were fitted to steps of other machines in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from overlapkit.plan.estimate.constants import SUSTAINED, constant
from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.estimate.roofline import (
    attention_time,
    collective_time,
    gemm_time,
    wire_bytes,
)
from overlapkit.plan.figure import Figure, given
from overlapkit.plan.rates.document import RatesDocument
from overlapkit.plan.rates.nearest import Found
from overlapkit.plan.rates.tables import (
    Tables,
    place_of_attention,
    place_of_gemm,
    place_of_message,
    tables_of,
)
from overlapkit.plan.workload.attention import Attention
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.gemms import Gemm
from overlapkit.plan.workload.memory_traffic import MemoryTraffic
from overlapkit.plan.workload.precision import Precision

Kind = Literal["gemms", "attention", "memory", "collectives"]
KINDS: tuple[Kind, ...] = ("gemms", "attention", "memory", "collectives")
"""What can be measured, as the keys of the file."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured, for `Machine.measured`. Each answer is None where nothing of its kind was.

    Attributes:
        rates: the file.
        name: of the file, the source of every figure.
        base: the machine without what was measured.
        law: the same without shares, which the measurements are compared with.
        tables: the measurements.
        scale: a factor on what was measured, by kind, which tells how much rests on it.
        sustained: see `SUSTAINED`.
    """

    rates: RatesDocument
    name: str
    base: Machine
    law: Machine
    tables: Tables
    scale: Mapping[Kind, float] = field(default_factory=dict)
    sustained: float = SUSTAINED

    def gemm(self, gemm: Gemm) -> Figure | None:
        """Seconds of a GEMM."""
        ratios = self.tables.gemms.get((gemm.precision.rate, gemm.batch > 1))
        if ratios is None:
            return None
        found = ratios.at(place_of_gemm(gemm, gemm.which))
        return self._corrected(gemm_time(gemm, self.law), found, "gemms")

    def attention(self, attention: Attention, phase: str, precision: Precision) -> Figure | None:
        """Seconds of the "forward" or "backward" of attention."""
        ratios = self.tables.attention.get(phase)
        if ratios is None:
            return None
        law = attention_time(attention, self.law, phase, precision)
        return self._corrected(law, ratios.at(place_of_attention(attention)), "attention")

    def traffic(self, traffic: MemoryTraffic, phase: str, precision: Precision) -> Figure | None:
        """Seconds of a block's memory-bound kernels in the "forward" or "backward".

        Where the layer's GEMMs were not measured, `SHARES` stand for them. These contain what lies
        between the kernels of a step, which would be counted twice.
        """
        one = self.tables.memory.get(traffic.kind)
        if one is None or not self.covers(precision):
            return None
        moved: Figure = getattr(traffic, phase)
        bandwidth = given(f"{one.kind} bandwidth", one.gb_s * 1e9, "B/s", self.name)
        count = given(f"{one.kind} kernels", traffic.kernels, "", "as fused")
        each = given(f"{one.kind} kernel beside its bytes", one.kernel_us * 1e-6, "s", self.name)
        time = self._scaled(moved / bandwidth + count * each, "memory")
        return time.called(moved.name.replace("bytes", "time"), "s")

    def collective(self, one: Collective) -> Figure | None:
        """Seconds of a collective, undisturbed."""
        link = "node" if (one.ranks - 1) * one.stride < self.law.nvlink_domain else "network"
        law = self.tables.law(one.kind, link, one.ranks)
        ratios = self.tables.messages.get((one.kind, link))
        if law is None and ratios is None:
            return None
        name = f"{one.name} {one.kind} time"
        if law is None:
            time = collective_time(one, self.law)
        else:
            rate = given(f"{one.kind} bus bandwidth", law.bytes_per_s, "B/s", self.name)
            late = given(f"{one.kind} latency, {one.ranks} ranks", law.latency_s, "s", self.name)
            time = (wire_bytes(one) / rate + late).called(name, "s")
        near = law is not None
        if ratios is not None:
            found = ratios.at(place_of_message(one.payload.value, one.ranks))
            ratio = given(f"{name}: measured over modelled", found.ratio, "", self.name)
            time, near = time * ratio, near or found.measured
        return (self._scaled(time, "collectives") if near else time).called(name, "s")

    def covers(self, precision: Precision) -> bool:
        """Whether GEMMs of a precision were measured."""
        return (precision.rate, False) in self.tables.gemms

    def starts_experts(self, precision: Precision) -> bool:
        """Whether the time of grouped GEMMs contains their starts by the host."""
        return self.rates.measured == "alone" and (precision.rate, True) in self.tables.gemms

    def machine(self, scale: Mapping[Kind, float] | None = None) -> Machine:
        """The machine with what was measured.

        Args:
            scale: as in `Measured`.
        """
        measured = replace(self, scale=dict(scale or {}))
        changed = replace(self.base, measured=measured)
        stream = self.tables.memory.get("stream")
        if stream is not None:
            rate = stream.gb_s * 1e9 / measured.scale.get("memory", 1.0)
            bandwidth = given("memory bandwidth measured", rate, "B/s", self.name)
            changed = replace(changed, memory_bandwidth=bandwidth)
        if self.rates.launch_us is not None:
            launch = given("launch of a kernel", self.rates.launch_us * 1e-6, "s", self.name)
            changed = replace(changed, launch=launch)
        return changed

    def _corrected(self, law: Figure, found: Found, kind: Kind) -> Figure:
        """The law's time by how much the machine differs from it."""
        time = law * given(f"{law.name}: measured over modelled", found.ratio, "", self.name)
        if self.rates.measured == "alone":
            kept = constant("share of its own rate that an operator keeps", self.sustained)
            time = time / kept
        return (self._scaled(time, kind) if found.measured else time).called(law.name, "s")

    def _scaled(self, time: Figure, kind: Kind) -> Figure:
        factor = self.scale.get(kind, 1.0)
        return time if factor == 1.0 else time * factor


def measured_machine(machine: Machine, rates: RatesDocument, name: str) -> Machine:
    """A machine with what was measured on one of its kind.

    Args:
        machine: from data sheets.
        rates: what was measured.
        name: of their file.
    """
    law = replace(machine, shares={}, measured=None)
    return Measured(rates, name, machine, law, tables_of(rates, law)).machine()
