"""Userbuffers settings: the classes, their plain form, and the checks against Transformer Engine.

Whether Transformer Engine itself agrees is tested in functional_tests/test_te_initialize_ub.py.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron.bridge.training.decisions import RULES, Decision, Outcome
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.userbuffers.remedies import edited
from megatron.bridge.training.userbuffers.settings import (
    BulkOverlapCfg,
    PipelineOverlapCfg,
    RingExchangeOverlapCfg,
    TPOverlapCfg,
    TransformerLayerTPOverlapCfg,
    as_te_dict,
    check_userbuffers,
)

DATA = Path(__file__).parents[3] / "data"
KNOB = "model.tp_comm_overlap_cfg"
RING = {"method": "ring_exchange", "num_sm": 1, "cga_size": 1, "set_sm_margin": False}
PIPELINE = {"method": "pipeline", "num_sm": 16, "cga_size": 2, "num_splits": 4}
BULK = {"method": "bulk", "num_sm": 4, "cga_size": 2, "set_sm_margin": False}
ATOMIC = RING | {"atomic_gemm": True}
MODULE = "megatron.bridge.training.comm_overlap"


def layer(**slots: TPOverlapCfg | None) -> TransformerLayerTPOverlapCfg:
    empty = dict.fromkeys(f.name for f in fields(TransformerLayerTPOverlapCfg))
    return TransformerLayerTPOverlapCfg(**empty | slots)


def errors(decisions: list[Decision]) -> list[Decision]:
    return [d for d in decisions if d.outcome is Outcome.ERROR]


# ------------------------------------------------------------------------------------ the classes


def test_fields_are_positional_in_the_order_that_callers_of_megatron_bridge_use() -> None:
    assert PipelineOverlapCfg(16, 2, 4, True, True, True) == PipelineOverlapCfg(
        num_sm=16, cga_size=2, num_splits=4, set_sm_margin=True, fp8_buf=True, atomic_gemm=True
    )
    assert RingExchangeOverlapCfg(True, "ring_exchange", 2, 3, True, True, True) == (
        RingExchangeOverlapCfg(
            aggregate=True, num_sm=2, cga_size=3, set_sm_margin=True, fp8_buf=True, atomic_gemm=True
        )
    )
    assert BulkOverlapCfg(4, 2, False) == BulkOverlapCfg(num_sm=4, cga_size=2, set_sm_margin=False)
    by_position = TransformerLayerTPOverlapCfg(
        *(RingExchangeOverlapCfg(num_sm=i) for i in range(10))
    )
    assert [getattr(by_position, name).num_sm for name in SLOTS] == list(range(10))


SLOTS = [
    "qkv_dgrad",
    "qkv_wgrad",
    "fc1_dgrad",
    "fc1_wgrad",
    "qkv_fprop",
    "proj_dgrad",
    "fc1_fprop",
    "fc2_dgrad",
    "proj_fprop",
    "fc2_fprop",
]


def test_defaults() -> None:
    assert vars(RingExchangeOverlapCfg()) == {
        "aggregate": False,
        "method": "ring_exchange",
        "num_sm": 1,
        "cga_size": 1,
        "set_sm_margin": False,
        "fp8_buf": False,
        "atomic_gemm": False,
    }
    pipeline = PipelineOverlapCfg(16, 2, 4, True)
    assert (pipeline.fp8_buf, pipeline.atomic_gemm, pipeline.method) == (False, False, "pipeline")
    assert BulkOverlapCfg(4, 2, False).method == "bulk"
    for cls in (PipelineOverlapCfg, RingExchangeOverlapCfg, BulkOverlapCfg):
        assert issubclass(cls, TPOverlapCfg)


# ------------------------------------------------------------------------------------- as_te_dict


def test_plain_form_leaves_out_none_at_both_levels() -> None:
    cfg = layer(
        proj_fprop=PipelineOverlapCfg(24, 2, 4, True),
        qkv_dgrad=BulkOverlapCfg(num_sm=None, cga_size=2, set_sm_margin=False),  # type: ignore[arg-type]
    )
    assert as_te_dict(cfg) == {
        "qkv_dgrad": {"cga_size": 2, "set_sm_margin": False, "method": "bulk"},
        "proj_fprop": {
            "num_sm": 24,
            "cga_size": 2,
            "num_splits": 4,
            "set_sm_margin": True,
            "fp8_buf": False,
            "atomic_gemm": False,
            "method": "pipeline",
        },
    }


def test_any_dataclass_is_accepted() -> None:
    @dataclass
    class Own:
        proj_fprop: Any = None
        fc2_fprop: dict[str, int] = field(default_factory=lambda: {"num_sm": 8})

    assert as_te_dict(Own()) == {"fc2_fprop": {"num_sm": 8}}


def test_a_mapping_from_a_yaml_loses_its_hydra_keys_and_gains_its_class_defaults() -> None:
    cfg = yaml.safe_load(f"""
        _target_: {MODULE}.TransformerLayerTPOverlapCfg
        qkv_fprop: {{_target_: {MODULE}.RingExchangeOverlapCfg, _call_: true, aggregate: true}}
        qkv_wgrad: null
        proj_fprop: {{method: ring_exchange}}
    """)
    assert as_te_dict(cfg) == {
        "qkv_fprop": vars(RingExchangeOverlapCfg(aggregate=True)),
        "proj_fprop": {"method": "ring_exchange"},
    }


def test_changing_the_plain_form_changes_nothing_else() -> None:
    values = {"proj_fprop": {"fp8_buf": [False]}}
    for cfg in (layer(proj_fprop=PipelineOverlapCfg(24, 2, 4, True)), values):
        plain = as_te_dict(cfg)
        before = as_te_dict(cfg)
        plain["proj_fprop"]["num_sm"] = 1
        if isinstance(plain["proj_fprop"]["fp8_buf"], list):
            plain["proj_fprop"]["fp8_buf"].append(True)
        assert as_te_dict(cfg) == before


@pytest.mark.parametrize("cfg", [None, 3, "a.yaml", [{}], TransformerLayerTPOverlapCfg])
def test_anything_else_is_a_type_error_that_shows_it(cfg: Any) -> None:
    with pytest.raises(TypeError, match=r"tp_comm_overlap_cfg must be a dataclass instance or a"):
        as_te_dict(cfg)


# ------------------------------------------------------------------------------ check_userbuffers

# Per rule: a configuration that breaks it and its nearest neighbour that does not, the knob below
# model.tp_comm_overlap_cfg and the outcome. "fp8" and "also_bf16" are arguments of the check.
ERROR, NOTE, REFUSED = Outcome.ERROR, Outcome.NOTE, Outcome.REFUSED
EXAMPLES: list[tuple[str, dict[str, Any], Any, Any, str, Outcome]] = [
    ("ub.file", {}, "ub.yaml", {}, "", NOTE),
    ("ub.shape", {}, [], {}, "", ERROR),
    ("ub.shape", {}, {"proj_fprop": "pipeline"}, {"proj_fprop": PIPELINE}, "proj_fprop", ERROR),
    (
        "ub.target",
        {},
        {"proj_fprop": BULK | {"_target_": "x.BulkOverlapCfg", "num_splits": 4}},
        {"proj_fprop": PIPELINE | {"set_sm_margin": True, "_target_": "x.PipelineOverlapCfg"}},
        "proj_fprop.num_splits",
        ERROR,
    ),
    (
        "ub.target",
        {},
        {
            "proj_fprop": {
                "_target_": "x.PipelineOverlapCfg",
                "num_sm": 16,
                "cga_size": 2,
                "num_splits": 4,
            }
        },
        {"proj_fprop": {"_target_": "y.Unknown", "num_sm": 16}},
        "proj_fprop.set_sm_margin",
        ERROR,
    ),
    ("ub.gemm-name", {}, {"fc3_fprop": RING}, {"fc1_fprop": RING}, "fc3_fprop", REFUSED),
    (
        "ub.key-name",
        {},
        {"proj_fprop": PIPELINE | {"num_sms": 4}},
        {"proj_fprop": PIPELINE},
        "proj_fprop.num_sms",
        ERROR,
    ),
    *(
        (
            "ub.key-type",
            {},
            {"proj_fprop": PIPELINE | bad},
            {"proj_fprop": PIPELINE | good},
            knob,
            ERROR,
        )
        for knob, bad, good in [
            ("proj_fprop.num_sm", {"num_sm": "16"}, {"num_sm": 16}),
            ("proj_fprop.num_sm", {"num_sm": 16.0}, {"num_sm": 16}),
            ("proj_fprop.num_sm", {"num_sm": True}, {"num_sm": 16}),
            ("proj_fprop.comm_priority", {"comm_priority": 2**31}, {"comm_priority": -5}),
            ("proj_fprop.set_sm_margin", {"set_sm_margin": "true"}, {"set_sm_margin": 1}),
            ("proj_fprop.atomic_gemm", {"atomic_gemm": [False]}, {"atomic_gemm": False}),
            ("proj_fprop.fp8_buf", {"fp8_buf": [False, False]}, {"fp8_buf": False}),
            ("proj_fprop.method", {"method": 1}, {"method": "pipeline"}),
        ]
    ),
    (
        "ub.method-name",
        {},
        {"qkv_fprop": RING | {"method": "ring-exchange"}},
        {"qkv_fprop": RING},
        "qkv_fprop.method",
        ERROR,
    ),
    *(
        ("ub.pipeline-all-gather", {}, {gemm: PIPELINE}, {gemm: RING}, f"{gemm}.method", ERROR)
        for gemm in ("qkv_fprop", "fc1_fprop", "proj_dgrad", "fc2_dgrad")
    ),
    ("ub.method-gemm", {}, {"qkv_fprop": BULK}, {"qkv_dgrad": BULK}, "qkv_fprop.method", ERROR),
    ("ub.method-gemm", {}, {"fc1_wgrad": RING}, {"fc1_wgrad": BULK}, "fc1_wgrad.method", ERROR),
    (
        "ub.method-gemm",
        {},
        {"proj_wgrad": BULK},
        {"proj_wgrad": BULK | {"method": "external"}},
        "proj_wgrad.method",
        ERROR,
    ),
    (
        "ub.method-stand-in",
        {},
        {"proj_fprop": BULK},
        {"proj_fprop": PIPELINE},
        "proj_fprop.method",
        REFUSED,
    ),
    (
        "ub.method-stand-in",
        {},
        {"qkv_wgrad": PIPELINE},
        {"qkv_wgrad": BULK},
        "qkv_wgrad.method",
        REFUSED,
    ),
    (
        "ub.method-defaults",
        {},
        {"fc2_fprop": {"method": "ring_exchange"}},
        {"fc2_fprop": RING, "qkv_fprop": {"method": "ring_exchange"}},
        "fc2_fprop.method",
        NOTE,
    ),
    *(
        (
            "ub.split-dgrad-wgrad",
            {},
            {"fc1_dgrad": dgrad, "fc1_wgrad": BULK, "qkv_wgrad": BULK},
            {"fc1_dgrad": dgrad, "fc1_wgrad": None, "qkv_wgrad": BULK},
            "fc1_wgrad",
            ERROR,
        )
        for dgrad in (PIPELINE, RING)
    ),
    *(
        (
            "ub.split-dgrad-switch",
            {"rs_dgrad": switch},
            {"qkv_dgrad": dgrad},
            {"qkv_dgrad": BULK},
            "qkv_dgrad.method",
            outcome,
        )
        for switch, dgrad, outcome in [
            (None, PIPELINE, NOTE),
            (None, RING, NOTE),
            (False, PIPELINE, REFUSED),
            (False, RING, ERROR),
        ]
    ),
    (
        "ub.split-dgrad-modes",
        {"fp8": True, "also_bf16": True},
        {"qkv_dgrad": PIPELINE},
        {"qkv_dgrad": BULK},
        "qkv_dgrad.method",
        ERROR,
    ),
    *(
        (
            "ub.atomic-fp8",
            run,
            {"fc2_fprop": PIPELINE | {"atomic_gemm": True}},
            {"fc2_fprop": PIPELINE | {"atomic_gemm": False}},
            "fc2_fprop.atomic_gemm",
            outcome,
        )
        for run, outcome in [
            ({"fp8": False}, ERROR),
            ({"fp8": True, "also_bf16": True}, ERROR),
            ({"fp8": None}, NOTE),
        ]
    ),
    (
        "ub.atomic-bulk",
        {"fp8": True},
        {"fc1_wgrad": BULK | {"atomic_gemm": True}},
        {"fc2_fprop": PIPELINE | {"atomic_gemm": True}},
        "fc1_wgrad.atomic_gemm",
        REFUSED,
    ),
    *(
        (
            "ub.atomic-pair",
            {"fp8": True},
            {on: ATOMIC, off: RING},
            {on: ATOMIC, off: ATOMIC},
            f"{on}.atomic_gemm",
            ERROR,
        )
        for on, off in [("qkv_fprop", "proj_fprop"), ("fc2_fprop", "fc1_fprop")]
    ),
    (
        "ub.atomic-pair",
        {"fp8": True},
        {"qkv_fprop": ATOMIC},
        {"proj_dgrad": ATOMIC},
        "qkv_fprop.atomic_gemm",
        ERROR,
    ),
    *(
        (
            "ub.positive",
            {},
            {"proj_fprop": PIPELINE | {key: value}},
            {"proj_fprop": PIPELINE | {key: 1, "cga_size": 1}},
            f"proj_fprop.{key}",
            ERROR,
        )
        for key, value in [("num_sm", 0), ("cga_size", 0), ("num_splits", 0), ("num_sm", -1)]
    ),
    (
        "ub.cga-size",
        {},
        {"qkv_wgrad": BULK | {"num_sm": 8, "cga_size": 8}},
        {"qkv_wgrad": BULK | {"num_sm": 8, "cga_size": 4}},
        "qkv_wgrad.cga_size",
        ERROR,
    ),
    (
        "ub.cga-size",
        {},
        {"qkv_wgrad": BULK | {"num_sm": 1}},
        {"qkv_wgrad": BULK | {"num_sm": 2}},
        "qkv_wgrad.cga_size",
        ERROR,
    ),
    (
        "ub.cga-size",
        {},
        {"qkv_fprop": RING | {"cga_size": 2, "use_ce": False}},
        {"qkv_fprop": RING | {"cga_size": 2}},
        "qkv_fprop.cga_size",
        ERROR,
    ),
    (
        "ub.cga-divides",
        {},
        {"qkv_wgrad": BULK | {"num_sm": 3}},
        {"qkv_wgrad": BULK | {"num_sm": 4}},
        "qkv_wgrad.cga_size",
        NOTE,
    ),
    (
        "ub.num-sm-flags",
        {},
        {"qkv_wgrad": BULK | {"num_sm": 34}},
        {"qkv_wgrad": BULK | {"num_sm": 32}},
        "qkv_wgrad.num_sm",
        NOTE,
    ),
    (
        "ub.collective",
        {},
        {"qkv_fprop": RING | {"is_reduce_scatter": True}},
        {"qkv_fprop": RING | {"is_reduce_scatter": False}},
        "qkv_fprop.is_reduce_scatter",
        ERROR,
    ),
    (
        "ub.collective",
        {},
        {"qkv_dgrad": PIPELINE | {"is_reduce_scatter": False}},
        {"qkv_dgrad": BULK | {"is_reduce_scatter": False}},
        "qkv_dgrad.is_reduce_scatter",
        ERROR,
    ),
    (
        "ub.key-unused",
        {},
        {"proj_fprop": PIPELINE | {"aggregate": True}},
        {"proj_fprop": PIPELINE | {"aggregate": False}, "qkv_fprop": RING | {"aggregate": True}},
        "proj_fprop.aggregate",
        NOTE,
    ),
    (
        "ub.key-unused",
        {},
        {"proj_fprop": RING | {"num_splits": 4}},
        {"proj_fprop": PIPELINE},
        "proj_fprop.num_splits",
        NOTE,
    ),
    *(
        (
            "ub.fp8-buf-list",
            {"fp8": fp8},
            {"proj_fprop": PIPELINE | {"fp8_buf": [False]}},
            {"proj_fprop": PIPELINE | {"fp8_buf": False}},
            "proj_fprop.fp8_buf",
            NOTE,
        )
        for fp8 in (True, False, None)
    ),
    (
        "ub.fp8-buf-unused",
        {"fp8": False},
        {"proj_fprop": PIPELINE | {"fp8_buf": True}},
        {"proj_fprop": PIPELINE | {"fp8_buf": False}},
        "proj_fprop.fp8_buf",
        NOTE,
    ),
    (
        "ub.fp8-buf-unused",
        {"fp8": True},
        {"qkv_wgrad": BULK | {"fp8_buf": True}},
        {"proj_fprop": RING | {"fp8_buf": True}, "qkv_fprop": RING | {"fp8_buf": True}},
        "qkv_wgrad.fp8_buf",
        NOTE,
    ),
]


@pytest.mark.parametrize(("rule", "run", "broken", "sound", "knob", "outcome"), EXAMPLES)
def test_each_rule_speaks_where_it_is_broken_and_only_there(
    rule: str, run: dict[str, Any], broken: Any, sound: Any, knob: str, outcome: Outcome
) -> None:
    found = [d for d in check_userbuffers(broken, **run) if d.rule == rule]
    assert [(d.knob, d.outcome) for d in found] == [(f"{KNOB}.{knob}" if knob else KNOB, outcome)]
    assert found[0].reason
    if outcome is ERROR:
        assert found[0].remedy, "an error without a remedy"
        assert found[0].effective is None
    neighbours = check_userbuffers(sound, **run)
    assert rule not in {d.rule for d in neighbours}
    assert errors(neighbours) == []


# Rules without a change of settings, each with what is needed instead.
NO_EDITS = {"ub.file": "the file, which is read when the run starts"}


@pytest.mark.parametrize(("rule", "run", "broken", "sound", "knob", "outcome"), EXAMPLES)
def test_the_edits_of_a_remedy_mend(
    rule: str, run: dict[str, Any], broken: Any, sound: Any, knob: str, outcome: Outcome
) -> None:
    (found,) = [d for d in check_userbuffers(broken, **run) if d.rule == rule]
    assert bool(found.edits) is (rule not in NO_EDITS)
    assert (found.remedy or "").startswith(in_words(found.edits))
    if found.edits:
        assert_mended(found, broken, run)


def assert_mended(decision: Decision, cfg: Any, run: dict[str, Any]) -> None:
    """Its edits make a decision go, and bring no finding."""
    mended, switch = edited(cfg, decision.edits, run.get("rs_dgrad"))
    before, after = (
        check_userbuffers(cfg, **run),
        check_userbuffers(mended, **{**run, "rs_dgrad": switch}),
    )
    assert (decision.rule, decision.knob) not in {(d.rule, d.knob) for d in after}
    assert broken_by(after) <= broken_by(before)


def broken_by(decisions: list[Decision]) -> set[tuple[str, str]]:
    return {(d.rule, d.knob) for d in decisions if d.is_finding}


def test_a_dgrad_with_its_switch_on_is_sound() -> None:
    for dgrad in (PIPELINE, RING):
        assert check_userbuffers({"qkv_dgrad": dgrad}, rs_dgrad=True) == []


def test_a_change_brings_what_it_needs() -> None:
    cfg = {"proj_fprop": RING | {"method": "bulk", "cga_size": 2, "aggregate": False}}
    (found,) = [d for d in check_userbuffers(cfg) if d.rule == "ub.method-stand-in"]
    assert found.edits == (Edit("comm_overlap.tp_comm_overlap_cfg.proj_fprop.method", "pipeline"),)
    cfg = {"fc1_wgrad": RING | {"cga_size": 2}}
    (found,) = [d for d in check_userbuffers(cfg) if d.rule == "ub.method-gemm"]
    assert found.edits == (
        Edit("comm_overlap.tp_comm_overlap_cfg.fc1_wgrad.method", "bulk"),
        Edit("comm_overlap.tp_comm_overlap_cfg.fc1_wgrad.cga_size", 1),
    )


def test_every_rule_has_an_example() -> None:
    assert {id for id in RULES if id.startswith("ub.")} == {example[0] for example in EXAMPLES}


def test_the_nearest_name_is_given() -> None:
    cfg = {
        "qkv_frop": RING,
        "proj_fprop": PIPELINE | {"numsm": 3},
        "fc1_dgrad": {"method": "bulky"},
    }
    reasons = " ".join(d.reason for d in check_userbuffers(cfg))
    for near in ("'qkv_fprop'", "'num_sm'", "'bulk'"):
        assert f"did you mean {near}" in reasons


def test_no_configuration_and_empty_ones_are_sound() -> None:
    assert check_userbuffers(None) == check_userbuffers({}) == check_userbuffers(layer()) == []


def test_one_mistake_gives_one_error() -> None:
    cfg = {"proj_fprop": {"_target_": "x.PipelineOverlapCfg", **PIPELINE, "set_sm_margn": True}}
    assert [d.knob for d in errors(check_userbuffers(cfg))] == [
        f"{KNOB}.proj_fprop.set_sm_margn",
        f"{KNOB}.proj_fprop.set_sm_margin",
    ]
    assert len(errors(check_userbuffers({"proj_fprop": PIPELINE | {"num_sm": "x"}}))) == 1


@pytest.mark.parametrize(
    ("fp8", "effective", "says"),
    [
        (True, True, "reduce-scatters FP8 values"),
        (None, True, "if the run uses FP8"),
        (False, False, "no difference in a run without FP8"),
    ],
)
def test_the_yaml_of_megatron_bridge_is_accepted_with_a_note_on_its_one_element_lists(
    fp8: bool | None, effective: bool, says: str
) -> None:
    text = (DATA / "bridge_configs/llama3_70b_pretrain_config.yaml").read_text()
    decisions = check_userbuffers(
        yaml.safe_load(text)["comm_overlap"]["tp_comm_overlap_cfg"], fp8=fp8
    )
    assert {d.knob for d in decisions} == {
        f"{KNOB}.proj_fprop.fp8_buf",
        f"{KNOB}.fc2_fprop.fp8_buf",
    }
    for d in decisions:
        assert (d.rule, d.outcome, d.requested) == ("ub.fp8-buf-list", NOTE, [False])
        assert d.effective is effective
        assert says in d.reason


VALUES = st.none() | st.booleans() | st.integers(-3, 40) | st.lists(st.booleans(), max_size=2)
VALUES |= st.sampled_from(["", "true", "16", "ring-exchange", "pipeline"])
KEYS = st.sampled_from(
    [
        "method",
        "num_sm",
        "cga_size",
        "num_splits",
        "set_sm_margin",
        "aggregate",
        "atomic_gemm",
        "use_ce",
        "fp8_buf",
        "is_reduce_scatter",
        "comm_priority",
        "_target_",
        "other",
    ]
)
METHODS = st.sampled_from(["ring_exchange", "pipeline", "bulk", "external"])
GEMM_SETTINGS = st.dictionaries(KEYS, VALUES) | st.fixed_dictionaries(
    {"method": METHODS, "num_sm": st.integers(1, 32)}, optional={"atomic_gemm": st.booleans()}
)


@given(
    st.dictionaries(st.sampled_from([*SLOTS, "proj_wgrad", "other"]), GEMM_SETTINGS | VALUES),
    st.sampled_from([None, True, False]),
    st.booleans(),
)
def test_any_mapping_gives_decisions_about_itself_and_never_an_exception(
    cfg: dict[str, Any], fp8: bool | None, also_bf16: bool
) -> None:
    for decision in check_userbuffers(cfg, fp8=fp8, also_bf16=also_bf16):
        gemm = decision.knob.removeprefix(f"{KNOB}.").partition(".")[0]
        assert gemm in cfg
        assert decision.rule in RULES
        assert decision.outcome in (ERROR, NOTE, REFUSED)
        if decision.edits:
            assert_mended(decision, cfg, {"fp8": fp8, "also_bf16": also_bf16})


@given(
    st.builds(
        layer,
        qkv_fprop=st.none() | st.builds(RingExchangeOverlapCfg),
        qkv_dgrad=st.none() | st.builds(BulkOverlapCfg),
        proj_fprop=st.none() | st.builds(PipelineOverlapCfg),
    )
)
def test_a_dataclass_and_its_plain_form_are_judged_alike(cfg: TransformerLayerTPOverlapCfg) -> None:
    assert check_userbuffers(cfg) == check_userbuffers(as_te_dict(cfg))


def test_importing_loads_no_torch() -> None:
    code = (
        "import sys, megatron.bridge.training.userbuffers.settings; "
        "sys.exit('torch' in sys.modules or 'megatron.core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
