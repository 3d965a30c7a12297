"""benchmarks/mutation.py derives its mutations from the rules, and finds out which are caught."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.bridge.training.rules import expert, pipeline, tensor
from support.late import needs
from support.mutants import KINDS, Mutant, changes, mutants
from support.rule_runs import DELAY, DISTRIBUTED, MOE, OFF, TP4

ROOT = Path(__file__).parents[2]
CASES = {
    "tensor": {"model": TP4, "comm": {"tp_comm_overlap": True}},
    "pipeline": {"model": {"pipeline_model_parallel_size": 4}, "comm": OFF},
    "expert": {"model": MOE, "comm": DELAY},
    "data": {"ddp": DISTRIBUTED, "comm": {**OFF, "bucket_size": "big"}},
    "none": {"model": TP4},
}


@pytest.fixture(scope="module")
def made() -> list[Mutant]:
    return mutants(CASES)


def test_every_need_of_every_gate_is_dropped_once(made: list[Mutant]) -> None:
    gates = (tensor.TP_GATE, expert.EP_GATE, expert.DELAY_WGRAD_GATE)
    declared = [need.rule.id for gate in gates for need in gate]
    assert sorted(m.where for m in made if m.kind == "gate") == sorted(declared)


def test_choices_stops_and_conditions_are_found(made: list[Mutant]) -> None:
    assert {m.kind for m in made} == set(KINDS)
    assert len({(m.kind, m.where, m.what) for m in made}) > 150
    named = {(m.kind, m.where) for m in made}
    assert ("default", "pp.not-interleaved") in named
    assert ("stop", "dp.bucket-size-value") in named
    assert ("part", "ep.needs-half-precision") in named
    # What only words a remedy decides nothing about a run.
    assert not any("Decision.remedy" in m.what for m in made)


def test_the_changes_of_a_condition() -> None:
    told = "    reason = 'x' if a == 1 else 'y'\n"
    (node,) = ast.parse(f"def f(a, b):\n{told}    return a > 1 and not (b or 1) in (2, 3)").body
    assert [what for what, _ in changes(node)] == [
        "a > 1 and (not (b or 1) in (2, 3)) -> not (b or 1) in (2, 3)",
        "a > 1 and (not (b or 1) in (2, 3)) -> a > 1",
        "a > 1 -> a >= 1",
        "not (b or 1) in (2, 3) -> (b or 1) in (2, 3)",
        "(b or 1) in (2, 3) -> (b or 1) not in (2, 3)",
        "(b or 1) in (2, 3) -> (b or 1) in (3,)",
        "(b or 1) in (2, 3) -> (b or 1) in (2,)",
        "b or 1 -> 1",
    ]


def test_a_mutation_changes_the_loaded_function(made: list[Mutant]) -> None:
    before = pipeline.select_p2p.__code__
    (mutant,) = [m for m in made if m.what == "vpp > 1 -> vpp >= 1" and "select_p2p" in m.where]
    assert pipeline.select_p2p(4, 1)[1:] == (False, True)
    try:
        mutant.apply()
        assert pipeline.select_p2p(4, 1)[1:] == (True, False)
    finally:
        pipeline.select_p2p.__code__ = before


@pytest.mark.functional
@needs("torch", "megatron.core")
def test_the_benchmark_counts_what_the_cases_catch() -> None:
    command = [sys.executable, "-W", "ignore", "benchmarks/mutation.py", "--only", "stop"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| stop | 1 | 1 of 1 (100 %) |" in ended.stdout
    assert "Survive" not in ended.stdout
