"""Idle time by its cause, in the steps that run to the start of another one."""

from __future__ import annotations

from overlapkit.trace.diagnose.diagnosis import NOTABLE, Case, Diagnosis
from overlapkit.trace.measure.waiting import data_before


def waits_for_data(case: Case) -> Diagnosis | None:
    """The host waits for the next batch, and the device has nothing to do."""
    inside = sum(t.waiting_for_data for t in case.times)
    # Before a step that no other one precedes, the wait is in no step. The steps that are followed
    # hold the wait for the next one, which stands for it.
    before = 0 if case.are_followed else data_before(case.m.work, case.m.busy, case.windows)
    waits = inside + before
    if not case.notable(waits, 2.5 * NOTABLE):
        return None
    message = "The device is idle while the host waits for the next batch."
    evidence = {"waiting_us": case.per_step_us(waits)}
    if before > inside:
        message = (
            "The host waits for the next batch before the first kernel of "
            f"{'the step' if case.steps == 1 else 'each step'}. No profiled step holds this time; "
            "what the device did then was not recorded."
        )
    if before:
        evidence["before_step_us"] = case.per_step_us(before)
    return Diagnosis(
        id="waits-for-data",
        rule=None,
        message=message,
        evidence=evidence,
        cost_us=case.per_step_us(waits),
        remedy="load data in more worker processes (num_workers of DataLoader), with "
        "prefetch_factor and persistent_workers, or prepare it beforehand",
        confidence="possible" if before > inside else "likely",
    )


_LAUNCH_EARLIER = (
    "launch less or earlier: CUDA graphs or torch.compile, a larger micro-batch, fewer "
    "synchronizations (.item(), prints, checks of the loss), no garbage collection inside the step"
)
_SCHEDULE_EARLIER = (
    "let the engine prepare the next batch while the device computes (asynchronous, or overlapped, "
    "scheduling), decode with CUDA graphs, and serve more requests in a batch"
)


def waits_for_host(case: Case) -> Diagnosis | None:
    """The device has nothing to do until the host launches work."""
    waits = sum(t.waiting_for_host for t in case.times)
    if not case.notable(waits, 5 * NOTABLE):
        return None
    return Diagnosis(
        id="waits-for-host",
        rule=None,
        message="The device is idle until the host launches the next work.",
        evidence={"waiting_us": case.per_step_us(waits)},
        cost_us=case.per_step_us(waits),
        remedy=_LAUNCH_EARLIER if case.trains else _SCHEDULE_EARLIER,
    )


def device_idle(case: Case) -> Diagnosis | None:
    """Idle time that waits neither for data nor for the host, or of which nothing is known."""
    named = sum(t.waiting_for_data + t.waiting_for_host for t in case.times)
    idle = sum(t.idle for t in case.times) - named
    if not case.notable(idle, 0.15):
        return None
    launches = case.m.work.launches
    if case.m.work.source == "cpu":
        message = "Neither operators nor communication run: Python code, other processes, or waits"
        remedy = "record with with_stack=True to see what runs"
    elif launches is None or not len(launches.correlation):
        message = "The device is idle; the trace has no launches, so it does not show whether the "
        message += "host is late"
        remedy = "record the host too (ProfilerActivity.CPU, or nsys with --trace=cuda,nvtx)"
    else:
        message = "The device is idle, and the work that follows had been launched: it waits for "
        message += "work on other streams, or for other ranks"
        remedy = "look at what the streams wait for"
        remedy += "; with a pipeline, use more microbatches" if case.has("PP") else ""
    return Diagnosis(
        id="device-idle",
        rule=None,
        message=f"{message}.",
        evidence={"idle_us": case.per_step_us(idle)},
        cost_us=case.per_step_us(idle),
        remedy=remedy,
        confidence="possible",
    )
