"""The report on one rank, and what it should contain."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from overlapkit.output.files import Output
from overlapkit.trace.diagnose.diagnosis import Diagnosis
from overlapkit.trace.diagnose.framework import Detected
from overlapkit.trace.measure.collectives import Collective, SlowedCompute
from overlapkit.trace.measure.dimensions import Confidence, Layout
from overlapkit.trace.measure.self_check import SelfCheck
from overlapkit.trace.measure.step_times import Part, Times
from overlapkit.trace.measure.units import StepsFrom, Unit, unit_of
from overlapkit.trace.measure.unrecognized import Unrecognized
from overlapkit.trace.read.device_work import Source
from overlapkit.trace.read.stated import NOTHING_STATED, Stated
from overlapkit.trace.timeline import Timeline

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Options:
    """What to report.

    Attributes:
        steps: "all", "N" or "A:B", as the user wrote it.
        layout: the parallel sizes of the run; None without a configuration.
        stated: what the user says of kernels and process groups.
        owners: whether to report what each part consists of, which a comparison needs.
        timeline: whether to keep the spans of one step for a picture.
        pictured: the index of that step; None for the one of median length.
        annotate: where to write the trace with tracks of exposed communication.
        packed: whether to keep each report as text, for documents that can be merged.
        room: a temporary folder for exports; None where each makes its own.
    """

    steps: str = "all"
    layout: Layout | None = None
    stated: Stated = NOTHING_STATED
    owners: bool = False
    timeline: bool = False
    pictured: int | None = None
    annotate: Output | None = None
    packed: bool = False
    room: str | None = None


@dataclass
class RankReport:
    """One device in one file. Times are in nanoseconds.

    Attributes:
        path, source, device, world_size, gpu: as in `Work`.
        rank: its rank; None until the ranks of all files are determined.
        process: as in `Work`.
        gpus: the number of devices of its process in the file; 1 where that is not known.
        cycle: which of several traces of its rank this is, from 1; None where it is the only one.
        kernels: number of device events.
        group_sizes: dimension to the sizes of its groups, by their descriptions.
        followed: for each step whether it runs to the start of another one; empty where all
            do.
        kernels_per_step: number of those that start in a step, for each.
        whole: the whole trace.
        steps: the requested steps; empty where the profile marks none.
        confidence: how certain the assignment to each dimension is.
        collectives: every kind of communication in the steps, the most exposed first.
        slowed: compute beside communication.
        diagnoses: what the profile shows.
        calls: durations and exposed times of each group's collectives.
        warnings: what was omitted or assumed.
        check: how far the figures can be relied on.
        steps_from: what marks the steps; None where nothing does.
        framework: the software that ran.
        unrecognized: compute kernels in the steps that may communicate.
        stated: what the user says of kernels and process groups, as options.
        owners: part to label to time per step; empty unless requested.
        timeline: the spans of one step; None unless requested.
        packed: this report as text, for documents that can be merged; None unless requested.
    """

    path: str
    source: Source
    device: int
    rank: int | None
    world_size: int | None
    gpu: str | None
    kernels: int
    whole: Times
    steps: list[Times]
    confidence: dict[str, Confidence]
    collectives: list[Collective]
    slowed: SlowedCompute
    diagnoses: list[Diagnosis]
    calls: dict[str, tuple[list[int], list[int]]]
    warnings: list[str]
    check: SelfCheck
    steps_from: StepsFrom | None
    framework: Detected
    unrecognized: list[Unrecognized] = field(default_factory=list)
    stated: list[str] = field(default_factory=list)
    process: int | None = None
    gpus: int = 1
    cycle: int | None = None
    group_sizes: dict[str, set[int]] = field(default_factory=dict)
    followed: list[bool] = field(default_factory=list)
    kernels_per_step: float = 0.0
    owners: dict[Part, dict[str, list[int]]] = field(default_factory=dict)
    timeline: Timeline | None = None
    packed: str | None = None

    @property
    def unit(self) -> Unit:
        """What its steps are."""
        return unit_of(self.steps_from, trains=self.framework.trains)

    @property
    def measured(self) -> list[Times]:
        """The steps, or the whole trace where there are none."""
        return self.steps or [self.whole]


def middle_of(items: Iterable[ItemT], key: Callable[[ItemT], float]) -> list[ItemT]:
    """The item of median key, or the two around the median."""
    ordered = sorted(items, key=key)
    half = len(ordered) // 2
    return [ordered[half]] if len(ordered) % 2 else [ordered[half - 1], ordered[half]]


def median(values: Sequence[float]) -> float:
    """The median; 0 without values."""
    return statistics.median(values) if values else 0.0
