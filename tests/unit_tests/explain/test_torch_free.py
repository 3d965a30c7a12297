"""explain answers without torch and Megatron-Core in the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "data" / "bridge_configs"
DENSE = str(CONFIGS / "llama3_70b_pretrain_config.yaml")
MOE = str(CONFIGS / "qwen3_30b_a3b_pretrain_config.yaml")

# Runs the command, then lists what must not have been loaded. Its status tells that it did run.
PROBE = """
import atexit, sys
heavy = ("torch", "megatron.core", "transformer_engine", "nemo_run", "numpy")
atexit.register(lambda: print(sorted(set(heavy) & set(sys.modules)), file=sys.stderr))
from overlapkit.cli import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        [DENSE],
        [DENSE, "--json"],
        [DENSE, MOE],
        [DENSE, MOE, "--json"],
        [DENSE, "--te", "none"],
        [DENSE, "--te", "2.12"],
        [DENSE, "--te", "here"],
        [DENSE, "--env-file", "ENV"],
        [MOE, "comm_overlap.tp_comm_overlap=false", "comm_overlap.bucket_size=auto"],
        ["nowhere.yaml"],
    ],
    ids=lambda arguments: " ".join(Path(a).name for a in arguments),
)
def test_explain_loads_no_torch(arguments: list[str], tmp_path: Path) -> None:
    environment = tmp_path / "cluster.env"
    environment.write_text("CUDA_DEVICE_MAX_CONNECTIONS=1\n")
    arguments = [str(environment) if a == "ENV" else a for a in arguments]
    command = [sys.executable, "-c", PROBE, "explain", *arguments, "--world-size", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in ((2,) if arguments == ["nowhere.yaml"] else (0, 1)), done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
