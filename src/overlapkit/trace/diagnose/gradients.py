"""Diagnoses of data-parallel communication: when it runs, and what waits for it."""

from __future__ import annotations

import re
import statistics

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.diagnose.diagnosis import NOTABLE, Case, Counted, Diagnosis
from overlapkit.trace.intervals import Spans, both, union
from overlapkit.trace.measure.collectives import message_bytes
from overlapkit.trace.read.device_work import COMPUTE

AT_ONCE_NS = 10_000
"""Two events that are closer than this: one started when the other ended (launch gaps included)."""

AMONG = 0.25
"""Share of the time between the first and the last reduction in which the device computes, from
which the backward pass goes on there: after it, only the gradients are scaled and copied."""

SMALL = 4096
"""Bytes of a message below which it is no bucket of gradients, but a loss, a norm or a counter."""

MOSTLY = 0.4
"""Share of the gathers that is exposed, from which they are not hidden. The first one of a step is
exposed whatever is set."""

_NORM = re.compile(r"layer_?norm|rms_?norm|\bln_(?:fwd|bwd)|normalization::|_norm_", re.IGNORECASE)
REDUCE_OFF = ": overlap_grad_reduce is off or not in effect"
ONE_BUCKET = ": they are in a single bucket, or overlap_grad_reduce is off"
GATHER_OFF = (
    ": overlap_param_gather is off or not in effect, or there are too few buckets to hide the "
    "gathers"
)
"""What each is suspected to come from in Megatron, where no configuration says."""

_REDUCTIONS = ("reduce_scatter", "all_reduce")


def _gradient_reductions(case: Case) -> NDArray[np.intp]:
    """Data-parallel reductions, without those of losses, norms and counters.

    Where gradients are reduced and scattered, an all-reduce in the same group is not of gradients.
    In another group it is, between replicas of what is sharded.
    """
    # ZeRO 2 reduces each gradient to the rank that keeps it.
    also = ("reduce",) if case.framework.name == "deepspeed" else ()
    scattered = {
        t.group
        for t in case.m.traffic
        if t.dimension == "DP" and t.operation == "reduce_scatter" and t.confidence != "guess"
    }
    events = case.events(("DP",), _REDUCTIONS + also)
    of_gradients = np.asarray(
        [
            t.operation != "all_reduce"
            or not scattered
            or (t.group is not None and t.group not in scattered)
            for t in case.m.traffic
        ],
        dtype=np.bool_,
    )
    events = events[of_gradients[case.m.traffic_of[events]]]
    sizes = [message_bytes(call) for call in case.m.work.calls]
    small = np.asarray([size is not None and size < SMALL for size in [*sizes, None]], np.bool_)
    return events[~small[case.m.work.call[events]]]


def gradient_reduction(case: Case) -> Diagnosis | None:
    """Gradients that are reduced after the backward pass, at once or in buckets.

    Without steps nothing says where a backward pass ends.
    """
    work = case.m.work
    if not case.marked or not case.trains:
        return None
    events = _gradient_reductions(case)
    time = case.exposed_of(events)
    exposed = time.total
    if not len(events) or not case.notable(exposed):
        return None
    large = events[(work.end - work.start)[events] > 0.005 * case.step_ns]
    counts, late, beside = _reductions_by_step(case, large)
    total = union(work.start[large], work.end[large]).total
    mostly_exposed = total and case.exposed_of(large).total > 0.5 * total
    if not late or not mostly_exposed or statistics.median(late) > 0.2 or beside > AMONG:
        return None
    per_step = float(statistics.median(counts))
    evidence = {
        "reductions_per_step": per_step,
        "exposed_us": case.per_step_us(exposed),
        "compute_after_first_pct": round(100 * statistics.median(late), 1),
    }
    if per_step <= 1:
        return case.diagnosis(
            "single-bucket",
            "one reduction",
            "The gradients are reduced once, after the backward pass, so no compute is left to "
            "hide the reduction" + case.megatrons(ONE_BUCKET),
            exposed,
            evidence,
            time=time,
        )
    return case.diagnosis(
        "grad-reduce-after-backward",
        "late reductions",
        f"All {per_step:g} gradient reductions of a step start after "
        "the backward pass" + case.megatrons(REDUCE_OFF),
        exposed,
        evidence,
        time=time,
    )


def _reductions_by_step(
    case: Case, events: NDArray[np.intp]
) -> tuple[list[int], list[float], float]:
    """For each step the number of reductions, and how much of its compute follows the first.

    Where gradients are accumulated, only the last backward pass reduces them, and little compute
    follows however well that is hidden.

    Returns:
        The numbers; the shares of those steps that have any, 1 where a step has no compute; and the
        share of the time from the first reduction to the last in which the device computes.
    """
    start = case.m.work.start[events]
    counts, shares = [], []
    among, computed = 0, 0
    for window in case.windows:
        inside = start[(start >= window.start) & (start < window.end)]
        counts.append(len(inside))
        if len(inside):
            begin = np.asarray([inside.min(), window.start])
            after, total = case.m.compute.within(begin, np.full(2, window.end)).tolist()
            shares.append(after / total if total else 1.0)
            between = np.asarray([inside.min()]), np.asarray([inside.max()])
            among += int(between[1][0] - between[0][0])
            computed += int(case.m.compute.within(*between)[0])
    return counts, shares, computed / among if among else 0.0


def _resumptions(case: Case, under: NDArray[np.intp]) -> list[tuple[int, int, int]]:
    """Gaps between kernels that these collectives fill.

    Returns:
        For each gap its start, its end, and the index of the kernel that ends it.
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


def one_queue(case: Case) -> Diagnosis | None:
    """Compute that stalls until a queued collective has started."""
    # What belongs to no known dimension may be tensor-parallel.
    if case.has("TP", "CP") or any(t.confidence == "unknown" for t in case.m.traffic):
        return None
    work = case.m.work
    reductions = set(_gradient_reductions(case).tolist())
    events = np.asarray(sorted(reductions | set(case.events(("DP",)).tolist())), dtype=np.intp)
    starts, ends = work.start[events], work.end[events]
    launch = work.correlation[events]
    stalls, gathers = [], 0
    for start, end, kernel in _resumptions(case, events):
        # The kernel starts together with a collective that was launched before it, and that had to
        # wait for earlier collectives on its own stream.
        earlier = launch < work.correlation[kernel]
        near = earlier & (starts > start) & (starts <= end) & (end - starts < AT_ONCE_NS)
        if work.correlation[kernel] < 0 or not near.any():
            continue
        last = int(np.flatnonzero(near)[np.argmax(launch[near])])
        held = (np.abs(ends - starts[last]) < AT_ONCE_NS) & (launch < launch[last])
        if not held.any() or launch[last] < launch[earlier].max():
            continue
        passed = (ends > start) & (ends <= end) & earlier
        awaited = int((passed & ~np.isin(events, list(reductions))).sum())
        if int(events[last]) not in reductions:
            # A kernel can depend on the parameters of one gather, but hardly on those of several.
            if int(passed.sum()) < 2:
                continue
            gathers += 1
        elif awaited == 1:
            # So it does where gathers and reductions share a stream, as in FSDP1.
            continue
        stalls.append((start, end))
    time, times = _gaps(stalls), len(stalls)
    cost = time.total
    if times < 2 or not case.notable(cost, NOTABLE / 2):
        return None
    return Counted(
        id="one-queue",
        rule="launch.env-one-queue" if case.is_megatron else None,
        message="Compute stalls until a queued collective has started. Kernels start only in "
        "launch order, as with CUDA_DEVICE_MAX_CONNECTIONS=1, which this run does not need (it has "
        "no tensor-parallel or context-parallel communication).",
        evidence={
            "gaps_per_step": round(times / case.steps, 1),
            "stalled_us": case.per_step_us(cost),
        },
        cost_us=case.per_step_us(cost),
        remedy="unset CUDA_DEVICE_MAX_CONNECTIONS"
        + case.megatrons(", or set it to what overlapkit explain shows for this run", end=""),
        confidence="likely" if 2 * gathers < times else "possible",
        time=time,
    )


def _gaps(found: list[tuple[int, int]]) -> Spans:
    """Gaps between kernels, as a set of time."""
    pairs = np.asarray(found, dtype=np.int64).reshape(-1, 2)
    return union(pairs[:, 0], pairs[:, 1])


def layernorm_waits(case: Case) -> Diagnosis | None:
    """LayerNorm kernels of Transformer Engine that wait for SMs that a reduction occupies."""
    work = case.m.work
    if not case.is_megatron:
        return None
    reductions = _gradient_reductions(case)
    ends = work.end[reductions]
    gaps, others = [], 0
    for start, end, kernel in _resumptions(case, reductions):
        if not bool(((ends <= end) & (end - ends < AT_ONCE_NS)).any()):
            continue
        if case.beside_comm(kernel):
            # It runs beside a collective, so it did not wait for SMs.
            continue
        if _NORM.search(work.names[int(work.name[kernel])]):
            gaps.append((start, end))
        else:
            others += 1
    slowed = [k for k in case.slowed.kernels if _NORM.search(k.name) and k.ratio > 2]
    lost = sum(k.lost_ns for k in slowed)
    times = len(gaps)
    time = _gaps(gaps if times >= 2 and times > others else [])
    total = time.total + lost
    if not (len(time) or slowed) or not case.notable(total, NOTABLE / 2):
        return None
    return Counted(
        id="layernorm-waits",
        rule="launch.layernorm-margin",
        message="LayerNorm kernels wait for a running gradient reduction to end: they need every "
        "SM, and the collective occupies some.",
        evidence={
            "waits_per_step": round(times / case.steps, 1),
            "waiting_us": case.per_step_us(time.total),
            "slowed_kernels": [k.name for k in slowed],
        },
        cost_us=case.per_step_us(total),
        remedy="set NVTE_FWD_LAYERNORM_SM_MARGIN and NVTE_BWD_LAYERNORM_SM_MARGIN to 16",
        time=time,
        slowed_us=case.per_step_us(lost),
    )


def parameter_gather(case: Case) -> Diagnosis | None:
    """All-gathers of parameters that run while nothing computes."""
    work = case.m.work
    events = case.events(("DP",), ("all_gather",))
    if not len(events) or not case.trains:
        return None
    time = case.exposed_of(events)
    exposed = time.total
    total = both(union(work.start[events], work.end[events]), case.scope).total
    if not case.notable(exposed, 2 * NOTABLE) or exposed < MOSTLY * total:
        return None
    return case.diagnosis(
        "param-gather-exposed",
        "parameter gather",
        "The parameters are all-gathered while nothing computes" + case.megatrons(GATHER_OFF),
        exposed,
        {
            "gathers_per_step": round(len(events) / case.steps, 1),
            "exposed_us": case.per_step_us(exposed),
            "hidden_pct": round(100 * (1 - exposed / total), 1),
        },
        time=time,
    )
