"""How the time of following a launch script grows with its length, in CPU time.

    uv run python benchmarks/shell_reader.py [--runs N]

Each kind of script is followed at one length and at twice that length. The ratio of the medians is
what to quote: 2 is linear. Absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time

from overlapkit.config.shell.follow import follow_script


def variables(lines: int) -> str:
    """Assignments, exports and arrays, each of which uses the one before it."""
    rows = ["V0=x"]
    for n in range(1, lines):
        plain = f"export V{n}=${{V{n - 1}:-x}}"
        rows.append(plain if n % 2 else f'A{n}=(--flag-{n} "$V{n - 1}"); V{n}=x')
    return "\n".join([*rows, f'torchrun train.py "${{A{(lines - 1) // 2 * 2}[@]}}"'])


def data(lines: int) -> str:
    """A list of data files that grows by adding to itself."""
    row = 'DATA="$DATA 0.5 /data/part_{0}_text_document"'
    rows = [row.format(n) for n in range(lines)]
    return "\n".join(["DATA=", *rows, "torchrun train.py --data-path $DATA"])


def branches(lines: int) -> str:
    """Branches, tests and calls."""
    rows = [f'if [ "$N" = {n} ]; then A=1; elif f {n}; then A={n}; fi' for n in range(lines)]
    return "\n".join(["f() { [[ $1 == 1* ]]; }", "N=3", *rows, "torchrun train.py --a $A"])


KINDS = {"variables": (variables, 2500), "data": (data, 500), "branches": (branches, 1000)}


def seconds(text: str, runs: int) -> float:
    """The median CPU time of following a script."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        follow_script(text, "t.sh", {})
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    for name, (write, lines) in KINDS.items():
        once, twice = seconds(write(lines), runs), seconds(write(2 * lines), runs)
        print(
            f"{name:10} {lines} lines {once * 1e3:6.0f} ms, {2 * lines} lines "
            f"{twice * 1e3:6.0f} ms, ratio {twice / once:.2f}"
        )


if __name__ == "__main__":
    main()
