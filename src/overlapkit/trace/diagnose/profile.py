"""What a rank's profile shows, with the evidence and the rule of `explain` that applies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from overlapkit.trace.diagnose.bandwidth import bandwidth_bound, exposed_communication
from overlapkit.trace.diagnose.diagnosis import NOTABLE, Case, Counted, Diagnosis
from overlapkit.trace.diagnose.gradients import (
    gradient_reduction,
    layernorm_waits,
    one_queue,
    parameter_gather,
)
from overlapkit.trace.diagnose.idle import device_idle, waits_for_data, waits_for_host
from overlapkit.trace.diagnose.pipeline import pipeline_bubble, pipeline_exposed
from overlapkit.trace.diagnose.shared_time import with_shared
from overlapkit.trace.intervals import both, distinct
from overlapkit.trace.read.device_work import MEMORY

_OF_IDLE = (waits_for_data, waits_for_host, device_idle)


def diagnose(case: Case) -> list[Diagnosis]:
    """Everything that one rank's profile shows, the costliest first."""
    checks: list[Callable[[Case], Diagnosis | None]] = [
        gradient_reduction,
        one_queue,
        layernorm_waits,
        parameter_gather,
        _tensor_parallel,
        pipeline_exposed,
        pipeline_bubble,
        _experts,
        bandwidth_bound,
        _slowed_compute,
        _copies,
    ]

    def of_work(some: Case) -> list[Diagnosis]:
        found = _made(checks, some)
        rest = exposed_communication(some, found)
        return [*found, rest] if rest is not None else found

    told = [
        *_with_longer_steps(of_work, case),
        *_with_longer_steps(lambda some: _made(_OF_IDLE, some), case.of_followed()),
    ]
    return sorted(with_shared(told, case), key=lambda f: -f.cost_us)


def _made(checks: Iterable[Callable[[Case], Diagnosis | None]], case: Case) -> list[Diagnosis]:
    asked = (check(case) for check in checks)
    return [diagnosis for diagnosis in asked if diagnosis is not None]


def _with_longer_steps(find: Callable[[Case], list[Diagnosis]], case: Case) -> list[Diagnosis]:
    """The diagnoses of a case; those that its usual steps do not show name the longer ones.

    A cost is a mean over the steps, which one step with a checkpoint or an evaluation can raise.
    """
    found = find(case)
    usual, longer = case.of_usual() if found else (None, [])
    if usual is None:
        return found
    shown = {diagnosis.id for diagnosis in find(usual)}
    return [d if d.id in shown else replace(d, longer_steps=longer) for d in found]


def _tensor_parallel(case: Case) -> Diagnosis | None:
    if _has_userbuffers(case) or _has_chunks(case):
        return None
    time = case.dimension_exposed("TP")
    exposed = time.total
    if not case.notable(exposed) or not case.trains or case.is_guess("TP"):
        return None
    operations = {t.operation for t in case.m.traffic if t.dimension == "TP"}
    reduce_only = "all_reduce" in operations and not operations & {"all_gather", "reduce_scatter"}
    message = "Tensor-parallel collectives are exposed"
    if case.is_megatron:
        message = "Tensor-parallel collectives run through NCCL, and there are no userbuffers "
        message += "kernels: TP overlap is off"
        message += ", and all-reduces show that sequence parallelism is off too" * reduce_only
    return case.diagnosis(
        "tp-overlap-off",
        "tensor parallel without sequence parallel" if reduce_only else "tensor parallel",
        f"{message}.",
        exposed,
        {"exposed_us": case.per_step_us(exposed), "operations": sorted(operations)},
        time=time,
    )


def _has_userbuffers(case: Case) -> bool:
    """Whether tensor-parallel communication runs in userbuffers, or in their peer copies."""
    traffic = [t for t in case.m.traffic if t.dimension == "TP"]
    return any(
        "userbuffers" in t.name.lower() or ("ptop" in t.name.lower() and t.operation == "peer copy")
        for t in traffic
    )


def _has_chunks(case: Case) -> bool:
    """Whether chunks are copied between peers beside the products of others.

    Asynchronous tensor parallelism does so; a collective of copy engines belongs to a group.
    """
    return any(
        t.dimension == "TP" and t.group is None and "ptop" in t.name.lower() for t in case.m.traffic
    )


def _experts(case: Case) -> Diagnosis | None:
    time = case.dimension_exposed("EP")
    exposed = time.total
    if not case.notable(exposed, 2 * NOTABLE) or case.is_guess("EP"):
        return None
    return case.diagnosis(
        "expert-exchange-exposed",
        "experts",
        "The token exchange between experts is exposed.",
        exposed,
        {"exposed_us": case.per_step_us(exposed)},
        time=time,
        confidence="possible",
    )


def _slowed_compute(case: Case) -> Diagnosis | None:
    slowed = case.slowed
    if slowed.ratio is None or slowed.ratio < 1.05 or not case.notable(slowed.lost_ns):
        return None
    return Counted(
        id="compute-slowed",
        rule=None,
        message=f"Kernels take {slowed.ratio:.2f} times as long while communication runs: they "
        "share SMs and memory bandwidth with it.",
        evidence={
            "lost_us": case.per_step_us(slowed.lost_ns),
            "kernels": [k.name for k in slowed.kernels[:3]],
        },
        cost_us=case.per_step_us(slowed.lost_ns),
        slowed_us=case.per_step_us(slowed.lost_ns),
        remedy="give communication fewer SMs ("
        + "num_sm of userbuffers, " * _has_userbuffers(case)
        + "NCCL_MAX_CTAS); hidden communication is not free",
    )


def _copies(case: Case) -> Diagnosis | None:
    exposed = sum(t.exposed_memory for t in case.times)
    if not case.notable(exposed, 2.5 * NOTABLE):
        return None
    name = _longest_copy(case)
    return Diagnosis(
        id="copies-exposed",
        rule=None,
        message="Copies and memsets run while nothing computes or communicates"
        + (f", most of all {name}." if name else "."),
        evidence={"exposed_us": case.per_step_us(exposed), "longest": name},
        cost_us=case.per_step_us(exposed),
        remedy=_for_copies(name),
    )


def _longest_copy(case: Case) -> str:
    """The name of the copies with the most exposed time; empty where there are none."""
    work = case.m.work
    chosen = np.flatnonzero(work.kind == MEMORY)
    spans = both(case.m.exposed_memory, case.scope)
    exposed = spans.within(work.start[chosen], work.end[chosen])
    names, place = distinct(work.name[chosen].astype(np.int64))
    if not len(names):
        return ""
    return work.names[int(names[np.argmax(np.bincount(place, weights=exposed))])]


def _for_copies(name: str) -> str:
    """What to try, by the name that the profiler gives a copy."""
    if "DtoH" in name and "Pinned" in name:
        return (
            "the copies go to pinned memory, as those of offloading do: begin them earlier, on a "
            "separate stream, so that compute is left to hide them, or copy less"
        )
    if "DtoH" in name:
        return (
            "copy results to the host less often (.item(), .cpu(), logging): each copy that the "
            "host waits for also stops the launching of work"
        )
    if "HtoD" in name and "Pageable" in name:
        return (
            "copy from pinned memory (pin_memory=True of DataLoader) with non_blocking=True, ahead "
            "of use"
        )
    if "HtoD" in name and "Pinned" in name:
        return (
            "the memory is pinned already: copy the next batch on a separate stream while this one "
            "computes"
        )
    if "HtoD" in name:
        return "copy from pinned memory on a separate stream, ahead of use"
    return "avoid these copies and memsets, or run them on a separate stream beside compute"
