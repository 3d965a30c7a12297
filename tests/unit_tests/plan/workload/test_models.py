"""Published models: their names and sizes, and the work of layers that only some of them have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from megatron.bridge.models.model_shape import read_shape
from megatron.bridge.models.parameter_count import model_parameter_count, tensor_groups
from megatron.bridge.models.pipeline_layout import parts_by_chunk, whole_model
from overlapkit.errors import InputError
from overlapkit.plan.estimate.memory import memory
from overlapkit.plan.estimate.overlap import NO_OVERLAP
from overlapkit.plan.estimate.step_time import estimate
from overlapkit.plan.figure import given
from overlapkit.plan.models import model_names, named_model
from overlapkit.plan.workload.layers import layer_flops
from overlapkit.plan.workload.step import workload
from support.plan_runs import effective_run, plain_machine, work_of

TOKENS, HIDDEN = 256, 512
TRANSFORMERS = sorted(
    name
    for name in model_names()
    # GPT-OSS has windows, biases of experts and offsets of the softmax.
    if not name.startswith(("gpt_oss", "nemotron_3", "nemotronh"))
)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_model_flops_are_six_per_parameter_and_token_and_attention(name: str) -> None:
    run = effective_run(1, gbs=1, pp=1, **(named_model(name) | {"mtp_num_layers": None}))
    work = workload(run, 1)
    shape, layers = work.shape, run.model.num_layers
    length, latent = run.model.seq_length, shape.latent
    norms = (2 * layers + 1) * shape.hidden * (2 if shape.norm_bias else 1)
    lookup = shape.vocab * shape.hidden * (0 if shape.tied else 1) + shape.positions * shape.hidden
    width, biases = shape.heads * 2 * shape.head_dim, 0
    if latent:
        width = shape.heads * (latent.qk_head_dim + latent.qk_position_dim + latent.v_head_dim)
    if shape.linear_bias:
        qkv = shape.heads * shape.head_dim + 2 * shape.query_groups * shape.head_dim
        biases = layers * (qkv + shape.hidden + shape.ffn + shape.hidden)
    multiplied = model_parameter_count(run.model) - norms - lookup - biases
    if shape.qk_norm:
        own = 2 * shape.head_dim if not latent else (latent.q_rank or 0) + latent.kv_rank
        multiplied -= layers * own
    if shape.experts:
        # A token meets the experts chosen for it and no others.
        idle = shape.experts.count - run.model.moe_router_topk
        multiplied -= sum(shape.moe_layers) * idle * 3 * shape.hidden * shape.experts.ffn
    # Scores and values: 2 x length^2 x both widths, half of it causal, forward and twice backward.
    attention = 3 * layers * length * width
    # An expert's tokens are whole: 4096 x 8 copies are 85 for each of 384.
    uneven = shape.experts and length * run.model.moe_router_topk % shape.experts.count
    expected = (6 * multiplied + attention) * length
    assert work.model_flops.value == pytest.approx(expected, rel=0.004 if uneven else 1e-12)


def _parameters(name: str, *, predicts: bool) -> float:
    """Billions of a model's parameters, with or without its multi-token prediction."""
    shape = read_shape(SimpleNamespace(**named_model(name)), ordered=False)
    groups = tensor_groups(shape, whole_model(len(shape.blocks), predicts=predicts))
    return sum(tensor.numel for group in groups for tensor in group.tensors) / 1e9


def test_published_sizes_of_the_named_models() -> None:
    billions = {name: _parameters(name, predicts=False) for name in model_names()}
    assert billions == {
        "llama3_8b": pytest.approx(8.03, abs=0.01),
        "llama3_70b": pytest.approx(70.55, abs=0.01),
        "llama3_405b": pytest.approx(405.85, abs=0.01),
        "gpt3_175b": pytest.approx(175, abs=0.6),
        "mixtral_8x7b": pytest.approx(46.7, abs=0.05),
        "qwen3_30b_a3b": pytest.approx(30.53, abs=0.05),
        "qwen3_235b_a22b": pytest.approx(235.1, abs=0.1),
        "gpt_oss_120b": pytest.approx(116.83, abs=0.05),
        "llama2_7b": pytest.approx(6.74, abs=0.01),
        "llama2_13b": pytest.approx(13.02, abs=0.01),
        "llama2_70b": pytest.approx(68.98, abs=0.01),
        "nemotron4_15b": pytest.approx(15.6, abs=0.1),
        "nemotron4_340b": pytest.approx(341, abs=1),
        "mixtral_8x22b": pytest.approx(140.6, abs=0.1),
        "gpt_oss_20b": pytest.approx(20.91, abs=0.05),
        "grok1_314b": pytest.approx(314, abs=3),
        "deepseek_v2": pytest.approx(235.7, abs=0.1),
        "deepseek_v3": pytest.approx(671.0, abs=0.1),
        "kimi_k2": pytest.approx(1026.5, abs=1),
        "llama4_scout": pytest.approx(107.8, abs=0.1),
        "llama4_maverick": pytest.approx(400.7, abs=0.1),
        "nemotronh_8b": pytest.approx(8.1, abs=0.05),
        "nemotronh_47b": pytest.approx(46.8, abs=0.1),
        "nemotronh_56b": pytest.approx(56.3, abs=0.1),
        "nemotron_3_nano": pytest.approx(31.6, abs=0.05),
        "nemotron_3_super": pytest.approx(120.6, abs=0.2),
    }
    # With the depth of prediction, which shares the embedding and the output layer.
    assert _parameters("deepseek_v3", predicts=True) == pytest.approx(682.6, abs=0.1)


PREDICTING: dict[str, Any] = {"mtp_num_layers": 1}


def test_a_depth_of_prediction_is_a_layer_a_projection_and_an_output_layer() -> None:
    without, once, twice = (work_of(1, mtp_num_layers=n) for n in (None, 1, 2))
    layer, head = layer_flops(without.layers[0]).value, layer_flops(without.vocabulary).value
    projection = 6 * TOKENS * 2 * HIDDEN * HIDDEN
    passes = without.layout.microbatches
    added = (once.model_flops.value - without.model_flops.value) / passes
    assert added == layer + projection + head
    assert twice.model_flops.value - once.model_flops.value == added * passes


def test_prediction_takes_time_and_memory_on_its_stage() -> None:
    settings: dict[str, Any] = {"pp": 2, "gbs": 64}
    found = {}
    for depths in (None, 1):
        run = effective_run(2, **settings, mtp_num_layers=depths)
        work = workload(run, 2)
        step = estimate(work, plain_machine(), NO_OVERLAP)
        found[depths] = work, memory(run, work, plain_machine()), step
    without, predicting = found[None][0], found[1][0]
    assert dict(without.stages[0]) == dict(predicting.stages[0]) == {0: 4}
    assert dict(predicting.stages[1]) == {0: 4, 1: 1, 2: 1}
    assert found[1][2].step.value > found[None][2].step.value
    assert found[1][1].needed.value > found[None][1].needed.value
    own = predicting.parameters[1].all.all - without.parameters[1].all.all
    # A layer, the joining projection and its three norms, and a copy of the embedding.
    layer = without.parameters[0].largest_layer.all
    assert own == layer + 2 * HIDDEN**2 + 3 * HIDDEN + without.shape.vocab * HIDDEN


def test_depths_that_share_their_layers_have_them_once() -> None:
    own, shared = (
        work_of(1, mtp_num_layers=2, mtp_use_repeated_layer=one) for one in (False, True)
    )
    assert own.model_flops.value == shared.model_flops.value
    once = work_of(1, mtp_num_layers=1)
    assert shared.rank_parameters.value == once.rank_parameters.value
    assert own.rank_parameters.value > once.rank_parameters.value


def test_a_layout_places_each_layer() -> None:
    layout = "Et|ttt|t|tttL"
    work = work_of(4, pp=4, gbs=64, pipeline_model_parallel_layout=layout)
    assert [sum(stage.values()) for stage in work.stages] == [1, 3, 1, 3]
    virtual = work_of(2, pp=2, gbs=64, pipeline_model_parallel_layout=layout)
    assert virtual.layout.vp == 2
    assert [sum(stage.values()) for stage in virtual.stages] == [2, 6]


def test_a_layout_that_does_not_fit_the_model_is_named() -> None:
    with pytest.raises(InputError, match="7 decoder layers for num_layers=8"):
        work_of(2, pp=2, gbs=64, pipeline_model_parallel_layout="Etttt|tttL")


def test_prediction_is_where_the_layout_has_it() -> None:
    layout = "Etttt|tttt|m|L"
    work = work_of(4, pp=4, gbs=64, pipeline_model_parallel_layout=layout, **PREDICTING)
    assert [dict(stage) for stage in work.stages] == [{0: 4}, {0: 4}, {1: 1, 2: 1}, {}]


HYBRID: dict[str, Any] = {
    "hybrid_override_pattern": "M-M*ME",
    "is_hybrid_model": True,
    "num_layers": 6,
    "mamba_num_heads": 16,
    "mamba_head_dim": 64,
    "mamba_num_groups": 8,
    "mamba_state_dim": 128,
    "num_moe_experts": 8,
    "moe_ffn_hidden_size": 256,
    "moe_router_topk": 2,
    "moe_grouped_gemm": True,
}
INNER, STATE, PROJECTED = 16 * 64, 128, 2 * 16 * 64 + 2 * 8 * 128 + 16


def test_the_layers_of_a_hybrid_have_one_block_each() -> None:
    work = work_of(1, **HYBRID)
    kinds = {one.name: work.stages[0][n] for n, one in enumerate(work.layers)}
    assert kinds == {"Mamba": 3, "feed-forward": 1, "attention": 1, "experts": 1}
    mamba = work.layers[0]
    weights = HIDDEN * PROJECTED + INNER * HIDDEN
    scan = 3 * 7 * TOKENS * INNER * STATE
    assert layer_flops(mamba).value == 6 * TOKENS * weights + scan
    assert mamba.attention is None
    assert [gemm.name for gemm in mamba.gemms if gemm.forward] == ["in_proj", "out_proj"]


def test_tensor_parallel_ranks_share_a_mamba_layer() -> None:
    whole, half = (work_of(tp, tp=tp, **HYBRID).layers[0] for tp in (1, 2))
    assert layer_flops(half).value == layer_flops(whole).value / 2
    scans = [one.traffic[1].forward.value for one in (whole, half)]
    assert scans[1] == scans[0] / 2
    gathered = [one.name for one in half.collectives if one.phase == "forward"]
    assert gathered == ["in_proj input", "out_proj output"]
    with pytest.raises(InputError, match="mamba_num_groups"):
        work_of(8, tp=8, **(HYBRID | {"mamba_num_groups": 4, "num_query_groups": 8}))


def test_context_parallel_ranks_exchange_the_heads_of_a_mamba_layer() -> None:
    layer = work_of(2, cp=2, **HYBRID).layers[0]
    found = {(one.phase, one.name): one.payload.value for one in layer.collectives}
    assert found["forward", "Mamba input"] == TOKENS / 2 * PROJECTED * 2
    assert found["backward", "Mamba output"] == TOKENS / 2 * INNER * 2


def test_a_scan_is_slower_than_memory() -> None:
    work = work_of(1, **HYBRID)
    slow = plain_machine(scan=given("scan", 1e11, "B/s"))
    parts = [estimate(work, one, NO_OVERLAP).parts for one in (plain_machine(), slow)]
    name = "memory-bound kernels"
    scanned = sum(
        getattr(one, phase).value
        for one in work.layers[0].traffic
        if one.kind == "scan"
        for phase in ("forward", "backward")
    )
    added = scanned * 3 * work.layout.microbatches * (1 / 1e11 - 1 / 1e12)
    assert parts[1][name].value - parts[0][name].value == pytest.approx(added)


def test_a_mamba_layer_keeps_its_projections() -> None:
    only = HYBRID | {"hybrid_override_pattern": "M", "num_layers": 1, "num_moe_experts": None}
    run = effective_run(1, mbs=1, gbs=1, **only)
    work = workload(run, 1)
    kept = TOKENS * (HIDDEN * (2 + 2) + PROJECTED * 2 + INNER * (2 + 2))
    logits = TOKENS * work.shape.vocab * (2 + 4)
    assert memory(run, work, plain_machine()).activations.value == kept + logits


def test_experts_behind_a_projection_work_on_its_width() -> None:
    latent = 64
    wide, narrow = (
        work_of(2, ep=2, moe_latent_size=size, **HYBRID).layers[3] for size in (None, latent)
    )
    names = {gemm.name: gemm.k for gemm in narrow.gemms if gemm.forward}
    assert names["experts fc1"] == latent
    assert names["latent down"] == HIDDEN
    sent = [
        next(one.payload.value for one in layer.collectives if one.name == "dispatch")
        for layer in (wide, narrow)
    ]
    assert sent[1] / sent[0] == latent / HIDDEN


def test_a_shared_expert_is_gathered_and_scattered_over_tensor_parallel_ranks() -> None:
    layer = work_of(2, tp=2, moe_shared_expert_intermediate_size=128, **HYBRID).layers[3]
    found = [one.name for one in layer.collectives if one.dimension == "TP"]
    assert found.count("shared fc1 input") == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hybrid_override_pattern": None}, "without hybrid_override_pattern"),
        ({"hybrid_override_pattern": "MGM*ME"}, "layers 'G' are not known"),
        ({"num_layers": 7}, "the hybrid pattern has 6 layers"),
        ({"num_moe_experts": None}, "num_moe_experts is not set"),
        ({"mtp_num_layers": 1}, "mtp_hybrid_override_pattern is not"),
    ],
)
def test_a_hybrid_that_is_not_understood_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        work_of(1, **(HYBRID | settings))


def test_a_hybrid_pattern_may_name_its_stages_and_its_prediction() -> None:
    model = SimpleNamespace(
        hybrid_layer_pattern="M-|M*M/*-/*-", hidden_size=64, pipeline_model_parallel_size=2
    )
    parts = parts_by_chunk(model)
    assert [[tuple(part.layers) for part in row] for row in parts] == [[(0, 1), (2, 3, 4)]]
    assert [part.predicts for part in parts[0]] == [False, True]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("DeepSeekV4 Flash", "compressed attention"),
        ("deepseek-ai/DeepSeek-V3.2", "sparse attention"),
        ("Nemotron_3_Ultra", "width of its experts"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "linear attention"),
    ],
)
def test_a_model_that_is_not_estimated_is_answered_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(InputError, match=f"not estimated: .*{why}"):
        named_model(name)


@pytest.mark.parametrize(
    "name",
    [
        "LLAMA3.1_405B",
        "llama3-405b",
        "Llama31_405b",
        "llama31-405b",
        "Llama 3.1 405B",
        "llama-3.1-405b",
        "llama3_1_405b",
        "llama_31_405b",
        "meta-llama/Llama-3.1-405B-Instruct",
    ],
)
def test_names_are_read_as_they_are_written(name: str) -> None:
    assert named_model(name)["num_layers"] == 126


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Llama-3-70B", "llama3_70b"),
        ("llama3.3-70b", "llama3_70b"),
        ("GPT-3 175B", "gpt3_175b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral_8x7b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3_30b_a3b"),
        ("Qwen/Qwen3-235B-A22B", "qwen3_235b_a22b"),
        ("openai/gpt-oss-120b", "gpt_oss_120b"),
        ("deepseek-ai/DeepSeek-V3-Base", "deepseek_v3"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek_v3"),
        ("DeepSeekV3", "deepseek_v3"),
        ("moonshotai/Kimi-K2-Instruct-0905", "kimi_k2"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4_scout"),
        ("Llama-4-Maverick-17B-128E", "llama4_maverick"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "nemotron_3_nano"),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", "nemotron_3_super"),
        ("nvidia/Nemotron-H-8B-Base-8K", "nemotronh_8b"),
        ("nvidia/Nemotron-4-340B-Base", "nemotron4_340b"),
        ("meta-llama/Llama-2-70b-hf", "llama2_70b"),
    ],
)
def test_names_of_model_cards_are_known(name: str, meant: str) -> None:
    assert named_model(name) == named_model(meant)


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean llama3_70b\?.*gpt3_175b"):
        named_model("llama3_71b")
