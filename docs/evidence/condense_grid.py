"""What a run of `overlapkit lab grid --json` saw, in short: the record kept here.

uv run overlapkit lab grid --link none --json | uv run python docs/evidence/condense_grid.py
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any


def condensed(document: dict[str, Any]) -> dict[str, Any]:
    """Versions, verdicts, and how many combinations of each layout were trained."""
    (scenario,) = document["scenarios"]
    names = {
        block["name"]: [variant["name"] for variant in block["variants"]]
        for block in scenario["blocks"]
        if block["name"] != "grid-whole"
    }
    return {
        "command": "uv run overlapkit lab grid --link none --json",
        "machine": document["machine"],
        "seconds": document["seconds"],
        "claims": scenario["claims"],
        "combinations": sum(map(len, names.values())),
        "by layout": {
            block: dict(Counter(name.partition(".")[0] for name in found))
            for block, found in names.items()
        },
    }


if __name__ == "__main__":
    print(json.dumps(condensed(json.load(sys.stdin)), indent=2))
