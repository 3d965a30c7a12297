"""The overlap to request: a configuration that has passed every rule before anything is claimed.

`propose` writes a comm_overlap section onto the settings of a run and applies the rules of
`megatron.bridge` to it, as `overlapkit explain` does. What the rules do not grant is removed again,
with their reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.training.bucket_size import AUTO
from megatron.bridge.training.decisions import STOPS, Decision
from megatron.bridge.training.job_environment import ENV_VARS
from overlapkit.config.effective import make_effective
from overlapkit.config.run import Run, Settings
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.output.numbers import plain
from overlapkit.plan.advise.draft import EP_OVERLAP, OPT_INS, Draft, Request, draft
from overlapkit.plan.advise.presets import PresetChoice

_SUPPORTING = (
    "model.sequence_parallel",
    "ddp.use_distributed_optimizer",
    "optimizer.use_distributed_optimizer",
)
"""Keys outside comm_overlap that overlap needs."""


@dataclass(frozen=True)
class Proposal:
    """A configuration with the overlap recommended for it.

    Attributes:
        draft: what was requested.
        settings: ready to be written out; everything in it passes the rules.
        report: what the rules decide about it.
        run: its configurations, effective.
        refused: what was tried, not granted by the rules, and removed again.
        bucket: how large gradient buckets should be, and why; None where there are no buckets.
    """

    draft: Draft
    settings: Settings
    report: Report
    run: Run
    refused: tuple[Decision, ...]
    bucket: Decision | None

    @property
    def tensor(self) -> Request:
        """Whether TP overlap is requested, and why."""
        return self.draft.tensor

    @property
    def preset(self) -> PresetChoice | None:
        """The userbuffers settings; None where there is no TP overlap."""
        return self.draft.preset

    @property
    def pinned(self) -> frozenset[str]:
        """Keys of comm_overlap that the user fixed on the command line."""
        return self.draft.pinned

    @property
    def recommended_settings(self) -> dict[str, Any]:
        """The keys that carry the recommendation, dotted, usable as overrides."""
        flat = self.settings.flat()
        keys = [key for key in flat if key.startswith("comm_overlap.")]
        keys += [key for key in _SUPPORTING if flat.get(key)]
        before = self.draft.base.flat()
        keys += [k for k, v in flat.items() if k.startswith(f"{ENV_VARS}.") and before.get(k) != v]
        keys += [k for k in flat if k.partition(".")[0] in _CHANGED and before.get(k) != flat[k]]
        return {key: plain(flat[key]) for key in dict.fromkeys(keys)}

    def effective(self, knob: str) -> Any:
        """The value of a knob such as ``model.tp_comm_overlap`` that the run will have."""
        return self.report.effective[knob]


def _env_vars(settings: Settings, report: Report) -> dict[str, Any] | None:
    """A configuration's env_vars with the values that the run needs; None where none changes."""
    given = settings.values.get(ENV_VARS)
    if not given or not report.environment.declared:
        return None
    needed = {v.name: int(v.value) for v in report.launch_env}
    changed = given | {n: v for n, v in needed.items() if str(given.get(n)) != str(v)}
    return changed if changed != given else None


_MOST_ROUNDS = 4
"""Remedies that follow from each other."""
_CHANGED = ("ddp", "optimizer", "mixed_precision")
"""Sections whose keys a remedy may change; the model and its layout stay as they are."""


def _without_stops(
    requested: Draft, comm: dict[str, Any], report: Report
) -> tuple[Draft, dict[str, Any]] | None:
    """The request without what would stop the run or give wrong numbers; None where nothing does.

    What the command line fixes stays, and is a finding then.
    """
    changed = dict(comm)
    values = {s: dict(requested.values.get(s) or {}) for s in _CHANGED}
    for stop in (d for d in report.decisions if d.outcome in STOPS):
        if stop.knob == "model.tp_comm_overlap" and "tp_comm_overlap" not in requested.pinned:
            # Its remedy may be another layout, which is not chosen here.
            changed["tp_comm_overlap"] = False
            changed.pop("tp_comm_overlap_cfg", None)
            why_not = Request(False, stop.reason, stop.remedy)
            requested = replace(requested, tensor=why_not, preset=None)
            continue
        for edit in stop.edits:
            if edit.key in requested.base.overridden:
                continue
            section, _, key = edit.key.partition(".")
            if section == "comm_overlap" and key not in requested.pinned:
                changed[key] = edit.value
            elif section in _CHANGED and key:
                values[section][key] = edit.value
    kept = {s: content for s, content in values.items() if content}
    result = replace(requested, values={**requested.values, **kept})
    if changed == comm and result.values == requested.values:
        return None
    return result, changed


def propose(
    settings: Settings, world_size: int, assumptions: Assumptions, *, expert_overlap: bool = True
) -> Proposal:
    """The overlap to request with one layout; arguments as of `draft`.

    Raises:
        InputError: as `explain`.
    """
    requested = draft(settings, world_size, assumptions, expert_overlap=expert_overlap)
    comm = dict(requested.comm)
    proposed = requested.settings(comm)
    report = explain(proposed, world_size, assumptions)
    # What the rules do not grant is removed again, except for what the command line fixes.
    tried = ({EP_OVERLAP, *OPT_INS} & comm.keys()) - requested.pinned
    refused = [d for d in report.findings if d.knob.rpartition(".")[2] in tried]
    bucket = None
    if comm.get("bucket_size") == AUTO:
        bucket = next((d for d in report.decisions if d.knob == "ddp.bucket_size"), None)
        # The number can be pasted where "auto" is not known.
        comm["bucket_size"] = report.effective["ddp.bucket_size"]
        if comm["bucket_size"] is None:
            del comm["bucket_size"]
    for name in {d.knob.rpartition(".")[2] for d in refused}:
        comm.pop(name)
    if EP_OVERLAP not in comm and "delay_wgrad_compute" not in requested.pinned:
        comm.pop("delay_wgrad_compute", None)
    if not comm.get("defer_embedding_wgrad_compute"):
        comm.pop("wgrad_deferral_limit", None)
    if comm != requested.comm:
        proposed = requested.settings(comm)
        report = explain(proposed, world_size, assumptions)
    for _ in range(_MOST_ROUNDS):
        made = _without_stops(requested, comm, report)
        if made is None:
            break
        requested, comm = made
        proposed = requested.settings(comm)
        report = explain(proposed, world_size, assumptions)
    if (env_vars := _env_vars(proposed, report)) is not None:
        requested = replace(requested, values=requested.values | {ENV_VARS: env_vars})
        proposed = requested.settings(comm)
        report = explain(proposed, world_size, assumptions)
    run, _ = make_effective(proposed, world_size, assumptions.software)
    return Proposal(
        draft=requested,
        settings=proposed,
        report=report,
        run=run,
        refused=tuple(refused),
        bucket=bucket,
    )
