"""The wording of a report, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

from overlapkit.explain.stack_document import configured_for
from overlapkit.output.numbers import ms_of_us
from overlapkit.trace.diagnose.framework import TITLES
from overlapkit.trace.document import TraceAcrossRanks, TraceDiagnosis, TraceDocument
from overlapkit.trace.labels import count_of
from overlapkit.trace.measure.longer_steps import LONGER, longer_than_others
from overlapkit.trace.measure.step_times import Part
from overlapkit.trace.measure.units import A_UNIT, Unit
from overlapkit.trace.rank_document import (
    TraceMedian,
    TraceRank,
    TraceSlowedCompute,
    TraceWindow,
)

PART_TITLES: dict[Part, str] = {
    "compute": "compute",
    "exposed_comm": "exposed communication",
    "exposed_memory": "exposed memory",
    "idle": "idle",
}
"""What the exclusive parts of a step are called."""

NAMED = 8
"""Ranks of a diagnosis that are named."""

NOTABLE_WAIT = 0.01
"""Share of a step from which a cause of idle time is reported."""

NOTABLE_SLOWDOWN = 1.02
"""Ratio from which slowed compute is reported."""

NOTABLE_SPREAD_PCT = 1.0
"""Difference between ranks, in percent of the shortest step, from which one is the slowest."""

LONGER_SHOWN = 3
"""Longer steps that are named."""

NO_DIAGNOSES = "Nothing stands out."
NO_VERDICT = "No diagnosis: see above."


def diagnosed(document: TraceDocument) -> str:
    """What to say where there are no diagnoses."""
    return NO_VERDICT if document.doubts else NO_DIAGNOSES


def waits(row: TraceMedian) -> str:
    """What idle time waits for; empty where that is not known, or small."""
    named = [
        (row.waiting_for_data_us, "waiting for data"),
        (row.waiting_for_host_us, "waiting for the host"),
    ]
    parts = [f"{ms_of_us(us)} ms {what}" for us, what in named if us > NOTABLE_WAIT * row.step_us]
    return f"Of {ms_of_us(row.idle_us)} ms idle: {', '.join(parts)}." if parts else ""


def longer_steps(rank: TraceRank) -> list[str]:
    """What filled the steps that are much longer than the median, the longest first."""
    places = longer_than_others([step.step_us for step in rank.steps])
    longer = [rank.steps[place] for place in places]
    longer.sort(key=lambda step: -step.step_us)
    lines = [_longer(step, rank.median, rank.unit) for step in longer[:LONGER_SHOWN]]
    if len(longer) > LONGER_SHOWN:
        others = len(longer) - LONGER_SHOWN
        share = f"{100 * (LONGER - 1):.0f} %"
        lines.append(f"Others longer than the median by more than {share}: {others}.")
    return lines


def _longer(step: TraceWindow, usual: TraceMedian, unit: Unit) -> str:
    """By how much a step is longer than the median one, and what filled the time."""
    more = step.step_us - usual.step_us
    waited = max(0.0, step.waiting_for_data_us - usual.waiting_for_data_us)
    for_host = max(0.0, step.waiting_for_host_us - usual.waiting_for_host_us)
    # On the device a step lasts until the next one's first work.
    late = f" at the start of the next {unit} on the host"
    of_data = late * (2 * step.data_of_next_us > step.waiting_for_data_us)
    of_host = late * (2 * step.host_of_next_us > step.waiting_for_host_us)
    parts = [
        (step.idle_us - usual.idle_us - waited - for_host, "idle"),
        (waited, f"waiting for data{of_data}"),
        (for_host, f"waiting for the host{of_host}"),
        (step.compute_us - usual.compute_us, "compute"),
        (step.exposed_comm_us - usual.exposed_comm_us, "exposed communication"),
        (step.exposed_memory_us - usual.exposed_memory_us, "exposed memory"),
    ]
    # What makes a tenth of the difference is worth naming.
    named = sorted((one for one in parts if one[0] > 0.1 * more), reverse=True)
    filled = ", ".join(f"{ms_of_us(us)} ms more {what}" for us, what in named)
    return (
        f"{step.name} is {ms_of_us(more)} ms ({100 * more / usual.step_us:.0f} %) longer than the "
        f"median: {filled}."
    )


def title(document: TraceDocument) -> str:
    """What the report is about."""
    return f"Where the time of {A_UNIT[document.unit] if document.has_steps else 'the trace'} goes"


def headline(document: TraceDocument) -> str:
    """How many ranks or GPUs of a process were read, of how many ranks, and the GPU."""
    count = len({(r.rank, r.device) for r in document.ranks})
    text = count_of(document.ranks)
    if document.world_size:
        text += f" of {document.world_size}"
    if count < len(document.ranks):
        text += f" ({len(document.ranks)} traces)"
    text = f"{text}, {document.gpu}" if document.gpu else text
    name = document.framework.name
    return f"{text}, {TITLES[name]}" if name else text


def configuration(document: TraceDocument) -> str:
    """The versions that the configuration is for; empty without one."""
    return "" if document.stack is None else f"Configuration: {configured_for(document.stack)}"


def extent(rank: TraceRank, otherwise: str = "whole trace") -> str:
    """What sums are of."""
    return f"all {rank.unit}s" if rank.steps else otherwise


def slowed_sentence(slowed: TraceSlowedCompute, rank: TraceRank, label: str) -> str | None:
    """How much longer compute takes beside communication; None where that is negligible.

    Args:
        slowed: the compute of the rank.
        rank: the rank.
        label: what it is called.
    """
    if slowed.ratio is None or slowed.ratio < NOTABLE_SLOWDOWN:
        return None
    return (
        f"Compute beside communication takes {slowed.ratio:.2f} times as long as alone "
        f"({label}: {ms_of_us(slowed.lost_us)} ms lost over "
        f"{extent(rank, 'the whole trace')})."
    )


def across_sentence(across: TraceAcrossRanks) -> str:
    """The slowest rank, the spread, and which rank the others wait for."""
    differ = f"he ranks differ by {ms_of_us(across.spread_us)} ms ({across.spread_pct:.1f} %)."
    text = f"T{differ}" if across.spread_us else "The ranks' steps are equally long."
    if across.spread_pct >= NOTABLE_SPREAD_PCT:
        text = f"Rank {across.slowest_rank} is the slowest; t{differ}"
    share = across.exposed_waiting_pct
    if share is not None:
        late = across.late_rank
        text += f" Waiting for late ranks is {share:.0f} % of exposed communication"
        text += "." if late is None else f"; the late rank is rank {late}."
    return text


def shared(diagnosis: TraceDiagnosis) -> str:
    """Which other diagnoses count some of its time too; empty where none does."""
    others = sorted(diagnosis.shared_us.items(), key=lambda other: -other[1])
    named = " and ".join(f"{ms_of_us(us)} ms in {id}" for id, us in others)
    return f", of which other diagnoses count up to {named} too" if named else ""


def _some(names: Sequence[str]) -> str:
    others = len(names) - LONGER_SHOWN
    return ", ".join(names[:LONGER_SHOWN]) + f" and {others} others" * (others > 0)


def cost(diagnosis: TraceDiagnosis, document: TraceDocument) -> str:
    """What a diagnosis costs, and how certain it is where that is less than likely."""
    each = f" {A_UNIT[document.unit]}" if document.has_steps else ""
    text = f"{ms_of_us(diagnosis.cost_us)} ms{each}{' on average' * bool(diagnosis.longer_steps)}"
    ranks = {r.rank for r in document.ranks}
    if len(ranks) > 1 and diagnosis.id != "late-rank" and set(diagnosis.ranks) != ranks:
        named = ", ".join(map(str, diagnosis.ranks[:NAMED]))
        more = f" and {len(diagnosis.ranks) - NAMED} more" * (len(diagnosis.ranks) > NAMED)
        text += f", rank {named}{more}"
    devices = {r.device for r in document.ranks if r.gpus > 1}
    if diagnosis.devices and set(diagnosis.devices) != devices:
        text += f", GPU {', '.join(map(str, diagnosis.devices))}"
    if diagnosis.longer_steps:
        text += f", too little to tell without {_some(diagnosis.longer_steps)}"
    text += shared(diagnosis)
    return text if diagnosis.confidence == "likely" else f"{text}, {diagnosis.confidence}"
