"""What we tell of tensors and buckets, against models that the real Megatron-Core builds.

The order of Transformer Engine's layer spec is compared where it can be imported, and else follows
from reading its modules alone; the local spec's is compared everywhere.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron.bridge.models.parameter_count import (
    chunk_parameter_count,
    chunk_parameters,
    model_parameter_count,
)
from megatron.bridge.training.bucketing import bucketing
from megatron.bridge.training.exchanged_bytes import element_bytes
from megatron.bridge.training.software import installed_version

pytestmark = [
    pytest.mark.functional,
    pytest.mark.skipif(
        importlib.util.find_spec("megatron.core") is None, reason="megatron-core is not installed"
    ),
]

HERE = Path(__file__).parent
# Grouped experts need no Transformer Engine only in the kind that ended with megatron-core 0.16.
GROUPED = (
    {"moe_grouped_gemm": True, "moe_use_legacy_grouped_gemm": True}
    if (installed_version("megatron-core") or "").startswith("0.16.")
    else {}
)
GPT = {
    "num_layers": 4,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "vocab_size": 104,
    "seq_length": 10,
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
}
LLAMA = GPT | {
    "num_query_groups": 2,
    "ffn_hidden_size": 40,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "normalization": "RMSNorm",
}
MOE = LLAMA | {"num_moe_experts": 4, "moe_ffn_hidden_size": 12, "moe_layer_freq": [0, 1, 1, 0]}
MLA = LLAMA | {
    "multi_latent_attention": True,
    "q_lora_rank": 12,
    "kv_lora_rank": 20,
    "qk_head_dim": 6,
    "qk_pos_emb_head_dim": 4,
    "v_head_dim": 8,
    "qk_layernorm": True,
    "rope_type": "rope",
}
TIED = {"share_embeddings_and_output_weights": True}
PP2, PP4 = {"pipeline_model_parallel_size": 2}, {"pipeline_model_parallel_size": 4}
VP2 = {"virtual_pipeline_model_parallel_size": 2}
TP2, TP4 = {"tensor_model_parallel_size": 2}, {"tensor_model_parallel_size": 4}
EP2 = {"expert_model_parallel_size": 2}

OVERLAP = {"overlap_grad_reduce": True}
DISTOPT = OVERLAP | {"use_distributed_optimizer": True}


def sized(bucket_size: int) -> dict[str, Any]:
    return DISTOPT | {"bucket_size": bucket_size}


# Real ranks: four processes over gloo.
REAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense-dp4": (GPT, sized(4000)),
    "llama-tp2-dp2": (LLAMA | TP2, sized(1500)),
    "llama-tp4-more-ranks-than-groups": (LLAMA | TP4, sized(900)),
    "tied-pp2": (LLAMA | TIED | PP2, sized(3000)),
    "tied-pp2-vp2": (LLAMA | TIED | PP2 | VP2, sized(3000)),
    "moe-ep2": (MOE | EP2, sized(2500)),
    "moe-ep2-tp2-etp1": (MOE | EP2 | TP2 | {"expert_tensor_parallel_size": 1}, sized(1000)),
    "moe-ep2-pp2-all-reduce": (MOE | EP2 | PP2, OVERLAP | {"bucket_size": 2500}),
}

# Other worlds, played rank by rank: (world size, model, ddp).
PLAYED: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "gpt-tied-all-reduce": (
        1,
        GPT | TIED | {"position_embedding_type": "learned_absolute"},
        OVERLAP | {"bucket_size": 700},
    ),
    "gpt-no-overlap": (1, GPT | TIED, {"bucket_size": 700, "use_distributed_optimizer": True}),
    "llama-tiny-buckets": (3, LLAMA, sized(1)),
    "llama-dp3-odd-size": (3, LLAMA, sized(1601)),
    "llama-cp3": (3, LLAMA | {"context_parallel_size": 3}, sized(1601)),
    "llama-busbw": (2, LLAMA, sized(70_000) | {"pad_buckets_for_high_nccl_busbw": True}),
    "qwen-like": (
        1,
        LLAMA | {"add_qkv_bias": True, "qk_layernorm": True, "kv_channels": 10},
        sized(2000),
    ),
    "l2-norm-and-gate": (
        1,
        LLAMA | {"qk_l2_norm": True, "qk_layernorm": True, "attention_output_gate": True},
        sized(2000),
    ),
    "learnable-softmax": (2, GPT | TP2 | {"softmax_type": "learnable"}, sized(2000)),
    "moe-bias": (1, MOE | {"add_bias_linear": True, "moe_layer_freq": 2}, sized(2000)),
    "moe-grouped": (
        4,
        MOE | EP2 | GROUPED,
        sized(2000),
    ),
    "moe-shared-expert": (
        1,
        MOE | {"moe_shared_expert_intermediate_size": 16, "moe_shared_expert_gate": True},
        sized(2000),
    ),
    "moe-ep4-tp2-edp3": (24, MOE | TP2 | {"expert_model_parallel_size": 4}, sized(1300)),
    "uneven-first": (4, LLAMA | PP4 | {"num_layers_in_first_pipeline_stage": 1}, sized(2000)),
    "uneven-both-vp2": (
        3,
        MOE
        | VP2
        | {"pipeline_model_parallel_size": 3, "num_layers": 12, "moe_layer_freq": 3}
        | {"num_layers_in_first_pipeline_stage": 2, "num_layers_in_last_pipeline_stage": 6},
        sized(2000),
    ),
    "embedding-and-loss-as-layers": (
        2,
        LLAMA
        | PP2
        | VP2
        | {"num_layers": 6, "account_for_embedding_in_pipeline_split": True}
        | {"account_for_loss_in_pipeline_split": True},
        sized(2000),
    ),
    "prediction": (1, MOE | {"mtp_num_layers": 1}, sized(2000)),
    "prediction-twice-tp2": (2, MOE | TP2 | {"mtp_num_layers": 2}, sized(2000)),
    "prediction-tied-pp2": (4, LLAMA | TIED | PP2 | {"mtp_num_layers": 1}, sized(2000)),
    "prediction-tied": (1, LLAMA | TIED | {"mtp_num_layers": 1}, sized(2000)),
    "prediction-of-experts-pp2-vp2": (
        2,
        LLAMA
        | {"num_moe_experts": 4, "moe_ffn_hidden_size": 12}
        | PP2
        | VP2
        | {"mtp_num_layers": 1},
        sized(2000),
    ),
    "layout": (4, LLAMA | PP4 | {"pipeline_model_parallel_layout": "Et|tt|t|L"}, sized(2000)),
    "layout-vp2": (
        2,
        MOE | PP2 | VP2 | {"pipeline_model_parallel_layout": "E|tt|t|tL"},
        sized(2000),
    ),
    "layout-with-prediction": (
        2,
        MOE | PP2 | {"mtp_num_layers": 1, "pipeline_model_parallel_layout": "Ettt|tmL"},
        sized(2000),
    ),
    "with-optimizer-step": (2, LLAMA | TIED | PP2 | VP2, sized(2000)),
    "bf16": (2, LLAMA | {"bf16": True}, sized(2000)),
    "bf16-reduced-in-fp32": (
        2,
        LLAMA | {"bf16": True},
        sized(2000) | {"grad_reduce_in_fp32": True},
    ),
    "bf16-all-reduce": (2, LLAMA | {"bf16": True}, OVERLAP | {"bucket_size": 2000}),
    "default-size-follows-dp-without-cp": (96, LLAMA | {"context_parallel_size": 2}, DISTOPT),
}
# The same, of what Megatron-Core builds with Transformer Engine alone.
FUSED: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "mla": (1, MLA, sized(2000)),
    "mla-tp2": (2, MLA | TP2 | {"add_bias_linear": True}, sized(2000)),
    "mla-plain-query": (1, MLA | {"q_lora_rank": None, "normalization": "LayerNorm"}, sized(2000)),
    "mla-moe": (1, MOE | MLA | {"qk_layernorm": False}, sized(2000)),
    "moe-grouped-gemm": (2, MOE | EP2 | {"moe_grouped_gemm": True}, sized(1000)),
    "moe-grouped-gemm-bias": (
        1,
        MOE | {"moe_grouped_gemm": True, "add_bias_linear": True},
        sized(1000),
    ),
}
WORLDS = {name: (4, *case) for name, case in REAL.items()} | PLAYED | FUSED
EVERYWHERE = [*REAL, *PLAYED]


def with_optimizer_step(name: str) -> bool:
    return name == "with-optimizer-step"


def case(name: str) -> dict[str, Any]:
    world, model, ddp = WORLDS[name]
    described = {
        "id": name,
        "model": model,
        "ddp": ddp,
        "with_optimizer_step": with_optimizer_step(name),
    }
    if name not in REAL:
        described |= {"world": world, "ranks": sorted({*range(min(world, 6)), world - 1})}
    return described


def build(folder: Path, spec: str) -> dict[str, list[dict[str, Any]]]:
    """The chunks of every case, on all of its ranks, as Megatron-Core builds them."""
    played = [*PLAYED, *FUSED] if spec == "transformer_engine" else [*PLAYED]
    for group, names in (("real", [*REAL]), ("played", played)):
        (folder / f"{group}.json").write_text(json.dumps([case(name) for name in names]))
    command = [sys.executable, "real_buckets.py", str(folder), spec]
    run = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-4000:]
    parts = [json.loads((folder / f"{part}.json").read_text()) for part in (*range(4), "all")]
    return {
        name: [chunk for part in parts for chunk in part.get(name, [])] for name in [*REAL, *played]
    }


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return build(tmp_path_factory.mktemp("buckets"), "local")


@pytest.mark.parametrize("name", EVERYWHERE)
def test_tensors_and_buckets_are_megatron_cores(
    name: str, real: dict[str, list[dict[str, Any]]]
) -> None:
    compare(name, real[name], "local")


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None,
    reason="Transformer Engine is not installed: its layer spec's order is not compared",
)
def test_with_transformer_engine_too(tmp_path: Path) -> None:
    for name, chunks in build(tmp_path, "transformer_engine").items():
        compare(name, chunks, "transformer_engine")


def compare(name: str, chunks: list[dict[str, Any]], spec: Any) -> None:
    world, values, ddp = WORLDS[name]
    model = SimpleNamespace(**values)
    sizes = [
        values.get(f"{dimension}_parallel_size", 1)
        for dimension in ("tensor_model", "pipeline_model", "context")
    ]
    ours = {
        (told.pp_rank, told.vp_stage): told
        for told in bucketing(
            model,
            SimpleNamespace(**ddp),
            data_parallel_size=world // (sizes[0] * sizes[1] * sizes[2]),
            layer_spec=spec,
            overlap_param_gather_with_optimizer_step=with_optimizer_step(name),
        )
    }
    assert {(chunk["pp_rank"], chunk["vp_stage"]) for chunk in chunks} == set(ours)
    for chunk in chunks:
        where = {"pp_rank": chunk["pp_rank"], "vp_stage": chunk["vp_stage"], "layer_spec": spec}
        tensors = chunk_parameters(model, **where)
        told = ours[chunk["pp_rank"], chunk["vp_stage"]]
        assert [
            [tensor.name, tensor.numel, tensor.expert, tensor.shared_embedding]
            for tensor in tensors
        ] == chunk["tensors"]
        elements = sum(numel for _, numel, _, _ in chunk["tensors"])
        assert told.parameters == chunk_parameter_count(model, **where) == elements
        assert told.bucket_size == chunk["bucket_size"]
        assert (told.bucket_size is None) == (told.uncut_because is not None)
        each = element_bytes(model, SimpleNamespace(**ddp))
        gathered = each.parameter if ddp.get("use_distributed_optimizer") else 0
        for expert in (False, True):
            assert [
                {
                    "tensors": [tensors[position].name for position in bucket.tensors],
                    "size": bucket.size,
                    "expert": bucket.expert,
                    "reduced_bytes": bucket.size * each.gradient,
                    "gathered_bytes": bucket.size * gathered,
                }
                for bucket in told.buckets
                if bucket.expert is expert
            ] == [bucket for bucket in chunk["buckets"] if bucket["expert"] is expert]
        assert told.collectives == chunk["collectives"]


def test_the_cases_cut_models_at_several_places() -> None:
    """A comparison of models with one bucket each would prove nothing."""
    several = 0
    for name, (world, values, ddp) in WORLDS.items():
        told = bucketing(
            SimpleNamespace(**values), SimpleNamespace(**ddp), data_parallel_size=world
        )
        several += len(told[0].buckets) > 3 and not with_optimizer_step(name)
    assert several > 15


@pytest.mark.parametrize("name", ["llama-tp2-dp2", "tied-pp2-vp2", "moe-ep2-tp2-etp1"])
def test_the_whole_model_counts_each_parameter_once(
    name: str, real: dict[str, list[dict[str, Any]]]
) -> None:
    unsharded = {
        key: value for key, value in WORLDS[name][1].items() if not key.endswith("parallel_size")
    }
    model = SimpleNamespace(**WORLDS[name][1])
    assert model_parameter_count(model) == chunk_parameter_count(SimpleNamespace(**unsharded))
