"""Between the lab and torchrun: `python -m overlapkit.lab.launch.supervise`, started by `launch`.

Whatever happens to the lab, to torchrun or to a rank, this process ends all that was started:

    lab -> supervisor -> keeper of the namespaces -> first process in them -> torchrun -> ranks

The first process in a process-id namespace is its init: when it dies, the kernel kills all others
in the namespace. It dies with its keeper, and the keeper with the supervisor. The supervisor ends
all of them when its standard input closes, which also happens when the lab dies.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from overlapkit.lab.launch.agent import FAILURES_FILE
from overlapkit.lab.link import kernel, pacing
from overlapkit.lab.link.hub import HUB_ADDRESS, STORE_PORT, Hub
from overlapkit.lab.link.kind import Isolation, LinkKind, LinkUsed
from overlapkit.lab.link.rank_side import LINK_VARIABLE

STOP = b"stop"
"""Sent by the lab before it closes standard input; without it, the lab died."""

AGENT_LOG = "torchrun.log"
SCRATCH = "tmp"
"""In the work folder: temporary files of torchrun and of the ranks."""

_POLL_S = 0.02
_KILL_S = 10.0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to run: the first line of standard input.

    Attributes:
        ranks, module, args, folder, preload: as in `overlapkit.lab.launch.start.Launch`.
        shaped: whether to make a slow link between the ranks.
        orphaned: folder to remove if the lab dies; None for none.
    """

    ranks: int
    module: str
    args: tuple[str, ...]
    folder: str
    shaped: bool
    orphaned: str | None
    preload: str = ""


class Report(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line of standard output.

    Attributes:
        link: how the ranks are connected; sent first.
        status: torchrun's exit status; sent last.
        refused: why the system did not permit a level; sent only within the supervisor.
        broken: why nothing could be started.
    """

    link: LinkUsed | None = None
    status: int | None = None
    refused: str | None = None
    broken: str | None = None


class _Level(msgspec.Struct, frozen=True):
    """Namespaces that are requested from the system."""

    network: bool
    pids: bool
    user: bool


def _levels(shaped: bool) -> list[_Level]:
    """What to try, the best first; each level without and then with a user namespace."""
    wanted = [(True, True), (True, False)] if shaped else []
    wanted.append((False, True))
    levels = [_Level(net, pids, user) for net, pids in wanted for user in (False, True)]
    return [*levels, _Level(False, False, False)]


def main() -> None:
    """Run one order; the exit status only shows whether that was possible."""
    # Ctrl-C in a terminal is for the lab, which then closes standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kernel.die_with_parent(signal.SIGTERM)
    kernel.adopt_orphans()
    order = msgspec.json.decode(_line(0), type=Order)
    supervisor = _Supervisor(order)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.abandon())
    supervisor.run()


class _Supervisor:
    def __init__(self, order: Order) -> None:
        self.order = order

    def run(self) -> None:
        refusals: list[str] = []
        for level in _levels(self.order.shaped):
            reports, writing = os.pipe()
            if os.fork() == 0:
                # Exceptions in the keeper must not run the supervisor's code.
                with suppress(BaseException):
                    os.close(reports)
                    _keep(self.order, level, writing, tuple(refusals))
                os._exit(1)
            os.close(writing)
            refused = self._watch(reports)
            os.close(reports)
            _end_descendants()
            if refused is None:
                return
            if level.network and refused not in refusals:
                refusals.append(refused)
        _say(1, Report(broken=refused))

    def _watch(self, reports: int) -> str | None:
        """Pass on reports until the keeper has finished; why it was refused, if it was."""
        selector = selectors.DefaultSelector()
        selector.register(0, selectors.EVENT_READ)
        selector.register(reports, selectors.EVENT_READ)
        rest = b""
        while True:
            for key, _ in selector.select():
                got = os.read(key.fd, 1 << 16)
                if key.fd == 0:
                    if STOP in got:
                        _end_descendants()
                        sys.exit(0)
                    if not got:
                        self.abandon()
                    continue
                *lines, rest = (rest + got).split(b"\n")
                for line in lines:
                    report = msgspec.json.decode(line, type=Report)
                    if report.refused is not None:
                        return report.refused
                    _say(1, report)
                    if report.status is not None or report.broken is not None:
                        return None
                if not got:
                    _say(1, Report(broken="the first process among the ranks was killed"))
                    return None

    def abandon(self) -> NoReturn:
        """The lab has died: end everything, and remove what it would have removed."""
        _end_descendants()
        shutil.rmtree(Path(self.order.folder, SCRATCH), ignore_errors=True)
        if self.order.orphaned is not None:
            shutil.rmtree(self.order.orphaned, ignore_errors=True)
        os._exit(1)


def _keep(order: Order, level: _Level, reports: int, refusals: Sequence[str]) -> NoReturn:
    """The keeper: enters the namespaces, and waits for the first process in them."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        if level.user:
            kernel.become_root_of_a_user_namespace()
        flags = kernel.NEW_NETWORK if level.network else 0
        if level.pids:
            flags |= kernel.NEW_PIDS | kernel.NEW_MOUNTS
        if flags:
            kernel.unshare(flags)
        # Last, because a change of credentials would undo it.
        kernel.die_with_parent()
    except OSError as error:
        _say(reports, Report(refused=str(error.strerror)))
        os._exit(0)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            _first(order, level, reports, refusals)
        os._exit(1)
    os.close(reports)
    os.waitpid(child, 0)
    os._exit(0)


def _first(order: Order, level: _Level, reports: int, refusals: Sequence[str]) -> NoReturn:
    """The first process in the namespaces: starts torchrun, makes the link, reaps processes."""
    kernel.die_with_parent()
    try:
        if level.pids:
            kernel.mount_privately()
        kind: LinkKind = "kernel" if level.network else "unshaped"
        if order.shaped and not level.network and pacing.works():
            kind = "paced"
        waiting, go = os.pipe()
        # While torchrun imports torch, which takes seconds, the link is made.
        agent = _start_agent(order, kind, waiting)
        os.close(waiting)
        selector = selectors.DefaultSelector()
        if level.network:
            Hub(order.ranks).register(selector)
    except Exception as error:  # anything that the system does not permit or have
        what = error.strerror if isinstance(error, OSError) else None
        _say(reports, Report(refused=what or f"{type(error).__name__}: {error}"))
        os._exit(0)
    isolation: Isolation = "namespace" if level.pids else "tree"
    link = LinkUsed(kind, isolation, tuple(refusals) if order.shaped else None)
    _say(reports, Report(link=link))
    os.write(go, b"g")
    os.close(go)
    status: int | None = None
    while status is None:
        for key, _ in selector.select(_POLL_S):
            serve: Callable[[], None] = key.data
            serve()
        status = _reaped(agent)
    _say(reports, Report(status=status))
    os._exit(0)


def _reaped(agent: int) -> int | None:
    """Reap all children that have ended; the agent's exit status, if it is among them."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
            if ended[0] == agent:
                return os.waitstatus_to_exitcode(ended[1])
    return None


def _start_agent(order: Order, kind: LinkKind, waiting: int) -> int:
    """Start torchrun, with one log for each rank and stream; its process id."""
    folder = Path(order.folder)
    host, port = (HUB_ADDRESS, STORE_PORT) if kind == "kernel" else ("127.0.0.1", 0)
    command = [
        *(sys.executable, "-m", "overlapkit.lab.launch.agent", str(folder), str(waiting)),
        order.preload,
        *("--nnodes", "1", "--nproc-per-node", str(order.ranks), "--max-restarts", "0"),
        # With port 0 the store chooses a free port.
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:{port}", "--rdzv-id", "lab"),
        *("--rdzv-conf", "is_host=1", "--local-addr", host),
        *("--log-dir", str(folder / "logs"), "--redirects", "3"),
        *("--module", order.module, *order.args),
    ]
    (folder / FAILURES_FILE).unlink(missing_ok=True)
    with (folder / AGENT_LOG).open("wb") as log:
        agent = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, LINK_VARIABLE: kind},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(waiting,),
        )
    return agent.pid


def _end_descendants() -> None:
    """Kill all descendants of this process and wait until they have ended.

    Killing the first process of a namespace kills all others in it; this function waits for them.
    """
    deadline = time.monotonic() + _KILL_S
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        left = kernel.descendants(os.getpid())
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _say(descriptor: int, report: Report) -> None:
    with suppress(OSError):
        os.write(descriptor, msgspec.json.encode(report) + b"\n")


def _line(descriptor: int) -> bytes:
    """The first line, read byte by byte, so that what follows it can still be read."""
    line = b""
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
    return line


if __name__ == "__main__":
    main()
