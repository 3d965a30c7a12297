"""The comparison as the JSON interface `overlapkit/compare/v1` (docs/json-trace.md)."""

from __future__ import annotations

from typing import Any

from overlapkit.output.numbers import us_of_ns
from overlapkit.output.printable import all_printable
from overlapkit.trace.compare.comparison import Comparison, Side
from overlapkit.trace.measure.step_times import PARTS

SCHEMA = "overlapkit/compare/v1"


def compare_json(c: Comparison) -> dict[str, Any]:
    """The comparison as the JSON interface `overlapkit/compare/v1` (docs/json-trace.md)."""
    dimensions = list({**c.base.exposed, **c.new.exposed})
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "verdict": c.verdict,
        "base": _side_json(c.base),
        "new": _side_json(c.new),
        "change_us": us_of_ns(c.change),
        "change_pct": round(100 * c.change / c.base.step, 4) if c.base.step else None,
        "spread_us": us_of_ns(c.spread),
        "parts": [
            {
                "part": part,
                "base_us": us_of_ns(c.base.parts[part]),
                "new_us": us_of_ns(c.new.parts[part]),
                "change_us": us_of_ns(c.part_change(part)),
                "moved": [
                    {
                        "name": m.name,
                        "base_us": us_of_ns(m.base),
                        "new_us": us_of_ns(m.new),
                        "change_us": us_of_ns(m.change),
                    }
                    for m in c.movers[part]
                    if abs(m.change) >= 0.5
                ],
            }
            for part in PARTS
        ],
        "exposed_by_dimension": {
            d: {
                "base_us": us_of_ns(c.base.exposed.get(d, 0.0)),
                "new_us": us_of_ns(c.new.exposed.get(d, 0.0)),
                "change_us": us_of_ns(c.new.exposed.get(d, 0.0) - c.base.exposed.get(d, 0.0)),
            }
            for d in dimensions
        },
        "warnings": c.warnings,
    }
    if c.decisions is not None:
        document["decisions"] = c.decisions
        document["keys"] = [
            {"key": key, "base": before, "new": after} for key, (before, after) in c.keys.items()
        ]
    result: dict[str, Any] = all_printable(document)
    return result


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "ranks": side.ranks,
        "steps": len(side.steps),
        "gpu": side.gpu,
        "world_size": side.world_size,
        "step_us": us_of_ns(side.step),
        "spread_us": None if side.spread is None else us_of_ns(side.spread),
    }
