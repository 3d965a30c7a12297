"""A profile's diagnoses, combined with the decisions that explain them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from overlapkit.doctor.finding import Evidence, Finding
from overlapkit.output.numbers import ms_of_us, percent

if TYPE_CHECKING:
    from overlapkit.trace.document import TraceDiagnosis

_CAUSES: dict[str, frozenset[str]] = {
    "single-bucket": frozenset({"ddp.overlap_grad_reduce", "ddp.bucket_size"}),
    "grad-reduce-after-backward": frozenset({"ddp.overlap_grad_reduce", "ddp.bucket_size"}),
    "param-gather-exposed": frozenset({"ddp.overlap_param_gather"}),
    "one-queue": frozenset({"env.CUDA_DEVICE_MAX_CONNECTIONS"}),
    "layernorm-waits": frozenset(
        {"env.NVTE_FWD_LAYERNORM_SM_MARGIN", "env.NVTE_BWD_LAYERNORM_SM_MARGIN"}
    ),
    "tp-overlap-off": frozenset({"model.tp_comm_overlap", "model.sequence_parallel"}),
    "pipeline-exposed": frozenset({"model.overlap_p2p_comm", "model.batch_p2p_comm"}),
    "expert-exchange-exposed": frozenset({"model.overlap_moe_expert_parallel_comm"}),
}
"""Each diagnosis, and the knobs that can cause it."""

NOT_EXPOSED = frozenset(
    {"device-idle", "waits-for-data", "waits-for-host", "copies-exposed", "compute-slowed"}
)
"""Diagnoses of lost time that is not exposed communication."""


def joined(diagnoses: Sequence[TraceDiagnosis], configured: Sequence[Finding]) -> list[Finding]:
    """Findings of a profile and of a configuration; findings of one cause are combined.

    Args:
        diagnoses: those of `overlapkit trace` (docs/json-trace.md).
        configured: the configuration's findings.
    """
    findings = []
    taken: set[int] = set()
    for diagnosis in diagnoses:
        knobs = _CAUSES.get(diagnosis.id, frozenset())
        same = [n for n, f in enumerate(configured) if n not in taken and knobs & set(f.knobs)]
        taken.update(same)
        findings.append(_of_profile(diagnosis, [configured[n] for n in same]))
    return findings + [f for n, f in enumerate(configured) if n not in taken]


def _of_profile(diagnosis: TraceDiagnosis, causes: Sequence[Finding]) -> Finding:
    measured = Evidence("profile", _figures(diagnosis))
    rules = [diagnosis.rule, *(rule for cause in causes for rule in cause.rules)]
    remedies = [cause.remedy for cause in causes if cause.remedy] or [diagnosis.remedy]
    return Finding(
        diagnosis.id,
        "profile" if diagnosis.id in NOT_EXPOSED else "exposed",
        diagnosis.message.rstrip("."),
        (measured, *(evidence for cause in causes for evidence in cause.evidence)),
        "; ".join(dict.fromkeys(remedies)),
        cost_us=diagnosis.cost_us,
        rules=tuple(dict.fromkeys(rule for rule in rules if rule)),
        knobs=tuple(dict.fromkeys(knob for cause in causes for knob in cause.knobs)),
    )


def _figures(diagnosis: TraceDiagnosis) -> str:
    """The figures of a diagnosis, in one line."""
    from overlapkit.trace.text import shared

    figures = []
    for name, value in diagnosis.evidence.items():
        if isinstance(value, dict) or value in ([], None):
            continue
        what, _, unit = name.rpartition("_")
        if unit == "us":
            figures.append(f"{what.replace('_', ' ')} {ms_of_us(value)} ms")
        elif unit == "pct":
            figures.append(f"{what.replace('_', ' ')} {percent(value)}")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"
            figures.append(f"{name.replace('_', ' ')} {shown}")
    ranks = ", ".join(map(str, diagnosis.ranks))
    where = f" (rank{'s' if ',' in ranks else ''} {ranks})" if ranks else ""
    cost = f"{ms_of_us(diagnosis.cost_us)} ms per step{shared(diagnosis)}{where}"
    return f"{cost}: {'; '.join(figures)}"
