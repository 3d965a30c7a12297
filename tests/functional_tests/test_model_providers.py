"""The model providers build real Megatron-Core models, on the CPU, in a world of one process."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from megatron.bridge.training.decisions import OverlapConfigError
from support.late import Late, needs

if TYPE_CHECKING:
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_model import GPTModel

    from megatron.bridge import models
    from megatron.bridge.models import building
    from megatron.bridge.models.gpt import gpt_builder, model_config
    from megatron.bridge.utils import cuda_graph
else:
    torch = Late("torch")
    parallel_state = Late("megatron.core.parallel_state")
    models = Late("megatron.bridge.models")
    building = Late("megatron.bridge.models.building")
    gpt_builder = Late("megatron.bridge.models.gpt.gpt_builder")
    model_config = Late("megatron.bridge.models.gpt.model_config")
    cuda_graph = Late("megatron.bridge.utils.cuda_graph")
layer_specs = Late("megatron.core.models.gpt.gpt_layer_specs")
transformer_config = Late("megatron.core.transformer.transformer_config")
gpt_model = Late("megatron.core.models.gpt.gpt_model")
t5_model = Late("megatron.core.models.T5.t5_model")
random_state = Late("megatron.core.tensor_parallel.random")

pytestmark = [pytest.mark.functional, needs("torch", "megatron.core")]

BATCH, SEQUENCE, VOCABULARY = 2, 8, 32
SMALL = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "seq_length": SEQUENCE,
    "transformer_impl": "local",
    "use_cpu_initialization": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


@pytest.fixture(scope="module")
def world_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gloo world of one process, and a stand-in where Megatron-Core asks for a CUDA device."""
    store: Path = tmp_path_factory.mktemp("gloo") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "current_device", lambda: "cpu")
        patch.setattr(
            random_state.CudaRNGStatesTracker, "fork", lambda *_: contextlib.nullcontext()
        )
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=0, world_size=1
        )
        parallel_state.initialize_model_parallel()
        torch.manual_seed(0)
        yield
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


@pytest.fixture
def two_stages(world_of_one: None) -> Iterator[None]:
    """Megatron-Core believes in a pipeline of two stages, this process being the first."""
    parallel_state.set_pipeline_model_parallel_world_size(2)
    parallel_state.set_pipeline_model_parallel_rank(0)
    yield
    parallel_state.set_pipeline_model_parallel_world_size(None)
    parallel_state.set_pipeline_model_parallel_rank(None)
    parallel_state.set_virtual_pipeline_model_parallel_world_size(None)


def _gpt(**fields: object) -> models.GPTModelProvider:
    return models.GPTModelProvider(**{**SMALL, **fields})


def _t5(**fields: object) -> models.T5ModelProvider:
    return models.T5ModelProvider(**{**SMALL, **fields})


def _values(config: models.GPTModelProvider) -> dict[str, object]:
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {k: list(v) if isinstance(v, list) else v for k, v in values.items()}


def _tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (BATCH, SEQUENCE))


def _forward(model: GPTModel, labels: torch.Tensor | None = None) -> torch.Tensor:
    positions = torch.arange(SEQUENCE).expand(BATCH, SEQUENCE)
    future = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)[None, None]
    return model(_tokens(), positions, future, labels=labels)


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, megatron.bridge.models; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_construction_takes_what_finalize_refuses_and_the_user_may_mend_it() -> None:
    config = models.GPTModelProvider(num_layers=2, hidden_size=16, num_attention_heads=4)
    config.sequence_parallel = True
    with pytest.raises(ValueError):
        config.finalize()
    assert config.ffn_hidden_size is None, "a refused config stays as it was given"
    config.tensor_model_parallel_size = 4
    config.finalize()
    assert (config.ffn_hidden_size, config.expert_tensor_parallel_size) == (64, 4)


# What Megatron-Bridge's providers set otherwise than Megatron-Core: the fields of the providers in
# tests/data/bridge_configs (custom_*) that nobody had set.
BRIDGE_DEFAULTS: dict[str, dict[str, object]] = {
    "GPTModelProvider": {
        "attention_softmax_in_fp32": False,
        "deallocate_pipeline_outputs": True,
        "masked_softmax_fusion": True,
        "cross_entropy_loss_fusion": True,
    },
    "T5ModelProvider": {
        "attention_softmax_in_fp32": False,
        "bias_activation_fusion": True,
        "bias_dropout_fusion": True,
        "masked_softmax_fusion": True,
        "deallocate_pipeline_outputs": True,
    },
}


@pytest.mark.parametrize("provider", BRIDGE_DEFAULTS)
def test_fields_and_defaults_are_those_of_megatron_core_and_bridge(provider: str) -> None:
    sizes = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 4}
    ours = getattr(models, provider)(**sizes, gradient_accumulation_fusion=False)
    theirs = transformer_config.TransformerConfig(**sizes)
    assert isinstance(ours, transformer_config.TransformerConfig)
    ours.finalize()
    different = {}
    for name in vars(theirs):
        mine, its = getattr(ours, name), getattr(theirs, name)
        if isinstance(its, partial):
            mine, its = (mine.func, mine.args, mine.keywords), (its.func, its.args, its.keywords)
        if mine != its:
            different[name] = mine
    assert different == BRIDGE_DEFAULTS[provider]


@pytest.mark.parametrize(
    ("modules", "fused"),
    [
        ((), False),
        (("transformer_engine.pytorch",), True),
        (("fused_weight_gradient_mlp_cuda",), True),
    ],
)
def test_weight_gradients_are_fused_where_a_kernel_can_be_imported(
    monkeypatch: pytest.MonkeyPatch, modules: tuple[str, ...], fused: bool
) -> None:
    monkeypatch.setattr("megatron.bridge.utils.fusions._importable", lambda name: name in modules)
    assert _gpt().gradient_accumulation_fusion is fused
    assert _gpt(gradient_accumulation_fusion=not fused).gradient_accumulation_fusion is not fused


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"cuda_graph_impl": "local", "cuda_graph_scope": "attn,mlp"},
        {"enable_cuda_graph": True},
        {"num_moe_experts": 4, "moe_router_topk_limited_devices": 1},
        {"num_moe_experts": 4, "moe_layer_recompute": True},
        {"no_rope_freq": 2},
    ],
    ids=lambda fields: "-".join(fields) or "plain",
)
def test_finalize_twice_equals_once(fields: dict[str, object]) -> None:
    config = _gpt(**fields)
    config.finalize()
    once = _values(config)
    config.finalize()
    assert _values(config) == once
    config.finalize()
    assert _values(config) == once


def test_finalize_converts_the_cuda_graph_scope() -> None:
    config = _gpt(cuda_graph_impl="local", cuda_graph_scope="attn,mlp")
    assert config.cuda_graph_scope == "attn,mlp"
    config.finalize()
    assert cuda_graph.cuda_graph_module_names(config) == ["attn", "mlp"]
    (field,) = [f for f in cuda_graph.FIELDS if getattr(config, f, None)]
    assert not any(isinstance(part, str) for part in getattr(config, field))


def test_what_finalize_worked_out_follows_a_field_set_afterwards() -> None:
    config = _gpt(tensor_model_parallel_size=2)
    config.finalize()
    twin = copy.copy(config)
    assert (config.ffn_hidden_size, config.expert_tensor_parallel_size) == (64, 2)
    shallow = config.output_layer_init_method.keywords or config.output_layer_init_method.args
    config.tensor_model_parallel_size, config.hidden_size, config.num_layers = 4, 32, 8
    config.finalize()
    assert (config.ffn_hidden_size, config.expert_tensor_parallel_size) == (128, 4)
    deep = config.output_layer_init_method.keywords or config.output_layer_init_method.args
    assert deep != shallow, "the output layers' initial scale depends on the number of layers"
    twin.num_layers = 4
    twin.finalize()
    assert (twin.ffn_hidden_size, twin.expert_tensor_parallel_size) == (64, 2)


def test_what_the_user_gave_or_set_afterwards_stays() -> None:
    config = _gpt(ffn_hidden_size=40, enable_cuda_graph=True)
    config.finalize()
    config.kv_channels = config.kv_channels  # now the user's, though the same
    cuda_graph.set_cuda_graph_modules(config, ["attn"])
    config.hidden_size = 32
    config.finalize()
    assert (config.ffn_hidden_size, config.kv_channels) == (40, 4)
    assert cuda_graph.cuda_graph_module_names(config) == ["attn"]


def test_multi_latent_fields_come_by_inheritance_and_are_checked_late_too() -> None:
    @dataclasses.dataclass
    class LatentProvider(models.GPTModelProvider, transformer_config.MLATransformerConfig):
        """Both sets of fields."""

    config = LatentProvider(**SMALL, attention_output_gate=True)
    with pytest.raises(NotImplementedError):
        config.finalize()
    config.attention_output_gate = False
    config.finalize()
    assert config.ffn_hidden_size == 64


@pytest.mark.parametrize("position", ["learned_absolute", "rope", "none"])
def test_gpt_gives_logits_and_losses(world_of_one: None, position: str) -> None:
    model = _gpt(position_embedding_type=position, rotary_base=500000).provide()
    assert type(model) is gpt_model.GPTModel
    assert _forward(model).shape == (BATCH, SEQUENCE, VOCABULARY)
    loss = _forward(model, labels=_tokens())
    assert loss.shape == (BATCH, SEQUENCE)
    loss.mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_provider_fields_reach_the_model(world_of_one: None) -> None:
    model = _gpt(
        vocab_size=30,
        should_pad_vocab=True,
        make_vocab_size_divisible_by=64,
        position_embedding_type="rope",
        rotary_base=1e4,
        kv_channels=16,
        rotary_percent=0.25,
        share_embeddings_and_output_weights=False,
        normalization="RMSNorm",
        qk_layernorm=True,
    ).provide()
    assert model.embedding.word_embeddings.weight.shape == (64, 16)
    assert model.output_layer.weight.shape == (64, 16)
    assert model.rotary_pos_emb.inv_freq.tolist() == pytest.approx([1.0, 0.01])
    assert "RMSNorm" in type(model.decoder.final_layernorm).__name__
    assert "bias" not in dict(model.decoder.final_layernorm.named_parameters())


def test_moe_layers_alternate_with_dense_ones(world_of_one: None) -> None:
    model = _gpt(num_moe_experts=2, moe_layer_freq=[0, 1], add_bias_linear=False).provide()
    kinds = [type(layer.mlp).__name__ for layer in model.decoder.layers]
    assert kinds == ["MLP", "MoELayer"]


def test_multi_token_prediction_layers_are_built(world_of_one: None) -> None:
    model = _gpt(mtp_num_layers=1, position_embedding_type="rope").provide()
    assert len(model.mtp.layers) == 1
    assert _forward(model, labels=_tokens()).shape == (BATCH, SEQUENCE)


def _of_the_configuration(config: Any) -> object:
    return layer_specs.get_gpt_layer_local_spec(normalization=config.normalization)


def _of_the_stage(config: Any, vp_stage: int | None) -> object:
    return layer_specs.get_gpt_decoder_block_spec(config, False, vp_stage=vp_stage)


@pytest.mark.parametrize(
    "new_spec",
    [
        lambda: layer_specs.get_gpt_layer_local_spec(),
        lambda: _of_the_configuration,
        lambda: _of_the_stage,
        lambda: partial(layer_specs.get_gpt_decoder_block_spec, use_transformer_engine=False),
    ],
    ids=["spec", "function", "function_of_vp_stage", "partial"],
)
def test_the_layers_may_be_a_spec_or_a_function(
    world_of_one: None, new_spec: Callable[[], object]
) -> None:
    model = _gpt(transformer_layer_spec=new_spec()).provide()
    assert len(model.decoder.layers) == 2


@pytest.mark.parametrize(("rank", "ends"), [(0, (True, False)), (1, (False, True))])
def test_the_stage_decides_what_is_built(
    two_stages: None, rank: int, ends: tuple[bool, bool]
) -> None:
    parallel_state.set_pipeline_model_parallel_rank(rank)
    config = _gpt(
        pipeline_model_parallel_size=2,
        pipeline_dtype=torch.float32,
        share_embeddings_and_output_weights=False,
    )
    model = config.provide()
    assert (model.pre_process, model.post_process) == ends
    assert len(model.decoder.layers) == 1
    chosen = config.provide(pre_process=not ends[0], post_process=not ends[1])
    assert (chosen.pre_process, chosen.post_process) == (not ends[0], not ends[1])


def test_the_virtual_stage_decides_too(two_stages: None) -> None:
    parallel_state.set_virtual_pipeline_model_parallel_world_size(2)
    config = _gpt(
        num_layers=8,
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=2,
        pipeline_dtype=torch.float32,
        share_embeddings_and_output_weights=False,
    )
    ends = {}
    for rank in (0, 1):
        parallel_state.set_pipeline_model_parallel_rank(rank)
        for chunk in (0, 1):
            model = config.provide(vp_stage=chunk)
            ends[rank, chunk] = (model.pre_process, model.post_process)
            assert len(model.decoder.layers) == 2
    assert ends == {
        (0, 0): (True, False),
        (1, 0): (False, False),
        (0, 1): (False, False),
        (1, 1): (False, True),
    }
    with pytest.raises(OverlapConfigError, match="vp_stage is None"):
        config.provide()
    parallel_state.set_virtual_pipeline_model_parallel_world_size(None)
    with pytest.raises(OverlapConfigError, match="virtual_pipeline_model_parallel_size=2"):
        config.provide(vp_stage=0)


def _nested(**fields: object) -> gpt_builder.GPTModelConfig:
    """The same model as `_gpt`, its TransformerConfig inside."""
    own = {k: fields.pop(k) for k in ("position_embedding_type", "vocab_size") if k in fields}
    inside = {k: v for k, v in SMALL.items() if k not in ("vocab_size", "seq_length")} | fields
    return model_config.BridgeGPTModelConfig(
        transformer=transformer_config.TransformerConfig(**inside),
        **{"vocab_size": VOCABULARY, "seq_length": SEQUENCE, **own},
    )


def test_a_nested_configuration_builds_the_same_model(world_of_one: None) -> None:
    config = _nested(position_embedding_type="rope")
    model = gpt_builder.GPTModelBuilder(config).build_model()
    flat = _gpt(position_embedding_type="rope", share_embeddings_and_output_weights=False).provide()
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (model, flat)]
    assert shapes[0] == shapes[1]
    assert _forward(model).shape == (BATCH, SEQUENCE, VOCABULARY)


def test_a_nested_configuration_is_read_and_set_as_a_flat_one() -> None:
    config = _nested()
    config.tensor_model_parallel_size = 4
    assert config.transformer.tensor_model_parallel_size == config.tensor_model_parallel_size == 4
    config.seq_length = 16
    assert not hasattr(config.transformer, "seq_length")
    for twin in (copy.copy(config), copy.deepcopy(config)):
        assert (twin.hidden_size, twin.seq_length) == (16, 16)
    with pytest.raises(AttributeError, match="tensor_model_paralel_size"):
        config.tensor_model_paralel_size = 8
    with pytest.raises(AttributeError, match="no_such_field"):
        config.no_such_field  # noqa: B018


@pytest.mark.parametrize("make", [_gpt, _t5, _nested])
def test_a_missing_vocabulary_size_is_named(world_of_one: None, make: object) -> None:
    config = make(vocab_size=None)  # type: ignore[operator]
    build = gpt_builder.GPTModelBuilder(config).build_model if make is _nested else config.provide
    with pytest.raises(OverlapConfigError, match=r"model\.vocab_size is None: set it"):
        build()


@pytest.mark.parametrize(
    ("vocab_size", "tp", "multiple", "rows"),
    [(50257, 1, 128, 50304), (50257, 8, 128, 51200), (51200, 8, 128, 51200), (1, 1, 1, 1)],
)
def test_padded_vocabulary(vocab_size: int, tp: int, multiple: int, rows: int) -> None:
    config = _gpt(
        vocab_size=vocab_size,
        tensor_model_parallel_size=tp,
        make_vocab_size_divisible_by=multiple,
        should_pad_vocab=True,
    )
    assert building.built_vocab_size(config) == rows


def test_a_vocabulary_that_does_not_split_is_refused_unless_padded() -> None:
    config = _gpt(vocab_size=50257, tensor_model_parallel_size=2)
    with pytest.raises(OverlapConfigError, match="should_pad_vocab=True"):
        building.built_vocab_size(config)
    config.vocab_size = 50258
    assert building.built_vocab_size(config) == 50258


@pytest.mark.parametrize("position", ["learned_absolute", "rope"])
def test_t5_gives_logits_and_losses(world_of_one: None, position: str) -> None:
    model = _t5(encoder_num_layers=1, position_embedding_type=position).provide()
    assert type(model) is t5_model.T5Model
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (1, 2)
    assert model.encoder.final_layernorm is not None
    visible = torch.zeros(BATCH, 1, SEQUENCE, SEQUENCE, dtype=torch.bool)
    future = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1).expand(BATCH, 1, -1, -1)
    masks = (visible, future, visible)
    assert model(_tokens(), _tokens(), *masks).shape == (BATCH, SEQUENCE, VOCABULARY)
    loss = model(_tokens(), _tokens(), *masks, lm_labels=_tokens())
    assert loss.shape == (BATCH, SEQUENCE)


def test_t5_encoder_is_as_deep_as_the_decoder_unless_said(world_of_one: None) -> None:
    model = _t5(num_layers=3).provide()
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (3, 3)


def test_t5_refuses_a_pipeline() -> None:
    config = _t5(pipeline_model_parallel_size=2, pipeline_dtype=torch.float32)
    with pytest.raises(OverlapConfigError, match="pipeline_model_parallel_size=2"):
        config.provide()
