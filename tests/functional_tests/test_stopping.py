"""Commands that are ended by a signal, or whose output goes nowhere, as a shell sees them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from support import tiny_trace as tiny

pytestmark = pytest.mark.functional

LIMIT_S = 60
ENDED = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGKILL: -9}
MAIN = "import time\nfrom overlapkit.cli import main\n"
# Stand-ins for work that takes minutes. Everything else is the command as it is.
SLOW_FILES = MAIN + (
    "import overlapkit.trace.analyse as analyse\n"
    "analyse.analyse_file = lambda *_: time.sleep(600)\n"
    "main()\n"
)
SLOW_SHARES = MAIN + (
    "import os, overlapkit.trace.read.parallel_read as ahead\n"
    "ahead.LARGE, ahead.read_events = 0, lambda *_, **__: time.sleep(600)\n"
    "os.sched_getaffinity = lambda _: {0, 1}\n"
    "main()\n"
)
SLOW_WRITING = MAIN + (
    "import overlapkit.trace.annotate as annotate\n"
    "def tracks(_):\n"
    "    yield b'{}'\n"
    "    time.sleep(600)\n"
    "annotate._tracks = tracks\n"
    "main()\n"
)


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    for rank in (0, 1):
        tiny.write(folder / f"rank{rank}.json", [tiny.kernel(tiny.GEMM, 1000, 10)])
    return folder


def _children(of: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            # The command's name, in parentheses, may contain anything: proc(5).
            rest = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(rest[1]) == of and rest[0] != "Z":
                found.append(int(entry.name))
    return found


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _start(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        # A terminal's signals are not this test's.
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("code", "number"),
    [
        *((SLOW_FILES, number) for number in ENDED),
        *((SLOW_SHARES, number) for number in (signal.SIGTERM, signal.SIGKILL)),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_no_worker_outlives_trace(code: str, number: signal.Signals, traces: Path) -> None:
    name = traces if code is SLOW_FILES else traces / "rank0.json"
    with _start(code, "trace", name) as command:
        _until(lambda: len(_children(command.pid)) == 2 or command.poll() is not None)
        workers = _children(command.pid)
        assert len(workers) == 2
        command.send_signal(number)
        out, err = command.communicate(timeout=LIMIT_S)
        _until(lambda: not any(map(_runs, workers)))
    assert (command.returncode, out, err.strip()) == (ENDED[number], "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_no_export_outlives_trace(number: signal.Signals, tmp_path: Path) -> None:
    folder, programs, temporary = (tmp_path / name for name in ("traces", "bin", "tmp"))
    for each in (folder, programs, temporary):
        each.mkdir()
    for rank in (0, 1):
        (folder / f"rank{rank}.nsys-rep").write_bytes(b"report")
    nsys = programs / "nsys"
    nsys.write_text('#!/bin/sh\necho "$$" > "$5.pid"\nexec sleep 600\n')
    nsys.chmod(0o755)
    environment = {"PATH": f"{programs}:{os.defpath}", "TMPDIR": str(temporary)}
    with _start(MAIN + "main()\n", "trace", folder, **environment) as command:
        _until(lambda: len(list(temporary.rglob("*.pid"))) == 2 or command.poll() is not None)
        _until(lambda: all(path.read_text() for path in temporary.rglob("*.pid")))
        exports = [int(path.read_text()) for path in temporary.rglob("*.pid")]
        command.send_signal(number)
        command.communicate(timeout=LIMIT_S)
        _until(lambda: not any(map(_runs, exports)))
    assert len(exports) == 2
    assert command.returncode == ENDED[number]
    # Nothing can be removed by a process that is killed.
    assert number == signal.SIGKILL or list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", list(ENDED)[:3], ids=lambda number: number.name)
def test_an_output_file_is_not_begun(number: signal.Signals, traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "annotated.json"
    target.write_text("what was here before")
    with _start(SLOW_WRITING, "trace", traces / "rank0.json", "--annotate", target) as command:
        _until(lambda: len(list(folder.iterdir())) == 2 or command.poll() is not None)
        command.send_signal(number)
        command.communicate(timeout=LIMIT_S)
    assert command.returncode == ENDED[number]
    assert list(folder.iterdir()) == [target]
    assert target.read_text() == "what was here before"


def test_nohup_keeps_its_effect(traces: Path) -> None:
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLOW_FILES
    with _start(code, "trace", traces) as command:
        _until(lambda: len(_children(command.pid)) == 2 or command.poll() is not None)
        command.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            command.wait(0.5)
        command.send_signal(signal.SIGTERM)
        assert command.wait(LIMIT_S) == 143


def test_a_worker_that_is_killed_is_one_line(traces: Path) -> None:
    with _start(SLOW_FILES, "trace", traces) as command:
        _until(lambda: len(_children(command.pid)) == 2 or command.poll() is not None)
        workers = _children(command.pid)
        os.kill(workers[0], signal.SIGKILL)
        out, err = command.communicate(timeout=LIMIT_S)
        assert not any(map(_runs, workers))
    assert (command.returncode, out, err.count("\n")) == (2, "", 1)
    assert "lack of memory" in err


def _shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A shell's line in which $overlapkit is the command, and $@ the arguments."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *map(str, arguments)],
        env={**os.environ, "overlapkit": f"{sys.executable} -m overlapkit.cli"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


# Text of click, our own text, tables of rich.
WRITERS = {
    "help": "--help",
    "JSON": "explain examples/gpt_1b_8xh100.yaml --world-size 8 --json",
    "tables": "explain examples/gpt_1b_8xh100.yaml b:model.num_layers=2 --world-size 8",
}


@pytest.fixture
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
@pytest.mark.usefixtures("_in_root")
class TestStandardOutput:
    @pytest.mark.parametrize("to", [">/dev/full", ">&-"])
    def test_full_or_closed_is_one_line(self, words: str, to: str) -> None:
        done = _shell(f"$overlapkit {words} {to}")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "standard output: cannot be written: " in done.stderr

    def test_nothing_else_changes_the_answer(self, words: str) -> None:
        plain = _shell(f"$overlapkit {words}")
        assert plain.returncode in (0, 1)
        stopped = _shell(f"set -o pipefail; $overlapkit {words} | true")
        assert (stopped.returncode, stopped.stderr) == (plain.returncode, "")
        for to in ("2>/dev/full", "2>&- <&-"):
            done = _shell(f"$overlapkit {words} {to}")
            assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)


@pytest.mark.parametrize("to", ["2>&-", "2>/dev/full", "2>&- >&- <&-", "2>/dev/full >/dev/full"])
def test_bad_input_keeps_its_status_where_nothing_can_be_said(to: str) -> None:
    for debug in ("", "--debug"):
        done = _shell(f"$overlapkit explain /nowhere.yaml --world-size 8 {debug} {to}")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_an_input_does_not_become_a_closed_stream(tmp_path: Path) -> None:
    # The next file that a process opens takes the lowest descriptor that is free.
    config = tmp_path / "run.yaml"
    config.write_text("model: {num_layers: 2}\n")
    line = '$overlapkit explain "$1" --world-size 8 >&- 2>&-'
    assert _shell(line, config).returncode == 2
    assert config.read_text() == "model: {num_layers: 2}\n"
