"""Overlapped steps on a Hopper GPU (compute capability 9.0: H100, H200), through the lab itself.

With two GPUs or more: data-parallel overlap over NCCL, and tensor-parallel overlap by Transformer
Engine's userbuffers where it can be imported. With exactly one: data-parallel overlap between two
ranks that share it. NCCL refuses that, so the bytes go through pinned memory and gloo
(`overlapkit.lab.rank.shared_gpu`); kernels, streams, buckets, hooks and the profile are real.

    OVERLAPKIT_GPU_EVIDENCE=docs/evidence/gpu-overlapped-steps.json \\
      python -m pytest tests/gpu -q

also records what was seen.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

HOPPER = (9, 0)
EVIDENCE = "OVERLAPKIT_GPU_EVIDENCE"
LIMIT_S = 540
HIDDEN_ON, HIDDEN_OFF = 50.0, 10.0
"""Percent of the data-parallel communication: at least with overlap, at most without."""

ROOT = Path(__file__).resolve().parents[2]


def _gpus() -> tuple[int, str | None]:
    """How many Hopper GPUs there are; with none, why these tests cannot run."""
    if importlib.util.find_spec("torch") is None or not importlib.util.find_spec("megatron.core"):
        return 0, "torch and Megatron-Core are not installed"
    if not (any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()):
        # Seen without importing torch, which takes seconds.
        return 0, "no CUDA GPU is visible"
    import torch

    if not torch.cuda.is_available():
        return 0, "no CUDA GPU is visible"
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    if found != {HOPPER}:
        shown = ", ".join(f"{major}.{minor}" for major, minor in sorted(found))
        return 0, f"the GPU is of compute capability {shown}, not 9.0"
    return torch.cuda.device_count(), None


GPUS, WHY_NOT = _gpus()
HERE = f"there are {GPUS}" + (f": {WHY_NOT}" if WHY_NOT else "")

pytestmark = pytest.mark.gpu


def _lab(*arguments: str) -> dict[str, Any]:
    """What the lab found on the GPUs; a claim that does not hold is left to the test to judge."""
    command = [sys.executable, "-m", "overlapkit.cli", "lab", *arguments]
    command += ["--device", "cuda", "--json"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=ROOT,
        # As a user starts it: on a GPU, Megatron-Core compiles.
        env={name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"},
    )
    assert done.returncode in (0, 1), done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    _record(" ".join(["overlapkit", *command[3:]]), document)
    return document


def _record(command: str, document: dict[str, Any]) -> None:
    """Add a run to the evidence, if it is asked for."""
    name = os.environ.get(EVIDENCE)
    if not name:
        return
    path = ROOT / name
    known = json.loads(path.read_text()) if path.exists() else {"runs": []}
    runs = [run for run in known["runs"] if run["command"] != command]
    runs.append(
        {
            "command": command,
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": _said("git", "rev-parse", "HEAD"),
            "changed_files": (_said("git", "status", "--porcelain") or "").splitlines(),
            "gpus": (
                _said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv")
                or ""
            ).splitlines(),
            "cuda": _cuda(),
            "seen": document,
        }
    )
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps({"runs": runs}, indent=2) + "\n")
    aside.rename(path)


def _said(*command: str) -> str | None:
    """What a program prints; None where it cannot be run, as git outside a checkout."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cuda() -> dict[str, Any]:
    import torch

    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None
    return {"runtime": torch.version.cuda, "nccl": nccl}


def _variants(document: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    (scenario,) = document["scenarios"]
    (block,) = [block for block in scenario["blocks"] if block["name"] == name]
    found = {variant["name"]: variant for variant in block["variants"]}
    refused = {name: one["error"] for name, one in found.items() if "error" in one}
    assert not refused
    return found


def _assert_overlapped(document: dict[str, Any]) -> None:
    variants = _variants(document, "dp")
    off, both = variants["off"], variants["grad-reduce+param-gather"]
    hidden = {name: one["profile"]["overlap_pct"] for name, one in variants.items()}
    assert off["profile"]["comm_ms"] > 0
    assert off["profile"]["overlap_pct"] < HIDDEN_OFF, hidden
    assert both["profile"]["overlap_pct"] > HIDDEN_ON, hidden
    assert both["profile"]["exposed_ms"] < off["profile"]["exposed_ms"]
    losses = [one["losses"] for one in variants.values()]
    assert losses[0]
    assert all(one == losses[0] for one in losses)
    assert all(one["weights"] == off["weights"] for one in variants.values())


@pytest.mark.skipif(GPUS < 2, reason=f"needs two Hopper GPUs; {HERE}")
def test_data_parallel_communication_is_hidden_over_nccl() -> None:
    document = _lab("dp", "--steps", "12")
    assert document["link"]["kind"] == "nccl"
    _assert_overlapped(document)


@pytest.mark.skipif(GPUS != 1, reason=f"for a machine with exactly one Hopper GPU; {HERE}")
def test_data_parallel_communication_is_hidden_between_ranks_on_one_gpu() -> None:
    document = _lab("dp", "--steps", "6")
    assert document["link"]["kind"] == "shared-gpu"
    _assert_overlapped(document)


@pytest.mark.skipif(GPUS < 2, reason=f"needs two Hopper GPUs; {HERE}")
@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None, reason="needs Transformer Engine"
)
def test_tensor_parallel_communication_is_hidden_by_userbuffers() -> None:
    document = _lab("tp", "--steps", "12")
    variants = _variants(document, "tp")
    assert variants["asked"]["effective"]["model.tp_comm_overlap"] is True
    (scenario,) = document["scenarios"]
    claims = {claim["claim"]: claim for claim in scenario["claims"]}
    (userbuffers,) = [claim for name, claim in claims.items() if "userbuffers" in name]
    assert userbuffers["outcome"] == "confirmed", userbuffers["evidence"]
    (same,) = [claim for name, claim in claims.items() if "TP=1" in name]
    assert same["outcome"] == "confirmed", same["evidence"]
