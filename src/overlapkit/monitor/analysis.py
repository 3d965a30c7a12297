"""The analysis of one recording, in a process of its own beside the training.

The worker (`worker.py`) makes the temporary folder and removes it, also when this process dies:
its standard input then ends. A thread of this process writes the trace into the folder, which
does not hold the interpreter's lock, and waits for the answer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from overlapkit.monitor.recording import Recording
from overlapkit.monitor.report import OverlapReport
from overlapkit.monitor.worker import Order

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from overlapkit.monitor.worker import main; main()"
)


class Failed(Exception):
    """Why an analysis has no result."""


class Analysis:
    """An analysis that runs.

    Args:
        recording: the stopped recording. It is freed once it is written.
        order: what to analyse; its path is not known yet.

    Raises:
        OSError, RuntimeError: the system cannot start another process or thread.
    """

    def __init__(self, recording: Recording, order: Order) -> None:
        self._recording = recording
        self._order = order
        self._answer: OverlapReport | Failed | None = None
        self._folder: str | None = None
        # Isolated from the job's variables and folder, with the same packages.
        packages = [path for path in sys.path if isinstance(path, str)]
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [*_gently(), sys.executable, "-I", "-c", _START, json.dumps(packages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._thread = threading.Thread(target=self._run, name="overlapkit-monitor", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.kill()
            raise

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self._answer is not None

    def result(self) -> OverlapReport:
        """The report, without what only the training process knows.

        Raises:
            Failed: there is none.
        """
        if isinstance(self._answer, OverlapReport):
            return self._answer
        raise self._answer or Failed("the analysis was ended")

    def wait(self, seconds: float) -> None:
        """Wait for the result, at most this long."""
        self._thread.join(seconds)

    def kill(self) -> None:
        """End the analysis, if it still runs, and remove its files."""
        with suppress(OSError):
            self._process.kill()
        if self._thread.ident is not None:
            self._thread.join(5.0)
        self._clean()

    def _run(self) -> None:
        answer: OverlapReport | Failed
        try:
            answer = self._ask()
        except Failed as failed:
            answer = failed
        except Exception as error:
            answer = Failed(f"{type(error).__name__}: {error}")
        finally:
            self._recording.free()
        self._clean()
        self._answer = answer

    def _ask(self) -> OverlapReport:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        self._folder = os.fsdecode(process.stdout.readline()).rstrip("\n") or None
        if self._folder is None:
            raise Failed(f"its process ended with status {process.wait()}")
        if not Path(self._folder).is_absolute():
            raise Failed(self._folder)
        path = str(Path(self._folder) / "trace.json")
        self._recording.export(path)
        self._recording.free()
        with suppress(BrokenPipeError):
            process.stdin.write(
                msgspec.json.encode(msgspec.structs.replace(self._order, path=path)) + b"\n"
            )
            process.stdin.flush()
        # The input stays open: its end tells the worker that this process has died.
        text = process.stdout.read()
        status = process.wait()
        if not text:
            raise Failed(f"its process ended with status {status}")
        answer = msgspec.json.decode(text)
        if "error" in answer:
            raise Failed(answer["error"])
        return msgspec.convert(answer, OverlapReport)

    def _clean(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError, ValueError):
                    pipe.close()
        with suppress(OSError):
            self._process.wait(1.0) if self._process.poll() is None else None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _gently() -> list[str]:
    """The program that starts another one with low priority; nothing where there is none.

    The worker lowers its own priority too, but only once it has started, which takes a while.
    """
    program = shutil.which("nice")
    return [] if program is None else [program, "-n", "19"]
