"""How much an agent reads: the tokens of each command's plain output, on the examples.

    uv run python benchmarks/output_tokens.py

A token is counted as 3.32 characters, as a byte-pair tokenizer counted them in the skill's text.
"""

from __future__ import annotations

import subprocess
import sys

from explain_cold_start import ROOT

CHARACTERS = 3.32
"""Of a token."""

RUNS = {
    "gpt_1b_8xh100": (8, "h100"),
    "llama3_70b_64xh100": (64, "h100"),
    "llama3_405b_256xgb200": (256, "gb200"),
    "qwen3_30b_a3b_64xb200": (64, "b200"),
    "pitfalls_16xh100": (16, "h100"),
}
OF_A_RUN = (
    "explain {file} {size} {gpu} --brief",
    "explain {file} {size} {gpu}",
    "explain {file} {size} {gpu} --diff",
    "explain {file} {size} {gpu} --buckets",
    "plan {file} {size} {gpu}",
    "doctor {file} {size} {gpu}",
    "translate {file} {size} --to megatron-lm",
)
TRACES = "tests/data/traces/megatron-{}.rank{}.json.gz"
OTHERS = (
    "audit examples",
    "explain examples/gpt_1b_8xh100.yaml b:comm_overlap.bucket_size=2000000000 --world-size 8",
    f"trace {TRACES.format('overlap', 0)} {TRACES.format('overlap', 1)}",
    f"compare {TRACES.format('no-overlap', 0)} {TRACES.format('overlap', 0)}",
    "rules",
    "rules dp.bucket-size",
    "rules tp.*",
    "explain --help",
)


def tokens(command: str) -> int:
    """The tokens of what a command prints.

    Raises:
        RuntimeError: its exit status is that of bad input.
    """
    line = [sys.executable, "-m", "overlapkit.cli", *command.split()]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{command}: {done.stderr}")
    return round(len(done.stdout) / CHARACTERS)


def main() -> int:
    print(f"| command | {' | '.join(RUNS)} |")
    print(f"|---|{'---|' * len(RUNS)}")
    for form in OF_A_RUN:
        shown = form.format(file="CONFIG", size="", gpu="").split()
        counts = [
            tokens(
                form.format(
                    file=f"examples/{name}.yaml", size=f"--world-size {size}", gpu=f"--gpu {gpu}"
                )
            )
            for name, (size, gpu) in RUNS.items()
        ]
        print(f"| {' '.join(shown)} | {' | '.join(f'{count:,}' for count in counts)} |", flush=True)
    print("\n| command | tokens |")
    print("|---|---|")
    for command in OTHERS:
        print(f"| {command} | {tokens(command):,} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
