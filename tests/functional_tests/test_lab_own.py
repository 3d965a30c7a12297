"""`overlapkit lab CONFIG` as a user starts it: real ranks train the small run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.late import needs

pytestmark = [pytest.mark.functional, needs("torch", "megatron.core")]

ROOT = Path(__file__).parents[2]
LIMIT_S = 560
HAZARD = """\
model:
  num_layers: 8
  hidden_size: 1024
  num_attention_heads: 16
  seq_length: 2048
  pipeline_model_parallel_size: 2
  virtual_pipeline_model_parallel_size: 2
train: {micro_batch_size: 1, global_batch_size: 64}
comm_overlap: {tp_comm_overlap: false, batch_p2p_comm: true, overlap_p2p_comm: false}
"""


@dataclass(frozen=True)
class Answer:
    """What the command said, and its exit status."""

    status: int
    document: dict[str, Any]
    error: str

    @property
    def claims(self) -> dict[str, tuple[str, str]]:
        """Outcome and evidence by claim."""
        (scenario,) = self.document["scenarios"]
        return {c["claim"]: (c["outcome"], c["evidence"]) for c in scenario["claims"]}

    def compared(self, block: str) -> dict[str, Any]:
        """A block's comparison with the unpartitioned model."""
        comparisons: list[dict[str, Any]] = self.document["own"]["comparisons"]
        (found,) = [each for each in comparisons if each["block"] == block]
        return found


def lab(*arguments: str) -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", "overlapkit.cli", "lab", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode in (0, 1), done.stderr
    return Answer(done.returncode, json.loads(done.stdout), done.stderr)


@pytest.fixture
def hazard(tmp_path: Path) -> str:
    path = tmp_path / "hazard.yaml"
    path.write_text(HAZARD)
    return str(path)


def test_a_run_of_64_gpus_has_the_numbers_of_the_unpartitioned_model() -> None:
    answer = lab("examples/llama3_70b_64xh100.yaml", "--world-size", "64", "--ranks", "4")
    own = answer.document["own"]
    assert own["world_size"] == 64
    assert own["ranks"] <= 4
    assert own["changed"]
    assert own["unproven"]
    outcomes = {claim: outcome for claim, (outcome, _) in answer.claims.items()}
    equal = "The numbers equal those of the unpartitioned model in one process."
    assert outcomes[equal] == "confirmed", answer.claims[equal]
    assert outcomes["The overlap that the run asks for is in effect."] == "confirmed"
    assert len(answer.compared("own-numbers")["steps"]) == 5


def test_experts_gather_as_many_tokens_of_each_tensor_parallel_rank_as_it_has(
    tmp_path: Path,
) -> None:
    path = tmp_path / "experts.yaml"
    path.write_text(
        """\
model:
  num_layers: 1
  hidden_size: 32
  num_attention_heads: 4
  seq_length: 16
  vocab_size: 256
  tensor_model_parallel_size: 2
  sequence_parallel: true
  expert_model_parallel_size: 2
  add_bias_linear: false
  num_moe_experts: 4
  moe_router_topk: 2
  moe_router_load_balancing_type: none
  moe_token_dispatcher_type: alltoall
  moe_ffn_hidden_size: 32
train: {micro_batch_size: 1, global_batch_size: 4}
comm_overlap: {tp_comm_overlap: false}
"""
    )
    answer = lab(str(path), "--world-size", "4", "--ranks", "4")
    assert answer.status == 0, answer.claims
    equal = "The numbers equal those of the unpartitioned model in one process."
    assert answer.claims[equal][0] == "confirmed", answer.claims[equal]


def test_the_hazard_is_shown_as_written_and_ends_with_the_remedy(hazard: str) -> None:
    answer = lab(hazard, "--as-written")
    assert answer.status == 1
    written, remedied = answer.compared("own-as-written"), answer.compared("own-remedied")
    assert remedied["equal"]
    assert not written["equal"]
    first = written["steps"][0]
    assert first["step"] == 1
    assert len(first["wrong"]) == first["tensors"]
    assert min(far for far in first["wrong"].values() if far is not None) > 1e-4


def test_what_the_rules_refuse_is_not_trained(hazard: str) -> None:
    answer = lab(hazard)
    assert answer.status == 1
    assert not answer.document["own"]["trained"]
    (evidence,) = [evidence for _, evidence in answer.claims.values()]
    assert "pp.same-peer-hazard" in evidence
    assert "remedy: set comm_overlap.overlap_p2p_comm=true" in evidence
    assert "Traceback" not in answer.error


def test_what_a_cpu_cannot_run_is_not_called_right_as_written(tmp_path: Path) -> None:
    path = tmp_path / "refused.yaml"
    path.write_text(HAZARD.replace("batch_p2p_comm: true", "defer_embedding_wgrad_compute: true"))
    answer = lab(str(path), "model.gradient_accumulation_fusion=false", "--as-written")
    assert answer.status == 1
    outcome, evidence = answer.claims[
        "As written, the numbers equal those of the unpartitioned model."
    ]
    assert outcome == "not testable here"
    assert "does not have what the rules refuse" in evidence
