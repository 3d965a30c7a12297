"""What the rules say of a user's run, and what of it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlapkit.config.sources import Source
from overlapkit.lab.measurements import Observations
from overlapkit.lab.own.own_run import OwnOptions, OwnRun, read_own
from overlapkit.lab.own.whole import unpartitioned, without_overlap
from overlapkit.lab.scenario import Setting
from overlapkit.lab.scenarios.config import (
    AS_WRITTEN,
    EQUAL,
    STARTS,
    WITH_REMEDY,
    _started,
    blocks,
    judge,
)

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


def own_of(tmp_path: Path, text: str, *given: str, **options: object) -> OwnRun:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return read_own(Source("yaml", str(path), given), OwnOptions(**options))  # type: ignore[arg-type]


def test_a_run_that_the_rules_refuse_is_not_trained_and_the_answer_has_the_remedy(
    tmp_path: Path,
) -> None:
    own = own_of(tmp_path, HAZARD)
    assert not own.is_trained
    setting = Setting(own=own)
    assert blocks(setting) == ()
    (verdict,) = judge(Observations({}, {}), setting)
    assert (verdict.claim, verdict.outcome) == (STARTS, "not confirmed")
    assert "pp.same-peer-hazard" in verdict.evidence
    assert "run.yaml:9" in verdict.evidence
    assert "remedy: set comm_overlap.overlap_p2p_comm=true" in verdict.evidence


def test_as_written_the_rule_is_bypassed_beside_the_run_with_the_remedy(tmp_path: Path) -> None:
    own = own_of(tmp_path, HAZARD, as_written=True)
    assert own.is_trained
    assert own.remedies == (
        "comm_overlap.overlap_p2p_comm: off -> on",
        "comm_overlap.batch_p2p_comm: on -> off",
    )
    found = {block.name: block for block in blocks(Setting(own=own))}
    assert list(found) == ["own-whole", "own-as-written", "own-remedied"]
    (bypassed,) = found["own-as-written"].variants
    (remedied,) = found["own-remedied"].variants
    assert bypassed.bypass
    assert not remedied.bypass
    assert bypassed.settings["comm_overlap"]["batch_p2p_comm"] is True
    assert remedied.settings["comm_overlap"]["batch_p2p_comm"] is False
    # One of them failing must not end the other.
    assert len({block.alone for block in found.values()}) == 3


def test_a_run_without_findings_is_compared_and_timed(tmp_path: Path) -> None:
    own = own_of(tmp_path, HAZARD, "comm_overlap.batch_p2p_comm=false", as_written=True)
    assert not own.stopping
    assert not own.is_bypassed
    found = {block.name: block for block in blocks(Setting(own=own))}
    (whole,) = found["own-whole"].variants
    assert whole.settings == unpartitioned(own.reduced.settings if own.reduced else {})
    (run,) = found["own-numbers"].variants
    assert run.settings["model"]["virtual_pipeline_model_parallel_size"] == 2
    assert {"step", "evaluate", "checkpoint"} == set(run.actions)
    assert run.every_step


def test_what_was_not_read_of_a_script_weakens_what_the_rules_say(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(
        "source cluster.sh\n"
        "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 8 --hidden-size 512 "
        "--num-attention-heads 8 --seq-length 512 --max-position-embeddings 512 "
        "--micro-batch-size 1 --global-batch-size 32 --use-distributed-optimizer\n"
    )
    own = read_own(Source("script", str(script), ()), OwnOptions())
    assert "cluster.sh" in own.not_known
    started = next(_started(own))
    assert (started.claim, started.outcome) == (STARTS, "not testable here")
    assert "cluster.sh" in started.evidence


def test_the_number_of_ranks_is_bounded(tmp_path: Path) -> None:
    layout = "model.tensor_model_parallel_size=4"
    for ranks in (4, 8):
        own = own_of(tmp_path, HAZARD, "comm_overlap.batch_p2p_comm=false", layout, ranks=ranks)
        assert own.reduced is not None
        assert own.reduced.ranks <= ranks
        assert own.reduced.settings["model"]["pipeline_model_parallel_size"] == 2


@pytest.mark.parametrize("stated", [None, 64])
def test_the_number_of_gpus_is_the_users_or_the_smallest(
    tmp_path: Path, stated: int | None
) -> None:
    own = own_of(tmp_path, HAZARD, world_size=stated)
    assert own.world_size == stated or own.world_size == 4
    assert own.world_size_assumed is (stated is None)


def test_the_unpartitioned_model_has_no_layout_and_no_overlap(tmp_path: Path) -> None:
    own = own_of(tmp_path, HAZARD, as_written=True)
    assert own.reduced is not None
    settings = unpartitioned(own.reduced.settings)
    assert not {key for key in settings["model"] if "parallel" in key or "p2p" in key}
    assert settings["train"] == own.reduced.settings["train"]
    waiting = without_overlap(own.reduced.settings)
    assert waiting["comm_overlap"]["batch_p2p_comm"] is False
    assert waiting["ddp"]["overlap_grad_reduce"] is False


def test_claims_of_a_run_that_is_not_trained_are_not_made(tmp_path: Path) -> None:
    claims = {v.claim for v in judge(Observations({}, {}), Setting(own=own_of(tmp_path, HAZARD)))}
    assert not claims & {EQUAL, AS_WRITTEN, WITH_REMEDY}
