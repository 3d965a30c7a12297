"""The recorded profiles of tests/data/traces are what their README says."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

TRACES = Path(__file__).parents[2] / "data" / "traces"

RANGES = {
    "ddp": {"gloo:all_reduce"},
    "megatron-overlap": {"gloo:all_gather", "gloo:all_reduce"},
    "megatron-no-overlap": {"gloo:all_gather", "gloo:all_reduce"},
    "megatron-pipeline": {"gloo:all_gather", "gloo:all_reduce", "gloo:send", "gloo:recv"},
}


def test_every_file_is_described_and_small() -> None:
    """The README explains every file in the folder."""
    files = sorted(path.name for path in TRACES.glob("*.json.gz") if "cuda" not in path.name)
    assert files == sorted(f"{kind}.rank{rank}.json.gz" for kind in RANGES for rank in (0, 1))
    readme = (TRACES / "README.md").read_text()
    for path in TRACES.iterdir():
        assert path.stat().st_size < 300_000
        assert path.name == "README.md" or f"`{path.name.split('.')[0]}`" in readme


@pytest.mark.parametrize("kind", RANGES)
def test_ranges_are_those_of_the_readme(kind: str) -> None:
    """Rank, steps, the collectives; with overlap, there are several for each step's one without."""
    for rank in (0, 1):
        trace = json.loads(gzip.decompress((TRACES / f"{kind}.rank{rank}.json.gz").read_bytes()))
        assert trace["distributedInfo"]["rank"] == rank
        ranges = Counter(
            event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"
        )
        assert {name for name in ranges if name.startswith("gloo:")} == RANGES[kind]
        if kind.startswith("megatron"):
            assert ranges["gloo:all_gather"] == (12 if kind == "megatron-overlap" else 3)
        steps = {name for name in ranges if name.startswith("ProfilerStep")}
        assert steps == {"ProfilerStep#1", "ProfilerStep#2", "ProfilerStep#3"}
