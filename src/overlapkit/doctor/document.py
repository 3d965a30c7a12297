"""The examination as the JSON interface `overlapkit/doctor/v1` (docs/json-doctor.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from overlapkit.doctor.environment import shown_variables
from overlapkit.doctor.examine import Examination
from overlapkit.doctor.finding import MOST, Finding
from overlapkit.doctor.packages import in_bounds

if TYPE_CHECKING:
    pass


SCHEMA = "overlapkit/doctor/v1"


def examination_json(x: Examination) -> dict[str, Any]:
    """The examination as the JSON interface `overlapkit/doctor/v1` (docs/json-doctor.md)."""
    report = x.report
    return {
        "schema": SCHEMA,
        "config": None if report is None else report.source,
        "framework": None if report is None else report.framework,
        "world_size": None if report is None else report.world_size,
        "gpu": None if report is None else report.assumptions.gpu_name,
        "transformer_engine": None if report is None else report.assumptions.te,
        "environment": {
            "source": x.environment_source,
            "variables": shown_variables(x.environment),
        },
        "packages": [
            {"name": p.name, "version": p.version, "required": p.required, "fits": in_bounds(p)}
            for p in x.packages
        ],
        "machine": {
            "gpus": list(x.machine.gpus),
            "driver": x.machine.driver,
            "nvlink": x.machine.nvlink,
            "told": x.machine.told,
        },
        "profile": None if x.profile is None else _profile_json(x.profile),
        "findings": [_finding_json(f) for f in x.findings[:MOST]],
        "more_findings": max(0, len(x.findings) - MOST),
        "assumed": list(x.assumed),
    }


def _profile_json(profile: dict[str, Any]) -> dict[str, Any]:
    slowest = max(profile["ranks"], key=lambda rank: rank["median"]["step_us"])
    return {
        "files": profile["files"],
        "rank": slowest["rank"],
        "step_us": slowest["median"]["step_us"],
        "exposed_comm_us": slowest["median"]["exposed_comm_us"],
        "warnings": profile["warnings"],
    }


def _finding_json(f: Finding) -> dict[str, Any]:
    return {
        "id": f.id,
        "kind": f.kind,
        "message": f.message,
        "evidence": [{"source": e.source, "text": e.text} for e in f.evidence],
        "remedy": f.remedy or None,
        "cost_us": f.cost_us,
        "rules": list(f.rules),
        "knobs": list(f.knobs),
    }
