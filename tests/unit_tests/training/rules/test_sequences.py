"""Sequences, heads and splits that sizes must divide."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.bridge.training.decisions import Outcome
from megatron.bridge.training.edits import Edit
from support.rule_runs import decisions_of

LENGTH = "model.seq_length"


@pytest.mark.parametrize(
    ("model", "rule", "length"),
    [
        ({"context_parallel_size": 4, "seq_length": 4100}, "core.sequence-divides-cp", 4096),
        ({"context_parallel_size": 4, "seq_length": 4096}, None, None),
        ({"context_parallel_size": 16, "seq_length": 20}, "core.sequence-divides-cp", 32),
        ({"context_parallel_size": 1, "seq_length": 4099}, None, None),
        (
            {"tensor_model_parallel_size": 4, "sequence_parallel": True, "seq_length": 4098},
            "core.sequence-divides-tp",
            4096,
        ),
        ({"tensor_model_parallel_size": 4, "seq_length": 4098}, None, None),
        (
            {
                "tensor_model_parallel_size": 8,
                "sequence_parallel": True,
                "context_parallel_size": 2,
                "seq_length": 4104,
            },
            "core.sequence-divides-tp",
            4096,
        ),
        (
            {"context_parallel_size": 4, "seq_length": 4100, "variable_seq_lengths": True},
            None,
            None,
        ),
    ],
)
def test_the_length_of_a_sequence(
    model: dict[str, Any], rule: str | None, length: int | None
) -> None:
    told = [d for d in decisions_of(model=model) if d.rule.startswith("core.sequence-divides")]
    assert [d.rule for d in told] == ([rule] if rule else [])
    assert [d.edits for d in told] == ([(Edit(LENGTH, length),)] if rule else [])


def test_the_data_gets_the_length_of_the_model() -> None:
    model = {"context_parallel_size": 4, "seq_length": 4100}
    told = decisions_of(model=model, dataset={"sequence_length": 4100})
    (found,) = [d for d in told if d.rule == "core.sequence-divides-cp"]
    assert found.edits == (Edit(LENGTH, 4096), Edit("dataset.sequence_length", 4096))


@pytest.mark.parametrize(
    ("model", "is_told"),
    [
        ({"cp_comm_type": "a2a", "context_parallel_size": 4}, False),
        ({"cp_comm_type": "a2a", "context_parallel_size": 16}, True),
        ({"cp_comm_type": "a2a", "context_parallel_size": 4, "num_query_groups": 2}, True),
        ({"cp_comm_type": "p2p", "context_parallel_size": 16}, False),
        (
            {
                "cp_comm_type": "a2a",
                "context_parallel_size": 4,
                "tensor_model_parallel_size": 4,
            },
            True,
        ),
        ({"cp_comm_type": ["a2a"] * 8, "context_parallel_size": 16}, True),
        (
            {
                "cp_comm_type": "a2a",
                "context_parallel_size": 4,
                "num_query_groups": 2,
                "multi_latent_attention": True,
            },
            False,
        ),
    ],
)
def test_an_all_to_all_divides_the_heads(model: dict[str, Any], is_told: bool) -> None:
    told = {d.rule for d in decisions_of(model={**model, "seq_length": 4096})}
    assert ("core.cp-a2a-divides-heads" in told) is is_told


@pytest.mark.parametrize(
    ("gemms", "splits"),
    [
        ({"proj_fprop": {"method": "pipeline", "num_splits": 6}}, 8),
        ({"fc2_fprop": {"num_splits": 3}}, 4),
        ({"proj_fprop": {"method": "pipeline", "num_splits": 4}}, None),
        ({"proj_fprop": {"method": "ring_exchange", "num_splits": 6}}, None),
        ({"qkv_fprop": {"method": "ring_exchange", "num_splits": 6}}, None),
    ],
)
def test_splits_leave_no_rows_out(gemms: dict[str, Any], splits: int | None) -> None:
    model = {"tensor_model_parallel_size": 4, "sequence_parallel": True, "hidden_size": 256}
    comm = {"tp_comm_overlap": True, "tp_comm_overlap_cfg": gemms}
    told = [d for d in decisions_of(model=model, comm=comm) if d.rule == "tp.splits-divide-rows"]
    assert len(told) == (splits is not None)
    for decision in told:
        assert decision.outcome is Outcome.WRONG_NUMBERS
        (edit,) = decision.edits
        assert edit.value == splits
        assert edit.key.startswith("comm_overlap.tp_comm_overlap_cfg.")
