"""`overlapkit lab` as a user starts it: real ranks, real Megatron-Core, small.

Claims about time are not asserted: other tests run beside these. That the numbers stay the same,
what is in effect, how many bytes travel and what the hazard does, is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.late import needs

pytestmark = [pytest.mark.functional, needs("torch", "megatron.core")]

LIMIT_S = 420
TOGETHER = ("dp", "pp", "tp")


@dataclass(frozen=True)
class Run:
    """What `overlapkit lab --json` answered, and what it kept.

    Attributes:
        status: exit status.
        document: standard output.
        out: the folder of --out.
    """

    status: int
    document: dict[str, Any]
    out: Path

    def scenario(self, name: str) -> Shown:
        (found,) = [each for each in self.document["scenarios"] if each["name"] == name]
        return Shown(found)


@dataclass(frozen=True)
class Shown:
    """One scenario of a document."""

    scenario: dict[str, Any]

    @property
    def claims(self) -> dict[str, tuple[str, str]]:
        """Outcome and evidence by claim."""
        return {
            claim["claim"]: (claim["outcome"], claim["evidence"])
            for claim in self.scenario["claims"]
        }

    def outcome(self, word: str) -> str:
        """The outcome of the only claim that holds `word`."""
        (outcome,) = [found for claim, (found, _) in self.claims.items() if word in claim]
        return outcome

    def variants(self, block: str) -> dict[str, dict[str, Any]]:
        (found,) = [each for each in self.scenario["blocks"] if each["name"] == block]
        return {variant["name"]: variant for variant in found["variants"]}


def _lab(out: Path, *arguments: str) -> Run:
    done = subprocess.run(
        [sys.executable, "-m", "overlapkit.cli", "lab", *arguments, "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return Run(done.returncode, json.loads(done.stdout), out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three scenarios in one run: starting ranks takes most of the time, and they share a start."""
    return _lab(tmp_path_factory.mktemp("lab") / "kept", *TOGETHER, "--steps", "2")


def test_the_scenarios_share_their_ranks_and_the_status_says_whether_all_is_confirmed(
    run: Run,
) -> None:
    assert [scenario["name"] for scenario in run.document["scenarios"]] == [*TOGETHER]
    assert run.document["confirmed"] is (run.status == 0)


def test_what_is_kept_is_what_is_shown(run: Run) -> None:
    names = {path.name for path in run.out.iterdir()}
    assert {"results.json", "report.html"} < names
    profiled = [
        variant
        for scenario in run.document["scenarios"]
        for block in scenario["blocks"]
        for variant in block["variants"]
        if variant.get("profile") is not None
    ]
    assert len(profiled) >= 3 * 2
    assert sum(name.endswith(".json.gz") for name in names) == 2 * len(profiled)
    assert json.loads((run.out / "results.json").read_text()) == run.document


def test_data_parallel_overlap_hides_communication_and_keeps_every_bit(run: Run) -> None:
    shown = run.scenario("dp")
    assert shown.outcome("bit for bit") == "confirmed"
    variants = shown.variants("dp")
    assert [v["effective"]["ddp.overlap_grad_reduce"] for v in variants.values()] == [
        False,
        True,
        True,
    ]
    off, _, both = (variant["profile"]["overlap_pct"] for variant in variants.values())
    assert off < 10 < both
    for losses in (variant["losses"] for variant in variants.values()):
        assert losses[-1] < losses[0], "the model learns"


@pytest.mark.whole_lab
def test_one_bucket_hides_nothing(tmp_path: Path) -> None:
    shown = _lab(tmp_path / "kept", "bucket", "--steps", "2").scenario("bucket")
    assert shown.outcome("one bucket") == "confirmed"
    assert shown.outcome("results") == "confirmed"
    buckets = {name: sum(v["buckets"]) for name, v in shown.variants("bucket").items()}
    assert buckets["default"] == 1 < buckets["1_000_000"] < buckets["500_000"] < buckets["150_000"]


def test_pipeline_equals_the_whole_model_and_the_hazard_is_real(run: Run) -> None:
    shown = run.scenario("pp")
    assert shown.outcome("selects overlap_p2p_comm") == "confirmed"
    assert shown.outcome("unpartitioned") == "confirmed"
    assert shown.outcome("wrong gradients") == "confirmed"
    assert shown.outcome("pp.same-peer-hazard") == "confirmed"


def test_tensor_parallel_does_what_the_rules_say(run: Run) -> None:
    shown = run.scenario("tp")
    assert shown.outcome("order of the additions") == "confirmed"
    assert shown.outcome("userbuffers") == "not testable here"
    assert shown.outcome("changes nothing") == "confirmed"
    (reason,) = [why for claim, (_, why) in shown.claims.items() if "is missing" in claim]
    assert "Transformer Engine" in reason


@pytest.mark.whole_lab
def test_data_and_pipeline_parallel_overlap_together(tmp_path: Path) -> None:
    shown = _lab(tmp_path / "kept", "dp-pp", "--steps", "2").scenario("dp-pp")
    assert shown.outcome("in effect") == "confirmed"
    assert shown.outcome("alignment changes") == "confirmed"


@pytest.mark.whole_lab
def test_fp32_reduction_doubles_the_bytes_and_ddp_alone_does_not_decide(tmp_path: Path) -> None:
    run = _lab(tmp_path / "kept", "precision", "--steps", "2")
    shown = run.scenario("precision")
    assert shown.outcome("overwritten") == "confirmed"
    if run.document["link"]["shaped"]:
        assert shown.outcome("twice the bytes") == "confirmed"


@pytest.mark.whole_lab
def test_a_users_configuration_is_trained_small(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "gpt_1b_8xh100.yaml"
    run = _lab(tmp_path / "kept", "--config", str(example), "--steps", "2")
    shown = run.scenario("config")
    assert shown.outcome("results") == "confirmed"
    assert shown.outcome("as written") == "not testable here"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dpp"], "unknown scenario 'dpp'"),
        (["dp", "--link", "fast"], "--link fast"),
        (["dp", "--steps", "0"], "--steps 0"),
        (["pp", "--ranks", "4"], "fixed layout"),
        (["dp", "--ranks", "1"], "overlap needs at least 2"),
        (["dp", "--corpus", "/no/such/file"], "no such file"),
        (["config"], "overlapkit lab CONFIG"),
        (["dp", "--device", "cuda"], "no CUDA GPU is visible"),
    ],
)
def test_bad_input_is_named_in_one_line(arguments: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "overlapkit.cli", "lab", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        # A machine with GPUs shows none either.
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
