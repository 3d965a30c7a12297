"""One rank in the JSON document of `overlapkit trace`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from overlapkit.output.numbers import us_of_ns
from overlapkit.trace.measure.collectives import Collective, SlowedCompute
from overlapkit.trace.measure.dimensions import Confidence
from overlapkit.trace.measure.step_times import DimensionTime, Times
from overlapkit.trace.measure.units import StepsFrom, Unit
from overlapkit.trace.rank_report import RankReport, median
from overlapkit.trace.read.device_work import Source
from overlapkit.trace.unrecognized_document import TraceUnrecognized, unrecognized_of

TOP = 10
"""Kinds of communication that a report lists."""

OverlapPct = Annotated[
    float | None,
    Meta(description="`hidden_comm_us` / `comm_us` in percent; `null` without communication"),
]
StepUs = Annotated[
    float,
    Meta(
        description="length of the step: from the first work on the device that was launched in "
        "it to that of the next one; of the last step, and before a pause, to the end of its range "
        "on the host or of its last work. Of the whole trace: from the start of the first device "
        "work to the end of the last"
    ),
]
ComputeUs = Annotated[float, Meta(description="kernels that are neither communication nor copies")]
CommUs = Annotated[
    float,
    Meta(
        description="communication on all streams: kernels of NCCL, RCCL and other libraries, "
        "peer copies; gloo's ranges in a CPU trace"
    ),
]
ExposedCommUs = Annotated[float, Meta(description="communication while nothing computes")]
HiddenCommUs = Annotated[
    float, Meta(description="communication while something computes; `comm_us` - `exposed_comm_us`")
]
MemoryUs = Annotated[float, Meta(description="copies and memsets, whatever runs beside them")]
ExposedMemoryUs = Annotated[
    float,
    Meta(description="copies and memsets while neither compute nor communication runs"),
]
IdleUs = Annotated[float, Meta(description="no device work at all")]
WaitingForDataUs = Annotated[
    float,
    Meta(
        description="the part of `idle_us` while the host waits for the next batch (a DataLoader's "
        "or an iterator's range)"
    ),
]
WaitingForHostUs = Annotated[
    float,
    Meta(
        description="the part of `idle_us` until the host launches the next work; 0 where the "
        "trace has no launches"
    ),
]
DimensionName = Annotated[
    str, Meta(description="`TP`, `DP`, `PP`, `CP`, `EP`, `embedding` or `other`")
]
ConfidenceInDimension = Annotated[
    Confidence,
    Meta(
        description="`certain`: from the description of the process group, or a library with a "
        "single use; `likely`: from group sizes or ranks, or from the code or framework that "
        "launched it; `guess`: from the operation, where hardly anything else uses it; `unknown`: "
        "nothing tells it"
    ),
]


class TraceDimensionTimes(Struct, frozen=True, kw_only=True):
    """The communication of one parallel dimension."""

    comm_us: Annotated[float, Meta(description="its communication, exposed or hidden")]
    exposed_comm_us: Annotated[float, Meta(description="the part while nothing computes")]
    hidden_comm_us: Annotated[float, Meta(description="the part while something computes")]


ByDimension = Annotated[
    dict[str, TraceDimensionTimes],
    Meta(
        description="the dimensions that communicate in these steps. Two can be exposed at once, "
        "so they need not add up to the total"
    ),
]


class TraceWindow(Struct, frozen=True, kw_only=True):
    """One step, or the whole trace.

    `step_us` = `compute_us` + `exposed_comm_us` + `exposed_memory_us` + `idle_us`, exactly.
    """

    name: Annotated[str, Meta(description="as in the profile; `whole trace`")]
    number: Annotated[
        int | None, Meta(description="number of the step; `null` for the whole trace")
    ]
    start_us: Annotated[
        float, Meta(description="start, from the start of the rank's first device work")
    ]
    overlap_pct: OverlapPct
    step_us: StepUs
    compute_us: ComputeUs
    comm_us: CommUs
    exposed_comm_us: ExposedCommUs
    hidden_comm_us: HiddenCommUs
    memory_us: MemoryUs
    exposed_memory_us: ExposedMemoryUs
    idle_us: IdleUs
    waiting_for_data_us: WaitingForDataUs
    waiting_for_host_us: WaitingForHostUs
    by_dimension: ByDimension
    data_of_next_us: Annotated[
        float,
        Meta(
            description="the part of `waiting_for_data_us` in the next step's range on the host: "
            "the wait for that step's batch, which its first work on the device ends"
        ),
    ] = 0.0
    host_of_next_us: Annotated[
        float,
        Meta(description="the same of `waiting_for_host_us`: before the next step's launches"),
    ] = 0.0


class TraceMedian(Struct, frozen=True, kw_only=True):
    """The median of each figure over the steps.

    Each median is taken independently, so the parts need not add up to the step.
    """

    steps: Annotated[
        int, Meta(description="number of steps; 1 where the trace has none and is one window")
    ]
    overlap_pct: OverlapPct
    step_us: StepUs
    compute_us: ComputeUs
    comm_us: CommUs
    exposed_comm_us: ExposedCommUs
    hidden_comm_us: HiddenCommUs
    memory_us: MemoryUs
    exposed_memory_us: ExposedMemoryUs
    idle_us: IdleUs
    waiting_for_data_us: WaitingForDataUs
    waiting_for_host_us: WaitingForHostUs
    by_dimension: ByDimension


class TraceCollective(Struct, frozen=True, kw_only=True):
    """One kind of communication: same kernel, operation, dimension and process group."""

    name: Annotated[str, Meta(description="name of the kernel, shortened")]
    operation: Annotated[
        str,
        Meta(
            description="such as `all_gather`: the collective that was called, where the profile "
            "has it, or else what the kernel is named after; `send_recv` where a kernel of sends "
            "and receives can also be an `all_to_all`; `other` where not known"
        ),
    ]
    dimension: DimensionName
    confidence: ConfidenceInDimension
    group: Annotated[
        str | None,
        Meta(description="description or name of the process group; `null` where not known"),
    ]
    count: Annotated[int, Meta(description="how many started in the steps")]
    bytes: Annotated[
        int | None,
        Meta(
            description="the larger side of each message, summed; `null` where sizes are not "
            "recorded"
        ),
    ]
    comm_us: Annotated[float, Meta(description="time during which any of them ran")]
    exposed_comm_us: Annotated[float, Meta(description="the part while nothing computes")]
    bus_gb_per_s: Annotated[
        float | None,
        Meta(
            description="bus bandwidth as nccl-tests define it, in 10^9 bytes/s, over the "
            "durations of the kernels, so time spent waiting for late ranks is included; `null` "
            "where sizes are not recorded"
        ),
    ]


class TraceSlowedKernel(Struct, frozen=True, kw_only=True):
    """A kernel that takes longer beside communication than alone."""

    name: Annotated[str, Meta(description="name of the kernel, shortened")]
    count: Annotated[int, Meta(description="how often it ran beside communication")]
    median_during_us: Annotated[float, Meta(description="median duration beside communication")]
    median_alone_us: Annotated[float, Meta(description="median duration alone")]
    ratio: Annotated[float, Meta(description="`median_during_us` / `median_alone_us`")]
    lost_us: Annotated[float, Meta(description="time lost, summed over the steps")]


class TraceSlowedCompute(Struct, frozen=True, kw_only=True):
    """What compute loses by running beside communication.

    Kernels of the same name, launch grid, launching thread and neighbours on their stream are
    compared with themselves. Only those that ran both beside communication and alone count.
    """

    ratio: Annotated[
        float | None,
        Meta(description="`during_us` / `expected_us`; `null` where no kernel ran both ways"),
    ]
    during_us: Annotated[
        float, Meta(description="their durations beside communication, summed over the steps")
    ]
    expected_us: Annotated[
        float, Meta(description="what the same kernels would take alone, by their medians")
    ]
    lost_us: Annotated[float, Meta(description="`during_us` - `expected_us`")]
    kernels: Annotated[
        list[TraceSlowedKernel], Meta(description="the kernels that lose most, at most ten")
    ]


class TraceSelfCheck(Struct, frozen=True, kw_only=True):
    """How far the report on a rank can be relied on."""

    work_in_steps_pct: Annotated[
        float | None,
        Meta(
            description="busy time of the device inside steps, in percent of all of it; `null` "
            "without steps"
        ),
    ]
    steps_of_trace_pct: Annotated[
        float | None,
        Meta(
            description="the steps together, in percent of the time from the first step or device "
            "work to the last; `null` without steps"
        ),
    ]
    known_communication_pct: Annotated[
        float | None,
        Meta(
            description="communication in the steps with a known operation and dimension, in "
            "percent of the durations of all of it; `null` without communication"
        ),
    ]


class TraceRank(Struct, frozen=True, kw_only=True):
    """One rank; where a file contains several devices, one device of it."""

    rank: Annotated[int, Meta(description="the rank")]
    cycle: Annotated[
        int | None,
        Meta(
            description="which of several traces of this rank it is, in the order of time, from 1; "
            "`null` where it is the only one"
        ),
    ]
    device: Annotated[int, Meta(description="number of the device; -1 for a CPU trace")]
    gpus: Annotated[
        int,
        Meta(
            description="number of devices that its process uses in this file. Those of one "
            "process have the same `rank`"
        ),
    ] = 1
    file: Annotated[str, Meta(description="the trace")]
    source: Annotated[
        Source,
        Meta(
            description="`kineto`: torch.profiler; `nsys`: Nsight Systems; `cpu`: torch.profiler "
            "without device work"
        ),
    ]
    gpu: Annotated[str | None, Meta(description="name of the device; `null` where not recorded")]
    device_events: Annotated[int, Meta(description="number of device events")]
    whole: Annotated[TraceWindow, Meta(description="the whole trace")]
    steps: Annotated[
        list[TraceWindow],
        Meta(description="the requested steps; empty where the trace has none"),
    ]
    steps_from: Annotated[
        StepsFrom | None,
        Meta(
            description="`ranges`: the profile marks them; `repetition`: it does not, and a "
            "sequence of kernels repeats; `iterations`: they are an inference engine's iterations, "
            "which its own ranges mark; `null` where there are no steps"
        ),
    ]
    unit: Annotated[
        Unit,
        Meta(
            description="what each of `steps` is, and what step means in other keys: `step`, of "
            "training; or `iteration`, of an inference engine, which has no steps"
        ),
    ] = "step"
    self_check: Annotated[TraceSelfCheck, Meta(description="how far this report can be relied on")]
    median: Annotated[TraceMedian, Meta(description="the medians over the steps")]
    dimension_confidence: Annotated[
        dict[str, ConfidenceInDimension],
        Meta(description="each dimension, and how certain the assignment to it is"),
    ]
    exposed_collectives: Annotated[
        list[TraceCollective],
        Meta(
            description="the kinds of communication with the most exposed time in the steps, at "
            "most ten"
        ),
    ]
    slowed_compute: Annotated[
        TraceSlowedCompute, Meta(description="what compute loses by running beside communication")
    ]
    unrecognized_kernels: Annotated[
        list[TraceUnrecognized],
        Meta(description="kernels that count as compute and may communicate, the longest first"),
    ]
    warnings: Annotated[list[str], Meta(description="what was omitted or assumed for this rank")]
    report: Annotated[
        str | None,
        Meta(
            description="all of this rank that a document of several ranks needs, compressed, for "
            "`overlapkit trace --merge`; `null` where it was not asked for"
        ),
    ]


def rank_of(report: RankReport) -> TraceRank:
    """One rank of the document."""
    zero = report.whole.window.start
    return TraceRank(
        rank=report.rank or 0,
        cycle=report.cycle,
        device=report.device,
        gpus=report.gpus,
        file=report.path,
        source=report.source,
        gpu=report.gpu,
        device_events=report.kernels,
        whole=_window(report.whole, zero),
        steps=[_window(t, zero) for t in report.steps],
        steps_from=report.steps_from,
        unit=report.unit,
        self_check=TraceSelfCheck(
            work_in_steps_pct=_share(report.check.work_in_steps),
            steps_of_trace_pct=_share(report.check.steps_of_trace),
            known_communication_pct=_share(report.check.known_communication),
        ),
        median=_median([_window(t, zero) for t in report.measured]),
        dimension_confidence=report.confidence,
        exposed_collectives=[_collective(c) for c in report.collectives[:TOP]],
        slowed_compute=_slowed(report.slowed),
        unrecognized_kernels=unrecognized_of(report.unrecognized),
        warnings=report.warnings,
        report=report.packed,
    )


def _window(times: Times, zero: int) -> TraceWindow:
    """One window; `zero` is the time that its start is relative to."""
    return TraceWindow(
        name=times.window.name,
        number=times.window.number,
        start_us=us_of_ns(times.window.start - zero),
        overlap_pct=_pct(times.overlap_pct),
        step_us=us_of_ns(times.step),
        compute_us=us_of_ns(times.compute),
        comm_us=us_of_ns(times.comm),
        exposed_comm_us=us_of_ns(times.exposed_comm),
        hidden_comm_us=us_of_ns(times.hidden_comm),
        memory_us=us_of_ns(times.memory),
        exposed_memory_us=us_of_ns(times.exposed_memory),
        idle_us=us_of_ns(times.idle),
        waiting_for_data_us=us_of_ns(times.waiting_for_data),
        waiting_for_host_us=us_of_ns(times.waiting_for_host),
        by_dimension={d: _dimension(t) for d, t in times.by_dimension.items()},
        data_of_next_us=us_of_ns(times.data_of_next),
        host_of_next_us=us_of_ns(times.host_of_next),
    )


def _dimension(time: DimensionTime) -> TraceDimensionTimes:
    return TraceDimensionTimes(
        comm_us=us_of_ns(time.comm),
        exposed_comm_us=us_of_ns(time.exposed),
        hidden_comm_us=us_of_ns(time.hidden),
    )


def _median(windows: Sequence[TraceWindow]) -> TraceMedian:
    overlap = [w.overlap_pct for w in windows if w.overlap_pct is not None]
    times = [field for field in TraceMedian.__struct_fields__ if field.endswith("_us")]
    # Where most steps do not communicate, the medians of what is exposed and hidden are 0.
    communicates = 2 * len(overlap) > len(windows)
    return TraceMedian(
        steps=len(windows),
        overlap_pct=round(median(overlap), 4) if communicates else None,
        by_dimension={
            d: TraceDimensionTimes(
                **_medians(
                    [w.by_dimension[d] for w in windows], TraceDimensionTimes.__struct_fields__
                )
            )
            for d in windows[0].by_dimension
        },
        **_medians(windows, times),
    )


def _medians(rows: Sequence[Struct], fields: Sequence[str]) -> dict[str, float]:
    return {field: round(median([getattr(row, field) for row in rows]), 4) for field in fields}


def _pct(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _share(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)


def _collective(c: Collective) -> TraceCollective:
    return TraceCollective(
        name=c.traffic.name,
        operation=c.traffic.operation,
        dimension=c.traffic.dimension,
        confidence=c.traffic.confidence,
        group=c.traffic.group,
        count=c.count,
        bytes=c.bytes,
        comm_us=us_of_ns(c.busy_ns),
        exposed_comm_us=us_of_ns(c.exposed_ns),
        bus_gb_per_s=None if c.bus_gb_s is None else round(c.bus_gb_s, 2),
    )


def _slowed(slowed: SlowedCompute) -> TraceSlowedCompute:
    return TraceSlowedCompute(
        ratio=_pct(slowed.ratio),
        during_us=us_of_ns(slowed.during_ns),
        expected_us=us_of_ns(slowed.expected_ns),
        lost_us=us_of_ns(slowed.lost_ns),
        kernels=[
            TraceSlowedKernel(
                name=k.name,
                count=k.count,
                median_during_us=us_of_ns(k.median_during),
                median_alone_us=us_of_ns(k.median_alone),
                ratio=round(k.ratio, 4),
                lost_us=us_of_ns(k.lost_ns),
            )
            for k in slowed.kernels
        ],
    )
