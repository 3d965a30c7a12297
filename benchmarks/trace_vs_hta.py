"""`overlapkit trace` against Holistic Trace Analysis and against the floor, on the same files.

    uv run python benchmarks/trace_vs_hta.py                 # 5, 50 and 200 MB
    uv run python benchmarks/trace_vs_hta.py --sizes 1000 --hta-up-to 200

For each size, three complete processes are run alternately, several times:

- `overlapkit trace FILE --json`;
- Holistic Trace Analysis (HTA, in a separate environment) loading the file and calling
  get_comm_comp_overlap;
- the floor: decompress with isal, decode every event with msgspec into seven typed fields, stop.

Ratios are taken between runs that are neighbors in time, and their median is printed. Memory is the
peak resident size of the largest process of each command. Files come from the generator in
tests/support, so that the true overlap is known too. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.trace_generator import RankTruth, Scenario, write_kineto  # noqa: E402

# HTA 0.5 imports psutil without declaring it.
HTA = ["HolisticTraceAnalysis", "psutil"]
# Text of one layer's forward and backward in one microbatch.
LAYER_BYTES = 81_000

FLOOR = """
import sys
import isal.igzip, msgspec

class Arguments(msgspec.Struct):
    stream: int = -1
    correlation: int = -1

class Event(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    name: str = ""
    ts: float = 0.0
    dur: float = 0.0
    tid: int | str = 0
    args: Arguments | None = None

class Trace(msgspec.Struct):
    traceEvents: list[Event]

raw = open(sys.argv[1], "rb").read()
raw = isal.igzip.decompress(raw) if sys.argv[1].endswith(".gz") else raw
msgspec.json.Decoder(Trace).decode(raw)
"""

HTA_SCRIPT = """
import json, sys, time
begin = time.perf_counter()
from hta.trace_analysis import TraceAnalysis
imported = time.perf_counter()
analysis = TraceAnalysis(trace_dir=sys.argv[1], include_last_profiler_step=True)
overlap = analysis.get_comm_comp_overlap(visualize=False)
print(json.dumps({
    "import_s": imported - begin,
    "overlap_pct": [float(value) for value in overlap["comp_comm_overlap_pctg"]],
}))
"""


@dataclass
class Run:
    """One finished process: seconds of wall clock and CPU, peak resident MB, what it printed."""

    wall: float
    cpu: float
    peak_mb: float
    output: str


@dataclass
class Results:
    """All runs of one command at one size."""

    runs: list[Run] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Median seconds."""
        return statistics.median(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        """Median CPU seconds."""
        return statistics.median(run.cpu for run in self.runs)

    @property
    def peak_mb(self) -> float:
        """Median peak memory."""
        return statistics.median(run.peak_mb for run in self.runs)


def with_bytecode(cache: str) -> dict[str, str]:
    """An environment whose processes find compiled modules, as an installed program's do."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": cache}


def scenario(size: int, steps: int) -> Scenario:
    """A run whose file has about `size` MB: larger steps, not more of them.

    HTA searches all step ranges of a file for each of its events, so the number of steps affects
    its time; profiles usually contain a few. It recognizes only NCCL communication, so there is no
    other.
    """
    layers = 4 if size < 20 else 32
    microbatches = max(1, round(size * 1_000_000 / (steps * layers * LAYER_BYTES)))
    return Scenario(
        tp=2,
        cp=2,
        dp=4,
        pp=2,
        layers=layers,
        microbatches=microbatches,
        steps=steps,
        buckets=8,
        gather_ns=20_000_000,
        reduce_ns=60_000_000,
        pp_overlap=True,
    )


def write(run: Scenario, folder: Path, gz: bool) -> RankTruth:
    """Write the file in a separate process.

    Linux attributes the peak memory of the process that starts a command to the command, so this
    process must stay small.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(write_kineto, run, folder, gz=gz).result()[0]


def text_mb(path: Path) -> float:
    """MB of JSON in a file; gzip keeps the size in its last four bytes."""
    if path.suffix != ".gz":
        return path.stat().st_size / 1e6
    with path.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        return int.from_bytes(stream.read(), "little") / 1e6


def measure(command: list[str], environment: dict[str, str]) -> Run:
    """Run one command to its end and take the system's account of it.

    Raises:
        SystemExit: the command failed; with the end of what it said.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        # 1 is a finding, and the report is complete.
        if process.returncode not in (0, 1):
            said = err.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{command[:3]} exited with {process.returncode}:\n{said}")
        return Run(
            wall,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss / 1024,
            out.read().decode(errors="replace"),
        )


def install_hta(folder: Path) -> str:
    """Make an environment for HTA alone and return its interpreter."""
    python = str(folder / "bin" / "python")
    subprocess.run(["uv", "venv", "--quiet", "--no-project", str(folder)], check=True)
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, *HTA], check=True)
    return python


def our_overlap(output: str) -> float:
    """The whole trace's overlap % from `overlapkit trace --json`."""
    document: dict[str, Any] = json.loads(output)
    whole = document["ranks"][0]["whole"]
    # From the parts: the percentage there is rounded already.
    return 100.0 * float(whole["hidden_comm_us"]) / float(whole["comm_us"])


def hta_overlap(output: str) -> float:
    """HTA's percentage; its log lines go elsewhere."""
    return float(json.loads(output.strip().splitlines()[-1])["overlap_pct"][0])


def facts(python_of_hta: str | None) -> list[str]:
    """The machine and the versions."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    ours = ", ".join(f"{name} {version(name)}" for name in ("msgspec", "isal", "numpy"))
    lines = [
        f"- {cpu}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.platform()}",
        f"- load before the runs: {os.getloadavg()[0]:.1f}",
        f"- overlapkit {version('overlapkit')} at {commit}, Python {platform.python_version()}, "
        f"{ours}",
    ]
    if python_of_hta:
        script = (
            "import sys, importlib.metadata as m; print('HolisticTraceAnalysis', "
            "m.version('HolisticTraceAnalysis') + ', pandas', m.version('pandas') + ', Python',"
            " sys.version.split()[0])"
        )
        lines.append(
            "- "
            + subprocess.run(
                [python_of_hta, "-c", script], capture_output=True, text=True, check=True
            ).stdout.strip()
        )
    return lines


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print("\n| " + " | ".join(header) + " |")
    print("|" + " ---: |" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
    print()


def ratio(over: Results, under: Results, what: str) -> str:
    """Median of the ratios of neighbouring runs."""
    pairs = zip(over.runs, under.runs, strict=False)
    return f"{statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs):.1f}"


def main() -> None:
    """Write the traces, run the three alternately, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 50, 200], metavar="MB")
    parser.add_argument("--steps", type=int, default=3, help="in each file")
    parser.add_argument("--runs", type=int, default=3, help="of each command at each size")
    parser.add_argument(
        "--hta-up-to", type=int, default=200, metavar="MB", help="HTA takes 0.2 s per MB"
    )
    parser.add_argument("--no-hta", action="store_true", help="overlapkit against the floor only")
    parser.add_argument("--plain", action="store_true", help=".json instead of .json.gz")
    options = parser.parse_args()

    apart = tempfile.TemporaryDirectory()
    environment = with_bytecode(f"{apart.name}/bytecode")
    python_of_hta = None if options.no_hta else install_hta(Path(apart.name) / "hta")
    print("\n".join(facts(python_of_hta)))
    overlapkit = str(Path(sys.executable).with_name("overlapkit"))
    times: list[list[str]] = []
    memory: list[list[str]] = []
    overlaps: list[list[str]] = []
    for size in sorted(options.sizes):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            truth = write(scenario(size, options.steps), folder, not options.plain)
            mb = text_mb(Path(truth.path))
            hta = python_of_hta if size <= options.hta_up_to else None
            commands = {
                "overlapkit": [overlapkit, "trace", truth.path, "--json"],
                "floor": [sys.executable, "-c", FLOOR, truth.path],
            }
            if hta:
                commands["hta"] = [hta, "-c", HTA_SCRIPT, name]
            if not times:
                # Compiles every module, so that no timed run does.
                run_in_turn(commands, 1, environment)
            results = run_in_turn(commands, options.runs, environment)
            ours, floor, theirs = results["overlapkit"], results["floor"], results.get("hta")
            again = None
            if hta and size <= 50:
                exact = {**environment, "HTA_DISABLE_NS_ROUNDING": "1"}
                again = measure(commands["hta"], exact)
        times.append(
            [
                f"{mb:.0f}",
                f"{truth.events:,}",
                f"{ours.wall:.2f}",
                f"{ours.cpu:.2f}",
                f"{floor.wall:.2f}",
                f"{theirs.wall:.2f}" if theirs else "",
                f"{hta_import(theirs):.2f}" if theirs else "",
                ratio(theirs, ours, "wall") if theirs else "",
                ratio(ours, floor, "wall"),
                f"{1000 * ours.wall / mb:.2f}",
            ]
        )
        memory.append(
            [
                f"{mb:.0f}",
                f"{truth.device_events:,}",
                f"{ours.peak_mb:.0f}",
                f"{floor.peak_mb:.0f}",
                f"{theirs.peak_mb:.0f}" if theirs else "",
                ratio(theirs, ours, "peak_mb") if theirs else "",
            ]
        )
        overlaps.append(
            [
                f"{mb:.0f}",
                f"{truth.whole.overlap_pct:.2f}",
                f"{our_overlap(ours.runs[0].output):.2f}",
                f"{hta_overlap(theirs.runs[0].output):.2f}" if theirs else "",
                f"{hta_overlap(again.output):.2f}" if again else "",
            ]
        )
        print(f"{size} MB: done", file=sys.stderr)
    table(
        [
            "MB",
            "events",
            "overlapkit s",
            "its CPU s",
            "floor s",
            "HTA s",
            "of it imports",
            "HTA / overlapkit",
            "overlapkit / floor",
            "overlapkit ms per MB",
        ],
        times,
    )
    table(["MB", "device events", "overlapkit peak MB", "floor", "HTA", "HTA / overlapkit"], memory)
    table(
        ["MB", "true overlap %", "overlapkit", "HTA as it comes", "HTA without rounding to µs"],
        overlaps,
    )


def run_in_turn(
    commands: dict[str, list[str]], runs: int, environment: dict[str, str]
) -> dict[str, Results]:
    """The commands one after the other, `runs` times over."""
    results = {name: Results() for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            results[name].runs.append(measure(command, environment))
    return results


def hta_import(results: Results) -> float:
    """Median seconds that HTA's imports take."""
    outputs = [json.loads(run.output.strip().splitlines()[-1]) for run in results.runs]
    return statistics.median(float(output["import_s"]) for output in outputs)


if __name__ == "__main__":
    main()
