"""Experts, recomputation and predictions: where nothing is refused, nothing is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron.bridge.training.decisions import Outcome
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import Stack
from support.layer_cases import BIASED, BROKEN, EXPERTS, PLAIN, SELECTIVE
from support.megatron_lm_runs import findings as lm_findings
from support.megatron_lm_runs import job_of
from support.rule_runs import EVERYTHING, TP4, decisions_of, findings

BOTH = {"recompute_modules": ["core_attn", "mlp"], "add_bias_linear": True}
ONE = {**EXPERTS, "add_bias_linear": False, "moe_router_topk": 1}


@pytest.mark.parametrize(
    ("model", "software"),
    [
        # One stage has one position embedding, and rotary ones have no weights.
        ({"mtp_num_layers": 1}, EVERYTHING),
        (
            {
                "mtp_num_layers": 1,
                "pipeline_model_parallel_size": 4,
                "position_embedding_type": "rope",
            },
            EVERYTHING,
        ),
        ({"pipeline_model_parallel_size": 4}, EVERYTHING),
        ({**SELECTIVE, **BOTH, "add_bias_linear": False}, EVERYTHING),
        ({**BOTH}, EVERYTHING),
        # No layer is dense.
        ({**SELECTIVE, **BOTH, **EXPERTS}, EVERYTHING),
        ({**SELECTIVE, "recompute_modules": ["layernorm", "moe_act"]}, EVERYTHING),
        ({**SELECTIVE, "recompute_modules": ["core_attn"]}, PLAIN),
        (BIASED, EVERYTHING),
        ({**BIASED, "expert_model_parallel_size": 4}, PLAIN),
        ({**BIASED, **TP4, "expert_tensor_parallel_size": 1}, EVERYTHING),
        ({**ONE, "moe_router_pre_softmax": True}, EVERYTHING),
        ({**ONE, "moe_router_score_function": "sigmoid"}, EVERYTHING),
        ({**ONE, "moe_router_load_balancing_type": "sinkhorn"}, EVERYTHING),
        ({"moe_router_topk": 1}, EVERYTHING),
        ({"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall"}, EVERYTHING),
        ({**TP4, "distribute_saved_activations": True}, EVERYTHING),
    ],
)
def test_what_megatron_core_accepts_is_no_finding(
    model: dict[str, Any], software: AssumedSoftware
) -> None:
    assert findings(decisions_of(model=model, software=software)) == set()


@pytest.mark.parametrize("freq", [2, [0, 0, 1, 1, 1, 1, 1, 1], "[0]*1+[1]*7"])
def test_a_dense_layer_among_experts_is_enough(freq: Any) -> None:
    model = {**SELECTIVE, **BOTH, **EXPERTS, "moe_layer_freq": freq}
    assert findings(decisions_of(model=model)) == {"core.recompute-mlp-bias"}


def test_other_recomputed_modules_are_kept() -> None:
    (found,) = [
        d
        for d in decisions_of(**BROKEN["core.recompute-mlp-bias"])
        if d.rule == "core.recompute-mlp-bias"
    ]
    assert [(edit.key, edit.value) for edit in found.edits] == [
        ("model.recompute_modules", ["core_attn"])
    ]


def test_a_shared_expert_decides_on_the_remedy_of_a_bias() -> None:
    model = {**TP4, **BIASED, "moe_shared_expert_intermediate_size": 64}
    found = {d.rule: d.edits for d in decisions_of(model=model) if d.is_finding}
    assert found["core.expert-bias-splits"] == found["core.shared-expert-bias"]


def test_position_embeddings_that_are_trained_apart_are_wrong_numbers() -> None:
    model = {"pipeline_model_parallel_size": 2, "mtp_num_layers": 1}
    (found,) = [d for d in decisions_of(model=model) if d.is_finding]
    assert (found.rule, found.outcome) == ("wrong.mtp-learned-positions", Outcome.WRONG_NUMBERS)


@pytest.mark.parametrize(
    ("sizes", "edits"),
    [
        ({"expert_tensor_parallel_size": 1}, [("model.expert_model_parallel_size", 4)]),
        ({"expert_tensor_parallel_size": 2}, [("model.expert_model_parallel_size", 2)]),
        # Six experts are not divided by four ranks.
        (
            {"expert_tensor_parallel_size": 1, "num_moe_experts": 6},
            [("model.expert_tensor_parallel_size", 4)],
        ),
        ({"expert_tensor_parallel_size": 1, "expert_model_parallel_size": 4}, []),
        ({"expert_tensor_parallel_size": 4}, []),
        ({}, []),
    ],
)
def test_experts_with_replicas_of_their_own_need_expert_parallelism(
    sizes: dict[str, Any], edits: list[tuple[str, Any]]
) -> None:
    model = {**TP4, **EXPERTS, "add_bias_linear": False, **sizes}
    for core, expected in (("0.16.1", edits), ("0.19.0", [])):
        software = replace(EVERYTHING, stack=Stack(core))
        found = [
            (edit.key, edit.value)
            for d in decisions_of(model=model, software=software)
            if d.rule == "wrong.experts-reduced-as-dense"
            for edit in d.edits
        ]
        assert found == expected


def found_in(flags: str) -> set[str]:
    """The rules of the findings on a Megatron-LM job with these flags."""
    return lm_findings(job_of(flags, "lm.mtp-positions").decisions())


def test_megatron_lm_stops_at_learned_positions_whatever_the_stages() -> None:
    for flags in ("--mtp-num-layers 1", "--mtp-num-layers 1 --pipeline-model-parallel-size 4"):
        assert found_in(flags) == {"lm.mtp-positions"}
        assert not found_in(f"{flags} --use-rotary-position-embeddings")


def test_flags_of_the_router_are_read() -> None:
    flags = "--num-experts 8 --disable-bias-linear --moe-router-topk 1"
    assert found_in(flags) == {"core.one-expert-pre-softmax"}
    for more in (
        "--moe-router-pre-softmax",
        "--moe-router-score-function sigmoid",
        "--moe-router-load-balancing-type sinkhorn",
    ):
        assert not found_in(f"{flags} {more}")


@pytest.mark.parametrize(
    ("model", "units"),
    [
        ({"recompute_num_layers": 3}, 2),
        ({"recompute_num_layers": 5, "pipeline_model_parallel_size": 2}, 4),
        ({"recompute_num_layers": 2}, None),
        ({"recompute_num_layers": 3, "recompute_method": "block"}, None),
        ({"recompute_num_layers": 3, "pipeline_model_parallel_layout": "Et*8L"}, 2),
        ({"recompute_num_layers": 4, "pipeline_model_parallel_layout": "Et*8L"}, None),
    ],
)
def test_uniform_units_divide_the_layers_of_every_chunk(
    model: dict[str, Any], units: int | None
) -> None:
    uniform = {"recompute_granularity": "full", "recompute_method": "uniform"}
    software = replace(EVERYTHING, stack=Stack("0.16.1", "0.3.1"))
    decisions = decisions_of(model={**uniform, **model}, software=software)
    edits = [d.edits for d in decisions if d.rule == "core.recompute-units-divide-layers"]
    assert [edit.value for each in edits for edit in each] == ([] if units is None else [units])
