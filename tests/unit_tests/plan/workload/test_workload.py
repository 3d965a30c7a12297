"""The work of a step against closed forms, computed here by hand."""

from __future__ import annotations

from typing import Any

import pytest

from overlapkit.errors import InputError
from overlapkit.plan.estimate.roofline import wire_bytes
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.step import Workload
from support.plan_runs import work_of

TOKENS, HIDDEN, FFN, LAYERS = 256, 512, 1024, 8
QUERIES, KV = 8 * 64, 4 * 64


def collectives(work: Workload, dimension: str, phase: str, layer: int = 0) -> list[Collective]:
    return [
        one
        for one in work.layers[layer].collectives
        if one.dimension == dimension and one.phase == phase
    ]


def payloads(found: list[Collective]) -> list[tuple[str, float]]:
    return [(one.kind, one.payload.value) for one in found]


@pytest.mark.parametrize(
    "layout",
    [{}, {"tp": 2}, {"cp": 2}, {"pp": 2}, {"pp": 2, "vp": 2}, {"tp": 2, "pp": 2, "cp": 2}],
)
def test_a_layout_divides_the_work_and_adds_none(layout: dict[str, int]) -> None:
    one = work_of(1, gbs=16)
    assert work_of(8, gbs=16, **layout).model_flops.value == pytest.approx(one.model_flops.value)


def test_data_parallel_bytes_with_the_distributed_optimizer() -> None:
    work = work_of(4)
    chunk = work.exchange.chunks[0][0]
    count = work.parameters[0].all.all
    (gradients,), (parameters,) = chunk.gradients, chunk.parameters
    assert (gradients.kind, wire_bytes(gradients).value) == ("reduce-scatter", 3 / 4 * 4 * count)
    assert (parameters.kind, wire_bytes(parameters).value) == ("all-gather", 3 / 4 * 2 * count)


def test_data_parallel_bytes_without_it() -> None:
    plain = {"use_distributed_optimizer": False}
    work = work_of(4, ddp=plain, optimizer=plain)
    chunk = work.exchange.chunks[0][0]
    assert chunk.parameters == ()
    count = work.parameters[0].all.all
    # A ring's all-reduce is a reduce-scatter and an all-gather.
    assert wire_bytes(chunk.gradients[0]).value == 2 * 3 / 4 * 4 * count


def test_fp8_parameters_are_gathered_in_one_byte() -> None:
    work = work_of(4, precision="bf16_with_fp8_delayed_scaling_mixed")
    linear = LAYERS * (HIDDEN * (QUERIES + 2 * KV) + QUERIES * HIDDEN + 3 * HIDDEN * FFN)
    (parameters,) = work.exchange.chunks[0][0].parameters
    rest = work.parameters[0].all.all - linear
    assert parameters.payload.value == linear + 2 * rest


def test_mxfp8_parameters_are_gathered_in_two_bytes() -> None:
    work = work_of(4, precision="bf16_with_mxfp8_mixed")
    (parameters,) = work.exchange.chunks[0][0].parameters
    assert parameters.payload.value == 2 * work.parameters[0].all.all


def test_context_parallel_ranks_share_the_reduction() -> None:
    (gradients,) = work_of(4, cp=2, gbs=16).exchange.chunks[0][0].gradients
    assert (gradients.ranks, gradients.stride) == (4, 1)


def test_fsdp_exchanges_layer_by_layer() -> None:
    sharded = {"use_megatron_fsdp": True, "data_parallel_sharding_strategy": "optim_grads_params"}
    assert work_of(4, ddp=sharded).exchange.per_layer
    assert not work_of(4).exchange.per_layer


def test_tensor_parallel_collectives_with_sequence_parallelism() -> None:
    work = work_of(2, tp=2)
    activation = TOKENS * HIDDEN * 2
    forward = payloads(collectives(work, "TP", "forward"))
    assert forward == [("all-gather", activation), ("reduce-scatter", activation)] * 2
    backward = collectives(work, "TP", "backward")
    assert (
        sorted(payloads(backward))
        == [("all-gather", activation)] * 4 + [("reduce-scatter", activation)] * 2
    )
    assert wire_bytes(backward[0]).value == activation / 2


def test_tensor_parallel_collectives_without() -> None:
    work = work_of(2, tp=2, sequence_parallel=False)
    for phase in ("forward", "backward"):
        found = payloads(collectives(work, "TP", phase))
        assert found == [("all-reduce", TOKENS * HIDDEN * 2)] * 2


def test_fp8_activations_are_gathered_in_one_byte() -> None:
    work = work_of(2, tp=2, precision="bf16_with_fp8_delayed_scaling_mixed")
    found = dict(payloads(collectives(work, "TP", "forward")))
    assert found == {"all-gather": TOKENS * HIDDEN, "reduce-scatter": 2 * TOKENS * HIDDEN}


def test_ring_bytes_of_context_parallelism() -> None:
    work = work_of(4, cp=4)
    (forward,) = collectives(work, "CP", "forward")
    (backward,) = collectives(work, "CP", "backward")
    keys_and_values = TOKENS / 4 * 2 * KV * 2
    assert (forward.kind, forward.count) == ("send", 3)
    assert forward.payload.value == keys_and_values
    assert backward.payload.value == 2 * keys_and_values


def test_ulysses_bytes() -> None:
    work = work_of(4, cp=4, cp_comm_type="a2a")
    inward, outward = collectives(work, "CP", "forward")
    assert inward.payload.value == TOKENS / 4 * (QUERIES + 2 * KV) * 2
    assert outward.payload.value == TOKENS / 4 * QUERIES * 2
    assert wire_bytes(outward).value == outward.payload.value * 3 / 4


def test_gathered_keys_and_values() -> None:
    (forward,) = collectives(work_of(4, cp=4, cp_comm_type="all_gather"), "CP", "forward")
    assert (forward.kind, forward.payload.value) == ("all-gather", TOKENS * 2 * KV * 2)


def test_hierarchical_context_parallelism() -> None:
    work = work_of(
        8, cp=4, cp_comm_type="a2a+p2p", hierarchical_context_parallel_sizes=[2, 2], gbs=2
    )
    found = collectives(work, "CP", "forward")
    shown = [(one.kind, one.ranks, one.stride) for one in found]
    assert shown == [("all-to-all", 2, 1), ("all-to-all", 2, 1), ("send", 2, 2)]


MOE = {
    "num_moe_experts": 8,
    "moe_ffn_hidden_size": 256,
    "moe_router_topk": 2,
    "moe_grouped_gemm": True,
    "moe_token_dispatcher_type": "alltoall",
}


def test_dispatch_and_combine() -> None:
    work = work_of(4, ep=4, **MOE)
    for phase in ("forward", "backward"):
        found = collectives(work, "EP", phase)
        assert payloads(found) == [("all-to-all", TOKENS * 2 * HIDDEN * 2)] * 2
        assert wire_bytes(found[0]).value == TOKENS * 2 * HIDDEN * 2 * 3 / 4


def test_a_rank_gets_a_token_once_with_the_flex_dispatcher() -> None:
    flex = work_of(4, ep=4, **(MOE | {"moe_token_dispatcher_type": "flex"}))
    sent = collectives(flex, "EP", "forward")[0].payload.value / (TOKENS * HIDDEN * 2)
    # Of 28 pairs of 8 experts 4 lie on one rank, which gets one copy, the others two.
    assert sent == pytest.approx((4 * 1 + 24 * 2) / 28)


def test_experts_flops_are_those_of_the_chosen_ones() -> None:
    work = work_of(4, ep=4, **MOE)
    experts = [gemm for gemm in work.layers[0].gemms if gemm.name.startswith("experts")]
    # Two experts for each token, three matrices of 512 x 256, three passes.
    assert sum(g.flops.value for g in experts) == 2 * TOKENS * 2 * 3 * HIDDEN * 256 * 3
    assert {gemm.batch for gemm in experts} == {2}


def test_every_copy_of_a_token_is_quantized_for_its_expert() -> None:
    low, base = (
        work_of(4, ep=4, precision=precision, **MOE).layers[-1].traffic[1]
        for precision in ("bf16_with_mxfp8_mixed", "bf16_mixed")
    )
    assert low.forward.value - base.forward.value == pytest.approx(
        # Two copies of each token, as wide as the model and then as an expert.
        TOKENS * 2 * (HIDDEN + 256) * (2 + 2 + 2 / 32)
    )


@pytest.mark.parametrize(
    ("dispatcher", "ep", "passes"),
    # Two passes permute and undo it; two more sort what arrives for several experts of a rank.
    [("alltoall", 4, 4), ("alltoall", 8, 2), ("alltoall", 1, 2), ("flex", 4, 2)],
)
def test_what_an_all_to_all_brings_is_sorted_again(dispatcher: str, ep: int, passes: int) -> None:
    settings = MOE | {"moe_token_dispatcher_type": dispatcher}
    (moved,) = (
        one for one in work_of(8, ep=ep, **settings).layers[-1].traffic if one.kind == "permutation"
    )
    assert moved.kernels == passes
    assert moved.forward.value == moved.backward.value == TOKENS * 2 * HIDDEN * 2 * 2 * passes


def test_expert_gradients_have_their_own_group() -> None:
    work = work_of(8, ep=4, **MOE)
    dense, expert = work.exchange.chunks[0][0].gradients
    assert (dense.ranks, dense.stride) == (8, 1)
    assert (expert.ranks, expert.stride) == (2, 4)
    assert expert.payload.value == 4 * LAYERS * 2 * 3 * HIDDEN * 256


def test_boundary_activations() -> None:
    work = work_of(4, tp=2, pp=2, vp=2, gbs=8)
    assert work.boundary is not None
    assert work.boundary.payload.value == TOKENS / 2 * HIDDEN * 2
    # To and from each of two chunks for each of 8 microbatches.
    assert work.boundary.count == 8 * 2 * 2
    assert work_of(1).boundary is None


def test_window_attention_counts_only_its_span() -> None:
    full, window = work_of(1), work_of(1, window_size=[63, 0])
    attention = [one.layers[0].attention for one in (full, window)]
    assert attention[0] and attention[1]
    pairs = 64 * 256 - 64 * 64 / 2
    assert attention[1].counted.value / attention[0].counted.value == pairs / (256 * 256 / 2)
    # Blocks of 128 scores are computed entirely.
    pairs = 192 * 256 - 192 * 192 / 2
    assert attention[1].forward.value / attention[0].forward.value == pairs / (256 * 256 / 2)


def test_every_other_layer_may_look_back_at_all() -> None:
    work = work_of(1, window_size=[63, 0], window_attn_skip_freq=2)
    assert sorted(work.stages[0].values()) == [4, 4]


def test_the_first_and_last_layers_may_stay_in_bf16() -> None:
    work = work_of(1, precision="bf16_with_fp8_current_scaling_mixed")
    assert {one.precision.name: work.stages[0][n] for n, one in enumerate(work.layers)} == {
        "bf16": 2,
        "fp8 current": 6,
    }


def test_latent_attention() -> None:
    latent: dict[str, Any] = {
        "multi_latent_attention": True,
        "q_lora_rank": 64,
        "kv_lora_rank": 32,
        "qk_head_dim": 16,
        "qk_pos_emb_head_dim": 8,
        "v_head_dim": 16,
        "num_query_groups": 8,
    }
    work = work_of(1, **latent)
    names = {gemm.name for gemm in work.layers[0].gemms}
    assert {"q down", "q up", "kv down", "kv up", "proj", "fc1", "fc2"} == names
    attention = work.layers[0].attention
    assert attention is not None
    assert attention.forward.value == 2 * TOKENS * TOKENS / 2 * 8 * (16 + 8 + 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gbs": 6}, "global_batch_size=6 is not a multiple"),
        ({"gbs": 2, "pp": 4, "vp": 2}, "fewer than the 4 stages"),
        ({"pp": 4, "num_layers": 6}, "layers"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"ep": 3, **MOE, "num_moe_experts": 9}, "expert_model_parallel_size=3"),
        ({"tp": 8, "cp": 1, "ffn_hidden_size": 1020}, "ffn_hidden_size=1020|width = "),
        ({"cp": 2, "cp_comm_type": "ring"}, "known are p2p, a2a"),
        ({"cp": 4, "cp_comm_type": "a2a+p2p"}, "hierarchical_context_parallel_sizes"),
        ({"seq_length": 255, "cp": 2}, "seq_length=255"),
        ({"window_size": 3}, "window_size=3"),
        ({"recompute_granularity": "some"}, "recompute_granularity='some'"),
        (
            {
                "recompute_granularity": "full",
                "recompute_method": "block",
                "recompute_num_layers": -3,
            },
            "recompute_num_layers=-3",
        ),
        (
            {"recompute_granularity": "selective", "recompute_modules": ["mpl"]},
            "unknown 'mpl'",
        ),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_what_cannot_be_planned_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        work_of(8, **({"gbs": 16} | settings))
