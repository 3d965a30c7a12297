"""What a rank's profile shows, with the evidence and the rule of `explain` that applies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from overlapkit.trace.diagnose.diagnosis import NOTABLE, Case, Diagnosis
from overlapkit.trace.diagnose.gradients import (
    gradient_reduction,
    layernorm_waits,
    one_queue,
    parameter_gather,
)
from overlapkit.trace.intervals import both, union


def diagnose(case: Case) -> list[Diagnosis]:
    """Everything that one rank's profile shows, the costliest first."""
    checks: list[Callable[[Case], Diagnosis | None]] = [
        gradient_reduction,
        one_queue,
        layernorm_waits,
        parameter_gather,
        _tensor_parallel,
        _pipeline,
        _experts,
        _slowed_compute,
        _copies,
        _idle,
    ]
    found = [diagnosis for check in checks if (diagnosis := check(case)) is not None]
    return sorted(found, key=lambda f: -f.cost_us)


def _tensor_parallel(case: Case) -> Diagnosis | None:
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
    return Diagnosis(
        id="tp-overlap-off",
        rule=rule,
        message="Tensor-parallel collectives run through NCCL, and there are no userbuffers "
        "kernels: TP overlap is off"
        + (", and all-reduces show that sequence parallelism is off too." if reduce_only else "."),
        evidence={"exposed_us": case.per_step_us(exposed), "operations": sorted(operations)},
        cost_us=case.per_step_us(exposed),
        remedy=remedy + " (it needs Transformer Engine)",
    )


def _pipeline(case: Case) -> Diagnosis | None:
    events = case.events(("PP",))
    exposed = case.exposed_of(events)
    # The pipeline fills in the first sixth of a step, and drains in the last.
    sixth = [(w.end - w.start) // 6 for w in case.windows]
    middle = union(
        np.asarray([w.start + s for w, s in zip(case.windows, sixth, strict=True)], np.int64),
        np.asarray([w.end - s for w, s in zip(case.windows, sixth, strict=True)], np.int64),
    )
    steady = both(exposed, middle).total
    if len(events) < 4 * case.steps or not case.notable(steady):
        return None
    interleaved = case.layout is not None and (case.layout.vpp or 1) > 1
    return Diagnosis(
        id="pipeline-exposed",
        rule="pp.interleaved" if interleaved else "pp.not-interleaved",
        message="Send and receive are exposed in the steady state of the pipeline"
        + (
            ", although the schedule is interleaved: overlap_p2p_comm is off, or the stages are "
            "uneven."
            if interleaved
            else ": without interleaving, nothing runs beside them."
        ),
        evidence={
            "transfers_per_step": round(len(events) / case.steps, 1),
            "exposed_us": case.per_step_us(exposed.total),
            "steady_us": case.per_step_us(steady),
        },
        cost_us=case.per_step_us(exposed.total),
        remedy="set overlap_p2p_comm=true and batch_p2p_comm=false"
        if interleaved
        else "set model.virtual_pipeline_model_parallel_size above 1, which also turns "
        "overlap_p2p_comm on",
    )


def _experts(case: Case) -> Diagnosis | None:
    exposed = case.dimension_exposed("EP")
    if not case.notable(exposed, 2 * NOTABLE):
        return None
    return Diagnosis(
        id="expert-exchange-exposed",
        rule="ep.off-unless-asked",
        message="The token exchange between experts is exposed.",
        evidence={"exposed_us": case.per_step_us(exposed)},
        cost_us=case.per_step_us(exposed),
        remedy="set comm_overlap.overlap_moe_expert_parallel_comm=true (overlapkit explain shows "
        "what it needs)",
        confidence="possible",
    )


def _slowed_compute(case: Case) -> Diagnosis | None:
    slowed = case.slowed
    if slowed.ratio is None or slowed.ratio < 1.05 or not case.notable(slowed.lost_ns):
        return None
    return Diagnosis(
        id="compute-slowed",
        rule=None,
        message=f"Kernels take {slowed.ratio:.2f} times as long while communication runs: they "
        "share SMs and memory bandwidth with it.",
        evidence={
            "lost_us": case.per_step_us(slowed.lost_ns),
            "kernels": [k.name for k in slowed.kernels[:3]],
        },
        cost_us=case.per_step_us(slowed.lost_ns),
        remedy="give communication fewer SMs (num_sm of userbuffers, NCCL_MAX_CTAS); hidden "
        "communication is not free",
    )


def _copies(case: Case) -> Diagnosis | None:
    exposed = sum(t.exposed_memory for t in case.times)
    if not case.notable(exposed, 2.5 * NOTABLE):
        return None
    return Diagnosis(
        id="copies-exposed",
        rule=None,
        message="Copies and memsets run while nothing computes or communicates.",
        evidence={"exposed_us": case.per_step_us(exposed)},
        cost_us=case.per_step_us(exposed),
        remedy="copy from pinned memory on a separate stream, ahead of use",
    )


def _idle(case: Case) -> Diagnosis | None:
    idle = sum(t.idle for t in case.times)
    between = sum(
        max(0, b.start - a.end) for a, b in zip(case.windows, case.windows[1:], strict=False)
    )
    if not case.notable(idle + between, 0.15):
        return None
    return Diagnosis(
        id="device-idle",
        rule=None,
        message="The device is idle: the host launches work too slowly or waits for data, or the "
        "pipeline has bubbles.",
        evidence={"idle_us": case.per_step_us(idle), "between_steps_us": case.per_step_us(between)},
        cost_us=case.per_step_us(idle + between),
        remedy="check the host: data loading, synchronization, garbage collection, CUDA graphs; "
        "with a pipeline, use more microbatches",
        confidence="possible",
    )
