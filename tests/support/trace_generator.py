"""Realistic GPU profiles whose true overlap is known by construction.

    from support.trace_generator import SCENARIOS, write_kineto
    truths = write_kineto(SCENARIOS["tp exposed"], tmp_path)
    truths[0].steps[5].exposed_by_dimension["TP"]

`trace_layout` and `trace_program` lay out device work on a grid of whole nanoseconds.
`trace_kineto` and `trace_nsys` write it to files. `trace_truth` determines what they show, and
shares nothing with the analyzer under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from support import trace_program
from support.trace_kineto import KinetoWriter
from support.trace_layout import DeviceEvent, Layout
from support.trace_nsys import NsysWriter
from support.trace_scenario import CHANGES, DIMENSIONS, SCENARIOS, Scenario
from support.trace_truth import DeviceWork, RankTruth, Truth, parts

__all__ = [
    "CHANGES",
    "DIMENSIONS",
    "SCENARIOS",
    "RankTruth",
    "Scenario",
    "Truth",
    "parts",
    "write_kineto",
    "write_nsys",
]


class _Writer(Protocol):
    events: int
    device_events: int

    def step(self, number: int, events: list[DeviceEvent], next_start: int) -> int | None: ...
    def close(self) -> None: ...

    @property
    def bytes_written(self) -> int: ...


def write_kineto(
    scenario: Scenario, folder: Path, *, gz: bool = False, at_least_bytes: int = 0
) -> list[RankTruth]:
    """Write ``rank<N>.json`` (or ``.json.gz``) for each traced rank and return what they show.

    Args:
        at_least_bytes: continue past `scenario.steps` until each file has at least this much
            uncompressed text.
    """
    suffix = ".json.gz" if gz else ".json"

    def writer(rank: int) -> tuple[Path, _Writer]:
        path = folder / f"rank{rank}{suffix}"
        return path, KinetoWriter(path, scenario, rank)

    return _write(scenario, writer, at_least_bytes)


def write_nsys(scenario: Scenario, folder: Path) -> list[RankTruth]:
    """Write ``rank<N>.sqlite`` for each traced rank and return what they show."""

    def writer(rank: int) -> tuple[Path, _Writer]:
        path = folder / f"rank{rank}.sqlite"
        return path, NsysWriter(path, scenario, rank)

    return _write(scenario, writer, 0)


@dataclass(frozen=True)
class _Begun:
    """A step whose end depends on where the next one begins, which follows without a pause.

    Attributes:
        lo, hi: from the start of its first to the end of its last work.
        host_end: the end of its range on the host; None without one.
        mark: the position of its first work.
    """

    lo: int
    hi: int
    host_end: int | None
    mark: tuple[int, int]

    def truth(self, work: DeviceWork, following: int | None) -> Truth:
        """What it contains; `following` is where the next one begins, None for the last."""
        end = self.hi if self.host_end is None else max(self.hi, self.host_end)
        return work.truth(self.lo, end if following is None else following, self.mark)


def _write(
    scenario: Scenario, open_writer: Callable[[int], tuple[Path, _Writer]], at_least_bytes: int
) -> list[RankTruth]:
    layout = Layout(scenario)
    opened = [open_writer(rank) for rank in range(scenario.ranks)]
    work = [DeviceWork() for _ in opened]
    steps: list[dict[int, Truth]] = [{} for _ in opened]
    begun: dict[int, _Begun] = {}
    number = scenario.first_step
    while (
        number < scenario.first_step + scenario.steps or opened[0][1].bytes_written < at_least_bytes
    ):
        for rank, events in enumerate(trace_program.step(layout)):
            lo = min(event.start for event in events)
            if rank in begun:
                steps[rank][number - 1] = begun[rank].truth(work[rank], lo)
            mark = work[rank].mark()
            for event in events:
                call = event.call
                work[rank].add(
                    event.start,
                    event.end,
                    event.kind,
                    event.dimension,
                    call.operation if call else None,
                    call.bytes if call else 0,
                )
            hi = max(event.end for event in events)
            host_end = opened[rank][1].step(number, events, layout.next_start(rank))
            begun[rank] = _Begun(lo, hi, host_end, mark)
        number += 1
    for rank, step in begun.items():
        steps[rank][number - 1] = step.truth(work[rank], None)
    truths = []
    for rank, (path, writer) in enumerate(opened):
        writer.close()
        truths.append(
            RankTruth(
                rank=rank,
                path=str(path),
                steps=steps[rank],
                whole=work[rank].truth(min(work[rank].start), max(work[rank].end)),
                waited_ns=layout.ranks[rank].waited,
                device_events=writer.device_events,
                events=writer.events,
            )
        )
    return truths
