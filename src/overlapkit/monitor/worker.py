"""The process that analyses a recording: it has a low priority and never loads torch."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from overlapkit.errors import InputError
from overlapkit.monitor.report import Finding, OverlapReport

if TYPE_CHECKING:
    from overlapkit.trace.document import TraceDocument

MEMORY = 4 << 30
"""Bytes of address space that an analysis may take."""

SECONDS = 600
"""How long an analysis may take."""

_END = re.compile(rb'\]\s*(?:,\s*"[^"]*"\s*:\s*(?:"[^"]*"|[\w.+-]+)\s*)*\}\s*\Z')
"""How a complete trace ends: the list of events, and perhaps single values after it."""


class Order(msgspec.Struct, frozen=True):
    """What to analyse.

    Attributes:
        step: number of the last step, for the report.
        steps: the steps to report, as the first and the one after the last of the trace's numbers.
        rank: the rank of the training process.
        uses_gpu: whether it uses a GPU, so that the trace must contain device work.
        config: the run's configuration; None where it is not known.
        path: the trace.
    """

    step: int
    steps: tuple[int, int]
    rank: int
    uses_gpu: bool
    config: str | None = None
    path: str = ""


def main() -> NoReturn:
    """Say where the trace is to be written, wait for the order, and print the report as JSON."""
    # The training process is told to end, and this one sees it ending.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _be_modest()
    try:
        folder = tempfile.mkdtemp(prefix="overlapkit-monitor-")
    except OSError as error:
        print(f"no temporary folder: {error.strerror}", flush=True)
        os._exit(1)
    status = 1
    try:
        print(folder, flush=True)
        # Imported while the trace is being written.
        import overlapkit.library
        import overlapkit.trace.analyse
        import overlapkit.trace.document  # noqa: F401

        line = sys.stdin.buffer.readline()
        if line:
            threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
            answer = _answer(msgspec.json.decode(line, type=Order))
            shutil.rmtree(folder, ignore_errors=True)
            sys.stdout.buffer.write(answer)
            sys.stdout.buffer.flush()
            status = 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # Not through the interpreter's end, which would wait for the thread that reads.
        os._exit(status)


def analyse(order: Order) -> OverlapReport:
    """The report on a trace.

    Raises:
        InputError: the trace is incomplete, cannot be read, or does not show what the process did.
    """
    import overlapkit.library

    if not _END.search(_tail(order.path)):
        raise InputError("the trace is incomplete: is the disk of the temporary folder full?")
    document = overlapkit.library.trace(
        order.path, steps=f"{order.steps[0]}:{order.steps[1]}", config=order.config
    )
    if order.uses_gpu and document.slowest.source == "cpu":
        raise InputError(
            "the trace contains no work of the GPU, although the process uses one: another tool, "
            "such as Nsight Systems, may be recording it"
        )
    return _report(document, order)


def _report(document: TraceDocument, order: Order) -> OverlapReport:
    rank = document.slowest
    median = rank.median
    return OverlapReport(
        step=order.step,
        steps=median.steps,
        rank=order.rank,
        step_us=median.step_us,
        compute_us=median.compute_us,
        exposed_comm_us=median.exposed_comm_us,
        hidden_comm_us=median.hidden_comm_us,
        exposed_memory_us=median.exposed_memory_us,
        idle_us=median.idle_us,
        waiting_for_data_us=median.waiting_for_data_us,
        waiting_for_host_us=median.waiting_for_host_us,
        exposed_by_dimension={d: t.exposed_comm_us for d, t in median.by_dimension.items()},
        findings=[
            Finding(
                id=d.id,
                message=d.message,
                remedy=d.remedy,
                cost_us=d.cost_us,
                confidence=d.confidence,
            )
            for d in document.diagnoses
        ],
        doubts=document.doubts,
        warnings=document.warnings,
    )


def _answer(order: Order) -> bytes:
    try:
        return msgspec.json.encode(analyse(order))
    except InputError as error:
        # The file is gone by the time that anybody reads its name.
        return msgspec.json.encode({"error": str(error).removeprefix(f"{order.path}: ")})
    except MemoryError:
        return msgspec.json.encode({"error": f"it needs more than {MEMORY >> 30} GiB of memory"})
    except Exception as error:
        return msgspec.json.encode({"error": f"{type(error).__name__}: {error}"})


def _tail(path: str) -> bytes:
    try:
        with Path(path).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 4096))
            return stream.read()
    except OSError as error:
        raise InputError(f"the trace was not written: {error.strerror}") from None


def _be_modest() -> None:
    with suppress(OSError):
        os.nice(19)
    with suppress(ImportError, OSError, ValueError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)


def _end_with_parent(folder: str) -> None:
    with suppress(OSError, ValueError):
        sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
