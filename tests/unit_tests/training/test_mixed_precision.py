"""Mixed precision: the config's rules, and the recipes as data and as objects."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest

from megatron.bridge.training import mixed_precision
from megatron.bridge.training.decisions import RULES, Outcome, OverlapConfigError
from megatron.bridge.training.mixed_precision import (
    MIXED_PRECISION_RECIPES,
    MixedPrecisionConfig,
    get_mixed_precision_config,
    mixed_precision_recipe,
    precision_errors,
)
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN, Stack

# Megatron-Bridge's recipes, by the fields in which they differ from its default config.
_BF16 = {"bf16": True, "params_dtype": "bfloat16", "pipeline_dtype": "bfloat16"}
_FP16 = {
    "fp16": True,
    "params_dtype": "float16",
    "pipeline_dtype": "float16",
    "grad_reduce_in_fp32": False,
}
_FP8_PARAM = {"fp8_param": True, "fp8_param_gather": True}
_FP8 = {
    "fp8_delayed_scaling": {
        "fp8": "hybrid",
        "fp8_recipe": "delayed",
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
        **_FP8_PARAM,
    },
    "fp8_current_scaling": {
        "fp8": "hybrid",
        "first_last_layers_bf16": True,
        "num_layers_at_start_in_bf16": 1,
        "num_layers_at_end_in_bf16": 1,
        **_FP8_PARAM,
    },
    "fp8_subchannel_scaling": {"fp8": "hybrid", "fp8_recipe": "blockwise"},
    "mxfp8": {
        "fp8": "e4m3",
        "fp8_recipe": "mxfp8",
        "reuse_grad_buf_for_mxfp8_param_ag": True,
        **_FP8_PARAM,
    },
}
OLDEST = KNOWN[0]
_NVFP4 = {"fp4": "e2m1", "fp4_param": True, "fp4_param_gather": True}
_TWO_LAYERS = {"num_layers_at_start_in_bf16": 2, "num_layers_at_end_in_bf16": 2}
BRIDGE_RECIPES = {
    "bf16_mixed": _BF16,
    "fp16_mixed": _FP16,
    "bf16_with_nvfp4_mixed": {**_BF16, **_NVFP4},
    "nemotron_3_super_bf16_with_nvfp4_mixed": {
        **_BF16,
        **_NVFP4,
        "first_last_layers_bf16": True,
        "num_layers_at_end_in_bf16": 14,
    },
    "nemotron_h_bf16_with_fp8_current_scaling_mixed": {
        **_BF16,
        **_FP8["fp8_current_scaling"],
        **_TWO_LAYERS,
    },
    "nanov2_bf16_with_fp8_current_scaling_mixed": {
        **_BF16,
        **_FP8["fp8_current_scaling"],
        **_TWO_LAYERS,
        "fp8_recipe": "blockwise",
    },
    **{f"bf16_with_{name}_mixed": {**_BF16, **fp8} for name, fp8 in _FP8.items()},
    **{f"fp16_with_{name}_mixed": {**_FP16, **fp8} for name, fp8 in _FP8.items()},
}


def _values(config: MixedPrecisionConfig) -> dict[str, object]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def _finalized(config: MixedPrecisionConfig) -> MixedPrecisionConfig:
    config.finalize(software=AssumedSoftware())
    return config


def test_defaults_and_field_order() -> None:
    assert _values(MixedPrecisionConfig()) == {
        "fp32": False,
        "fp16": False,
        "bf16": False,
        "params_dtype": None,
        "pipeline_dtype": None,
        "autocast_dtype": None,
        "autocast_enabled": False,
        "grad_reduce_in_fp32": True,
        "fp8": None,
        "fp8_recipe": "tensorwise",
        "first_last_layers_bf16": False,
        "fp8_margin": 0,
        "fp8_amax_history_len": 1,
        "fp8_amax_compute_algo": "most_recent",
        "fp8_wgrad": True,
        "fp8_dot_product_attention": False,
        "fp8_multi_head_attention": False,
        "fp8_param": False,
        "fp8_param_gather": False,
        "fp4": None,
        "fp4_recipe": "nvfp4",
        "fp4_param": False,
        "fp4_param_gather": False,
        "loss_scale": None,
        "initial_loss_scale": 2**32,
        "min_loss_scale": 1.0,
        "loss_scale_window": 1000,
        "hysteresis": 2,
        "num_layers_at_start_in_bf16": 0,
        "num_layers_at_end_in_bf16": 0,
        "reuse_grad_buf_for_mxfp8_param_ag": False,
    }
    assert MixedPrecisionConfig(False, True).fp16, "callers may build it by position"


@pytest.mark.parametrize("fp", ["fp8", "fp4"])
@pytest.mark.parametrize(
    ("given", "both"),
    [
        ({}, False),
        ({"param": None}, False),
        ({"param": True}, True),
        ({"param_gather": True}, True),
        ({"param": False}, False),
        ({"param": True, "param_gather": True}, True),
        ({"param": None, "param_gather": True}, True),
    ],
)
def test_param_is_one_switch_at_construction(given: dict[str, bool], both: bool, fp: str) -> None:
    config = MixedPrecisionConfig(**{f"{fp}_{name}": value for name, value in given.items()})
    assert getattr(config, f"{fp}_param") is both
    assert getattr(config, f"{fp}_param_gather") is both


@pytest.mark.parametrize("name", ["fp8_param", "fp8_param_gather", "fp4_param", "fp4_param_gather"])
@pytest.mark.parametrize(
    "remake",
    [lambda c: c, copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))],
    ids=["itself", "copy", "deepcopy", "unpickled"],
)
def test_param_is_one_switch_on_assignment(name: str, remake: object) -> None:
    config = remake(MixedPrecisionConfig())  # type: ignore[operator]
    fp, other = name[:3], {"fp8": "fp4", "fp4": "fp8"}[name[:3]]
    for value in (True, False):
        setattr(config, name, value)
        assert getattr(config, f"{fp}_param") is value
        assert getattr(config, f"{fp}_param_gather") is value
        assert getattr(config, f"{other}_param") is False


@pytest.mark.parametrize("fp", ["fp8", "fp4"])
@pytest.mark.parametrize(("param", "gather"), [(True, False), (False, True)])
def test_param_given_twice_and_differing_follows_the_gather_and_says_so(
    param: bool, gather: bool, fp: str
) -> None:
    config = MixedPrecisionConfig(**{f"{fp}_param": param, f"{fp}_param_gather": gather})
    assert getattr(config, f"{fp}_param") is getattr(config, f"{fp}_param_gather") is gather
    config.setup(SimpleNamespace())
    told = config.decisions[0]
    assert (told.requested, told.effective, told.is_finding) == (param, gather, True)
    assert told.rule == f"precision.{fp}_param_is_{fp}_param_gather"


def test_replacing_one_twin_works() -> None:
    config = dataclasses.replace(
        MixedPrecisionConfig(fp8_param_gather=True), fp8_param_gather=False
    )
    assert (config.fp8_param, config.fp8_param_gather) == (False, False)


def test_finalize_fills_fp8_param_and_twice_equals_once() -> None:
    config = MixedPrecisionConfig(bf16=True, fp8_param_gather=True)
    config.fp8_param = config.fp4_param = None
    config.finalize()
    assert (config.fp8_param, config.fp4_param) == (True, False)
    once = _values(config)
    config.finalize()
    assert _values(config) == once


@pytest.mark.parametrize(
    ("given", "rule", "remedied"),
    [
        (
            {"fp8": "e4m3", "fp8_recipe": "mxfp8", "fp8_param_gather": True},
            "precision.mxfp8_gather_reuses_grad_buffer",
            {"reuse_grad_buf_for_mxfp8_param_ag": True},
        ),
        (
            {"fp8": "e4m3", "fp8_recipe": "mxfp8", "fp8_param": True},
            "precision.mxfp8_gather_reuses_grad_buffer",
            {"fp8_param": False},
        ),
        ({"fp4": "e2m1", "fp8": "e4m3"}, "precision.fp4_excludes_fp8", {"fp8": None}),
    ],
)
def test_contradictions_are_errors_until_remedied(
    given: dict[str, object], rule: str, remedied: dict[str, object]
) -> None:
    config = MixedPrecisionConfig(**given)  # type: ignore[arg-type]
    software = AssumedSoftware(stack=OLDEST)
    assert [d.rule for d in precision_errors(config, software=software)] == [rule]
    with pytest.raises(OverlapConfigError) as error:
        config.finalize(software=software)
    assert str(RULES[rule].remedy) in str(error.value)
    for name, value in remedied.items():
        setattr(config, name, value)
    config.finalize(software=software)


@pytest.mark.parametrize("stack", KNOWN, ids=str)
def test_mxfp8_gather_is_refused_here_until_bridge_looks_at_ddp(stack: Stack) -> None:
    config = MixedPrecisionConfig(fp8="e4m3", fp8_recipe="mxfp8", fp8_param_gather=True)
    errors = precision_errors(config, software=AssumedSoftware(stack=stack))
    assert [d.rule for d in errors] == (
        ["precision.mxfp8_gather_reuses_grad_buffer"] if stack.bridge in ("0.3.1", "0.4.2") else []
    )


@pytest.mark.parametrize(("te", "accepted"), [(None, False), ("2.6.0", False), ("2.7.0", True)])
def test_fp4_needs_transformer_engine(te: str | None, accepted: bool) -> None:
    errors = precision_errors(MixedPrecisionConfig(fp4="e2m1"), software=AssumedSoftware(te=te))
    assert [d.rule for d in errors] == ([] if accepted else ["precision.fp4_needs_te"])


def test_te_version_is_asked_through_the_patchable_module_attribute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = MixedPrecisionConfig(fp4="e2m1")
    monkeypatch.setattr(mixed_precision, "is_te_min_version", lambda version: False)
    with pytest.raises(OverlapConfigError, match=r"Transformer Engine >= 2\.7\.0"):
        config.finalize()
    monkeypatch.setattr(mixed_precision, "is_te_min_version", lambda version: version == "2.7.0")
    config.finalize()


def test_setup_copies_every_field_none_included_onto_fields_of_that_name() -> None:
    model = SimpleNamespace(bf16=False, params_dtype="float32", loss_scale=8.0, num_layers=2)
    optimizer = SimpleNamespace(bf16=False, loss_scale=8.0)
    ddp = SimpleNamespace(grad_reduce_in_fp32=False, fp8_param_gather=None, bucket_size=7)
    config = MixedPrecisionConfig(bf16=True, params_dtype="bfloat16")  # type: ignore[arg-type]
    config.setup(model, optimizer, ddp)
    assert vars(model) == {
        "bf16": True,
        "params_dtype": "bfloat16",
        "loss_scale": None,
        "num_layers": 2,
    }
    assert vars(optimizer) == {"bf16": True, "loss_scale": None}
    assert vars(ddp) == {"grad_reduce_in_fp32": True, "fp8_param_gather": False, "bucket_size": 7}


def test_setup_takes_its_arguments_by_the_names_of_megatron_bridge() -> None:
    model, ddp = SimpleNamespace(fp4_param=False), SimpleNamespace(fp4_param_gather=False)
    config = MixedPrecisionConfig(fp4_param=True)
    config.setup(model_config=model, optimizer_config=None, ddp_config=ddp)
    assert (model.fp4_param, ddp.fp4_param_gather) == (True, True)


def test_one_config_is_updated_and_returned() -> None:
    config = SimpleNamespace(bf16=False, fp8="hybrid", hidden_size=8)
    updated = mixed_precision.update_config_with_precision_overrides(
        MixedPrecisionConfig(bf16=True), config
    )
    assert updated is config
    assert vars(config) == {"bf16": True, "fp8": None, "hidden_size": 8}


def test_setup_keeps_a_decision_for_each_value_that_it_overwrote() -> None:
    config = MixedPrecisionConfig(bf16=True, grad_reduce_in_fp32=False)
    ddp = SimpleNamespace(grad_reduce_in_fp32=True, fp8_param_gather=False)
    config.setup(SimpleNamespace(bf16=True), None, ddp)
    (decision,) = config.decisions
    assert decision.knob == "ddp.grad_reduce_in_fp32"
    assert (decision.requested, decision.effective) == (True, False)
    assert decision.outcome is Outcome.NOTE
    assert decision.rule == "precision.overwrites"
    assert decision.remedy == "set mixed_precision.grad_reduce_in_fp32=true"


def test_setup_may_be_repeated_and_reused() -> None:
    config = MixedPrecisionConfig(fp16=True)
    first, second = SimpleNamespace(fp16=False), SimpleNamespace(fp16=False)
    config.setup(first)
    config.setup(first)
    assert first.fp16
    assert config.decisions == []
    config.setup(second)
    assert second.fp16
    assert [d.knob for d in config.decisions] == ["model.fp16"]


def test_setup_copies_nothing_when_the_fields_contradict_each_other() -> None:
    model = SimpleNamespace(fp8=None, fp4=None)
    config = MixedPrecisionConfig(fp4="e2m1", fp8="e4m3")
    with pytest.raises(OverlapConfigError):
        config.setup(model, software=AssumedSoftware())
    assert vars(model) == {"fp8": None, "fp4": None}


@pytest.mark.parametrize("name", sorted(BRIDGE_RECIPES))
def test_recipe_has_the_values_of_megatron_bridge(name: str) -> None:
    torch = pytest.importorskip("torch")
    default = _values(MixedPrecisionConfig(fp8_param=False))
    values = _values(get_mixed_precision_config(name))
    values["fp8_param"] = values["fp8_param"] or False
    expected = {
        key: getattr(torch, value) if key.endswith("_dtype") else value
        for key, value in BRIDGE_RECIPES[name].items()
    }
    assert {k: v for k, v in values.items() if v != default[k]} == expected


def test_every_recipe_is_data_a_function_and_valid() -> None:
    pytest.importorskip("torch")
    assert set(mixed_precision.RECIPES) == set(BRIDGE_RECIPES)
    for name in mixed_precision.RECIPES:
        assert getattr(mixed_precision, name)() == get_mixed_precision_config(name)
        _finalized(get_mixed_precision_config(name))


def test_recipes_are_independent_of_each_other_and_of_the_data() -> None:
    pytest.importorskip("torch")
    mixed_precision_recipe("bf16_mixed")["bf16"] = False
    config = get_mixed_precision_config("bf16_mixed")
    config.grad_reduce_in_fp32 = False
    assert get_mixed_precision_config("bf16_mixed").grad_reduce_in_fp32
    assert get_mixed_precision_config("bf16_mixed").bf16


def test_a_config_passes_through_and_a_dashed_name_is_known() -> None:
    pytest.importorskip("torch")
    config = MixedPrecisionConfig(bf16=True)
    assert get_mixed_precision_config(config) is config
    assert get_mixed_precision_config("bf16-mixed") == get_mixed_precision_config("bf16_mixed")
    assert mixed_precision_recipe("fp16-mixed") == mixed_precision_recipe("fp16_mixed")


def test_a_recipe_is_registered_with_underscores_and_with_dashes() -> None:
    for name in mixed_precision.RECIPES:
        assert MIXED_PRECISION_RECIPES[name] is MIXED_PRECISION_RECIPES[name.replace("_", "-")]
        assert MIXED_PRECISION_RECIPES[name].__name__ == name


def test_a_recipe_has_the_fields_of_its_version() -> None:
    name = "bf16_with_nvfp4_mixed"
    old, new = mixed_precision_recipe(name, OLDEST), mixed_precision_recipe(name, KNOWN[1])
    assert "fp4_param_gather" not in old
    assert new == old | {"fp4_param_gather": True}


@pytest.mark.parametrize("look_up", [mixed_precision_recipe, get_mixed_precision_config])
def test_an_unknown_name_lists_the_known_ones_and_the_nearest(look_up: object) -> None:
    with pytest.raises(ValueError, match=r"'bf16_mixd'.*Did you mean 'bf16_mixed'") as error:
        look_up("bf16_mixd")  # type: ignore[operator]
    for name in mixed_precision.RECIPES:
        assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_something_that_is_neither_a_name_nor_a_config_is_refused() -> None:
    with pytest.raises(OverlapConfigError, match="'bf16': True"):
        get_mixed_precision_config({"bf16": True})  # type: ignore[arg-type]


def test_a_registered_recipe_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def house_mixed() -> MixedPrecisionConfig:
        return MixedPrecisionConfig(bf16=True, grad_reduce_in_fp32=False)

    monkeypatch.setattr(mixed_precision, "MIXED_PRECISION_RECIPES", dict(MIXED_PRECISION_RECIPES))
    assert mixed_precision.register(house_mixed) is house_mixed
    assert get_mixed_precision_config("house_mixed") == house_mixed()
    assert get_mixed_precision_config("house-mixed") == house_mixed()


def test_neither_importing_nor_reading_and_applying_a_recipe_loads_torch() -> None:
    program = """
import sys
from types import SimpleNamespace
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig, mixed_precision_recipe
model = SimpleNamespace(params_dtype="float32")
MixedPrecisionConfig(**mixed_precision_recipe("bf16_with_fp8_current_scaling_mixed")).setup(model)
assert model.params_dtype == "bfloat16", model
loaded = {"torch", "megatron.core"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_setup_on_megatron_core_configs() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("megatron.core")
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import TransformerConfig

    model = TransformerConfig(num_layers=2, hidden_size=8, num_attention_heads=2)
    optimizer, ddp = OptimizerConfig(), DistributedDataParallelConfig(grad_reduce_in_fp32=False)
    config = get_mixed_precision_config("bf16_with_fp8_delayed_scaling_mixed")
    config.setup(model, optimizer, ddp)
    assert (model.bf16, model.params_dtype, model.fp8) == (True, torch.bfloat16, "hybrid")
    assert (model.fp8_recipe, model.fp8_param) == ("delayed", True)
    assert (optimizer.bf16, optimizer.params_dtype) == (True, torch.bfloat16)
    assert (ddp.grad_reduce_in_fp32, ddp.fp8_param_gather) == (True, True)
    assert {d.knob for d in config.decisions} >= {
        "ddp.grad_reduce_in_fp32",
        "ddp.fp8_param_gather",
        "model.fp8",
    }
