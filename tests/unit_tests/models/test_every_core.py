"""The drop-in modules with the configuration fields of every Megatron-Core, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.core_standins import fields_of, versions

TESTS = Path(__file__).parents[2]
PROGRAM = """
import sys
from dataclasses import fields
from support.core_standins import install
install(sys.argv[1])

from megatron.bridge.training import software
# The version that the rules go by; what is really installed is another.
VERSION = {"HEAD": "0.20.0"}.get(sys.argv[1], sys.argv[1])
software.installed_version = lambda *names: VERSION if "megatron-core" in names else None

from megatron.bridge.models import GPTModelProvider, T5ModelProvider
from megatron.bridge.models.gpt.gpt_builder import GPTModelBuilder, GPTModelConfig
from megatron.bridge.models.transformer_config import TransformerConfig
from megatron.bridge.training import comm_overlap, mixed_precision
from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.config import (
    ConfigContainer, DistributedDataParallelConfig, OptimizerConfig, runtime_config_update,
)
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from megatron.bridge.training.mixed_precision_recipes import RECIPES, mixed_precision_recipe
from megatron.bridge.utils import cuda_graph

comm_overlap.HAVE_TE = True
for module in (comm_overlap, mixed_precision):
    module.is_te_min_version = module.is_torch_min_version = lambda version: True
SIZES = {"num_layers": 8, "hidden_size": 64, "num_attention_heads": 4}
MOE = {
    "num_moe_experts": 8, "expert_model_parallel_size": 4, "moe_token_dispatcher_type": "alltoall",
    "gradient_accumulation_fusion": True, "add_bias_linear": False,
}
TP = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}


def flat(**given):
    return GPTModelProvider(**SIZES, vocab_size=128, **given)


def nested(**given):
    return GPTModelConfig(transformer=TransformerConfig(**SIZES, **given), vocab_size=128)


def container(model, comm, precision):
    return ConfigContainer(
        model=model,
        optimizer=OptimizerConfig(use_distributed_optimizer=True),
        ddp=DistributedDataParallelConfig(use_distributed_optimizer=True),
        mixed_precision=MixedPrecisionConfig(**precision),
        comm_overlap=CommOverlapConfig(**{"tp_comm_overlap": False, **comm}),
    )


def same_fields(config, cls):
    # Nothing was added to a configuration that its version does not have.
    known = {f.name for f in fields(cls)}
    extra = {k for k in vars(config) if not k.startswith("_")} - known
    assert not extra, extra


recipes = {name: mixed_precision_recipe(name) for name in RECIPES}
for make in (flat, nested):
    for given, comm in (
        ({}, {}),
        (TP, {"tp_comm_overlap": True}),
        (PP, {"bucket_size": "auto", "data_parallel_size": 4}),
        (MOE, {"overlap_moe_expert_parallel_comm": True, "delay_wgrad_compute": True}),
    ):
        for name, recipe in recipes.items():
            precision = dict(recipe, reuse_grad_buf_for_mxfp8_param_ag="mxfp8" in name)
            model = make(**given)
            if given is MOE:
                cuda_graph.set_cuda_graph_modules(model, "attn,moe_router")
                model.cuda_graph_impl = "transformer_engine"
            cfg = container(model, comm, precision)
            runtime_config_update(cfg, world_size=16)
            inside = getattr(model, "transformer", model)
            same_fields(inside, type(inside))
            same_fields(cfg.ddp, DistributedDataParallelConfig)
            same_fields(cfg.optimizer, OptimizerConfig)
            assert cfg.ddp.bucket_size is not None
            if given is MOE:
                assert model.delay_wgrad_compute and cfg.model.overlap_moe_expert_parallel_comm
                assert cuda_graph.cuda_graph_module_names(model) == ["attn", "moe_router"]

LOCAL, MTP = {"transformer_impl": "local"}, {"mtp_num_layers": 1}
for more in ({}, LOCAL, {**MOE, "moe_layer_freq": 2}, MTP):
    for build in (flat(**more).provide, GPTModelBuilder(nested(**more)).build_model):
        model = build()
        assert isinstance(model.config, TransformerConfig)
        assert model.arguments["mtp_block_spec"] == ("mtp" if more.get("mtp_num_layers") else None)
assert T5ModelProvider(**SIZES, vocab_size=128).provide().arguments["vocab_size"] == 128
assert "torch" not in sys.modules
"""


def test_the_tables_differ_where_the_versions_do() -> None:
    oldest, newest = (fields_of(version) for version in (versions()[0], versions()[-1]))
    assert "moe_use_legacy_grouped_gemm" in oldest["transformer"]
    assert "moe_use_legacy_grouped_gemm" not in newest["transformer"]
    assert "cuda_graph_modules" in newest["transformer"]
    assert "fp4_param_gather" in newest["ddp"] and "fp4_param_gather" not in oldest["ddp"]


@pytest.mark.parametrize("version", versions())
def test_setup_finalize_and_provide_with_the_fields_of_a_version(version: str) -> None:
    program = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{PROGRAM}"
    ended = subprocess.run(
        [sys.executable, "-c", program, version], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
