"""A rank's side of the link: entering it, changing its rate, counting what was sent.

Without the lab's launcher, everything here works, on an unshaped link, under any torchrun whose
environment has OVERLAPKIT_LAB_FOLDER.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import msgspec

from overlapkit.errors import InputError
from overlapkit.lab.events import FAILED, JOINED, describe, emit
from overlapkit.lab.link import kernel, pacing
from overlapkit.lab.link.hub import RANK_INTERFACE, SOCKET_NAME

LINK_VARIABLE = "OVERLAPKIT_LAB_LINK"
"""Environment variable with the kind of a rank's link, a `LinkKind`; without it "unshaped"."""

STACK_SIGNAL = signal.SIGUSR1
"""On this signal a rank writes the Python stacks of its threads to standard error."""

_LONGEST_ANSWER = 4096

_hub: socket.socket | None = None
_pacer = pacing.Pacer()


def join() -> None:
    """Enter the rank's network namespace, if any. Call it first in a rank, before threads start.

    It also makes the rank die with torchrun's agent, write its stacks when it crashes or receives
    `STACK_SIGNAL`, and report its start and the exception that ends it.

    Raises:
        InputError: the environment is not a rank's, or the process has several threads.
        OSError: the hub has ended.
    """
    global _hub
    kernel.die_with_parent()
    faulthandler.enable()
    faulthandler.register(STACK_SIGNAL, all_threads=True)
    _report_exceptions()
    if _kind() == "kernel":
        if len(list(Path("/proc/self/task").iterdir())) > 1:
            raise InputError(
                "overlapkit.lab.link.rank_side.join() was called in a process with several "
                "threads, which stay in the old network namespace; call it before importing torch"
            )
        _hub = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _hub.connect(SOCKET_NAME)
        _hub.send(msgspec.json.encode({"ask": "join", "rank": _rank()}))
        _, descriptors, _, _ = socket.recv_fds(_hub, _LONGEST_ANSWER, 1)
        kernel.enter_network(descriptors[0])
        os.close(descriptors[0])
        os.environ["GLOO_SOCKET_IFNAME"] = RANK_INTERFACE
    emit({"event": JOINED, "pid": os.getpid()})


def leave() -> NoReturn:
    """End the process of a rank that has finished its work immediately, with status 0."""
    _exit(0)


def _exit(status: int) -> NoReturn:
    """End the process without destroying torch's objects.

    That takes a third of a second, and after a failed collective it can abort the process, whose
    end would then be a signal instead of the exception.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def set_rate(mbit: float | None) -> None:
    """Limit this rank's link to `mbit` Mbit/s in each direction; None removes the limit.

    A paced link limits each connection, and only what it sends. On an unshaped link this does
    nothing. It can be called at any time.

    Raises:
        InputError: the rate is not positive, or the kernel refused it.
    """
    if mbit is not None and not mbit > 0:
        raise InputError(f"a link of {mbit} Mbit/s is not possible; give a positive rate or None")
    if _kind() == "paced":
        _pacer.set_rate(None if mbit is None else max(1, round(mbit * 1e6 / 8)))
    elif _hub is not None:
        _hub.send(msgspec.json.encode({"ask": "rate", "rank": _rank(), "mbit": mbit}))
        answer = msgspec.json.decode(
            _hub.recv(_LONGEST_ANSWER) or b'{"error": "the hub has ended"}'
        )
        if "error" in answer:
            raise InputError(f"the kernel refused a link of {mbit} Mbit/s: {answer['error']}")


def sent_bytes() -> int | None:
    """Bytes that this rank has sent so far; only differences are meaningful. None if unknown.

    On a link made by the kernel, everything that was sent, headers and acknowledgements included.
    Otherwise what the open TCP connections sent, without headers; NCCL's traffic is not counted.
    """
    if _hub is None:
        return pacing.sent_bytes()
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == RANK_INTERFACE:
            # Eight counters of what was received come first: proc_pid_net(5).
            return int(counters.split()[8])
    return None


def _kind() -> str:
    return os.environ.get(LINK_VARIABLE, "unshaped")


def _rank() -> int:
    return int(os.environ["RANK"])


def _report_exceptions() -> None:
    """Report the exception that ends the process while its connections are still open.

    A moment later the closed connections make other ranks fail, with exceptions of their own.
    """
    shown = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            emit({"event": FAILED, **describe(error)})
        # Not at once: torch prints what this hook shows only after it returned.
        atexit.register(_exit, 1)
        shown(kind, error, traceback)

    sys.excepthook = hook
