"""How much of the cores other programs use while a variant trains."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

_BUSY = (0, 1, 2, 7)
"""Fields of a line of /proc/stat (proc_stat(5)): user, nice, system and stolen time.

Not those of interrupts: they include the ranks' own network traffic.
"""


@dataclass(frozen=True)
class _Counters:
    """Seconds: of the clock, of CPU time of all programs on these cores, and of this process."""

    wall: float
    busy: float
    own: float


class OtherPrograms:
    """The CPU time of other programs since this object was created.

    Every rank creates it and reads it at the same places, since reading it adds up the ranks' own
    CPU time. It counts on the cores that the process may use.
    """

    def __init__(self) -> None:
        self._before = _counters()

    def cores(self) -> float | None:
        """Cores' worth of CPU time of other programs, on average; None where it is not known.

        It is known where all ranks are on one machine whose kernel has /proc/stat. Time that a
        hypervisor gave to other machines counts as well.
        """
        now, before = _counters(), self._before
        own = 0.0 if now is None or before is None else now.own - before.own
        together = torch.tensor([own], dtype=torch.float64)
        dist.all_reduce(together)
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == dist.get_world_size()
        if now is None or before is None or not here:
            return None
        wall = now.wall - before.wall
        return max(0.0, now.busy - before.busy - float(together)) / wall if wall > 0 else None


def _counters() -> _Counters | None:
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    with suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        ticks = sum(
            int(fields[1 + place])
            for fields in lines
            if fields and fields[0] in allowed
            for place in _BUSY
        )
        return _Counters(time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time())
    return None
