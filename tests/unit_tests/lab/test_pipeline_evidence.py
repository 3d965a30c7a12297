"""The records of the grid and of the pipeline's hazards still fit the source."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from overlapkit.lab.scenarios import grid

EVIDENCE = Path(__file__).parents[3] / "docs" / "evidence"


def read(name: str) -> Any:
    return json.loads((EVIDENCE / name).read_text())


def test_the_grid_that_was_run_is_the_grid() -> None:
    record = read("lab-grid.json")
    for ranks in grid.RANKS:
        layouts = Counter(one.layout for one in grid.combinations(ranks))
        assert record["by layout"][f"grid-{ranks}"] == layouts
    assert record["combinations"] == sum(len(grid.combinations(ranks)) for ranks in grid.RANKS)
    # The record has the claims in the wording of its day, in the order in which they are judged.
    judged = (grid.ALLOWED, grid.ALIKE, grid.EQUAL, grid.CLOSE)
    assert [claim["outcome"] for claim in record["claims"]] == ["confirmed"] * len(judged)


def test_both_hazards_were_seen_once_there_are_more_microbatches_than_stages() -> None:
    for case in read("pipeline-hazards.json")["cases"]:
        more = case["microbatches"] > case["pipeline stages"]
        assert case["differing"] == (case["gradients"] if more else 0), case
        if "messages that arrive as another" in case:
            assert (case["messages that arrive as another"] > 0) is more
