"""The userbuffers presets: their values, names and registry.

The values are compared with tests/data/tp_userbuffers_presets.json: the presets of Megatron-Bridge
0.3 (Apache-2.0) by name and GEMM, with the fields that differ from a default left to the classes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.bridge.training import tp_overlap_presets
from megatron.bridge.training.decisions import Outcome
from megatron.bridge.training.tp_overlap_presets import (
    PRESETS,
    PresetKey,
    find_preset,
    get_preset,
    parse_preset_name,
    preset_names,
    presets_like,
)
from megatron.bridge.training.userbuffers.settings import (
    BulkOverlapCfg,
    PipelineOverlapCfg,
    RingExchangeOverlapCfg,
    TransformerLayerTPOverlapCfg,
    as_te_dict,
    check_userbuffers,
)

DATA = Path(__file__).parents[2] / "data/tp_userbuffers_presets.json"
EXPECTED: dict[str, dict[str, Any]] = json.loads(DATA.read_text())
CLASSES = {
    "bulk": BulkOverlapCfg,
    "pipeline": PipelineOverlapCfg,
    "ring_exchange": RingExchangeOverlapCfg,
}
LORA = "userbuffers_fp8_h100_h8192_tp2_mbs1_seqlen4096_lora"
PLAIN = "userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192"


def expected(name: str) -> TransformerLayerTPOverlapCfg:
    return TransformerLayerTPOverlapCfg(
        **{gemm: cfg and CLASSES[cfg["method"]](**cfg) for gemm, cfg in EXPECTED[name].items()}
    )


def test_there_are_nineteen_and_no_others() -> None:
    assert len(EXPECTED) == 19
    assert set(preset_names()) == set(PRESETS) == set(EXPECTED) == set(tp_overlap_presets.__all__)


@pytest.mark.parametrize("name", EXPECTED)
def test_values_are_those_of_the_data_file(name: str) -> None:
    assert PRESETS[name] == expected(name)
    assert getattr(tp_overlap_presets, name) is PRESETS[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_preset_is_sound_for_its_own_precision(name: str) -> None:
    decisions = check_userbuffers(PRESETS[name], fp8=parse_preset_name(name).precision == "fp8")
    assert [d for d in decisions if d.outcome is Outcome.ERROR] == []
    # A LoRA preset splits fc1_dgrad, for which the layers need a switch of their own.
    assert [d.rule for d in decisions] == ["ub.split-dgrad-switch"] * name.endswith("_lora")


@pytest.mark.parametrize("name", EXPECTED)
def test_lora_presets_leave_the_wgrads_out(name: str) -> None:
    plain = as_te_dict(PRESETS[name])
    assert len(plain) == (8 if name.endswith("_lora") else 10)
    assert ("qkv_wgrad" in plain) is ("fc1_wgrad" in plain) is not name.endswith("_lora")


def test_no_two_slots_share_settings() -> None:
    slots = [
        getattr(preset, field.name)
        for preset in PRESETS.values()
        for field in fields(preset)
        if getattr(preset, field.name) is not None
    ]
    assert len({id(slot) for slot in slots}) == len(slots)


def test_what_a_configuration_gets_from_a_preset_is_its_own() -> None:
    as_te_dict(PRESETS[PLAIN])["proj_fprop"]["num_sm"] = 1
    mine = get_preset(PLAIN)
    assert isinstance(mine.proj_fprop, PipelineOverlapCfg)
    mine.proj_fprop.num_sm = 1
    mine.qkv_fprop = None
    assert PRESETS[PLAIN] == get_preset(PLAIN) == expected(PLAIN)
    with pytest.raises(TypeError):
        PRESETS[PLAIN] = mine  # type: ignore[index]


def test_a_name_is_read_into_what_the_preset_is_for() -> None:
    assert parse_preset_name(LORA) == PresetKey(
        precision="fp8",
        gpu="h100",
        hidden_size=8192,
        tensor_parallel_size=2,
        context_parallel_size=1,
        micro_batch_size=1,
        seq_length=4096,
        lora=True,
    )
    with_cp = parse_preset_name("userbuffers_bf16_b200_h16384_tp4_cp2_mbs1_seqlen8192")
    assert (with_cp.context_parallel_size, with_cp.gpu, with_cp.lora) == (2, "b200", False)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "userbuffers_",
        PLAIN.upper(),
        PLAIN + "_",
        PLAIN + "\n",
        PLAIN.replace("_mbs1", ""),
        PLAIN.replace("_mbs1", "_cp1_mbs1"),
        PLAIN.replace("tp4", "tp0"),
        PLAIN.replace("h8192", "h08192"),
        PLAIN.replace("tp4", "tp٤"),
    ],
)
def test_other_names_are_errors_that_show_the_form(name: str) -> None:
    with pytest.raises(ValueError, match="userbuffers_<precision>_<gpu>_h<n>_tp<n>"):
        parse_preset_name(name)


SIZES = st.integers(1, 10**6)
WORDS = st.from_regex(r"[a-z0-9]+", fullmatch=True)


@given(st.builds(PresetKey, WORDS, WORDS, SIZES, SIZES, SIZES, SIZES, SIZES, st.booleans()))
def test_name_and_key_are_each_other_s_inverse(key: PresetKey) -> None:
    assert parse_preset_name(key.name) == key


@pytest.mark.parametrize("name", EXPECTED)
def test_a_preset_is_found_by_what_it_is_for(name: str) -> None:
    key = parse_preset_name(name)
    assert key.name == name
    assert find_preset(**vars(key)) == PRESETS[name]


def test_only_an_exact_match_is_found() -> None:
    near = vars(parse_preset_name(PLAIN))
    assert find_preset(**near) is not None
    for change in (
        {"seq_length": 4096},
        {"precision": "fp16"},
        {"gpu": "H100"},
        {"context_parallel_size": 2},
        {"lora": True},
    ):
        assert find_preset(**near | change) is None


def test_an_unknown_name_is_an_error_that_lists_the_nearest() -> None:
    with pytest.raises(ValueError, match=rf"'{PLAIN}0'.*nearest: {PLAIN}"):
        get_preset(PLAIN + "0")
    with pytest.raises(ValueError, match=LORA):
        get_preset("nothing like it")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_preset_is_recognized_as_an_object_and_as_plain_settings(name: str) -> None:
    plain = as_te_dict(PRESETS[name])
    assert parse_preset_name(name) in presets_like(PRESETS[name])
    assert presets_like(plain) == presets_like(PRESETS[name])
    changed = {**plain, "proj_fprop": {**plain["proj_fprop"], "num_sm": 7}}
    assert presets_like(changed) == []


def test_importing_loads_no_torch() -> None:
    code = (
        "import sys, megatron.bridge.training.tp_overlap_presets; "
        "sys.exit('torch' in sys.modules or 'megatron.core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
