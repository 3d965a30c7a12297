"""Parameter tensors told from a configuration; real models are compared in functional_tests."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron.bridge.models.model_fields import DEFAULTS, MLA_DEFAULTS, PROVIDER_DEFAULTS
from megatron.bridge.models.parameter_count import (
    UncountableModel,
    chunk_parameter_count,
    chunk_parameters,
    model_parameter_count,
)
from overlapkit.config import provider_defaults

BRIDGE_CONFIGS = Path(__file__).parents[2] / "data" / "bridge_configs"

ROTARY = {
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
}


def llama3(layers: int, hidden: int, ffn: int, heads: int) -> dict[str, Any]:
    return ROTARY | {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_attention_heads": heads,
        "num_query_groups": 8,
        "vocab_size": 128256,
    }


QWEN3_30B_A3B = ROTARY | {
    "num_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_query_groups": 4,
    "kv_channels": 128,
    "qk_layernorm": True,
    "num_moe_experts": 128,
    "moe_ffn_hidden_size": 768,
    "vocab_size": 151936,
}
DEEPSEEK_V3 = ROTARY | {
    "num_layers": 61,
    "hidden_size": 7168,
    "ffn_hidden_size": 18432,
    "num_attention_heads": 128,
    "multi_latent_attention": True,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_head_dim": 128,
    "qk_pos_emb_head_dim": 64,
    "v_head_dim": 128,
    "qk_layernorm": True,
    "num_moe_experts": 256,
    "moe_ffn_hidden_size": 2048,
    "moe_shared_expert_intermediate_size": 2048,
    "moe_layer_freq": [0] * 3 + [1] * 58,
    "moe_router_enable_expert_bias": True,
    "vocab_size": 129280,
}


def model(**values: Any) -> SimpleNamespace:
    """A small model of Llama's kind, changed."""
    return SimpleNamespace(**(llama3(8, 256, 512, 8) | values))


@pytest.mark.parametrize(
    ("values", "published"),
    [
        (llama3(32, 4096, 14336, 32), 8_030_261_248),
        (llama3(80, 8192, 28672, 64), 70_553_706_496),
        (llama3(126, 16384, 53248, 128), 405_853_388_800),
        (QWEN3_30B_A3B, 30_532_122_624),
        (DEEPSEEK_V3, 671_026_404_352),
    ],
    ids=["llama3-8b", "llama3-70b", "llama3-405b", "qwen3-30b-a3b", "deepseek-v3"],
)
def test_published_models_have_their_published_size(values: dict[str, Any], published: int) -> None:
    assert model_parameter_count(SimpleNamespace(**values)) == published


@pytest.mark.parametrize(
    ("name", "vocab", "billions"),
    [("llama3_8b", 128256, 8.03), ("llama3_70b", 128256, 70.56), ("qwen3_30b_a3b", None, 30.53)],
)
def test_configurations_that_megatron_bridge_wrote(
    name: str, vocab: int | None, billions: float
) -> None:
    text = (BRIDGE_CONFIGS / f"{name}_pretrain_config.yaml").read_text()
    written = SimpleNamespace(**yaml.safe_load(text)["model"])
    count = model_parameter_count(written, vocab_size=vocab)
    assert round(count / 1e9, 2) == billions


def test_transformer_engine_puts_each_norm_into_the_linear_layer_behind_it() -> None:
    names = [t.name for t in chunk_parameters(model(num_layers=1, add_qkv_bias=True))]
    assert names == [
        "embedding.word_embeddings.weight",
        "decoder.layers.0.self_attention.linear_proj.weight",
        "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.0.self_attention.linear_qkv.weight",
        "decoder.layers.0.self_attention.linear_qkv.bias",
        "decoder.layers.0.mlp.linear_fc1.layer_norm_weight",
        "decoder.layers.0.mlp.linear_fc1.weight",
        "decoder.layers.0.mlp.linear_fc2.weight",
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    ]


@given(
    gated=st.booleans(),
    bias=st.booleans(),
    tied=st.booleans(),
    normalization=st.sampled_from(["LayerNorm", "RMSNorm"]),
    experts=st.sampled_from([None, 4]),
    grouped=st.booleans(),
    tp=st.sampled_from([1, 2]),
    pp=st.sampled_from([1, 2, 4]),
    vp=st.sampled_from([None, 1, 2]),
)
def test_layer_specs_differ_in_order_alone_and_ranks_add_up(
    gated: bool,
    bias: bool,
    tied: bool,
    normalization: str,
    experts: int | None,
    grouped: bool,
    tp: int,
    pp: int,
    vp: int | None,
) -> None:
    tested = model(
        gated_linear_unit=gated,
        add_bias_linear=bias,
        share_embeddings_and_output_weights=tied,
        normalization=normalization,
        num_moe_experts=experts,
        moe_grouped_gemm=grouped,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vp if pp > 1 else None,
    )
    chunks = [(rank, chunk) for rank in range(pp) for chunk in range((pp > 1 and vp) or 1)]
    replicated = whole = 0
    for pp_rank, vp_stage in chunks:
        where = {"pp_rank": pp_rank, "vp_stage": vp_stage}
        fused = chunk_parameters(tested, **where)
        if not grouped:
            local = chunk_parameters(tested, **where, layer_spec="local")
            assert sorted(t.numel for t in fused) == sorted(t.numel for t in local)
        assert chunk_parameter_count(tested, **where) == sum(t.numel for t in fused)
        assert len({t.name for t in fused}) == len(fused)
        split = ("linear", "embeddings", "output_layer", "experts")
        for t in fused:
            one_copy = (
                "norm" in t.name
                or not any(part in t.name for part in split)
                or t.name.endswith(("proj.bias", "fc2.bias"))
                or ".linear_fc2.bias" in t.name
            )
            replicated += t.numel if one_copy else 0
            whole += 0 if one_copy else tp * t.numel
    second_copy = tied and len(chunks) > 1
    embedding = tested.vocab_size * tested.hidden_size
    assert model_parameter_count(tested) == whole + replicated - second_copy * embedding


def test_experts_are_apart_only_with_expert_parallelism() -> None:
    experts = {"num_moe_experts": 8, "moe_ffn_hidden_size": 64, "moe_grouped_gemm": True}
    together = chunk_parameters(model(**experts))
    apart = chunk_parameters(model(**experts, expert_model_parallel_size=4))
    assert not any(t.expert for t in together)
    assert {t.name.split(".mlp.")[1].split(".")[0] for t in apart if t.expert} == {"experts"}
    assert 4 * len([t for t in apart if t.expert]) == len(
        [t for t in together if "expert" in t.name]
    )


def test_expert_tensor_parallelism_is_its_own() -> None:
    def expert_numel(**values: Any) -> int:
        ep = {"num_moe_experts": 8, "expert_model_parallel_size": 2, "moe_ffn_hidden_size": 64}
        return sum(t.numel for t in chunk_parameters(model(**ep, **values)) if t.expert)

    assert expert_numel(tensor_model_parallel_size=4) * 4 == expert_numel()
    assert (
        expert_numel(tensor_model_parallel_size=4, expert_tensor_parallel_size=1) == expert_numel()
    )


def test_an_expert_bias_is_a_buffer_and_not_a_parameter() -> None:
    moe = {"num_moe_experts": 8}
    with_bias = model(**moe, moe_router_enable_expert_bias=True)
    assert model_parameter_count(with_bias) == model_parameter_count(model(**moe))


@pytest.mark.parametrize(
    ("freq", "layers"),
    [
        (1, range(8)),
        (3, (0, 3, 6)),
        (-1, range(8)),
        ([0, 1] * 4, (1, 3, 5, 7)),
        ("[0]*3+[1]*5", range(3, 8)),
        ("([0, 1] * 2) * 2", (1, 3, 5, 7)),
        ("2", (0, 2, 4, 6)),
    ],
)
def test_moe_layer_freq(freq: Any, layers: Any) -> None:
    names = [t.name for t in chunk_parameters(model(num_moe_experts=2, moe_layer_freq=freq))]
    assert [f"decoder.layers.{n}.mlp.router.weight" for n in layers] == [
        name for name in names if "router" in name
    ]


def test_moe_layers_keep_their_place_in_a_pipeline() -> None:
    pipeline = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    tested = model(num_moe_experts=2, moe_layer_freq=[0, 0, 0, 0, 0, 1, 0, 0], **pipeline)
    routers = {
        (rank, chunk): [
            t.name
            for t in chunk_parameters(tested, pp_rank=rank, vp_stage=chunk)
            if "router" in t.name
        ]
        for rank in range(2)
        for chunk in range(2)
    }
    # Layers 0-1 and 4-5 are on stage 0, 2-3 and 6-7 on stage 1.
    assert routers[0, 1] == ["decoder.layers.1.mlp.router.weight"]
    assert not (routers[0, 0] or routers[1, 0] or routers[1, 1])


def test_fp8_parameters_are_the_linear_weights_of_layers_kept_in_fp8() -> None:
    fp8 = {"fp8": "e4m3", "fp8_param": True, "num_moe_experts": 2, "moe_grouped_gemm": True}
    ends = {
        "first_last_layers_bf16": True,
        "num_layers_at_start_in_bf16": 1,
        "num_layers_at_end_in_bf16": 2,
    }
    marked = [t.name for t in chunk_parameters(model(**fp8, **ends)) if t.fp8]
    assert {int(name.split(".")[2]) for name in marked} == {1, 2, 3, 4, 5}
    assert {name.split(".", 3)[3] for name in marked} == {
        "self_attention.linear_proj.weight",
        "self_attention.linear_qkv.weight",
        *(f"mlp.experts.linear_fc{n}.weight{expert}" for n in (1, 2) for expert in (0, 1)),
    }
    assert not any(t.fp8 for t in chunk_parameters(model(fp8="e4m3", fp8_param=False)))
    fp4 = {**fp8, "fp8": None, "fp4": "e2m1", "fp4_param": True}
    assert [t.name for t in chunk_parameters(model(**fp4, **ends)) if t.fp8] == marked
    assert not any(t.fp8 for t in chunk_parameters(model(fp4="e2m1", fp4_param=False)))
    assert not any(t.fp8 for t in chunk_parameters(model(**fp8), layer_spec="local"))


def test_multi_latent_attention_divides_heads_and_not_down_projections() -> None:
    def numel(tp: int) -> dict[str, int]:
        sharded = SimpleNamespace(**DEEPSEEK_V3, tensor_model_parallel_size=tp)
        return {
            t.name.removeprefix("decoder.layers.0.self_attention."): t.numel
            for t in chunk_parameters(sharded)
            if t.name.startswith("decoder.layers.0.self_attention")
        }

    whole, half = numel(1), numel(2)
    assert list(whole) == [
        "linear_proj.weight",
        "linear_q_down_proj.weight",
        "linear_q_up_proj.layer_norm_weight",
        "linear_q_up_proj.weight",
        "linear_kv_down_proj.weight",
        "linear_kv_up_proj.layer_norm_weight",
        "linear_kv_up_proj.weight",
    ]
    divided = {name for name in whole if whole[name] == 2 * half[name]}
    assert divided == {"linear_proj.weight", "linear_q_up_proj.weight", "linear_kv_up_proj.weight"}
    assert all(whole[name] == half[name] for name in set(whole) - divided)


@pytest.mark.parametrize(
    ("values", "elements"),
    [
        ({"vocab_size": 1000}, 1000),
        ({"vocab_size": 1000, "should_pad_vocab": True}, 1024),
        ({"vocab_size": None}, 33024),
        ({"vocab_size": None, "tensor_model_parallel_size": 8}, 33792),
        ({"vocab_size": None, "make_vocab_size_divisible_by": 1}, 33001),
    ],
)
def test_vocabulary_padding(values: dict[str, Any], elements: int) -> None:
    """A tokenizer's vocabulary of 33,001 is padded, a model's own only where asked."""
    tested = model(**values)
    word = chunk_parameters(tested, vocab_size=33001)[0]
    tp = values.get("tensor_model_parallel_size", 1)
    assert word.numel * tp == elements * tested.hidden_size


def test_learned_positions_take_the_sequence_length() -> None:
    learned = model(position_embedding_type="learned_absolute", seq_length=77)
    assert chunk_parameters(learned)[1].name == "embedding.position_embeddings.weight"
    assert chunk_parameters(learned)[1].numel == 77 * learned.hidden_size


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_layers": "32"}, "num_layers='32'"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": 1001, "tensor_model_parallel_size": 2}, "should_pad_vocab"),
        ({"num_query_groups": 3, "tensor_model_parallel_size": 2}, "num_query_groups=3"),
        ({"ffn_hidden_size": 1001, "tensor_model_parallel_size": 2}, "1001"),
        ({"normalization": "L2Norm"}, "L2Norm"),
        ({"pipeline_model_parallel_size": 3}, "pipeline"),
        ({"virtual_pipeline_model_parallel_size": 2}, "pipeline_model_parallel_size > 1"),
        (
            {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 3},
            "cannot be divided over 3",
        ),
        (
            {"pipeline_model_parallel_size": 2, "num_layers_in_first_pipeline_stage": 9},
            "num_layers=8 does not fit",
        ),
        ({"pipeline_model_parallel_layout": "Et*7L"}, "7 decoder layers for num_layers=8"),
        (
            {"pipeline_model_parallel_layout": "Et*8|t|L", "pipeline_model_parallel_size": 2},
            "3 chunks for pipeline_model_parallel_size=2",
        ),
        ({"pipeline_model_parallel_layout": "Et*8xL"}, "unknown part 'x'"),
        ({"pipeline_model_parallel_layout": "t*8EL"}, "begin with the embedding"),
        ({"pipeline_model_parallel_layout": "Et*8mL"}, "1 mtp layers in 1 chunks for 0"),
        ({"pipeline_model_parallel_layout": 4}, "want a text"),
        ({"mtp_num_layers": "1"}, "mtp_num_layers='1'"),
        ({"hybrid_override_pattern": "M*-E" * 2}, "the order of a hybrid model's"),
        ({"moe_latent_size": 8, "num_moe_experts": 4}, "moe_latent_size=8"),
        ({"vision_config": {"hidden_size": 8}}, "vision_config is set"),
        ({"experimental_attention_variant": "dsa"}, "dsa"),
        ({"num_moe_experts": 4, "moe_layer_freq": [1, 0]}, "2 entries for num_layers=8"),
        ({"num_moe_experts": 4, "moe_layer_freq": "[2]*8"}, "moe_layer_freq"),
        ({"num_moe_experts": 4, "moe_layer_freq": "__import__('os')"}, "moe_layer_freq"),
        ({"num_moe_experts": 4, "moe_layer_freq": "[1]*10**12"}, "moe_layer_freq"),
        ({"num_moe_experts": 4, "moe_layer_freq": 0}, "moe_layer_freq=0"),
        (
            {
                "num_moe_experts": 4,
                "moe_shared_expert_intermediate_size": 64,
                "add_bias_linear": True,
            },
            "add_bias_linear is on",
        ),
        ({"num_moe_experts": 6, "expert_model_parallel_size": 4}, "num_moe_experts = 6"),
        ({"transformer_layer_spec": {"_target_": "m.gemma2_layer_spec"}}, "gemma2_layer_spec"),
    ],
)
def test_what_cannot_be_told_is_said(values: dict[str, Any], names: str) -> None:
    with pytest.raises(UncountableModel) as refusal:
        chunk_parameters(model(**values))
    assert names in str(refusal.value)


def test_a_chunk_that_does_not_exist_is_an_error() -> None:
    for where in ({"pp_rank": 1}, {"vp_stage": 1}, {"pp_rank": -1}):
        with pytest.raises(UncountableModel, match="there is no chunk"):
            chunk_parameters(model(), **where)


def get_gpt_decoder_block_spec() -> None: ...


@pytest.mark.parametrize(
    ("spec", "fused"),
    [
        (None, True),
        ("megatron.bridge.models.gpt_provider.default_layer_spec", True),
        ({"_target_": "megatron.bridge.models.gpt_provider.local_layer_spec"}, False),
        ({"_target_": "x.get_gpt_decoder_block_spec", "use_transformer_engine": False}, False),
        (get_gpt_decoder_block_spec, True),
        (functools.partial(get_gpt_decoder_block_spec, use_transformer_engine=False), False),
    ],
)
def test_the_named_layer_spec_is_followed(spec: Any, fused: bool) -> None:
    names = [t.name for t in chunk_parameters(model(transformer_layer_spec=spec))]
    assert ("decoder.layers.0.input_layernorm.weight" not in names) == fused


@pytest.mark.parametrize("spec", [None, "default_layer_spec"])
def test_the_default_layer_spec_follows_transformer_impl(spec: str | None) -> None:
    local = model(transformer_layer_spec=spec, transformer_impl="local")
    assert chunk_parameters(local) == chunk_parameters(model(), layer_spec="local")


def test_a_pipeline_layout_does_not_hinder_counting_the_whole_model() -> None:
    laid_out = model(pipeline_model_parallel_layout="Et*8L", pipeline_model_parallel_size=2)
    assert model_parameter_count(laid_out) == model_parameter_count(model())


@pytest.mark.skipif(
    importlib.util.find_spec("megatron.core") is None, reason="megatron-core is not installed"
)
def test_defaults_are_the_installed_megatron_cores() -> None:
    from megatron.core.transformer import transformer_config as real

    for ours, theirs in (
        (DEFAULTS, real.TransformerConfig),
        (MLA_DEFAULTS, real.MLATransformerConfig),
    ):
        defaults = {f.name: f.default for f in dataclasses.fields(theirs)}
        # Without these there is no model; Megatron-Core has 0 for them.
        required = {"num_layers", "hidden_size", "num_attention_heads"}
        named = {name: value for name, value in ours.items() if name not in required}
        if "moe_use_legacy_grouped_gemm" not in defaults:  # It ended with megatron-core 0.16.
            named.pop("moe_use_legacy_grouped_gemm", None)
        assert named == {name: defaults[name] for name in named}


@pytest.mark.skipif(
    importlib.util.find_spec("megatron.core") is None, reason="megatron-core is not installed"
)
def test_provider_defaults_are_the_providers() -> None:
    provider = pytest.importorskip("megatron.bridge.models.gpt_provider").GPTModelProvider
    defaults = {f.name: f.default for f in dataclasses.fields(provider)}
    ours = {name: of for name, of in PROVIDER_DEFAULTS.items() if name != "transformer_layer_spec"}
    assert ours == {name: defaults[name] for name in ours}
    chunk_parameters(model(transformer_layer_spec=defaults["transformer_layer_spec"]))


@pytest.mark.skipif(
    importlib.util.find_spec("megatron.core") is None, reason="megatron-core is not installed"
)
def test_the_defaults_of_a_file_by_hand_are_the_providers() -> None:
    provider = pytest.importorskip("megatron.bridge.models.gpt_provider").GPTModelProvider
    defaults = {f.name: f.default for f in dataclasses.fields(provider)}
    # Where a kernel can be imported decides about the fusion.
    ours = dict(provider_defaults.PROVIDER_CHOICES)
    assert ours.pop(provider_defaults.FUSION) is True
    assert ours == {name: defaults[name] for name in ours}


def test_counting_loads_neither_torch_nor_megatron_core() -> None:
    code = (
        "import sys, megatron.bridge.training.bucketing; "
        "sys.exit('torch' in sys.modules or 'megatron.core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
