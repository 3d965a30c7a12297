"""Estimates with measured rates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from overlapkit.plan.estimate.constants import SUSTAINED
from overlapkit.plan.estimate.costs import Costs, costs_of_run
from overlapkit.plan.estimate.machine import ALL_RANKS, Link, Machine, machine_of
from overlapkit.plan.estimate.overlap import NO_OVERLAP
from overlapkit.plan.estimate.roofline import (
    attention_time,
    collective_time,
    gemm_time,
    host_time,
    traffic_time,
)
from overlapkit.plan.estimate.step_time import estimate
from overlapkit.plan.figure import given, literal
from overlapkit.plan.rates.document import (
    RatesAttention,
    RatesCollective,
    RatesDocument,
    RatesGemm,
    RatesMemory,
)
from overlapkit.plan.rates.measured import Measured, measured_machine
from overlapkit.plan.rates.nearest import REACH, Ratios
from overlapkit.plan.rates.resting import resting
from overlapkit.plan.rates.tables import attention_of, gemm_of
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.gemms import Gemm
from overlapkit.plan.workload.memory_traffic import MemoryTraffic
from overlapkit.plan.workload.precision import BF16, MXFP8
from support.plan_runs import effective_run, plain_machine, work_of


def rates(**parts: Any) -> RatesDocument:
    return RatesDocument(**({"gpu": "b200", "measured": "training", "source": "a test"} | parts))


def with_rates(machine: Machine | None = None, **parts: Any) -> Machine:
    return measured_machine(machine or machine_of("b200"), rates(**parts), "rates.json")


def measured_of(machine: Machine) -> Measured:
    assert machine.measured is not None
    return machine.measured


def gemm_row(m: int = 4096, n: int = 8192, k: int = 8192, **more: Any) -> RatesGemm:
    return RatesGemm(**({"precision": "bf16", "m": m, "n": n, "k": k, "which": "fprop"} | more))


def law_s(row: RatesGemm) -> float:
    return gemm_time(gemm_of(row), replace(machine_of("b200"), shares={})).value


def test_a_measured_shape_takes_what_was_measured() -> None:
    row = gemm_row(seconds=1e-3)
    assert gemm_time(gemm_of(row), with_rates(gemms=[row])).value == pytest.approx(1e-3)
    told = gemm_row(tflops=500)
    expected = 2 * 4096 * 8192 * 8192 / 500e12
    assert gemm_time(gemm_of(told), with_rates(gemms=[told])).value == pytest.approx(expected)


def test_an_operator_alone_is_faster_than_in_a_step() -> None:
    row = gemm_row(seconds=1e-3)
    machine = with_rates(gemms=[row], measured="alone")
    assert gemm_time(gemm_of(row), machine).value == pytest.approx(1e-3 / SUSTAINED)


def test_the_median_of_repeated_measurements_counts() -> None:
    rows = [gemm_row(seconds=each) for each in (1e-3, 2e-3, 9e-3)]
    assert gemm_time(gemm_of(rows[0]), with_rates(gemms=rows)).value == pytest.approx(2e-3)


@drawn(
    st.floats(0.2, 5),
    st.lists(st.tuples(*[st.integers(6, 17)] * 3), min_size=1, max_size=8),
    st.tuples(*[st.integers(6, 17)] * 3),
)
def test_a_machine_that_is_slower_everywhere_is_slower_for_every_shape(
    factor: float, known: list[tuple[int, int, int]], asked: tuple[int, int, int]
) -> None:
    """Whatever was measured: where the law is off by one factor, so is every estimate."""
    rows = [gemm_row(*(2**size for size in sizes)) for sizes in known]
    told = [gemm_row(row.m, row.n, row.k, seconds=factor * law_s(row)) for row in rows]
    wanted = gemm_row(*(2**size for size in asked))
    found = gemm_time(gemm_of(wanted), with_rates(gemms=told)).value
    assert found == pytest.approx(factor * law_s(wanted))


def test_between_two_measurements_the_nearer_one_counts_more() -> None:
    ratios = Ratios([((0.0,), 1.0), ((2.0,), 4.0)])
    assert ratios.at((0.0,)) == (1.0, 0.0)
    assert 1 < ratios.at((0.5,)).ratio < 2 < ratios.at((1.5,)).ratio < 4
    assert ratios.at((1.0,)).ratio == pytest.approx(2)


def test_far_from_everything_measured_the_median_counts_and_is_not_called_measured() -> None:
    ratios = Ratios([((0.0,), 1.0), ((1.0,), 2.0), ((2.0,), 8.0)])
    assert ratios.at((2.0 + REACH,)).measured
    far = ratios.at((2.1 + REACH,))
    assert not far.measured
    assert far.ratio == pytest.approx(2)


def test_what_was_not_measured_is_estimated_as_without_rates() -> None:
    plain, measured = machine_of("b200"), with_rates(gemms=[gemm_row(seconds=1e-3)])
    for precision in ("bf16_with_mxfp8_mixed", "bf16_with_fp8_current_scaling_mixed"):
        work = work_of(8, precision=precision, seq_length=4096)
        for gemm in work.layers[0].gemms:
            if gemm.precision.rate != "bf16":
                assert gemm_time(gemm, measured).value == gemm_time(gemm, plain).value
        attention = work.layers[0].attention
        assert attention is not None
        for phase in ("forward", "backward"):
            times = [attention_time(attention, one, phase).value for one in (measured, plain)]
            assert times[0] == times[1]


def test_grouped_gemms_and_others_do_not_speak_for_each_other() -> None:
    machine = with_rates(gemms=[gemm_row(seconds=1.0), gemm_row(512, batch=8, seconds=2.0)])
    assert gemm_time(gemm_of(gemm_row()), machine).value == pytest.approx(1.0)
    assert gemm_time(gemm_of(gemm_row(512, batch=8)), machine).value == pytest.approx(2.0)


def test_attention_is_measured_by_pass() -> None:
    rows = [
        RatesAttention(
            phase=phase, precision="bf16", batch=1, sequence=4096, heads=32, qk_head=128,
            v_head=128, seconds=seconds,
        )
        for phase, seconds in (("forward", 1e-3), ("backward", 3e-3))
    ]  # fmt: skip
    machine = with_rates(attention=rows)
    one = attention_of(rows[0])
    assert attention_time(one, machine, "forward").value == pytest.approx(1e-3)
    assert attention_time(one, machine, "backward").value == pytest.approx(3e-3)
    # In proportion to the law: twice the sequence is four times the scores.
    longer = attention_of(
        RatesAttention(
            phase="forward", precision="bf16", batch=1, sequence=8192, heads=32, qk_head=128,
            v_head=128,
        )
    )  # fmt: skip
    law = replace(machine_of("b200"), shares={})
    ratio = [attention_time(each, law, "forward").value for each in (longer, one)]
    expected = 1e-3 * ratio[0] / ratio[1]
    assert attention_time(longer, machine, "forward").value == pytest.approx(expected)


def traffic(kind: str = "stream") -> MemoryTraffic:
    moved = given("block bytes", 1e9, "B")
    return MemoryTraffic(moved, moved, 3, kind)


def test_memory_bound_kernels_take_their_bytes_and_a_time_each() -> None:
    memory = [RatesMemory(kind="stream", gb_s=1000, kernel_us=10)]
    machine = with_rates(memory=memory, gemms=[gemm_row(seconds=1.0)])
    assert traffic_time(traffic(), machine, "forward").value == pytest.approx(1e-3 + 30e-6)
    assert machine.memory_bandwidth.value == 1e12
    # Each kind of kernel by its own measurement.
    untold = traffic_time(traffic("loss"), machine, "forward").value
    pauses = 3 * machine.pass_start.value
    assert untold == pytest.approx(1e9 / machine.memory_bandwidth.value + pauses)


def test_kernels_of_layers_in_a_precision_that_was_not_measured_are_in_its_share() -> None:
    memory = [RatesMemory(kind="stream", gb_s=1000, kernel_us=1000)]
    machine = with_rates(memory=memory, gemms=[gemm_row(seconds=1.0)])
    plain = replace(machine, measured=None)
    found = traffic_time(traffic(), machine, "forward", MXFP8).value
    assert found == traffic_time(traffic(), plain, "forward").value < 3e-3


def message(kind: str, size: float, ranks: int, stride: int = 1) -> Collective:
    return Collective(
        dimension="TP", name="x", kind=kind, payload=literal(size, "B"), ranks=ranks,
        stride=stride, phase="forward",
    )  # fmt: skip


def test_a_law_of_collectives_has_bandwidth_steps_and_a_start() -> None:
    told = [
        RatesCollective(
            kind=kind, link="node", bus_gb_s=100, step_us=10, fixed_us=5
        )
        for kind in ("all-gather", "all-reduce", "send")
    ]  # fmt: skip
    machine = with_rates(collectives=told)

    def time(kind: str) -> float:
        return collective_time(message(kind, 8e9, 8), machine).value

    assert time("all-gather") == pytest.approx(7e9 / 100e9 + 7 * 10e-6 + 5e-6)
    assert time("all-reduce") == pytest.approx(14e9 / 100e9 + 14 * 10e-6 + 5e-6)
    assert time("send") == pytest.approx(8e9 / 100e9 + 10e-6 + 5e-6)
    plain = machine_of("b200")
    for one in (message("reduce-scatter", 8e9, 8), message("all-gather", 8e9, 8, stride=8)):
        assert collective_time(one, machine).value == collective_time(one, plain).value


def test_a_law_for_the_number_of_ranks_goes_first() -> None:
    told = [
        RatesCollective(kind="all-to-all", link="node", ranks=ranks, bus_gb_s=rate)
        for ranks, rate in ((2, 100), (8, 400), (None, 200))
    ]
    machine = with_rates(collectives=told)
    for ranks, rate in ((2, 100), (8, 400)):
        found = collective_time(message("all-to-all", 8e9, ranks), machine).value
        assert found == pytest.approx(8e9 * (ranks - 1) / ranks / (rate * 1e9))


def test_measured_messages_correct_the_law() -> None:
    def row(size: int, seconds: float) -> RatesCollective:
        return RatesCollective(
            kind="all-gather", link="node", ranks=8, bytes=size, seconds=seconds
        )  # fmt: skip

    small, large = row(2**20, 1e-4), row(2**30, 2e-3)
    machine = with_rates(collectives=[small, large])
    for one in (small, large):
        found = collective_time(message("all-gather", one.bytes or 0, 8), machine).value
        assert found == pytest.approx(one.seconds)
    law = RatesCollective(kind="all-gather", link="node", bus_gb_s=1)
    both = with_rates(collectives=[small, large, law])
    found = collective_time(message("all-gather", 2**20, 8), both).value
    assert found == pytest.approx(1e-4)


def test_a_message_between_nodes_is_measured_apart() -> None:
    told = RatesCollective(kind="all-reduce", link="network", ranks=4, bytes=2**26, seconds=1.0)
    machine = with_rates(collectives=[told])
    assert collective_time(message("all-reduce", 2**26, 4, 8), machine).value == pytest.approx(1.0)
    near = message("all-reduce", 2**26, 4)
    assert collective_time(near, machine).value < 1e-2


MIXTURE = {"num_moe_experts": 8, "moe_grouped_gemm": True, "ep": 2}


@pytest.mark.parametrize(("how", "fewer"), [("alone", True), ("training", False)])
def test_grouped_gemms_that_were_timed_alone_contain_their_starts(how: str, fewer: bool) -> None:
    work = work_of(8, **MIXTURE).layers[0]
    rows = [gemm_row(512, batch=4, seconds=1e-4), gemm_row(seconds=1e-3)]
    machine = with_rates(gemms=rows, measured=how)
    for phase in ("forward", "backward"):
        machines = machine, machine_of("b200")
        times = [
            host_time(work, one, phase, literal(0, "s"), overlapped=False).value for one in machines
        ]
        assert (times[0] < times[1]) == fewer
        assert times[0] > 0


def test_the_hosts_own_time_to_start_a_kernel_counts() -> None:
    work = work_of(8, **MIXTURE).layers[0]
    found = host_time(
        work, with_rates(launch_us=30.0), "forward", literal(0, "s"), overlapped=False
    ).value
    assert found == pytest.approx(work.launches.forward * 30e-6)


def machine_of_one_rank() -> Machine:
    link = Link("link", ALL_RANKS, given("link", 1e15, "B/s"), given("hop", 0, "s"))
    return plain_machine(links=(link,), memory_bandwidth=given("memory", 1e30, "B/s"))


def test_what_rests_on_measurements_is_their_part_of_the_step() -> None:
    work = work_of(1, seq_length=4096)
    rows = []
    for layer in (work.layers[0], work.vocabulary):
        for gemm in layer.gemms:
            sizes = {"m": gemm.m, "n": gemm.n, "k": gemm.k}
            rows.append(RatesGemm(precision="bf16", which=gemm.which, seconds=1e-3, **sizes))  # type: ignore[arg-type]
    machine = with_rates(machine_of_one_rank(), gemms=rows)
    found = estimate(work, machine, NO_OVERLAP)

    def seconds(one: Machine) -> float:
        return estimate(work, one, NO_OVERLAP).step.value

    shares = resting(measured_of(machine), seconds)
    assert shares.keys() == {"gemms"}
    part = found.parts["matrix products"].value / found.step.value
    assert shares["gemms"] == pytest.approx(part, rel=1e-3)
    assert 0.1 < part < 1


def test_an_estimate_far_from_everything_measured_rests_on_nothing() -> None:
    work = work_of(1)
    machine = with_rates(gemms=[gemm_row(2**22, 2**22, 2**22, seconds=1.0)])
    shares = resting(measured_of(machine), lambda one: estimate(work, one, NO_OVERLAP).step.value)
    assert shares == {}


def test_every_figure_of_a_measured_step_has_its_source() -> None:
    run = effective_run(8, tp=2)
    memory = [RatesMemory(kind="stream", gb_s=1000, kernel_us=10)]
    rows = [gemm_row(seconds=1e-3)]
    law = [RatesCollective(kind="all-gather", link="node", bus_gb_s=100, step_us=1)]
    machine = with_rates(gemms=rows, memory=memory, collectives=law)
    costs = costs_of_run(run, 8, machine)
    assert isinstance(costs, Costs)
    step = costs.estimate(frozenset()).step
    assert math.isfinite(step.value)
    sources, todo, seen = set(), [step], set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        assert one.inputs or one.source or not one.name, one.name
        sources.add(one.source)
        todo += one.inputs
    assert "rates.json" in sources


def test_a_gemm_of_another_pass_is_an_octave_away() -> None:
    row = gemm_row(seconds=2 * law_s(gemm_row()))
    other = Gemm(name="x", which="dgrad", m=row.m, n=row.n, k=row.k, batch=1, precision=BF16)
    law = gemm_time(other, replace(machine_of("b200"), shares={})).value
    assert gemm_time(other, with_rates(gemms=[row])).value == pytest.approx(2 * law)
