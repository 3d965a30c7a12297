"""Worker processes, and the signals that end a command: however it ends, nothing is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Generic, NoReturn, TypeVar

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ResultT = TypeVar("ResultT")


@contextmanager
def ends_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP become SystemExit with status 128 + signal, so that cleanup code runs.

    Only in the main thread, and only where the signal would end the process at once: `nohup`
    keeps its effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    changed = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that would end the process wait until the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Receive a signal when the parent dies; the kernel keeps this over exec, not over fork.

    Raises:
        OSError: the system does not permit it.
    """
    # Imported here: commands that start no process should not wait for it.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(how), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


class WorkerLost(Exception):
    """A worker ended without a result: the system killed it, most likely for lack of memory."""


class Worker(Generic[ResultT]):
    """A call in a forked process of its own.

    The process is killed when this object is no longer used, and when this process dies, even by
    SIGKILL.

    Args:
        function: what to call. Its result, or the exception that it raises, is pickled.
        arguments: its arguments.

    Attributes:
        pid: the process id.
        pipe: descriptor that becomes readable when the call has ended.

    Raises:
        OSError: the system cannot start another process.
    """

    def __init__(self, function: Callable[..., ResultT], *arguments: Any) -> None:
        self.pipe, theirs = os.pipe()
        parent = os.getpid()
        try:
            # A signal between fork and the first line of the child would run the parent's cleanup.
            with uninterrupted():
                self.pid = os.fork()
                if self.pid == 0:
                    _work(parent, theirs, function, arguments)
        except OSError:
            os.close(self.pipe)
            raise
        finally:
            os.close(theirs)
        self._end = weakref.finalize(self, _end, parent, self.pid, self.pipe)

    def result(self) -> ResultT:
        """Wait for the end of the call; its result.

        Raises:
            WorkerLost: there is none.
            Exception: whatever the call raised.
        """
        import pickle

        try:
            with open(self.pipe, "rb", closefd=False) as stream:
                ended, value, trace = pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):
            raise WorkerLost from None
        finally:
            self.end()
        if ended:
            result: ResultT = value
            return result
        raise value from _InWorker(trace)

    def end(self) -> None:
        """Kill the process, if it still runs."""
        self._end()


class _InWorker(Exception):
    """The traceback of an exception that a worker raised, for --debug."""


def in_workers(
    function: Callable[..., ResultT], arguments: Sequence[tuple[Any, ...]], most: int
) -> Iterator[tuple[int, ResultT]]:
    """Call a function once for each tuple of arguments, in up to `most` processes at a time.

    Yields:
        The place among `arguments` and the result, as the calls end.

    Raises:
        WorkerLost, OSError, Exception: as `Worker`. No process is left.
    """
    # Imported here: the most common run reads one file, in this process.
    import selectors

    waiting = list(enumerate(arguments))[::-1]
    with selectors.DefaultSelector() as selector:
        running: dict[int, tuple[int, Worker[ResultT]]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    index, each = waiting.pop()
                    worker = Worker(function, *each)
                    running[worker.pipe] = index, worker
                    selector.register(worker.pipe, selectors.EVENT_READ)
                for key, _ in selector.select():
                    selector.unregister(key.fd)
                    index, worker = running.pop(key.fd)
                    yield index, worker.result()
        finally:
            for _, worker in running.values():
                worker.end()


def _work(
    parent: int, pipe: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> NoReturn:
    """What the child does: nothing of the parent's code runs in it afterwards."""
    import pickle

    try:
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        # Without it (on another system) a worker outlives only a parent that is killed.
        with suppress(OSError, AttributeError):
            die_with_parent()
        if os.getppid() == parent:
            outcome = _outcome(function, arguments)
            with open(pipe, "wb") as stream:
                pickle.dump(outcome, stream, pickle.HIGHEST_PROTOCOL)
    finally:
        os._exit(0)


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any, str]:
    """Whether the call returned, what it returned or raised, and the traceback."""
    try:
        return True, function(*arguments), ""
    except Exception as error:
        import pickle
        import traceback

        trace = "".join(traceback.format_exception(error))
        try:
            pickle.dumps(error)
        except Exception:  # it refers to something that cannot be pickled
            return False, RuntimeError(repr(error)), trace
        return False, error, trace


def _end(parent: int, pid: int, pipe: int) -> None:
    # A worker inherits the objects of those that were started before it, which are not its own.
    if os.getpid() != parent:
        return
    os.close(pipe)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
