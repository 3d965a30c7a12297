"""`overlapkit lab --executor`: nemo_run's local executor, and its Slurm executor without Slurm.

In place of Slurm stand three small programs that do what its own do for a job on one node: sbatch
runs the script, srun its command, scontrol names the node. The script is nemo_run's, unchanged, and
what it starts trains.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.late import needs

pytestmark = [pytest.mark.functional, needs("torch", "megatron.core", "nemo_run")]

LIMIT_S = 400
JOB = "4242"

SBATCH = """#!/bin/bash
# sbatch OPTION... SCRIPT
for script in "$@"; do :; done
export SLURM_JOB_NODELIST=here SLURM_NODEID=0 SLURM_NNODES=1 SLURM_JOB_ID=4242
bash "$script" > "$SLURM_OUT" 2>&1 < /dev/null
echo 4242
"""
SRUN = """#!/bin/bash
# srun OPTION... COMMAND; of the options only --chdir means anything on one node.
while [[ $# -gt 0 && "$1" != torchrun && "$1" != hostname ]]; do
  [[ "$1" == --chdir ]] && cd "$2"
  shift
done
[[ "$1" == hostname ]] && exec echo 127.0.0.1
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo here
"""


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "overlapkit.cli", "lab", *arguments]


def _run(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def _homes(folder: Path) -> dict[str, str]:
    """An environment whose home and temporary folders show what is left in them."""
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    return {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}


def _left(folder: Path) -> list[str]:
    """Files left in those folders; torch's own caches of compiled code are none of the lab's."""
    return [str(path) for name in ("home", "tmp") for path in (folder / name).rglob("*")]


def test_the_slurm_script_runs_torchrun_in_the_environment_of_the_layout(tmp_path: Path) -> None:
    out = tmp_path / "run"
    slurm = ["account=research", "partition=hopper", "nodes=2", "gpus_per_node=8", "gpu=h100"]
    slurm += ["time=00:20:00", "qos=high", "reservation=night", "setup=module load cuda"]
    options = [word for pair in slurm for word in ("--slurm", pair)]
    arguments = ("dp", "--executor", "slurm", "--device", "cuda", "--out", str(out), "--dry-run")
    done = _run(*arguments, *options, environment=_homes(tmp_path))
    assert done.returncode == 0, done.stderr
    script = done.stdout
    for flag in (
        *("account=research", "partition=hopper", "nodes=2", "gpus-per-node=8"),
        *("time=00:20:00", "qos=high", "reservation=night", "ntasks-per-node=1"),
    ):
        assert f"#SBATCH --{flag}\n" in script
    # Data parallelism alone: several hardware queues; LayerNorm leaves SMs to NCCL.
    assert "\nexport CUDA_DEVICE_MAX_CONNECTIONS=8\n" in script
    assert "\nexport NVTE_FWD_LAYERNORM_SM_MARGIN=16\n" in script
    assert "\nmodule load cuda\n" in script
    (srun,) = re.findall(r"^srun .*torchrun .*$", script, re.MULTILINE)
    assert "--nnodes 2 --nproc-per-node 8" in srun
    assert srun.endswith(f"-m overlapkit.lab.cluster.in_job {out}")
    # bash itself finds no fault in it, and every path in it is in the user's folder.
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    outputs = re.findall(r"--output[= ](\S+)", script)
    assert outputs
    assert all(path.startswith(f"{out}/") for path in outputs)
    assert _left(tmp_path) == []
    early = _run("--collect", str(out))
    assert early.returncode == 2
    assert "results are missing" in early.stderr


def test_tensor_parallelism_gets_one_hardware_queue_in_the_script(tmp_path: Path) -> None:
    out = tmp_path / "run"
    slurm = ("--slurm", "account=a", "--slurm", "gpus_per_node=2", "--slurm", "gpu=h100")
    arguments = ("tp", "--executor", "slurm", "--device", "cuda", "--out", str(out), "--dry-run")
    done = _run(*arguments, *slurm)
    assert done.returncode == 0, done.stderr
    assert "\nexport CUDA_DEVICE_MAX_CONNECTIONS=1\n" in done.stdout


@pytest.mark.whole_lab
def test_a_job_of_groups_of_ranks_is_submitted_and_collected(tmp_path: Path) -> None:
    programs, out = tmp_path / "bin", tmp_path / "run"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {
        **_homes(tmp_path),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "SLURM_OUT": str(tmp_path / "slurm.out"),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    slurm = ("--slurm", "account=a", "--slurm", "ranks_per_node=2")
    # Ranks alone and in pairs: two groups take their turns in the one job.
    done = _run(
        *("tp", "--steps", "1", "--executor", "slurm", "--out", str(out), "--json"),
        *slurm,
        environment=environment,
    )
    assert done.returncode == 0, done.stderr
    submitted = json.loads(done.stdout)
    assert submitted["schema"] == "overlapkit/lab-job/v1"
    assert submitted["job"] == JOB
    assert Path(submitted["script"]).is_relative_to(out)
    found = _run("--collect", str(out), "--json")
    assert found.returncode in (0, 1), found.stderr + (tmp_path / "slurm.out").read_text()
    document: dict[str, Any] = json.loads(found.stdout)
    assert document["schema"] == "overlapkit/lab/v1"
    (scenario,) = document["scenarios"]
    claims = {claim["claim"]: claim["outcome"] for claim in scenario["claims"]}
    (same,) = [outcome for claim, outcome in claims.items() if "TP=1" in claim]
    assert same == "confirmed"
    assert {block["ranks"] for block in scenario["blocks"]} == {1, 2}
    assert not list((tmp_path / "home").rglob(".nemo_run"))


def test_a_local_executor_trains_and_shows_at_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = _homes(tmp_path)
    done = _run(
        *("dp", "--steps", "1", "--executor", "local", "--out", str(out), "--json"),
        environment=environment,
    )
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(done.stdout)
    (scenario,) = document["scenarios"]
    claims = {claim["claim"]: claim["outcome"] for claim in scenario["claims"]}
    (same,) = [outcome for claim, outcome in claims.items() if "bit for bit" in claim]
    assert same == "confirmed"
    assert json.loads((out / "results" / "results.json").read_bytes()) == document
    assert list((out / "logs").glob("*/attempt_0/1/stderr.log"))
    assert not list((tmp_path / "home").rglob(".nemo_run"))
    assert not list((tmp_path / "tmp").iterdir())
    again = json.loads(_run("--collect", str(out), "--json").stdout)
    assert again["scenarios"] == document["scenarios"]


def _processes(word: str) -> list[int]:
    """Processes on whose command line `word` stands."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if word in line:
                found.append(int(entry.name))
    return found


@pytest.mark.whole_lab
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_it_leaves_no_process(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "run"
    lab = subprocess.Popen(
        _command("dp", "--executor", "local", "--out", str(out), "--json"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("ranks2/events.rank1.jsonl")):
        assert lab.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert _processes(str(out))
    lab.send_signal(how)
    lab.wait(60)
    deadline = time.monotonic() + 20
    while left := _processes(str(out)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dp", "--executor", "local"), "--out"),
        (("dp", "--executor", "slurm", "--out", "run"), "account"),
        (("dp", "--slurm", "account=a"), "--executor slurm"),
        (("dp", "--dry-run"), "--executor slurm"),
        (("dp", "--executor", "local", "--out", "run", "--link", "1gbit"), "--link"),
        (("dp", "--executor", "local", "--out", "a run"), "spaces"),
        (("--collect", "nowhere"), "nowhere"),
        (("dp", "--collect", "run"), "arguments"),
        (
            (
                *("dp-pp", "--executor", "slurm", "--out", "run"),
                *("--slurm", "account=a", "--slurm", "ranks_per_node=2"),
            ),
            "takes 4",
        ),
        (
            (
                *("dp", "--executor", "slurm", "--out", "run"),
                *("--slurm", "account=a", "--slurm", "ranks_per_node=2"),
            ),
            "sbatch",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        _command(*arguments),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=tmp_path,
        # Nothing of Slurm is on it.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
