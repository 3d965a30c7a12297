"""What is emitted, read again, is the same run."""

from __future__ import annotations

import ast
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.tp_overlap_presets import PRESETS
from overlapkit.config.effective import EFFECTIVE_KNOBS, knob_value, make_effective
from overlapkit.config.emit.forms import FORMS, Emitted, emit
from overlapkit.config.megatron_lm.script import read_megatron_lm, read_megatron_lm_arguments
from overlapkit.config.overrides import parse_override
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings, build_run, read_settings
from overlapkit.config.shell.follow import follow_script
from overlapkit.config.shell.values import Array
from overlapkit.config.yaml_file import Document, read_yaml
from support.property_tests import examples

ROOT = Path(__file__).parents[4]
CONFIGS = sorted([*ROOT.glob("examples/*.yaml"), *ROOT.glob("tests/data/bridge_configs/*.yaml")])
SCRIPTS = [p for p in sorted(ROOT.glob("tests/data/megatron_lm/*.sh")) if "two_" not in p.name]


def read(data: dict[str, Any]) -> Settings:
    return read_settings(Document("run.yaml", data))


def from_yaml(emitted: Emitted) -> Settings:
    return read(yaml.safe_load(emitted.text))


def from_hydra(emitted: Emitted) -> Settings:
    (command,) = follow_script(f"run {emitted.text.lstrip()}", "x.sh", {}).started
    overrides = [parse_override(word.text) for word in command.words[1:]]
    return read_settings(Document("x", {"model": {}, "ddp": {}}), overrides)


def words_of(emitted: Emitted) -> list[str]:
    value = follow_script(emitted.text, "x.sh", {}).variables["MEGATRON_ARGS"]
    assert isinstance(value, Array)
    return [field.text for field in value.fields]


def effective(of: Settings, world_size: int) -> dict[str, Any]:
    run, _ = make_effective(of, world_size, AssumedSoftware())
    return {knob: knob_value(run, knob) for knob in EFFECTIVE_KNOBS}


def on_the_stack_of(dated: Settings, undated: Settings) -> Settings:
    """Emitted settings for the versions of their origin: what is emitted does not hold them."""
    return replace(undated, stacks=dated.stacks)


def ranks(of: Settings) -> int:
    size = 4
    for name in ("tensor", "pipeline"):
        size *= (of.values["model"] or {}).get(f"{name}_model_parallel_size") or 1
    for name in ("context_parallel_size", "expert_model_parallel_size"):
        size *= (of.values["model"] or {}).get(name) or 1
    return size


def same_run(one: Settings, other: Settings, left_out: set[str]) -> None:
    """Every typed field of both runs is the same, but for those told to be left out."""
    a, b = build_run(one), build_run(other)
    for section in ("model", "ddp", "optimizer"):
        left, right = (vars(getattr(run, section)) for run in (a, b))
        for key in set(left) & set(right):
            if f"{section}.{key}" not in left_out:
                assert left[key] == right[key], f"{section}.{key}"
    for section in ("comm_overlap", "mixed_precision"):
        left, right = getattr(a, section), getattr(b, section)
        assert (left is None) == (right is None)
        assert left is None or asdict(left) == asdict(right)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("form", ["yaml", "hydra"])
def test_a_configuration_comes_back(path: Path, form: Any) -> None:
    before = read_settings(read_yaml(path))
    emitted = emit(before, form)
    after = from_yaml(emitted) if form == "yaml" else from_hydra(emitted)
    after = on_the_stack_of(before, after)
    same_run(before, after, {left.key for left in emitted.left_out})
    size = ranks(before)
    assert effective(before, size) == effective(after, size)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_flags_of_a_bridge_run_give_its_knobs_or_say_why_not(path: Path) -> None:
    before = read_settings(read_yaml(path))
    size = ranks(before)
    emitted = emit(before, "megatron-lm", world_size=size)
    wanted, got = (
        effective(before, size),
        effective(read_megatron_lm_arguments(words_of(emitted)), size),
    )
    told = {left.key for left in emitted.left_out}
    assert all(left.why for left in emitted.left_out)
    model = build_run(before).model
    same_anyway = {"model.tp_comm_overlap_cfg"}
    if model.pipeline_model_parallel_size == 1:
        same_anyway.add("model.batch_p2p_comm")
    if not wanted["model.defer_embedding_wgrad_compute"]:
        same_anyway.add("model.wgrad_deferral_limit")
    if not model.num_moe_experts:
        same_anyway.add("model.moe_shared_expert_overlap")
    for knob in EFFECTIVE_KNOBS:
        if knob not in told | same_anyway:
            assert wanted[knob] == got[knob], knob


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_comes_back_as_flags(path: Path) -> None:
    before = read_megatron_lm(str(path))
    emitted = emit(before, "megatron-lm")
    assert not emitted.left_out
    size = ranks(before)
    assert effective(read_megatron_lm_arguments(words_of(emitted)), size) == effective(before, size)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
@pytest.mark.parametrize("form", ["yaml", "hydra"])
def test_a_script_for_bridge_has_the_same_knobs(path: Path, form: Any) -> None:
    if path.stem == "mistakes":
        pytest.skip("Megatron-LM refuses it, Megatron-Bridge does not")
    before = read_megatron_lm(str(path))
    emitted = emit(before, form)
    after = from_yaml(emitted) if form == "yaml" else from_hydra(emitted)
    size = ranks(before)
    assert after.framework == "megatron-bridge"
    assert effective(after, size) == effective(before, size)


SWITCH = st.booleans()
MAYBE = st.none() | SWITCH
MODEL = st.fixed_dictionaries(
    {"num_layers": st.just(16), "hidden_size": st.just(256), "num_attention_heads": st.just(8)},
    optional={
        "tensor_model_parallel_size": st.sampled_from([1, 2, 4]),
        "pipeline_model_parallel_size": st.sampled_from([1, 2, 4]),
        "virtual_pipeline_model_parallel_size": st.sampled_from([None, 1, 2]),
        "context_parallel_size": st.sampled_from([1, 2]),
        "sequence_parallel": SWITCH,
        "normalization": st.sampled_from(["RMSNorm", "LayerNorm"]),
        "overlap_p2p_comm": SWITCH,
        "batch_p2p_comm": SWITCH,
        "moe_token_dispatcher_type": st.sampled_from(["alltoall", "allgather"]),
        "recompute_modules": st.lists(st.sampled_from(["mlp", "moe", "core_attn"]), max_size=2),
        "cuda_graph_impl": st.sampled_from(["none", "on", "a: b", "it's", "null", "1"]),
        "bf16": SWITCH,
    },
)
DDP = st.fixed_dictionaries(
    {},
    optional={
        "use_distributed_optimizer": SWITCH,
        "overlap_grad_reduce": SWITCH,
        "overlap_param_gather": SWITCH,
        "align_param_gather": SWITCH,
        "grad_reduce_in_fp32": SWITCH,
        "bucket_size": st.none() | st.integers(1, 10**9),
    },
)
COMM = st.none() | st.fixed_dictionaries(
    {"tp_comm_overlap": SWITCH},
    optional={
        "overlap_grad_reduce": MAYBE,
        "overlap_param_gather": MAYBE,
        "overlap_p2p_comm": MAYBE,
        "batch_p2p_comm": MAYBE,
        "bucket_size": st.sampled_from([None, "auto", 5, 40_000_000]),
        "tp_comm_overlap_cfg": st.none() | st.sampled_from(sorted(PRESETS)),
    },
)
PRECISION = st.none() | st.sampled_from(["bf16_mixed", "fp16_mixed"])
RUNS = st.fixed_dictionaries(
    {"model": MODEL, "ddp": DDP, "comm_overlap": COMM, "mixed_precision": PRECISION}
)
SLOWLY = examples(30, 800, suppress_health_check=[HealthCheck.too_slow])


@SLOWLY
@given(RUNS)
def test_any_run_comes_back_from_yaml_and_hydra(data: dict[str, Any]) -> None:
    before = read(data)
    for after in (from_yaml(emit(before, "yaml")), from_hydra(emit(before, "hydra"))):
        same_run(before, after, set())
        assert {k: v for k, v in after.flat().items() if v is not None} == {
            k: v for k, v in before.flat().items() if v is not None
        }


@SLOWLY
@given(RUNS)
def test_flags_of_any_run_are_the_same_or_told(data: dict[str, Any]) -> None:
    before = read(data)
    size = ranks(before)
    emitted = emit(before, "megatron-lm", world_size=size)
    got = effective(read_megatron_lm_arguments(words_of(emitted)), size)
    wanted = effective(before, size)
    told = {left.key for left in emitted.left_out}
    decided = {
        "model.sequence_parallel",
        "model.tp_comm_overlap",
        "model.overlap_p2p_comm",
        "ddp.overlap_grad_reduce",
        "ddp.overlap_param_gather",
        "ddp.bucket_size",
        "ddp.align_param_gather",
        "ddp.grad_reduce_in_fp32",
    }
    for knob in decided - told:
        assert got[knob] == wanted[knob], knob


def test_a_mapping_of_sections_is_taken_too() -> None:
    emitted = emit({"model": {"tensor_model_parallel_size": 2}, "ddp": {}}, "hydra")
    assert "model.tensor_model_parallel_size=2" in emitted.text


def test_the_userbuffers_file_goes_with_the_flags() -> None:
    name = "userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192"
    comm = {"tp_comm_overlap": True, "tp_comm_overlap_cfg": name}
    model = {"tensor_model_parallel_size": 4, "sequence_parallel": True, "num_layers": 4}
    emitted = emit({"model": model, "comm_overlap": comm}, "megatron-lm")
    content = emitted.text.partition("<<'EOF'\n")[2].partition("\nEOF\n")[0]
    assert yaml.safe_load(content)["proj_fprop"] == asdict(PRESETS[name].proj_fprop)
    words = words_of(emitted)
    assert words[words.index("--tp-comm-overlap-cfg") + 1] == "tp_comm_overlap.yaml"


@pytest.mark.parametrize("form", FORMS)
def test_the_environment_goes_with_every_form(form: Any) -> None:
    environment = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    emitted = emit({"model": {"num_layers": 4}}, form, environment=environment)
    assert "export CUDA_DEVICE_MAX_CONNECTIONS=1" in emitted.text
    commented = form != "megatron-lm"
    line = next(line for line in emitted.text.splitlines() if "CONNECTIONS" in line)
    assert line.startswith("#") == commented
    if not commented:
        followed = follow_script(emitted.text + "run\n", "x.sh", {}).started[-1]
        assert followed.environment["CUDA_DEVICE_MAX_CONNECTIONS"].text == "1"


def test_what_megatron_lm_refuses_is_told() -> None:
    data = {
        "model": {
            "num_layers": 8,
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
            "overlap_p2p_comm": False,
        }
    }
    (left,) = emit(data, "megatron-lm").left_out
    assert left.key == "model.virtual_pipeline_model_parallel_size" and "stops" in left.why


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_python_is_python_and_names_no_foreign_object(path: Path) -> None:
    emitted = emit(read_settings(read_yaml(path)), "bridge")
    tree = ast.parse(emitted.text)
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call)}  # type: ignore[attr-defined]
    assert called <= {
        "ConfigContainer",
        "GPTModelProvider",
        "TrainingConfig",
        "MixedPrecisionConfig",
        "DistributedDataParallelConfig",
        "OptimizerConfig",
        "CommOverlapConfig",
        "TransformerLayerTPOverlapCfg",
        "BulkOverlapCfg",
        "PipelineOverlapCfg",
        "RingExchangeOverlapCfg",
    }


@given(st.text(max_size=30))
def test_no_text_breaks_out_of_a_form(text: str) -> None:
    # An override with None as a string is refused: Python's None is null in YAML.
    if not text.isprintable() or text == "None":
        return
    data = {"model": {"normalization": text, "num_layers": 2}}
    before = read(data)
    assert from_yaml(emit(before, "yaml")).values == before.values
    assert (from_hydra(emit(before, "hydra")).values["model"] or {})["normalization"] == text
    tree = ast.parse(emit(before, "bridge").text)
    assert repr(text) in {repr(n.value) for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    emitted = emit(before, "megatron-lm")
    told = any(left.key == "model.normalization" for left in emitted.left_out)
    if text and text != "LayerNorm":
        assert told == text.startswith("--")
        assert told or text in words_of(emitted)


GRAPHS = {"model": {"cuda_graph_impl": "transformer_engine", "cuda_graph_scope": ["attn"]}}


@pytest.mark.parametrize(
    ("core", "flag"),
    [
        (None, "--cuda-graph-modules"),
        ("0.19.0", "--cuda-graph-modules"),
        ("0.17.1", "--cuda-graph-scope"),
        ("0.16.1", "--cuda-graph-scope"),
    ],
)
def test_flags_have_the_names_of_their_version(core: str | None, flag: str) -> None:
    emitted = emit(Reading(core=core).dated(read(GRAPHS)), "megatron-lm")
    words = words_of(emitted)
    assert words[words.index(flag) + 1] == "attn"
    assert sum(word.startswith("--cuda-graph-") for word in words) == 2
    assert not emitted.left_out


def test_a_flag_that_the_version_lacks_is_left_out() -> None:
    data = {"model": {"high_priority_a2a_comm_stream": True}}
    new, old = (
        emit(Reading(core=core).dated(read(data)), "megatron-lm") for core in ("0.18.2", "0.17.1")
    )
    assert "--high-priority-a2a-comm-stream" in words_of(new)
    assert "--high-priority-a2a-comm-stream" not in words_of(old)


def test_an_fsdp_has_its_checkpoint_format() -> None:
    emitted = emit(read({"model": {}, "ddp": {"use_megatron_fsdp": True}}), "megatron-lm")
    words = words_of(emitted)
    assert words[words.index("--ckpt-format") + 1] == "fsdp_dtensor"
    assert not emitted.left_out
