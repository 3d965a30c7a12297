"""Starts ranks under torchrun, reads their events, and ends all their processes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from overlapkit.lab.events import FAILED, FOLDER_VARIABLE, JOINED, Event, Tail, emit
from overlapkit.lab.launch.failure import LabError, Raised, failed, hanging
from overlapkit.lab.launch.supervise import SCRATCH, STOP, Order, Report
from overlapkit.lab.link.kind import LinkUsed
from overlapkit.processes import ends_on_signals, uninterrupted

__all__ = ["Event", "LabError", "Launch", "LinkUsed", "emit", "run_ranks"]

SUPERVISOR_LOG = "supervisor.log"

_POLL_S = 0.05
PRELOAD = "overlapkit.lab.rank.preload"
"""What ranks on a CPU need; see `Launch.preload`."""

_END_S = 15.0
_BYTECODE = "bytecode"
_GRACE_S = 5


@dataclass(frozen=True)
class Launch:
    """What to run, and for how long at most.

    Attributes:
        ranks: number of processes, under one torchrun agent on this machine.
        module: run as ``python -m module *args`` in each of them, with `folder` as its current
            folder. It calls `overlapkit.lab.link.rank_side.join` before anything else.
        args: its arguments.
        folder: an existing folder for logs and events, used only by this run.
        environment: added to the ranks' environment.
        link: "shaped": connect the ranks by a link whose rate
            `overlapkit.lab.link.rank_side.set_rate` sets, where the system permits it; "none":
            connect them through the machine's memory.
        timeout_s: longest time for the run, in seconds.
        silence_s: longest time without an event of any rank, in seconds.
        scratch: a folder that the caller removes at the end; if the caller is killed, it is removed
            as well. Compiled Python is kept there for further runs where the installation does not
            keep it.
        preload: a module that is imported once, in the process that the ranks are forked from;
            it must not use CUDA or start threads. Empty: every rank is an interpreter of its own.
    """

    ranks: int
    module: str
    args: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    link: Literal["shaped", "none"]
    timeout_s: float
    silence_s: float
    scratch: Path | None = None
    preload: str = ""


def run_ranks(launch: Launch, on_event: Callable[[Event], None]) -> LinkUsed:
    """Run ranks until they end, passing on their events; how the ranks were connected.

    In the main thread SIGTERM and SIGHUP raise SystemExit, as Ctrl-C raises KeyboardInterrupt.
    However it ends, none of the processes survives.

    Raises:
        LabError: a rank failed, was killed or is silent; the run took too long; or nothing could be
            started.
    """
    with ends_on_signals(), _supervised(launch) as supervisor:
        return _Run(launch, supervisor, on_event).to_the_end()


@dataclass
class _Run:
    launch: Launch
    supervisor: subprocess.Popen[bytes]
    on_event: Callable[[Event], None]
    link: LinkUsed | None = None
    pids: dict[int, int] = field(default_factory=dict)
    raised: dict[int, Raised] = field(default_factory=dict)
    variants: dict[int, str] = field(default_factory=dict)
    last_events: dict[int, float] = field(default_factory=dict)

    def to_the_end(self) -> LinkUsed:
        start = self.heard = time.monotonic()
        tail = Tail(self.launch.folder, self.launch.ranks)
        reports = self._reports()
        while True:
            report = next(reports)
            # After the report: everything that a rank sent before its end can be read by now.
            for event in tail.new():
                self._hear(event)
            if report is not None and report.link is not None:
                self.link = report.link
            elif report is not None:
                return self._judged(report)
            now = time.monotonic()
            if now - start > self.launch.timeout_s:
                raise self._stuck(f"the ranks did not finish within {self.launch.timeout_s:g} s")
            if now - self.heard > self.launch.silence_s:
                raise self._stuck(f"no rank has sent an event for {self.launch.silence_s:g} s")
            if report is None:
                time.sleep(_POLL_S)

    def _hear(self, event: Event) -> None:
        self.heard = time.monotonic()
        self.last_events[event.rank] = event.time
        if event.data.get("event") == JOINED:
            self.pids[event.rank] = event.data["pid"]
        elif event.data.get("event") == FAILED:
            variant = self.variants.get(event.rank, "")
            self.raised[event.rank] = Raised.of(event, variant)
        elif "variant" in event.data:
            self.variants[event.rank] = str(event.data["variant"])
        self.on_event(event)

    def _reports(self) -> Iterator[Report | None]:
        """The supervisor's reports; None whenever there is no new one."""
        pipe = self.supervisor.stdout
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
        rest = b""
        while True:
            try:
                got = os.read(pipe.fileno(), 1 << 16)
            except BlockingIOError:
                yield None
                continue
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                yield msgspec.json.decode(line, type=Report)
            if not got:
                status = self.supervisor.wait()
                yield Report(broken=f"the ranks' supervisor ended with exit status {status}")

    def _judged(self, report: Report) -> LinkUsed:
        if report.status == 0 and self.link is not None:
            return self.link
        if report.broken is not None:
            raise LabError(report.broken, self.launch.folder / SUPERVISOR_LOG)
        raise failed(self.launch.folder, report.status, self.raised)

    def _stuck(self, what: str) -> LabError:
        folder, ranks = self.launch.folder, self.launch.ranks
        return hanging(
            what,
            folder,
            ranks=ranks,
            supervisor=self.supervisor.pid,
            pids=self.pids,
            last_events=self.last_events,
        )


@contextmanager
def _supervised(launch: Launch) -> Iterator[subprocess.Popen[bytes]]:
    """The supervisor of a launch; it and its descendants are ended at the end of the block."""
    folder = launch.folder.resolve()
    scratch = folder / SCRATCH
    scratch.mkdir(exist_ok=True)
    order = Order(
        ranks=launch.ranks,
        module=launch.module,
        args=launch.args,
        folder=str(folder),
        shaped=launch.link == "shaped",
        orphaned=None if launch.scratch is None else str(launch.scratch.resolve()),
        preload=launch.preload,
    )
    with (folder / SUPERVISOR_LOG).open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "overlapkit.lab.launch.supervise"],
            cwd=folder,
            env=_environment(launch),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # Ctrl-C in a terminal reaches only the lab, which ends the other processes in order.
            start_new_session=True,
        )
    assert supervisor.stdin is not None and supervisor.stdout is not None
    try:
        with suppress(BrokenPipeError):
            supervisor.stdin.write(msgspec.json.encode(order) + b"\n")
            supervisor.stdin.flush()
        yield supervisor
    finally:
        with uninterrupted():
            with suppress(OSError):
                supervisor.stdin.write(STOP)
                supervisor.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                supervisor.wait(_END_S)
            supervisor.kill()
            supervisor.wait()
            supervisor.stdout.close()
            shutil.rmtree(scratch, ignore_errors=True)


def _environment(launch: Launch) -> dict[str, str]:
    """The environment of the supervisor, of torchrun and of the ranks."""
    # A lab that is started by a job's torchrun, or from such a shell, is a separate job.
    foreign = ("PET_", "TORCHELASTIC_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    if "PYTHONPATH" in inherited:
        # The current folder changes.
        paths = inherited["PYTHONPATH"].split(os.pathsep)
        inherited["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in paths)
    folder = launch.folder.resolve()
    usual = {
        "OMP_NUM_THREADS": "1",
        # A host's name can resolve to an address that nothing listens on.
        "GLOO_SOCKET_IFNAME": "lo",
        # torch warns about every address without a name, and in a namespace none has one.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_GRACE_S),
    }
    return {
        **usual,
        **inherited,
        "TMPDIR": str(folder / SCRATCH),
        FOLDER_VARIABLE: str(folder),
        **_bytecode(launch.scratch or folder / SCRATCH),
        **launch.environment,
    }


def _bytecode(scratch: Path) -> dict[str, str]:
    """Variables that keep compiled Python in `scratch`, if torch's folder has none and keeps none.

    Otherwise every process would compile torch, which takes longer than the rest of its import.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    compiled = Path(importlib.util.cache_from_source(spec.origin))
    may_write = not sys.dont_write_bytecode and os.access(Path(spec.origin).parent, os.W_OK)
    if compiled.is_file() or may_write:
        return {}
    return {"PYTHONPYCACHEPREFIX": str(scratch / _BYTECODE), "PYTHONDONTWRITEBYTECODE": ""}
