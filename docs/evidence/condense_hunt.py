"""What hunts remember, in short: the record kept here.

uv run python docs/evidence/condense_hunt.py ~/.cache/overlapkit/lab-hunt.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from overlapkit.lab.hunt.document import covered
from overlapkit.lab.hunt.generate import grid_pairs
from overlapkit.lab.hunt.memory import Memory, remembered


def condensed(memory: Memory) -> dict[str, Any]:
    """Versions, seeds, what became of the cases, the pairs they cover, and the cases themselves."""
    cases = [one.case for one in memory.tried]
    pairs = covered(cases)
    return {
        "versions": memory.versions,
        "seeds": memory.seeds,
        "cases": len(cases),
        "fates": dict(Counter(one.kind for one in memory.tried)),
        "ranks": {str(size): n for size, n in sorted(Counter(c.ranks for c in cases).items())},
        "pairs": len(pairs),
        "pairs that the grid does not have": len(pairs - set(grid_pairs())),
        "tried": [{"fate": one.kind, "features": one.case.features} for one in memory.tried],
    }


if __name__ == "__main__":
    record = condensed(remembered(Path(sys.argv[1])))
    tried = record.pop("tried")
    lines = ",\n    ".join(json.dumps(one) for one in tried)
    head = json.dumps(record, indent=2).removesuffix("\n}")
    print(f'{head},\n  "tried": [\n    {lines}\n  ]\n}}')
