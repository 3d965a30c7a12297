"""The monitor: every so many steps it profiles a few, and reports what they leave exposed."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from types import TracebackType
from typing import ParamSpec, TypeVar

import msgspec

from overlapkit.errors import InputError
from overlapkit.monitor.analysis import Analysis, Failed
from overlapkit.monitor.errors import Unavailable
from overlapkit.monitor.history import History
from overlapkit.monitor.recording import AnotherProfiler, Recording
from overlapkit.monitor.sinks import Sink, sinks_of
from overlapkit.monitor.worker import Order

_log = logging.getLogger("overlapkit.monitor")

P = ParamSpec("P")
R = TypeVar("R")

MOST_FAILURES = 3
"""Analyses that may fail one after the other before the monitor switches itself off."""

LAST_SECONDS = 60.0
"""How long the end of the training waits for an analysis that still runs."""


class OverlapMonitor:
    """Profiles a few steps of a training loop now and then, and reports on them.

    ``with OverlapMonitor() as monitor:`` around the loop, and `step` after every step. Between the
    windows no profiler runs. A window is one step that is profiled and left out, and then `steps`
    steps. They are analysed in a process of low priority, and the report is delivered by the first
    `step` after its end.

    The monitor makes no collective, and never stops the training: a failure is logged once, and
    the monitor goes on or switches itself off. An exception of the loop passes through.

    Args:
        every: a window begins every so many steps.
        steps: how many steps are reported.
        report: where reports go: a function that takes an `OverlapReport`, TensorBoard's
            SummaryWriter, a run of Weights & Biases, or a list of these. It is called in the
            thread that calls `step`.
        ranks: the ranks that profile; None is all of them.
        config: the run's configuration, as in `overlapkit.trace`, to tell the parallel dimensions
            apart where the process groups have no descriptions; None where it is not known.

    Attributes:
        skipped: windows that were not profiled or not reported.

    Raises:
        InputError: a number is too small, or `report` is nothing to report to.
    """

    def __init__(
        self,
        every: int = 500,
        steps: int = 2,
        report: Sink | Sequence[Sink] = print,
        *,
        ranks: Collection[int] | None = None,
        config: str | os.PathLike[str] | None = None,
    ) -> None:
        if steps < 1:
            raise InputError(f"steps={steps}: give 1 or more")
        if every < steps + 2:
            raise InputError(
                f"every={every}: give {steps + 2} or more, for {steps} steps, the one before them "
                "that is profiled and left out, and one without a profiler"
            )
        self.skipped = 0
        self._every = every
        self._steps = steps
        self._sinks = sinks_of(report)
        self._ranks = None if ranks is None else frozenset(ranks)
        self._config = None if config is None else os.fspath(config)
        self._history = History()
        self._off = False
        self._warned: set[str] = set()
        self._failures = 0
        self._count = 0
        self._recording: Recording | None = None
        self._began = 0
        self._stall = 0.0
        self._analysis: Analysis | None = None
        # A forked process inherits this object, and a profile belongs to one thread.
        self._owner = os.getpid(), threading.get_ident()

    def __enter__(self) -> OverlapMonitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(0.0 if kind is not None else LAST_SECONDS)

    def step(self, number: int | None = None) -> None:
        """A training step has ended.

        Args:
            number: its number in the run, for the report; None counts the calls.
        """
        if self._off or not self._is_mine():
            return
        self._count += 1
        try:
            self._deliver()
            if self._recording is not None:
                self._go_on(self._recording, self._count if number is None else number)
            elif (self._count + 1) % self._every == 0:
                self._begin()
        except Unavailable as reason:
            self._switch_off(str(reason))
        except Exception as error:
            self._switch_off(f"{type(error).__name__}: {error}")

    def after(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, with `step` after each call that returns: a trainer's own train_step."""

        @functools.wraps(function)
        def then_step(*args: P.args, **kwargs: P.kwargs) -> R:
            result = function(*args, **kwargs)
            self.step()
            return result

        return then_step

    def close(self, wait: float = LAST_SECONDS) -> None:
        """End the monitor: no profiler, process or file of it is left.

        Args:
            wait: seconds to wait for an analysis that still runs. Its report is delivered.
        """
        if not self._is_mine():
            return
        with suppress(Exception):
            atexit.unregister(self._at_exit)
        if self._recording is not None:
            self._skip()
            self._recording.abandon()
            self._recording = None
        if self._analysis is not None:
            try:
                self._analysis.wait(wait)
                self._deliver()
            except Exception as error:
                self._warn("close", f"{type(error).__name__}: {error}")
            finally:
                if self._analysis is not None:
                    self._skip()
                    self._analysis.kill()
                    self._analysis = None
        self._off = True

    def _is_mine(self) -> bool:
        pid, thread = self._owner
        if os.getpid() != pid:
            return False
        here = threading.get_ident()
        if here != thread:
            if self._recording is not None or self._analysis is not None:
                self._warn("thread", "step() was called in another thread, and was ignored")
                return False
            # Constructed in one thread, used in another.
            self._owner = pid, here
        return True

    def _begin(self) -> None:
        """The next step is the first of a window."""
        if self._ranks is not None and _process()[0] not in self._ranks:
            return
        if self._analysis is not None:
            self._skip()
            self._warn("late", "the analysis of the last window still runs: a window is left out")
            return
        start = time.perf_counter()
        try:
            self._recording = Recording(self._count)
        except AnotherProfiler:
            self._skip()
            self._warn("another", "another profiler is in use: a window is left out")
            return
        atexit.register(self._at_exit)
        self._began = self._count
        self._stall = time.perf_counter() - start

    def _go_on(self, recording: Recording, number: int) -> None:
        """A step of the window has ended."""
        if self._count - self._began <= self._steps:
            recording.next_step(self._count)
            return
        self._recording = None
        start = time.perf_counter()
        try:
            recording.stop()
        except AnotherProfiler:
            self._skip()
            self._warn("another", "another profiler began in a window, which is left out")
            return
        rank, uses_gpu = _process()
        order = Order(
            step=number,
            steps=(self._began + 1, self._count),
            rank=rank,
            uses_gpu=uses_gpu,
            config=self._config,
        )
        try:
            self._analysis = Analysis(recording, order)
        except (OSError, RuntimeError) as error:
            self._failed(str(error))
        self._stall += time.perf_counter() - start

    def _deliver(self) -> None:
        """Hand over the report of an analysis that has ended."""
        analysis = self._analysis
        if analysis is None or not analysis.done:
            return
        self._analysis = None
        try:
            report = analysis.result()
        except Failed as reason:
            self._failed(str(reason))
            return
        self._failures = 0
        report = msgspec.structs.replace(
            report, stall_us=round(1e6 * self._stall, 3), skipped=self.skipped
        )
        regression = self._history.judge(report)
        report = msgspec.structs.replace(report, regression=regression)
        for sink in self._sinks:
            try:
                sink(report)
            except Exception as error:
                self._warn("report", f"report= raised {type(error).__name__}: {error}")

    def _failed(self, reason: str) -> None:
        self._skip()
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            self._switch_off(f"{self._failures} analyses failed one after the other: {reason}")
        else:
            self._warn("analysis", f"an analysis failed: {reason}")

    def _skip(self) -> None:
        self.skipped += 1

    def _switch_off(self, reason: str) -> None:
        self._warn("off", f"{reason}. The monitor is off; the training goes on")
        self.close(0.0)

    def _warn(self, kind: str, text: str) -> None:
        """Log a warning, once of each kind.

        Not through `warnings`, which can be set to raise.
        """
        if kind not in self._warned:
            self._warned.add(kind)
            with suppress(Exception):
                _log.warning("overlap monitor: %s", text)

    def _at_exit(self) -> None:
        self.close(0.0)


def _process() -> tuple[int, bool]:
    """The rank of this process, and whether it uses a GPU."""
    import torch
    import torch.distributed as dist

    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return rank, bool(torch.cuda.is_available() and torch.cuda.is_initialized())
