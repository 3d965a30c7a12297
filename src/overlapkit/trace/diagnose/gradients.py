"""Diagnoses of data-parallel communication: where it stands, and what waits for it."""

from __future__ import annotations

import re
import statistics

import numpy as np
from numpy.typing import NDArray

from overlapkit.trace.diagnose.diagnosis import NOTABLE, Case, Diagnosis
from overlapkit.trace.intervals import Spans, both, union
from overlapkit.trace.read.device_work import COMPUTE

AT_ONCE_NS = 10_000
"""Two events this near to each other: one started when the other ended (launch gaps included)."""

_NORM = re.compile(r"layer_?norm|rms_?norm|\bln_(?:fwd|bwd)|normalization::|_norm_", re.IGNORECASE)
_REDUCTIONS = ("reduce_scatter", "all_reduce")


def _gradient_reductions(case: Case) -> NDArray[np.intp]:
    """Data-parallel reductions; where no dimension is known, every reduce-scatter."""
    events = case.events(("DP",), _REDUCTIONS)
    return events if len(events) or case.has("DP") else case.events(("other",), _REDUCTIONS[:1])


def gradient_reduction(case: Case) -> Diagnosis | None:
    """Gradients that are reduced when the backward is over, at once or in buckets."""
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
        return Diagnosis(
            "single-bucket",
            "core.single-bucket",
            "The gradients are reduced once, after the backward: they lie in one bucket, or "
            "overlap_grad_reduce is off, so nothing is left to hide the reduction under.",
            evidence,
            case.per_step_us(exposed),
            'set comm_overlap.bucket_size="auto" (or well below the parameters per rank), with '
            "overlap_grad_reduce on",
        )
    return Diagnosis(
        "grad-reduce-after-backward",
        "dp.defaults",
        f"All {per_step:g} gradient reductions of a step start when the backward is over: "
        "overlap_grad_reduce is off or not in effect.",
        evidence,
        case.per_step_us(exposed),
        "set ddp.overlap_grad_reduce=true with the distributed optimizer; ask "
        "overlapkit explain why it is off",
    )


def _resumptions(case: Case, under: NDArray[np.intp]) -> list[tuple[int, int, int]]:
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


def one_queue(case: Case) -> Diagnosis | None:
    """Compute that stands still until a queued collective has started."""
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
    return Diagnosis(
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


def layernorm_waits(case: Case) -> Diagnosis | None:
    """LayerNorm that waits for SMs which a reduction holds."""
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
    return Diagnosis(
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


def parameter_gather(case: Case) -> Diagnosis | None:
    """All-gathers of parameters that run while nothing computes."""
    work = case.m.work
    events = case.events(("DP",), ("all_gather",))
    if not len(events):
        return None
    exposed = case.exposed_of(events).total
    total = both(union(work.start[events], work.end[events]), case.scope).total
    if not case.notable(exposed, 2 * NOTABLE) or exposed < 0.6 * total:
        return None
    return Diagnosis(
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
