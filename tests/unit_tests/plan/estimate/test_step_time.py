"""The time of a step: closed forms on a machine of round numbers, and what must always hold."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given as sample
from hypothesis import strategies as st

from overlapkit.errors import InputError
from overlapkit.plan.estimate.machine import (
    NO_LAUNCH,
    Link,
    Machine,
    filled,
    link_between,
    machine_of,
)
from overlapkit.plan.estimate.overlap import NO_OVERLAP, Overlap, overlap_of
from overlapkit.plan.estimate.roofline import collective_time, gemm_time
from overlapkit.plan.estimate.step_time import Estimate, estimate
from overlapkit.plan.figure import given, work
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.gemms import Gemm
from overlapkit.plan.workload.precision import BF16
from overlapkit.plan.workload.step import Workload
from support.plan_runs import effective_run, plain_machine, work_of
from support.property_tests import examples

ALL = Overlap(tp=True, dp_gradients=True, dp_parameters=True, pp=True, cp=True, ep=True)
COMPUTE = ("matrix products", "attention", "memory-bound kernels")


def collective(
    dimension: str, kind: str, payload: float, *, ranks: int, stride: int = 1
) -> Collective:
    return Collective(
        dimension=dimension,
        name="x",
        kind=kind,
        payload=given("x", payload, "B"),
        ranks=ranks,
        stride=stride,
        phase="step",
    )


def gemm_of(which: str) -> Gemm:
    return Gemm(name="fc1", which=which, m=128, n=256, k=512, batch=1, precision=BF16)


def compute(of: Estimate) -> float:
    return sum(of.parts[name].value for name in COMPUTE)


def test_compute_is_the_work_over_the_rates() -> None:
    free = given("memory bandwidth", 1e30, "B/s")
    step = estimate(work_of(1), plain_machine(memory_bandwidth=free), NO_OVERLAP)
    model_flops = step.model_flops_per_second.value * step.step.value
    attention = step.parts["attention"].value * 1e12
    # Attention's backward does five products where model FLOPs count four.
    assert step.parts["matrix products"].value * 1e12 + attention * 6 / 7 == pytest.approx(
        model_flops
    )


@pytest.mark.parametrize("pp,vp,gbs", [(2, None, 4), (4, None, 8), (2, 2, 4), (4, 2, 16)])
def test_the_bubble_of_even_stages(pp: int, vp: int | None, gbs: int) -> None:
    free = (Link("link", 2**31, given("link", 1e30, "B/s"), given("hop", 0, "s")),)
    tiny_vocabulary = work_of(pp, pp=pp, vp=vp, gbs=gbs, vocab_size=1)
    step = estimate(tiny_vocabulary, plain_machine(links=free), NO_OVERLAP)
    share = step.parts["pipeline bubble"].value / compute(step)
    assert share == pytest.approx((pp - 1) / (gbs * (vp or 1)), rel=0.01)


def test_unhidden_gradients_take_their_bytes_over_the_link() -> None:
    work = work_of(4)
    step = estimate(work, plain_machine(), NO_OVERLAP)
    count = work.parameters[0].all.all
    assert step.parts["DP exposed"].value == pytest.approx((4 + 2) * count * 3 / 4 / 1e9)
    assert step.communication["DP"].hidden.value == 0


def test_one_bucket_hides_nothing_and_many_do() -> None:
    slow = plain_machine(
        links=(Link("link", 2**31, given("link", 1e12, "B/s"), given("hop", 0, "s")),)
    )
    one, many = (
        estimate(work_of(4, comm_overlap={"bucket_size": size}), slow, ALL).parts["DP exposed"]
        for size in (10**9, 10**6)
    )
    unhidden = estimate(work_of(4), slow, NO_OVERLAP).parts["DP exposed"]
    assert one.value == pytest.approx(unhidden.value)
    assert many.value < unhidden.value / 4


def test_interleaving_hides_the_gradients_of_all_but_the_first_chunk() -> None:
    links = (Link("link", 2**31, given("link", 1e11, "B/s"), given("hop", 0, "s")),)
    machine = plain_machine(links=links)
    plain, interleaved = (
        estimate(
            work_of(4, pp=2, vp=vp, gbs=8, comm_overlap={"bucket_size": 10**9}), machine, ALL
        ).parts["DP exposed"]
        for vp in (None, 4)
    )
    assert interleaved.value < plain.value / 2


def test_fsdp_gathers_twice_and_scatters_for_each_microbatch() -> None:
    sharded = {"use_megatron_fsdp": True, "data_parallel_sharding_strategy": "optim_grads_params"}
    work = work_of(4, ddp=sharded, gbs=16)
    step = estimate(work, plain_machine(), NO_OVERLAP)
    count = work.parameters[0].all.all
    assert step.communication["DP"].total.value == pytest.approx(
        4 * (2 * 2 + 4) * count * 3 / 4 / 1e9
    )


def test_tensor_parallel_overlap_leaves_one_chunk_of_each() -> None:
    fast = (Link("link", 2**31, given("link", 1e15, "B/s"), given("hop", 0, "s")),)
    work = work_of(4, tp=4, num_query_groups=4)
    machine = plain_machine(links=fast)
    off, on = (estimate(work, machine, o).parts["TP exposed"].value for o in (NO_OVERLAP, ALL))
    # Of a layer's ten collectives six are the switch's, of which a quarter stays; the output
    # layer's three are nobody's.
    each = 256 * 512 * 2 * 3 / 4 / 1e15
    assert off == pytest.approx(16 * (8 * 6 + 3) * each)
    assert on == pytest.approx(16 * (8 * 6 / 4 + 3) * each)


def test_what_a_layer_starts_by_itself_hides_where_gemms_make_room() -> None:
    work = work_of(8, tensor_model_parallel_size=8, sequence_parallel=True)
    roomy, full = plain_machine(), plain_machine(makes_room=False)
    beside = estimate(work, roomy, NO_OVERLAP).communication["TP"]
    alone = estimate(work, full, NO_OVERLAP).communication["TP"]
    assert beside.hidden.value > 0
    assert alone.exposed.value == pytest.approx(beside.total.value)
    # Userbuffers send it beside the GEMM on both.
    on = [estimate(work, machine, ALL).step.value for machine in (roomy, full)]
    assert on[0] == on[1]


@pytest.mark.parametrize(("gpu", "room"), [("a100", True), ("h100", True), ("gb200", False)])
def test_gemms_of_blackwell_make_no_room(gpu: str, room: bool) -> None:
    assert machine_of(gpu).makes_room is room


def test_a_ring_hides_as_long_as_attention_takes() -> None:
    work = work_of(4, cp=4)
    step = estimate(work, plain_machine(), NO_OVERLAP)
    attention = work.layers[0].attention
    assert attention is not None
    message = 64 * 2 * 256 * 2 / 1e9
    exposed = sum(
        3 * max(0, sends * message - flops.value / 1e12 / 4)
        for sends, flops in ((1, attention.forward), (2, attention.backward))
    )
    assert step.parts["CP exposed"].value == pytest.approx(16 * 8 * exposed)


def test_a_hierarchical_ring_has_fewer_and_longer_steps() -> None:
    sizes = {"cp_comm_type": "a2a+p2p", "hierarchical_context_parallel_sizes": [2, 2]}
    work = work_of(4, cp=4, **sizes)
    attention = work.layers[0].attention
    assert attention is not None
    # Both ways take less than half of attention, under one of two steps, but more than a quarter.
    message = 64 * 2 * 256 * 2
    rate = 3 * message * 2 / attention.backward.value * 1e12
    links = (Link("link", 2**31, given("link", rate, "B/s"), given("hop", 0, "s")),)
    machine = plain_machine(links=links)
    exchanged = sum(
        collective_time(one, machine).value
        for one in work.layers[0].collectives
        if one.kind == "all-to-all"
    )
    step = estimate(work, machine, NO_OVERLAP)
    assert step.parts["CP exposed"].value == pytest.approx(16 * 8 * exchanged)


def test_hidden_communication_slows_compute_by_its_share() -> None:
    fast = (Link("link", 2**31, given("link", 1e13, "B/s"), given("hop", 0, "s")),)
    work = work_of(4)
    step = estimate(work, plain_machine(links=fast), ALL)
    assert step.parts["contention"].value == pytest.approx(
        0.1 * step.communication["DP"].hidden.value
    )


def test_a_measured_step_replaces_the_modelled_compute() -> None:
    measured = plain_machine(step_compute=given("measured", 3.0, "s"))
    step = estimate(work_of(1), measured, NO_OVERLAP)
    assert step.step.value == pytest.approx(3.0)
    assert step.parts["optimizer"].value > 0


def test_full_recomputation_repeats_the_forward() -> None:
    again = {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    }
    off, on = (
        estimate(work_of(1, **settings), plain_machine(), NO_OVERLAP) for settings in ({}, again)
    )
    layers = off.parts["matrix products"].value
    vocabulary = 16 * 6 * 256 * 512 * 1024 / 1e12
    assert on.parts["matrix products"].value - layers >= (layers - vocabulary) / 3 * 0.9
    assert on.model_flops_per_second.value * on.step.value == pytest.approx(
        off.model_flops_per_second.value * off.step.value
    )


def test_recomputing_some_layers_costs_their_share() -> None:
    def extra(layers: int) -> float:
        again = {
            "recompute_granularity": "full",
            "recompute_method": "block",
            "recompute_num_layers": layers,
        }
        return compute(estimate(work_of(1, **again), plain_machine(), NO_OVERLAP))

    assert extra(4) - extra(0) == pytest.approx((extra(8) - extra(0)) / 2)


def test_selective_recomputation_of_the_mlp_repeats_two_gemms() -> None:
    again = {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    free = plain_machine(memory_bandwidth=given("memory bandwidth", 1e30, "B/s"))
    off, on = (
        estimate(work_of(1, **s), free, NO_OVERLAP).parts["matrix products"].value
        for s in ({}, again)
    )
    assert on - off == pytest.approx(16 * 8 * 2 * 256 * 512 * 1024 * 3 / 1e12)


def test_the_slowest_stage_sets_the_pace() -> None:
    even = work_of(2, pp=2, gbs=64, vocab_size=1)
    uneven = work_of(2, pp=2, gbs=64, vocab_size=1, num_layers_in_first_pipeline_stage=6)
    a, b = (compute(estimate(one, plain_machine(), NO_OVERLAP)) for one in (even, uneven))
    assert b / a == pytest.approx(6 / 4, rel=0.01)


LAYOUTS = st.fixed_dictionaries(
    {
        "tp": st.sampled_from([1, 2]),
        "pp": st.sampled_from([1, 2, 4]),
        "cp": st.sampled_from([1, 2]),
        "vp": st.sampled_from([None, 2]),
        "mbs": st.sampled_from([1, 2]),
        "gbs": st.sampled_from([64, 128]),
        "moe": st.booleans(),
        "fsdp": st.booleans(),
        "precision": st.sampled_from(["bf16_mixed", "bf16_with_mxfp8_mixed"]),
        "cp_comm_type": st.sampled_from(["p2p", "a2a", "all_gather"]),
    }
)
OVERLAPS = st.builds(Overlap, **dict.fromkeys(asdict(NO_OVERLAP), st.booleans()))
MACHINES = st.sampled_from(["gb300", "b200"])


def built(layout: dict[str, Any]) -> Workload:
    settings = dict(layout)
    if settings["pp"] == 1:
        settings["vp"] = None
    ddp: dict[str, Any] = {}
    if settings.pop("fsdp"):
        ddp = {"use_megatron_fsdp": True, "data_parallel_sharding_strategy": "optim_grads_params"}
    if settings.pop("moe"):
        settings |= {
            "num_moe_experts": 8,
            "moe_grouped_gemm": True,
            "moe_token_dispatcher_type": "alltoall",
            "ep": 2,
        }
    return work_of(32, ddp=ddp, **settings)


@examples(25, 250)
@sample(LAYOUTS, OVERLAPS, MACHINES, st.sampled_from([100, 400]))
def test_what_always_holds(
    layout: dict[str, Any], overlap: Overlap, gpu: str, network: float
) -> None:
    work = built(layout)
    machine = machine_of(gpu, network_gbps=network, nvlink_domain=4)
    with_overlap = estimate(work, machine, overlap)
    none = replace(NO_OVERLAP, cp=False)
    without = estimate(work, machine, none)

    assert sum(part.value for part in with_overlap.parts.values()) == pytest.approx(
        with_overlap.step.value
    )
    assert all(part.value >= 0 for part in with_overlap.parts.values())
    # Overlap of experts may keep the host longer than it saves.
    free = replace(machine, launch=NO_LAUNCH)
    most = estimate(work, free, none).step.value
    assert estimate(work, free, overlap).step.value <= most * (1 + 1e-9)
    for dimension, found in with_overlap.communication.items():
        assert 0 <= found.exposed.value <= found.total.value * (1 + 1e-12)
        assert found.exposed.value + found.hidden.value == pytest.approx(found.total.value)
        assert with_overlap.parts[f"{dimension} exposed"] is found.exposed
        assert found.total.value == pytest.approx(without.communication[dimension].total.value)
    expected = work.layout.step_tokens.value / with_overlap.step.value / 32
    assert with_overlap.tokens_per_second.value == pytest.approx(expected)

    faster = machine_of(gpu, network_gbps=network * 2, nvlink_domain=4)
    assert estimate(work, faster, overlap).step.value <= with_overlap.step.value * (1 + 1e-9)
    wider = machine_of(gpu, network_gbps=network, nvlink_domain=8)
    assert estimate(work, wider, overlap).step.value <= with_overlap.step.value * (1 + 1e-9)


@examples(15, 150)
@sample(LAYOUTS, st.sampled_from(sorted(asdict(NO_OVERLAP))))
def test_each_switch_alone_costs_the_host_at_most(layout: dict[str, Any], switch: str) -> None:
    work, machine = built(layout), machine_of("h200" if "mx" not in layout["precision"] else "b200")
    on = replace(NO_OVERLAP, **{switch: True})
    if switch == "ep":
        machine = replace(machine, launch=NO_LAUNCH)
    off = estimate(work, machine, NO_OVERLAP).step.value
    assert estimate(work, machine, on).step.value <= off * (1 + 1e-9)


@pytest.mark.parametrize("size", ["num_layers", "hidden_size", "ffn_hidden_size", "vocab_size"])
def test_more_of_the_model_takes_longer(size: str) -> None:
    base = {"num_layers": 8, "hidden_size": 512, "ffn_hidden_size": 1024, "vocab_size": 1024}
    times = [
        estimate(work_of(4, **(base | {size: base[size] * more})), machine_of("h100"), ALL)
        for more in (1, 2, 4)
    ]
    steps = [one.step.value for one in times]
    assert steps == sorted(steps)
    assert steps[0] < steps[2]


@pytest.mark.parametrize(
    "settings",
    [
        {"tp": 2, "pp": 2, "vp": 2, "cp": 2},
        {"ep": 4, "num_moe_experts": 8, "moe_token_dispatcher_type": "alltoall"},
        {"precision": "bf16_with_fp8_current_scaling_mixed"},
    ],
)
def test_every_figure_of_a_step_has_a_formula_or_a_source(settings: dict[str, Any]) -> None:
    work_in = work_of(16, gbs=32, **settings)
    step = estimate(work_in, machine_of("h100"), ALL)
    found = [one for _, one, before in work(step.tokens_per_second) if not before]
    assert len(found) > 100
    for one in found:
        assert one.name
        assert (one.inputs and one.formula) or one.source, one.name


# The machine.


def test_a_gemm_is_bound_by_arithmetic_or_by_memory() -> None:
    slow = given("memory bandwidth", 1e9, "B/s")
    gemm = gemm_of("fprop")
    assert gemm_time(gemm, plain_machine()).value == 2 * 128 * 256 * 512 / 1e12
    moved = (128 * 512 + 512 * 256 + 128 * 256) * 2
    assert gemm_time(gemm, plain_machine(memory_bandwidth=slow)).value == moved / 1e9


def test_a_weight_gradient_is_added_in_fp32() -> None:
    gemm = gemm_of("wgrad")
    assert gemm.moved.value == (128 * 512 + 512 * 256) * 2 + 128 * 256 * 8


@pytest.mark.parametrize(
    ("m", "n", "share"),
    [
        (128 * 132, 256, 1.0),  # one tile for each SM
        (128 * 133, 256, 133 / 264),  # one tile more: a second wave for it alone
        (128 * 132 * 10, 256, 1.0),
    ],
)
def test_the_last_wave_of_tiles_may_be_nearly_empty(m: int, n: int, share: float) -> None:
    machine = plain_machine(processors=132, tile=(128, 256))
    # Smaller tiles may fill the last wave better, never worse.
    assert share <= filled(machine, m, n, 1, 512) <= 1
    if share == 1:
        assert filled(machine, m, n, 1, 512) == pytest.approx(1)
    else:
        assert filled(machine, m, n, 1, 512) < 0.8


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [("all-gather", 0.75), ("reduce-scatter", 0.75), ("all-reduce", 1.5), ("all-to-all", 0.75)],
)
def test_collectives_of_a_gigabyte_over_a_gigabyte_a_second(kind: str, seconds: float) -> None:
    one = collective("DP", kind, 1e9, ranks=4)
    assert collective_time(one, plain_machine()).value == seconds


def two_levels() -> Machine:
    return plain_machine(
        links=(
            Link("NVLink", 8, given("NVLink", 400e9, "B/s"), given("hop", 1e-6, "s")),
            Link("network", 2**31, given("network", 50e9, "B/s"), given("hop", 1e-5, "s")),
        )
    )


@pytest.mark.parametrize(
    ("ranks", "stride", "bandwidth", "hops"),
    [
        (8, 1, 400e9, 7e-6),  # within the domain
        (2, 4, 400e9, 1e-6),
        (2, 8, 50e9, 1e-5),  # one member in each domain
        (16, 1, 400e9, 1e-5 + 7e-6),  # eight members share eight adapters
        (16, 4, 100e9, 7e-5 + 1e-6),  # two members in each of eight domains
    ],
)
def test_a_group_uses_the_adapters_of_its_members(
    ranks: int, stride: int, bandwidth: float, hops: float
) -> None:
    found, latency, _ = link_between(two_levels(), ranks, stride)
    assert found.value == bandwidth
    assert latency.value == pytest.approx(hops)


@pytest.mark.parametrize(
    ("ranks", "stride", "bandwidth"),
    [(2, 4, 400e9), (8, 1, 400e9), (2, 8, 50e9), (4, 4, 50e9), (16, 1, 50e9)],
)
def test_a_ring_waits_for_its_neighbours_in_other_domains(
    ranks: int, stride: int, bandwidth: float
) -> None:
    one = collective("CP", "send", 1e12, ranks=ranks, stride=stride)
    assert collective_time(one, two_levels()).value == pytest.approx(1e12 / bandwidth, rel=1e-4)


def test_an_all_to_all_is_bound_by_each_ranks_own_adapter() -> None:
    one = collective("EP", "all-to-all", 1e9, ranks=16)
    assert collective_time(one, two_levels()).value == pytest.approx(0.5e9 / 50e9, rel=0.01)


def test_rates_follow_power_where_it_is_the_limit() -> None:
    gb200, gb300 = (machine_of(name).rate("fp8").value for name in ("gb200", "gb300"))
    assert gb300 / gb200 == pytest.approx(1400 / 1200, rel=0.01)
    for name in ("h100", "b200", "gb300"):
        machine = machine_of(name)
        assert machine.rate("bf16").value < machine.rate("fp8").value


def test_a_gpu_without_fp8_says_so() -> None:
    with pytest.raises(InputError, match="a100 has no fp8 tensor cores; set mixed_precision"):
        estimate(
            work_of(1, precision="bf16_with_fp8_delayed_scaling_mixed"),
            machine_of("a100"),
            NO_OVERLAP,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"network_gbps": 0}, "--network 0"), ({"nvlink_domain": 0}, "NVLink domain of 0")],
)
def test_an_impossible_machine_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        machine_of("h100", **options)


def test_the_reference_network_can_be_replaced() -> None:
    slow, fast = (machine_of("h100", network_gbps=gbps).links[1] for gbps in (100, 400))
    assert fast.bandwidth.value == 4 * slow.bandwidth.value


def test_overlap_is_read_from_what_is_in_effect() -> None:
    run = effective_run(16, tp=2, pp=2, vp=2, gbs=32)
    assert overlap_of(run) == replace(ALL, ep=False)
    refused = effective_run(16, tp=2, sequence_parallel=False)
    assert not overlap_of(refused).tp
