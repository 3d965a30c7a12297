"""Communication that no setting could hide, and communication that nothing else explains."""

from __future__ import annotations

import re
from collections.abc import Sequence

from overlapkit.errors import InputError
from overlapkit.hardware import find_gpu
from overlapkit.output.numbers import ms_of_us, us_of_ns
from overlapkit.trace.diagnose.diagnosis import Case, Counted, Diagnosis
from overlapkit.trace.diagnose.remedies import Problem
from overlapkit.trace.intervals import both, either
from overlapkit.trace.measure.collectives import Collective, collectives

LARGE = 0.1
"""Share of the step from which exposed communication is never left without a word."""

EXPLAINED = 0.5
"""Share of the exposed communication that other diagnoses must account for."""

_IN_SWITCH = re.compile(r"NVLS|LDMC|multimem", re.IGNORECASE)
"""Kernels that let the switch add: each link carries the message about once, and not twice as the
definition of bus bandwidth has it (nccl-tests, doc/PERFORMANCE.md)."""

_KINDS: dict[str, Problem] = {
    "DP all_reduce": "exposed between replicas",
    "DP broadcast": "exposed buffers",
    "CP all_to_all": "exposed context exchange",
    "CP all_gather": "exposed context exchange",
}
"""Kinds of exposed communication that some software has settings for."""

OF_COMMUNICATION = frozenset(
    {
        "single-bucket",
        "grad-reduce-after-backward",
        "param-gather-exposed",
        "tp-overlap-off",
        "pipeline-exposed",
        "pipeline-bubble",
        "expert-exchange-exposed",
        "bandwidth-bound",
        "one-queue",
    }
)
"""Diagnoses of exposed communication."""


def bandwidth_bound(case: Case) -> Diagnosis | None:
    """Collectives that take longer than all compute that could hide them."""
    comm = sum(t.comm for t in case.times)
    compute = sum(t.compute for t in case.times)
    exposed = sum(t.exposed_comm for t in case.times)
    least = comm - compute
    if not case.notable(least, LARGE):
        return None
    top = _largest(case)
    reached = "" if top is None or top.bus_gb_s is None else _reached(case, top)
    return case.diagnosis(
        "bandwidth-bound",
        "bandwidth",
        f"Communication takes {_ms(case, comm)} ms{case.a_step}, and only {_ms(case, compute)} ms "
        "of compute could hide it: overlap can save "
        f"{_ms(case, exposed - least)} ms at best.{reached}",
        least,
        {
            "comm_us": case.per_step_us(comm),
            "compute_us": case.per_step_us(compute),
            "exposed_us": case.per_step_us(exposed),
            "overlap_saves_at_most_us": case.per_step_us(exposed - least),
            "bus_gb_per_s": None if top is None or top.bus_gb_s is None else round(top.bus_gb_s, 1),
        },
        time=both(case.m.exposed, case.scope),
    )


def _largest(case: Case) -> Collective | None:
    found = collectives(case.m, case.scope)
    return max(found, key=lambda c: c.busy_ns, default=None)


def _reached(case: Case, top: Collective) -> str:
    """The bus bandwidth of the longest collective, beside the link's where one link is certain."""
    text = (
        f" {top.traffic.operation} reaches {top.bus_gb_s:.1f} GB/s of bus bandwidth"
        f"{', waits for late ranks included' if top.traffic.operation != 'send_recv' else ''}"
    )
    if top.traffic.operation == "all_reduce" and _IN_SWITCH.search(top.traffic.name):
        return f"{text}; the switch reduces, so this is not what a link carries."
    try:
        gpu = find_gpu(case.m.work.gpu or "")[1]
    except InputError:
        return f"{text}."
    ranks = case.m.work.world_size
    link = gpu.nvlink_gbps_per_dir
    if link is None or ranks is None or ranks > (gpu.nvlink_domain or 0):
        return f"{text}."
    return f"{text}; NVLink of this GPU has {link:.0f} GB/s."


ALL_TO_ALL = (
    " An all_to_all is no pipeline's exchange, although both run SendRecv kernels: experts "
    "exchange tokens with it, and context parallelism or Ulysses heads."
)
"""Said where nothing tells which of these it is."""


def exposed_communication(case: Case, found: Sequence[Diagnosis]) -> Diagnosis | None:
    """What is exposed, where it is much and other diagnoses do not account for it."""
    time = both(case.m.exposed, case.scope)
    exposed = time.total
    total = case.per_step_us(exposed)
    explained = _explained(case, [d for d in found if isinstance(d, Counted)])
    if not case.notable(exposed, LARGE) or explained >= EXPLAINED * total:
        return None
    kinds = _exposed_kinds(case)
    listed = ", ".join(f"{what} {_ms(case, ns)} ms" for what, ns in kinds[:3])
    most = kinds[0][0] if kinds and 2 * kinds[0][1] > exposed else ""
    at_once = len(kinds) > 1 and sum(ns for _, ns in kinds[:3]) > 1.01 * exposed
    share = 100 * exposed / max(1, sum(t.step for t in case.times))
    return case.diagnosis(
        "exposed-communication",
        # Wrappers of data parallelism have no settings for other communication.
        _KINDS.get(most, "exposed elsewhere" if most and most[:3] != "DP " else "exposed"),
        f"{share:.0f} % of {case.the_whole} is exposed communication"
        f"{f': {listed}' if listed else ''}{', some of it at once' if at_once else ''}."
        f"{ALL_TO_ALL if any(what == 'other all_to_all' for what, _ in kinds[:3]) else ''}",
        exposed,
        {"exposed_us": total, "share_pct": round(share, 1)},
        time=time,
        confidence="possible",
    )


def _explained(case: Case, found: Sequence[Counted]) -> float:
    """The exposed time that other diagnoses account for, in microseconds per step, each time once.

    A cost that is an estimate is only a part of the time that it was estimated from.
    """
    found = [d for d in found if d.id in OF_COMMUNICATION]
    exact = [d.time for d in found if d.cost_us >= case.per_step_us(d.time.total)]
    explained = case.per_step_us(either(*exact).total) if exact else 0.0
    return max([explained, *(d.cost_us for d in found)])


def _exposed_kinds(case: Case) -> list[tuple[str, int]]:
    """The exposed time of each dimension's operations, the longest first, if it is not small."""
    kinds: dict[str, list[int]] = {}
    for index, traffic in enumerate(case.m.traffic):
        kinds.setdefault(f"{traffic.dimension} {traffic.operation}", []).append(index)
    exposed = {
        what: case.exposed_of(case.m.events_of(indices)).total for what, indices in kinds.items()
    }
    found = [(what, ns) for what, ns in exposed.items() if case.notable(ns, LARGE / 10)]
    return sorted(found, key=lambda kind: -kind[1])


def _ms(case: Case, total_ns: float) -> str:
    return ms_of_us(us_of_ns(total_ns / max(1, case.steps)))
