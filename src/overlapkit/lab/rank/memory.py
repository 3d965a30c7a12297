"""How much memory grows while a variant trains."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch


class MemoryGrowth:
    """The growth of memory since this object was created.

    On a GPU that of the allocated memory, on a CPU that of the process's resident memory.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = int(torch.cuda.memory_allocated())
            return
        with suppress(OSError):
            # Resets the high-water mark of this process's resident memory: proc_pid_clear_refs(5).
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident_bytes("VmRSS")

    def bytes(self) -> int:
        """The largest growth so far."""
        if self._device == "cuda":
            return int(torch.cuda.max_memory_allocated()) - self._before
        return max(0, _resident_bytes("VmHWM") - self._before)


def _resident_bytes(field: str) -> int:
    """A field of this process's status, which is given in KiB: proc_pid_status(5)."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0
