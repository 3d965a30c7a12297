"""Attention, the host and dispatch: how long single parts of a layer take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from overlapkit.plan.estimate.constants import CONSTANTS
from overlapkit.plan.estimate.machine import Link, Machine, machine_of
from overlapkit.plan.estimate.overlap import NO_OVERLAP
from overlapkit.plan.estimate.roofline import (
    attention_time,
    chunking_time,
    collective_time,
    gemm_time,
    host_time,
    traffic_time,
)
from overlapkit.plan.estimate.step_time import estimate
from overlapkit.plan.figure import given
from overlapkit.plan.workload.attention import Attention
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.gemms import Gemm
from overlapkit.plan.workload.layers import LayerWork
from overlapkit.plan.workload.memory_traffic import MemoryTraffic
from overlapkit.plan.workload.precision import BF16
from support.plan_runs import plain_machine, work_of

MOE = {
    "num_moe_experts": 8,
    "moe_ffn_hidden_size": 1024,
    "moe_router_topk": 2,
    "moe_grouped_gemm": True,
}


def attention_of(**settings: Any) -> Attention:
    found = work_of(1, seq_length=4096, **settings).layers[0].attention
    assert found is not None
    return found


def pace(one: Attention, machine: Machine, phase: str = "forward") -> float:
    """FLOP/s."""
    return float((getattr(one, phase) / attention_time(one, machine, phase)).value)


@pytest.mark.parametrize(("phase", "measured"), [("forward", 0.17), ("backward", 0.42)])
def test_attention_of_few_heads_leaves_the_gpu_idle(phase: str, measured: float) -> None:
    machine = machine_of("b200")
    found = [
        attention_of(num_attention_heads=heads, num_query_groups=4, kv_channels=128)
        for heads in (4, 8, 32, 128)
    ]
    paces = [pace(one, machine, phase) for one in found]
    assert paces == sorted(paces)
    # Of 4 heads beside 128 (benchmarks/data/gemm_rates.json).
    assert paces[0] / paces[-1] == pytest.approx(measured, abs=0.07)


def test_small_heads_are_bound_by_exponentials_where_these_are_slow() -> None:
    """Blackwell Ultra takes exponentials twice as fast as Blackwell."""
    small = attention_of(num_attention_heads=64, num_query_groups=64, kv_channels=32)
    alike = CONSTANTS._replace(shares={})
    blackwell, ultra = (machine_of(gpu, constants=alike) for gpu in ("b200", "b300"))
    assert pace(small, ultra) > 1.5 * pace(small, blackwell)
    usual = attention_of(num_attention_heads=64, num_query_groups=64, kv_channels=128)
    assert pace(usual, ultra) == pytest.approx(pace(usual, blackwell))


def test_wide_heads_slow_the_backward_alone() -> None:
    latent = attention_of(multi_latent_attention=True, q_lora_rank=None)
    usual = replace(latent, head=128)
    machine = machine_of("b200")
    assert pace(latent, machine) == pytest.approx(pace(usual, machine))
    assert pace(latent, machine, "backward") < 0.8 * pace(usual, machine, "backward")


def test_a_ring_of_context_ranks_adds_up_its_steps() -> None:
    """Its results pass through memory once more with each rank, others' do not."""
    machine = plain_machine()

    def moved(**settings: Any) -> float:
        work = work_of(4, **settings)
        return float(estimate(work, machine, NO_OVERLAP).parts["memory-bound kernels"].value)

    ring = moved(cp=4)
    assert ring > moved(cp=4, cp_comm_type="a2a") == moved(cp=4, cp_comm_type="all_gather")


def layer_of_experts(**settings: Any) -> LayerWork:
    work = work_of(8, **(MOE | settings))
    (found,) = (layer for layer in work.layers if layer.moe)
    return found


def test_the_gpu_waits_for_the_host_with_each_expert() -> None:
    machine = machine_of("h100")
    layers = [layer_of_experts(ep=ep) for ep in (8, 4, 1)]
    compute = given("compute", 1e-3, "s")
    times = [
        [host_time(layer, machine, "forward", compute, overlapped=on).value for layer in layers]
        for on in (False, True)
    ]
    assert times[0] == sorted(set(times[0]))
    # Overlap of experts costs the host more.
    assert all(more > less > 0 for less, more in zip(*times, strict=True))
    dense = work_of(8).layers[0]
    assert host_time(dense, machine, "forward", compute, overlapped=False).value == 0


def test_the_host_is_hidden_by_long_kernels_and_decides_between_short_ones() -> None:
    machine, layer = machine_of("h100"), layer_of_experts(ep=8)
    starting = layer.launches.forward * machine.launch.value

    def waiting(seconds: float) -> float:
        compute = given("compute", seconds, "s")
        return host_time(layer, machine, "forward", compute, overlapped=False).value

    assert waiting(0) == pytest.approx(starting)
    assert waiting(starting) == pytest.approx(starting * (2**0.5 - 1))
    assert waiting(100 * starting) < 0.01 * starting


def test_a_bias_of_experts_costs_memory_traffic_and_starts_of_kernels() -> None:
    plain, biased = layer_of_experts(), layer_of_experts(add_bias_linear=True)
    extra = biased.traffic[-1]
    assert len(biased.traffic) == len(plain.traffic) + 1
    elements = extra.forward.value / 28
    # In BF16 28 bytes for each element of the experts' output in the forward, 40 in the backward.
    assert extra.backward.value == pytest.approx(40 * elements)
    assert biased.launches.forward > plain.launches.forward


def test_a_memory_bound_kernel_takes_its_start_and_its_bytes() -> None:
    traffic = MemoryTraffic(
        given("bytes, forward", 1e9, "B"), given("bytes, backward", 2e9, "B"), kernels=4
    )
    start = given("start", 1e-3, "s")
    machine = plain_machine(pass_start=start)
    assert traffic_time(traffic, machine, "forward").value == pytest.approx(1e-3 + 4e-3)
    assert traffic_time(traffic, machine, "backward").value == pytest.approx(2e-3 + 4e-3)


def test_chunks_of_a_gemm_fill_the_gpu_less_well() -> None:
    machine = machine_of("h100")
    # 32 x 24 tiles of 128 x 256 are nearly 6 waves of 132 SMs; an eighth of the rows is 96 tiles.
    gemm = Gemm(name="fc1", which="fprop", m=4096, n=6144, k=8192, batch=1, precision=BF16)
    entire, longer = gemm_time(gemm, machine).value, chunking_time(gemm, 8, machine).value
    assert 0 < longer < entire
    assert chunking_time(gemm, 1, machine).value == 0


def test_a_collective_waits_for_its_members_once() -> None:
    one = Collective(
        dimension="TP",
        name="input",
        kind="all-gather",
        payload=given("payload", 8e9, "B"),
        ranks=8,
        stride=1,
        phase="forward",
    )
    start = given("start", 1.0, "s")
    plain = collective_time(one, plain_machine()).value
    assert collective_time(one, plain_machine(collective_start=start)).value == plain + 1.0


def test_graphs_take_the_host_out() -> None:
    none, parts, full = (
        layer_of_experts(cuda_graph_impl=impl, cuda_graph_scope=scope).launches.forward
        for impl, scope in (
            ("none", None),
            ("transformer_engine", ["attn", "moe_router"]),
            ("local", ["full_iteration"]),
        )
    )
    assert none > parts > full == 0


def two_domains() -> Machine:
    hop = given("hop", 0, "s")
    near = Link("NVLink", 8, given("near", 1e15, "B/s"), hop)
    far = Link("network", 2**31, given("far", 1e9, "B/s"), hop)
    return plain_machine(links=(near, far))


@pytest.mark.parametrize(
    ("dispatcher", "copies"),
    [
        # Each of 8 experts of 64 is in one of two domains: half of the copies leave.
        ("alltoall", 8 * 0.5),
        # The other domain is left out with the probability that all 8 are in a token's own.
        ("flex", 1 - 0.00080),
    ],
)
def test_flexible_dispatch_sends_a_token_once_to_each_domain(
    dispatcher: str, copies: float
) -> None:
    work = work_of(
        16,
        ep=16,
        **(MOE | {"num_moe_experts": 64, "moe_router_topk": 8}),
        moe_token_dispatcher_type=dispatcher,
        etp=1,
    )
    (layer,) = (one for one in work.layers if one.moe)
    dispatch: Collective = next(one for one in layer.collectives if one.name == "dispatch")
    token_bytes = 256 * 512 * 2
    expected = token_bytes * copies / 1e9
    assert collective_time(dispatch, two_domains()).value == pytest.approx(expected, rel=0.003)


def test_a_share_holds_for_its_gpu_and_precision_and_for_the_same_chip() -> None:
    gemm = Gemm(name="fc1", which="fprop", m=8192, n=8192, k=8192, batch=1, precision=BF16)
    shares = {"h100 bf16": 0.5, "h100 fp8 current": 0.9}
    slower = CONSTANTS._replace(shares=shares)
    none = CONSTANTS._replace(shares={})
    for gpu, expected in (("h100", 2.0), ("h200", 2.0), ("b200", 1.0)):
        times = [gemm_time(gemm, machine_of(gpu, constants=one)).value for one in (slower, none)]
        assert times[0] / times[1] == pytest.approx(expected, rel=0.05)
