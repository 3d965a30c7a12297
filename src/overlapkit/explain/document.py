"""The report and the difference as JSON interfaces (docs/json.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.bridge.training.decisions import RULES, Decision
from overlapkit.explain.difference import Difference
from overlapkit.explain.report import Report
from overlapkit.output.numbers import plain

SCHEMA = "overlapkit/explain/v1"
DIFFERENCE_SCHEMA = "overlapkit/explain-difference/v1"


def difference_json(difference: Difference) -> dict[str, Any]:
    """The difference as the JSON interface `overlapkit/explain-difference/v1` (docs/json.md)."""
    return {
        "schema": DIFFERENCE_SCHEMA,
        "before": _side(difference.before),
        "after": _side(difference.after),
        "changes": [
            {
                "kind": c.of.kind,
                "knob": c.of.knob,
                "rule": c.of.rule,
                "before": plain(c.before),
                "after": plain(c.after),
                "causes": [
                    {"key": key, "before": plain(old), "after": plain(new)}
                    for key in c.causes
                    for old, new in [difference.keys[key]]
                ],
                "reason": c.reason,
            }
            for c in difference.changes
        ],
    }


def _side(report: Report) -> dict[str, Any]:
    return {
        "config": report.source,
        "world_size": report.world_size,
        "findings": len(report.findings),
        "decisions": [decision_json(d) for d in report.findings],
    }


def source_of(rule_id: str) -> tuple[str, int]:
    """Where a rule is declared: file, relative to the repository in a checkout, and line."""
    declared = RULES[rule_id]
    root = Path(__file__).resolve().parents[3]
    in_checkout = (root / "pyproject.toml").is_file()
    return ("src/" if in_checkout else "") + declared.path, declared.line


def decision_json(decision: Decision) -> dict[str, Any]:
    """A decision as the JSON interface shows it."""
    file, line = source_of(decision.rule)
    return {
        "knob": decision.knob,
        "requested": plain(decision.requested),
        "effective": plain(decision.effective),
        "outcome": decision.outcome.value,
        "reason": decision.reason,
        "remedy": decision.remedy,
        "rule": decision.rule,
        "dimension": decision.dimension,
        "source": {"file": file, "line": line},
    }


def report_json(report: Report) -> dict[str, Any]:
    """The report as the JSON interface `overlapkit/explain/v1` (docs/json.md)."""
    a = report.assumptions
    return {
        "schema": SCHEMA,
        "config": report.source,
        "framework": report.framework,
        "world_size": report.world_size,
        "data_parallel_size": report.data_parallel_size,
        "gpu": {"name": a.gpu_name, "assumed": not a.gpu_given},
        "transformer_engine": a.te,
        "environment": a.environment_source,
        "findings": len(report.findings),
        "decisions": [decision_json(d) for d in report.decisions],
        "effective": {k: plain(v) for k, v in report.effective.items()},
        "launch_env": {v.name: v.value for v in report.launch_env},
        "launch_env_reasons": {v.name: v.reason for v in report.launch_env},
        "notes": list(report.notes),
    }
