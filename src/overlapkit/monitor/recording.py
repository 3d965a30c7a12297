"""A few steps recorded with torch.profiler, beside whatever else may use it."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import Any

from overlapkit.monitor.errors import Unavailable


class AnotherProfiler(Exception):
    """Another profiler of this process is in use."""


class Recording:
    """One recording of torch.profiler, running from its construction on.

    A process can record one profile at a time. In newer versions of PyTorch a second one cancels
    the first without an error, and exporting the first one then crashes the process. So nothing
    is started beside another profiler, and what another one cancelled is never exported.

    Args:
        first: number of the first step, which is running.

    Raises:
        Unavailable: torch cannot record.
        AnotherProfiler: another one is in use.
    """

    def __init__(self, first: int) -> None:
        from torch import profiler

        if not profiler.kineto_available():
            raise Unavailable("this torch was built without Kineto, which records profiles")
        if _enabled() or _others(None):
            raise AnotherProfiler
        self._profile: Any = profiler.profile()
        self._range: Any = None
        try:
            self._profile.prepare_trace()
            self._profile.start_trace()
            self._open(first)
        except BaseException:
            self.abandon()
            raise

    def next_step(self, number: int) -> None:
        """The running step has ended, and the one of this number begins."""
        self._close()
        self._open(number)

    def stop(self) -> None:
        """End the last step and the recording.

        Raises:
            AnotherProfiler: another profiler has taken the place of this one.
        """
        self._close()
        # Where another one is in use, stopping would stop that one.
        lost = bool(_others(self._profile.profiler))
        if not lost:
            self._profile.stop_trace()
            lost = _cancelled(self._profile.profiler)
        if lost:
            self.free()
            raise AnotherProfiler

    def abandon(self) -> None:
        """End the recording without a result, in whatever state it is."""
        with suppress(Exception):
            self.stop()
        self.free()

    def free(self) -> None:
        """Drop what was recorded now: torch's object is part of a cycle that gc may keep for long,
        and looks like a profiler that is in use if it was not stopped."""
        if self._profile is not None:
            self._profile.profiler = None
            self._profile = None

    def export(self, path: str) -> None:
        """Write the stopped recording. In any thread: it does not hold the interpreter's lock."""
        self._profile.export_chrome_trace(path)

    def _open(self, number: int) -> None:
        from torch.profiler import record_function

        self._range = record_function(f"ProfilerStep#{number}")
        self._range.__enter__()

    def _close(self) -> None:
        if self._range is not None:
            ended, self._range = self._range, None
            ended.__exit__(None, None, None)


def _enabled() -> bool:
    """Whether a profiler, or emit_nvtx, is recording in any thread."""
    from torch.autograd import profiler

    return bool(getattr(profiler, "_is_profiler_enabled", False))


def _others(own: Any) -> list[Any]:
    """Profilers of this process, except `own`, that are recording or about to.

    torch keeps no list of them, and does not tell of one in its warm-up, so objects are searched.
    """
    from torch.autograd import profiler

    kind = profiler.profile
    return [
        found
        for found in gc.get_referrers(kind)
        if type(found) is kind
        and found is not own
        and getattr(found, "entered", False)
        and getattr(found, "kineto_results", None) is None
    ]


def _cancelled(own: Any) -> bool:
    """Whether a recording that was stopped has no result, because another one began meanwhile."""
    start = getattr(own.kineto_results, "trace_start_ns", None)
    return own.kineto_results is None or (start is not None and not start())
