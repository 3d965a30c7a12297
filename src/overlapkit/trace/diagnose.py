"""Says in words what a profile shows, with the evidence and the rule of `explain` that fits."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.collectives import SlowedCompute
from overlapkit.trace.dimensions import Layout
from overlapkit.trace.events import COMPUTE
from overlapkit.trace.intervals import Spans, both, union
from overlapkit.trace.measure import Measured, Times, span_of
from overlapkit.trace.raw import Window

NOTABLE = 0.02
"""Share of the step below which nothing is worth a word."""

AT_ONCE_NS = 10_000
"""Two events this near to each other: one started when the other ended (launch gaps included)."""

_NORM = re.compile(r"layer_?norm|rms_?norm|\bln_(?:fwd|bwd)|normalization::|_norm_", re.IGNORECASE)
_REDUCTIONS = ("reduce_scatter", "all_reduce")


@dataclass(frozen=True)
class Finding:
    """One diagnosis.

    Attributes:
        id: stable name.
        rule: id of `explain`'s rule that fits; None where no configuration rule does.
        message: what is so, in one sentence.
        evidence: the figures that it rests on; times in microseconds per step.
        cost_us: time per step that it explains.
        remedy: what to try.
        confidence: "likely" or "possible".
        ranks: whose profiles show it.
    """

    id: str
    rule: str | None
    message: str
    evidence: dict[str, Any]
    cost_us: float
    remedy: str
    confidence: str = "likely"
    ranks: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Case:
    """What every diagnosis looks at."""

    m: Measured
    windows: Sequence[Window]
    times: Sequence[Times]
    scope: Spans
    slowed: SlowedCompute
    layout: Layout | None

    @property
    def steps(self) -> int:
        return len(self.windows)

    @property
    def step_ns(self) -> float:
        return sum(t.step for t in self.times) / max(1, self.steps)

    def per_step_us(self, total_ns: float) -> float:
        return round(total_ns / max(1, self.steps) / 1000, 3)

    def notable(self, total_ns: float, share: float = NOTABLE) -> bool:
        return total_ns / max(1, self.steps) > share * self.step_ns

    def events(self, dimensions: Sequence[str], operations: Sequence[str] = ()) -> NDArray[np.intp]:
        """Communication events that start in the steps."""
        kinds = [
            i
            for i, t in enumerate(self.m.traffic)
            if t.dimension in dimensions and (not operations or t.operation in operations)
        ]
        chosen = self.m.events_of(kinds)
        start = self.m.work.start[chosen]
        return chosen[self.scope.within(start, start + 1) > 0]

    def exposed_of(self, events: NDArray[np.intp]) -> Spans:
        work = self.m.work
        return both(both(union(work.start[events], work.end[events]), self.m.exposed), self.scope)

    def dimension_exposed(self, dimension: str) -> int:
        return sum(
            t.by_dimension[dimension].exposed for t in self.times if dimension in t.by_dimension
        )

    def beside_comm(self, event: int) -> bool:
        """Whether communication runs during a tenth of the event or more."""
        start, end = self.m.work.start[[event]], self.m.work.end[[event]]
        return 10 * int(self.m.comm.within(start, end)[0]) > int(end[0] - start[0])

    def has(self, *dimensions: str) -> bool:
        return any(d in self.m.dimension_comm for d in dimensions)


def diagnose(
    m: Measured,
    windows: Sequence[Window],
    times: Sequence[Times],
    slowed: SlowedCompute,
    layout: Layout | None,
) -> list[Finding]:
    """Everything that one rank's profile shows, the costliest first."""
    case = _Case(m, windows, times, span_of(windows), slowed, layout)
    checks: list[Callable[[_Case], Finding | None]] = [
        _gradient_reduction,
        _one_queue,
        _layernorm,
        _parameter_gather,
        _tensor_parallel,
        _pipeline,
        _experts,
        _slowed_compute,
        _copies,
        _idle,
    ]
    found = [finding for check in checks if (finding := check(case)) is not None]
    return sorted(found, key=lambda f: -f.cost_us)


def _gradient_reductions(case: _Case) -> NDArray[np.intp]:
    """Data-parallel reductions; where no dimension is known, every reduce-scatter."""
    events = case.events(("DP",), _REDUCTIONS)
    return events if len(events) or case.has("DP") else case.events(("other",), _REDUCTIONS[:1])


def _gradient_reduction(case: _Case) -> Finding | None:
    work = case.m.work
    events = _gradient_reductions(case)
    exposed = case.exposed_of(events).total
    if not len(events) or not case.notable(exposed):
        return None
    large = events[(work.end - work.start)[events] > 0.005 * case.step_ns]
    counts, late = [], []
    for window in case.windows:
        mine = large[(work.start[large] >= window.start) & (work.start[large] < window.end)]
        counts.append(len(mine))
        if len(mine):
            first = np.asarray([int(work.start[mine].min())])
            end = np.asarray([window.end])
            after = int(case.m.compute.within(first, end)[0])
            whole = int(case.m.compute.within(np.asarray([window.start]), end)[0])
            late.append(after / whole if whole else 1.0)
    total = union(work.start[large], work.end[large]).total
    mostly_exposed = total and case.exposed_of(large).total > 0.5 * total
    if not late or not mostly_exposed or statistics.median(late) > 0.2:
        return None
    per_step = float(statistics.median(counts))
    evidence = {
        "reductions_per_step": per_step,
        "exposed_us": case.per_step_us(exposed),
        "compute_after_first_pct": round(100 * statistics.median(late), 1),
    }
    if per_step <= 1:
        return Finding(
            "single-bucket",
            "core.single-bucket",
            "The gradients are reduced once, after the backward: they lie in one bucket, or "
            "overlap_grad_reduce is off, so nothing is left to hide the reduction under.",
            evidence,
            case.per_step_us(exposed),
            'set comm_overlap.bucket_size="auto" (or well below the parameters per rank), with '
            "overlap_grad_reduce on",
        )
    return Finding(
        "grad-reduce-after-backward",
        "dp.defaults",
        f"All {per_step:g} gradient reductions of a step start when the backward is over: "
        "overlap_grad_reduce is off or not in effect.",
        evidence,
        case.per_step_us(exposed),
        "set ddp.overlap_grad_reduce=true with the distributed optimizer; ask "
        "overlapkit explain why it is off",
    )


def _resumptions(case: _Case, under: NDArray[np.intp]) -> list[tuple[int, int, int]]:
    """Gaps of compute that these collectives fill.

    Returns:
        For each the gap's start, its end, and the index of the kernel that ends it.
    """
    work = case.m.work
    if not len(under):
        return []
    cover = union(work.start[under], work.end[under])
    compute = np.flatnonzero(work.kind == COMPUTE)
    starts = work.start[compute]
    gaps = both(Spans(case.m.compute.end[:-1], case.m.compute.start[1:]), case.scope)
    filled = cover.within(gaps.start, gaps.end)
    length = gaps.end - gaps.start
    chosen = (length > AT_ONCE_NS) & (filled >= length - AT_ONCE_NS)
    result = []
    for start, end in zip(gaps.start[chosen].tolist(), gaps.end[chosen].tolist(), strict=True):
        index = int(np.searchsorted(starts, end, side="left"))
        if index < len(compute) and int(starts[index]) == end:
            result.append((start, end, int(compute[index])))
    return result


def _one_queue(case: _Case) -> Finding | None:
    if case.has("TP", "CP"):
        return None
    work = case.m.work
    reductions = set(_gradient_reductions(case).tolist())
    events = np.asarray(sorted(reductions | set(case.events(("DP",)).tolist())), dtype=np.intp)
    starts, ends = work.start[events], work.end[events]
    launch = work.correlation[events]
    cost, times, gathers = 0, 0, 0
    for start, end, kernel in _resumptions(case, events):
        # The kernel starts with a collective that was launched before it and was itself held back
        # by earlier ones on its stream.
        earlier = launch < work.correlation[kernel]
        near = earlier & (starts > start) & (starts <= end) & (end - starts < AT_ONCE_NS)
        if work.correlation[kernel] < 0 or not near.any():
            continue
        last = int(np.flatnonzero(near)[np.argmax(launch[near])])
        held = (np.abs(ends - starts[last]) < AT_ONCE_NS) & (launch < launch[last])
        if not held.any() or launch[last] < launch[earlier].max():
            continue
        if int(events[last]) not in reductions:
            # A kernel may need the parameters that one gather brings, but hardly those of several.
            passed = (ends > start) & (ends <= end) & earlier
            if int(passed.sum()) < 2:
                continue
            gathers += 1
        cost += end - start
        times += 1
    if times < 2 or not case.notable(cost, NOTABLE / 2):
        return None
    return Finding(
        "one-queue",
        "launch.env-one-queue",
        "Compute stands still until a queued collective has started: kernels start only in the "
        "order of their launch, as with CUDA_DEVICE_MAX_CONNECTIONS=1, which nothing here needs "
        "(no tensor- or context-parallel communication).",
        {"gaps_per_step": round(times / case.steps, 1), "stalled_us": case.per_step_us(cost)},
        case.per_step_us(cost),
        "unset CUDA_DEVICE_MAX_CONNECTIONS, or set what overlapkit explain shows for this run",
        "likely" if 2 * gathers < times else "possible",
    )


def _layernorm(case: _Case) -> Finding | None:
    work = case.m.work
    reductions = _gradient_reductions(case)
    ends = work.end[reductions]
    cost, times, others = 0, 0, 0
    for start, end, kernel in _resumptions(case, reductions):
        if not bool(((ends <= end) & (end - ends < AT_ONCE_NS)).any()):
            continue
        if case.beside_comm(kernel):
            # It runs beside a collective: that is not what it waited for.
            continue
        if _NORM.search(work.names[int(work.name[kernel])]):
            cost += end - start
            times += 1
        else:
            others += 1
    slowed = [k for k in case.slowed.kernels if _NORM.search(k.name) and k.ratio > 2]
    lost = sum(k.lost_ns for k in slowed)
    waits = times >= 2 and times > others
    if not (waits or slowed) or not case.notable(cost * waits + lost, NOTABLE / 2):
        return None
    total = cost * waits + lost
    return Finding(
        "layernorm-waits",
        "launch.layernorm-margin",
        "LayerNorm kernels wait until a running gradient reduction ends: they claim every SM, and "
        "the collective holds some.",
        {
            "waits_per_step": round(times / case.steps, 1),
            "waiting_us": case.per_step_us(cost * waits),
            "slowed_kernels": [k.name for k in slowed],
        },
        case.per_step_us(total),
        "set NVTE_FWD_LAYERNORM_SM_MARGIN and NVTE_BWD_LAYERNORM_SM_MARGIN to 16",
    )


def _parameter_gather(case: _Case) -> Finding | None:
    work = case.m.work
    events = case.events(("DP",), ("all_gather",))
    if not len(events):
        return None
    exposed = case.exposed_of(events).total
    total = both(union(work.start[events], work.end[events]), case.scope).total
    if not case.notable(exposed, 2 * NOTABLE) or exposed < 0.6 * total:
        return None
    return Finding(
        "param-gather-exposed",
        "core.param-gather-needs",
        "The parameters' all-gathers run while nothing computes: overlap_param_gather is off or "
        "not in effect, or there are too few buckets to hide them.",
        {
            "gathers_per_step": round(len(events) / case.steps, 1),
            "exposed_us": case.per_step_us(exposed),
            "hidden_pct": round(100 * (1 - exposed / total), 1),
        },
        case.per_step_us(exposed),
        "set ddp.overlap_param_gather=true (needs the distributed optimizer and "
        "overlap_grad_reduce), with several buckets",
    )


def _tensor_parallel(case: _Case) -> Finding | None:
    libraries = {t.name.lower() for t in case.m.traffic if t.dimension == "TP"}
    if any("userbuffers" in name or "ptop" in name for name in libraries):
        return None
    exposed = case.dimension_exposed("TP")
    if not case.has("TP") or not case.notable(exposed):
        return None
    operations = {t.operation for t in case.m.traffic if t.dimension == "TP"}
    reduce_only = "all_reduce" in operations and not operations & {"all_gather", "reduce_scatter"}
    rule = "tp.needs-sequence-parallel" if reduce_only else "tp.off-unless-asked"
    remedy = "set comm_overlap.tp_comm_overlap=true"
    if reduce_only:
        remedy = "set model.sequence_parallel=true and comm_overlap.tp_comm_overlap=true"
    return Finding(
        "tp-overlap-off",
        rule,
        "Tensor-parallel collectives run through NCCL and no userbuffers kernel is seen: TP "
        "overlap is off"
        + (", and all-reduces show that sequence parallelism is off too." if reduce_only else "."),
        {"exposed_us": case.per_step_us(exposed), "operations": sorted(operations)},
        case.per_step_us(exposed),
        remedy + " (needs Transformer Engine)",
    )


def _pipeline(case: _Case) -> Finding | None:
    events = case.events(("PP",))
    exposed = case.exposed_of(events)
    # The first and last sixth of a step hold the pipeline's fill and drain.
    sixth = [(w.end - w.start) // 6 for w in case.windows]
    middle = union(
        np.asarray([w.start + s for w, s in zip(case.windows, sixth, strict=True)]),
        np.asarray([w.end - s for w, s in zip(case.windows, sixth, strict=True)]),
    )
    steady = both(exposed, middle).total
    if len(events) < 4 * case.steps or not case.notable(steady):
        return None
    interleaved = case.layout is not None and (case.layout.vpp or 1) > 1
    return Finding(
        "pipeline-exposed",
        "pp.interleaved" if interleaved else "pp.not-interleaved",
        "Send and receive are exposed in the steady state of the pipeline"
        + (
            ", although the schedule is interleaved: overlap_p2p_comm is off, or stages are uneven."
            if interleaved
            else ": without interleaving nothing runs beside them."
        ),
        {
            "transfers_per_step": round(len(events) / case.steps, 1),
            "exposed_us": case.per_step_us(exposed.total),
            "steady_us": case.per_step_us(steady),
        },
        case.per_step_us(exposed.total),
        "set overlap_p2p_comm=true and batch_p2p_comm=false"
        if interleaved
        else "set model.virtual_pipeline_model_parallel_size above 1, which also turns "
        "overlap_p2p_comm on",
    )


def _experts(case: _Case) -> Finding | None:
    exposed = case.dimension_exposed("EP")
    if not case.notable(exposed, 2 * NOTABLE):
        return None
    return Finding(
        "expert-exchange-exposed",
        "ep.off-unless-asked",
        "The exchange of tokens between experts is exposed.",
        {"exposed_us": case.per_step_us(exposed)},
        case.per_step_us(exposed),
        "set comm_overlap.overlap_moe_expert_parallel_comm=true (ask overlapkit explain for its "
        "needs)",
        "possible",
    )


def _slowed_compute(case: _Case) -> Finding | None:
    slowed = case.slowed
    if slowed.ratio is None or slowed.ratio < 1.05 or not case.notable(slowed.lost_ns):
        return None
    return Finding(
        "compute-slowed",
        None,
        f"Kernels take {slowed.ratio:.2f} times as long while communication runs: they share SMs "
        "and memory bandwidth.",
        {
            "lost_us": case.per_step_us(slowed.lost_ns),
            "kernels": [k.name for k in slowed.kernels[:3]],
        },
        case.per_step_us(slowed.lost_ns),
        "give communication fewer SMs (num_sm of userbuffers, NCCL_MAX_CTAS); hidden "
        "communication is not free",
    )


def _copies(case: _Case) -> Finding | None:
    exposed = sum(t.exposed_memory for t in case.times)
    if not case.notable(exposed, 2.5 * NOTABLE):
        return None
    return Finding(
        "copies-exposed",
        None,
        "Copies and memsets run while nothing computes or communicates.",
        {"exposed_us": case.per_step_us(exposed)},
        case.per_step_us(exposed),
        "copy from pinned memory on a stream of its own, ahead of use",
    )


def _idle(case: _Case) -> Finding | None:
    idle = sum(t.idle for t in case.times)
    between = sum(
        max(0, b.start - a.end) for a, b in zip(case.windows, case.windows[1:], strict=False)
    )
    if not case.notable(idle + between, 0.15):
        return None
    return Finding(
        "device-idle",
        None,
        "The device stands idle: the host launches too slowly, waits for data, or a pipeline "
        "bubble passes.",
        {"idle_us": case.per_step_us(idle), "between_steps_us": case.per_step_us(between)},
        case.per_step_us(idle + between),
        "look at the host side: data loading, synchronisations, garbage collection, CUDA graphs; "
        "with a pipeline, more microbatches",
        "possible",
    )
