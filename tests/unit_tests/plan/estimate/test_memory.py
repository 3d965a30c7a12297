"""Memory of a GPU against closed forms."""

from __future__ import annotations

from typing import Any

import pytest

from overlapkit.errors import InputError
from overlapkit.plan.estimate.memory import MARGIN, Memory, memory
from overlapkit.plan.figure import given
from overlapkit.plan.workload.step import Workload, workload
from support.plan_runs import effective_run, plain_machine

TOKENS, HIDDEN, FFN, LAYERS, VOCAB = 256, 512, 1024, 8, 1024
QUERIES, KV = 8 * 64, 4 * 64
LAYER = TOKENS * (2 * HIDDEN * (2 + 2) + (QUERIES + 2 * KV + QUERIES) * 2 + 3 * FFN * 2)
"""What a layer keeps in BF16: two sums and two normalized inputs; queries, keys, values and
attention's output; both halves of the gate and their product."""
LOGITS = TOKENS * VOCAB * (2 + 4)


def memory_of(world: int, **settings: Any) -> tuple[Memory, Workload]:
    run = effective_run(world, **settings)
    work = workload(run, world)
    return memory(run, work, plain_machine()), work


def test_the_parts_of_one_gpu() -> None:
    found, work = memory_of(1)
    parameters = work.parameters[0].all.all
    assert found.weights.value == 2 * parameters
    assert found.gradients.value == 4 * parameters
    assert found.optimizer.value == 12 * parameters
    assert found.activations.value == LAYERS * LAYER + LOGITS
    parts = (found.weights, found.gradients, found.optimizer, found.activations)
    assert found.needed.value == sum(part.value for part in parts)


def test_the_distributed_optimizer_shares_its_state_out() -> None:
    found, work = memory_of(4)
    assert found.optimizer.value == 12 * work.parameters[0].all.all / 4
    off = {"use_distributed_optimizer": False}
    unsharded, _ = memory_of(4, ddp=off, optimizer=off)
    assert unsharded.optimizer.value == 4 * found.optimizer.value
    twice, _ = memory_of(4, ddp={"num_distributed_optimizer_instances": 2})
    assert twice.optimizer.value == 2 * found.optimizer.value


def test_fsdp_shares_out_weights_and_gradients() -> None:
    sharded = {"use_megatron_fsdp": True, "data_parallel_sharding_strategy": "optim_grads_params"}
    found, work = memory_of(4, ddp=sharded)
    parameters, layer = work.parameters[0].all.all, work.parameters[0].largest_layer.all
    assert found.weights.value == 2 * parameters / 4 + 2 * 2 * layer
    assert found.gradients.value == 4 * parameters / 4 + 2 * 4 * layer


def test_fsdp_shares_experts_out_over_the_ranks_that_have_copies_of_them() -> None:
    sharded = {"use_megatron_fsdp": True, "data_parallel_sharding_strategy": "optim_grads_params"}
    experts = {"num_moe_experts": 8, "moe_ffn_hidden_size": 256, "moe_grouped_gemm": True}
    found, work = memory_of(8, ep=4, ddp=sharded, **experts)
    stage = work.parameters[0]
    assert stage.all.expert
    shard = stage.all.dense / 8 + stage.all.expert / 2
    layer = 2 * stage.largest_layer.all
    assert found.weights.value == pytest.approx(2 * (shard + layer))
    assert found.gradients.value == pytest.approx(4 * (shard + layer))
    assert found.optimizer.value == pytest.approx(12 * shard)


def test_sequence_parallelism_shares_out_all_activations() -> None:
    with_it, _ = memory_of(4, tp=4)
    without, _ = memory_of(
        4, tp=4, sequence_parallel=False, comm_overlap={"tp_comm_overlap": False}
    )
    assert with_it.activations.value == (LAYERS * LAYER + LOGITS) / 4
    outside = LAYERS * TOKENS * 2 * HIDDEN * (2 + 2)
    assert without.activations.value == with_it.activations.value + outside * 3 / 4


def test_the_first_stage_has_most_microbatches_in_flight() -> None:
    found, _ = memory_of(4, pp=4, vocab_size=8)
    assert found.stage == 0
    assert found.activations.value == 4 * LAYERS / 4 * LAYER


def test_interleaving_keeps_more_in_flight() -> None:
    found, _ = memory_of(4, pp=4, vp=2, vocab_size=8)
    # Korthikanti et al., 2022, section 4.2.3: p (1 + (p - 1) / (p v)) microbatches on stage 0.
    assert found.activations.value == 4 * (1 + 3 / (4 * 2)) * LAYERS / 4 * LAYER


def test_no_more_in_flight_than_there_are() -> None:
    found, _ = memory_of(4, pp=4, gbs=2, vocab_size=8)
    assert found.activations.value == 2 * LAYERS / 4 * LAYER


def test_full_recomputation_keeps_the_inputs_of_layers() -> None:
    again = {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    }
    found, _ = memory_of(1, **again)
    assert found.activations.value == LAYERS * TOKENS * HIDDEN * 2 + LAYER + LOGITS


@pytest.mark.parametrize(
    ("module", "saved"),
    [
        ("mlp", 3 * FFN * 2),
        ("moe_act", FFN * 2),
        ("layernorm", 2 * HIDDEN * 2),
        # The output is the next GEMM's input, which is kept.
        ("core_attn", (QUERIES + 2 * KV) * 2),
    ],
)
def test_selective_recomputation_drops_its_modules(module: str, saved: int) -> None:
    base, _ = memory_of(1)
    found, _ = memory_of(1, recompute_granularity="selective", recompute_modules=[module])
    assert base.activations.value - found.activations.value == LAYERS * TOKENS * saved


def test_fp4_weights_take_two_copies_of_half_a_byte_and_their_scales() -> None:
    (bf16, _), (found, _) = memory_of(1), memory_of(1, precision="bf16_with_nvfp4_mixed")
    assert "kept in FP4" in found.weights.formula
    assert found.weights.value < 0.7 * bf16.weights.value


def test_fp8_keeps_inputs_of_gemms_in_one_byte() -> None:
    base, _ = memory_of(1)
    found, _ = memory_of(1, precision="bf16_with_fp8_delayed_scaling_mixed")
    # Normalized inputs and the gate's product shrink; attention's output is kept in both formats.
    saved = 2 * HIDDEN + FFN - QUERIES
    assert base.activations.value - found.activations.value == LAYERS * TOKENS * saved


def test_a_smaller_optimizer_state() -> None:
    small = {
        "use_precision_aware_optimizer": True,
        "exp_avg_dtype": "bfloat16",
        "exp_avg_sq_dtype": "bfloat16",
    }
    found, work = memory_of(1, optimizer=small)
    assert found.optimizer.value == (2 + 2 + 2) * work.parameters[0].all.all
    with pytest.raises(InputError, match=r"optimizer\.exp_avg_dtype=int4: unknown dtype"):
        memory_of(1, optimizer=small | {"exp_avg_dtype": "int4"})


def test_whether_it_fits() -> None:
    run = effective_run(1)
    work = workload(run, 1)
    needed = memory(run, work, plain_machine()).needed.value
    for capacity, fits in ((needed / (1 - MARGIN) * 1.001, True), (needed * 1.001, False)):
        machine = plain_machine(memory=given("memory", capacity, "B"))
        assert memory(run, work, machine).fits is fits


@pytest.mark.parametrize("size", ["num_layers", "hidden_size", "ffn_hidden_size", "vocab_size"])
def test_more_of_the_model_needs_more(size: str) -> None:
    base = {"num_layers": 8, "hidden_size": 512, "ffn_hidden_size": 1024, "vocab_size": 1024}
    needs = [memory_of(2, **(base | {size: base[size] * n}))[0].needed.value for n in (1, 2, 4)]
    assert needs[0] < needs[1] < needs[2]


def test_experts_keep_what_arrives() -> None:
    found, _ = memory_of(
        4,
        ep=4,
        num_moe_experts=8,
        moe_ffn_hidden_size=256,
        moe_router_topk=2,
        moe_grouped_gemm=True,
        moe_token_dispatcher_type="alltoall",
    )
    attention = TOKENS * (2 * HIDDEN * (2 + 2) + (QUERIES + 2 * KV + QUERIES) * 2)
    experts = 2 * TOKENS * (HIDDEN + 3 * 256) * 2
    assert found.activations.value == LAYERS * (attention + experts) + LOGITS
