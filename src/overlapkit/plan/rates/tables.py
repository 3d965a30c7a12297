"""The measurements of a file by kind, each as its ratio to the time that the law gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import log2
from typing import Any, NamedTuple

from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.estimate.roofline import (
    attention_time,
    collective_time,
    gemm_time,
    wire_bytes,
)
from overlapkit.plan.figure import Figure, given, literal
from overlapkit.plan.rates.document import (
    RatesAttention,
    RatesCollective,
    RatesDocument,
    RatesGemm,
    RatesMemory,
)
from overlapkit.plan.rates.nearest import Place, Ratios
from overlapkit.plan.workload.attention import BACKWARD_PRODUCTS, Attention
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.gemms import Gemm
from overlapkit.plan.workload.precision import BF16, FP8_CURRENT, FP32, MXFP8, NVFP4

PASS_OCTAVES = {"fprop": 0.0, "dgrad": 1.0, "wgrad": 2.0}
"""How far the passes of one shape are from each other. They read the operands in other orders, and
the last adds to a result in fp32."""
ANY_PASS = 1.0
"""Where it is not known which pass was measured."""

OF_RATE = {one.rate: one for one in (BF16, FP32, FP8_CURRENT, MXFP8, NVFP4)}
"""A precision of each rate."""

TFLOPS = 1e12


class Law(NamedTuple):
    """What a law of the file says of a group."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, eq=False)
class Tables:
    """What was measured, by what it depends on.

    Attributes:
        gemms: by rate of the precision, and whether they are grouped.
        attention: by pass.
        messages: collectives by kind and link.
        laws: of collectives by kind and link.
        memory: by kind of kernel.
    """

    gemms: dict[tuple[str, bool], Ratios] = field(default_factory=dict)
    attention: dict[str, Ratios] = field(default_factory=dict)
    messages: dict[tuple[str, str], Ratios] = field(default_factory=dict)
    laws: dict[tuple[str, str], list[RatesCollective]] = field(default_factory=dict)
    memory: dict[str, RatesMemory] = field(default_factory=dict)

    def law(self, kind: str, link: str, ranks: int) -> Law | None:
        """The law for as many ranks, or for any number, or for the nearest; None without any."""
        laws = self.laws.get((kind, link))
        if laws is None:
            return None

        def octaves(one: RatesCollective) -> float:
            # A law for any number goes before one for other than half or twice as many.
            return 1.0 if one.ranks is None else abs(log2(one.ranks / ranks))

        chosen = min(laws, key=octaves)
        assert chosen.bus_gb_s is not None
        steps = 1 if kind == "send" else (ranks - 1) * (2 if kind == "all-reduce" else 1)
        late = (chosen.step_us * steps + chosen.fixed_us) * 1e-6
        return Law(chosen.bus_gb_s * 1e9, late)


def tables_of(rates: RatesDocument, law: Machine) -> Tables:
    """The measurements of a file beside the times of a law.

    Args:
        rates: the file.
        law: the machine that it was measured on, from data sheets, without shares.
    """
    tables = Tables(memory={one.kind: one for one in rates.memory})
    for one in rates.collectives:
        if one.bus_gb_s is not None:
            tables.laws.setdefault((one.kind, one.link), []).append(one)
    gemms = (
        ((row.precision, row.batch > 1), place_of_gemm(gemm_of(row), row.which), _of_gemm(row, law))
        for row in rates.gemms
    )
    tables.gemms.update(_grouped(gemms))
    attention = (
        (row.phase, place_of_attention(attention_of(row)), _of_attention(row, law))
        for row in rates.attention
    )
    tables.attention.update(_grouped(attention))
    messages = (
        ((one.kind, one.link), place_of_message(one.bytes or 1, one.ranks or 1), time)
        for one in rates.collectives
        if (time := _of_message(one, law, tables)) is not None
    )
    tables.messages.update(_grouped(messages))
    return tables


def gemm_of(row: RatesGemm) -> Gemm:
    """The GEMM that a row measured."""
    return Gemm(
        name="measured",
        which=row.which or "fprop",
        m=row.m,
        n=row.n,
        k=row.k,
        batch=row.batch,
        precision=OF_RATE[row.precision],
    )


def attention_of(row: RatesAttention) -> Attention:
    """The attention that a row measured."""
    pairs = row.sequence**2 / (2 if row.causal else 1)
    scores = given("scores", row.batch * row.heads * pairs, "", "measured")
    forward = literal(2 * (row.qk_head + row.v_head), "FLOP") * scores
    return Attention(
        forward=forward,
        backward=BACKWARD_PRODUCTS * forward,
        counted=3 * forward,
        exponentials=scores,
        rows=row.batch * row.heads * row.sequence,
        head=(row.qk_head + row.v_head) / 2,
    )


def place_of_gemm(gemm: Gemm, which: str | None) -> Place:
    """Where a GEMM is among the measured ones; `which` is its pass, None where not known."""
    turn = ANY_PASS if which is None else PASS_OCTAVES[which]
    return (log2(gemm.m), log2(gemm.n), log2(gemm.k), log2(gemm.batch), turn)


def place_of_attention(one: Attention) -> Place:
    """Keys of each query, queries of all heads, and the head size."""
    return (log2(one.exponentials.value / one.rows), log2(one.rows), log2(one.head))


def place_of_message(payload: float, ranks: int) -> Place:
    """Bytes and members of the group."""
    return (log2(max(payload, 1.0)), log2(ranks))


def _of_gemm(row: RatesGemm, law: Machine) -> float:
    gemm = gemm_of(row)
    seconds = row.seconds or gemm.flops.value / ((row.tflops or 1) * TFLOPS)
    return seconds / gemm_time(gemm, law).value


def _of_attention(row: RatesAttention, law: Machine) -> float:
    one = attention_of(row)
    done: Figure = getattr(one, row.phase)
    seconds = row.seconds or done.value / ((row.tflops or 1) * TFLOPS)
    return seconds / attention_time(one, law, row.phase, OF_RATE[row.precision]).value


def _of_message(row: RatesCollective, law: Machine, tables: Tables) -> float | None:
    """Measured over modelled time of a message; None for a law."""
    if row.bytes is None or row.ranks is None or row.seconds is None:
        return None
    one = Collective(
        dimension="",
        name="message",
        kind=row.kind,
        payload=given("message", row.bytes, "B", "measured"),
        ranks=row.ranks,
        # Members of a group that spans domains are taken as one of each, as data parallelism's are.
        stride=1 if row.link == "node" else law.nvlink_domain,
        phase="step",
    )
    told = tables.law(row.kind, row.link, row.ranks)
    if told is None:
        return row.seconds / collective_time(one, law).value
    return row.seconds / (wire_bytes(one).value / told.bytes_per_s + told.latency_s)


def _grouped(rows: Iterable[tuple[Any, Place, float]]) -> dict[Any, Ratios]:
    found: dict[Any, list[tuple[Place, float]]] = {}
    for key, place, ratio in rows:
        found.setdefault(key, []).append((place, ratio))
    return {key: Ratios(each) for key, each in found.items()}
