"""`overlapkit lab` as a user starts it: real ranks, real Megatron-Core, small.

Claims about time are not asserted: other tests run beside these. That the numbers stay the same,
what is in effect, how many bytes travel and what the hazard does, is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("megatron.core")

pytestmark = pytest.mark.functional

LIMIT_S = 420


def _lab(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "overlapkit.cli", "lab", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(done.stdout)
    assert document["confirmed"] is (done.returncode == 0)
    return done.returncode, document


def _claims(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    (scenario,) = document["scenarios"]
    return {claim["claim"]: (claim["outcome"], claim["evidence"]) for claim in scenario["claims"]}


def _outcome(document: dict[str, Any], word: str) -> str:
    """The outcome of the only claim that holds `word`."""
    (outcome,) = [found for claim, (found, _) in _claims(document).items() if word in claim]
    return outcome


def _variants(document: dict[str, Any], block: str) -> dict[str, dict[str, Any]]:
    (scenario,) = document["scenarios"]
    (found,) = [each for each in scenario["blocks"] if each["name"] == block]
    return {variant["name"]: variant for variant in found["variants"]}


def test_data_parallel_overlap_hides_communication_and_keeps_every_bit(tmp_path: Path) -> None:
    out = tmp_path / "kept"
    _, document = _lab("dp", "--steps", "3", "--out", str(out))
    assert _outcome(document, "bit for bit") == "confirmed"
    variants = _variants(document, "dp")
    assert [v["effective"]["ddp.overlap_grad_reduce"] for v in variants.values()] == [
        False,
        True,
        True,
    ]
    off, _, both = (variant["profile"]["overlap_pct"] for variant in variants.values())
    assert off < 10 < both
    for losses in (variant["losses"] for variant in variants.values()):
        assert losses[-1] < losses[0], "the model learns"
    names = {path.name for path in out.iterdir()}
    assert {"results.json", "report.html"} < names
    assert sum(name.endswith(".json.gz") for name in names) == 2 * len(variants)
    assert json.loads((out / "results.json").read_text()) == document


@pytest.mark.whole_lab
def test_one_bucket_hides_nothing(tmp_path: Path) -> None:
    _, document = _lab("bucket", "--steps", "2")
    assert _outcome(document, "one bucket") == "confirmed"
    assert _outcome(document, "results") == "confirmed"
    buckets = {name: sum(v["buckets"]) for name, v in _variants(document, "bucket").items()}
    assert buckets["default"] == 1 < buckets["1_000_000"] < buckets["500_000"] < buckets["150_000"]


def test_pipeline_equals_the_whole_model_and_the_hazard_is_real() -> None:
    _, document = _lab("pp", "--steps", "2")
    assert _outcome(document, "selects overlap_p2p_comm") == "confirmed"
    assert _outcome(document, "unpartitioned") == "confirmed"
    assert _outcome(document, "wrong gradients") == "confirmed"
    assert _outcome(document, "pp.same-peer-hazard") == "confirmed"


def test_tensor_parallel_does_what_the_rules_say() -> None:
    _, document = _lab("tp", "--steps", "2")
    claims = _claims(document)
    assert _outcome(document, "order of the additions") == "confirmed"
    assert _outcome(document, "userbuffers") == "not testable here"
    assert _outcome(document, "changes nothing") == "confirmed"
    (reason,) = [evidence for claim, (_, evidence) in claims.items() if "is missing" in claim]
    assert "Transformer Engine" in reason


@pytest.mark.whole_lab
def test_data_and_pipeline_parallel_overlap_together() -> None:
    _, document = _lab("dp-pp", "--steps", "2")
    assert _outcome(document, "in effect") == "confirmed"
    assert _outcome(document, "alignment changes") == "confirmed"


@pytest.mark.whole_lab
def test_fp32_reduction_doubles_the_bytes_and_ddp_alone_does_not_decide() -> None:
    _, document = _lab("precision", "--steps", "2")
    assert _outcome(document, "overwritten") == "confirmed"
    if document["link"]["shaped"]:
        assert _outcome(document, "twice the bytes") == "confirmed"


@pytest.mark.whole_lab
def test_a_users_configuration_is_trained_small() -> None:
    example = Path(__file__).parents[2] / "examples" / "gpt_1b_8xh100.yaml"
    _, document = _lab("--config", str(example), "--steps", "2")
    assert _outcome(document, "results") == "confirmed"
    assert _outcome(document, "as written") == "not testable here"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["dpp"], "unknown scenario 'dpp'"),
        (["dp", "--link", "fast"], "--link fast"),
        (["dp", "--steps", "0"], "--steps 0"),
        (["pp", "--ranks", "4"], "fixed layout"),
        (["dp", "--ranks", "1"], "overlap needs at least 2"),
        (["dp", "--corpus", "/no/such/file"], "no such file"),
        (["config"], "--config FILE"),
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
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
