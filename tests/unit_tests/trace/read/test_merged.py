"""Traces of several ranks in one file, put together for a viewer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from overlapkit.errors import InputError
from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options
from overlapkit.trace.ranks import settle_ranks
from support.trace_generator import write_kineto
from support.trace_reports import quick

STYLES = {
    "brackets": lambda rank, process: f"[TP{rank:02d}] {process}",
    "inside": lambda rank, process: f"[TP{rank:02d} {process}]",
    "rank": lambda rank, process: f"[rank {rank}] {process}",
    "million": lambda rank, process: 1_000_000 * rank + process,
}


def together(paths, target, rename):
    """The events of all files in one, with the head of the first."""
    head, events = None, []
    for rank, path in enumerate(paths):
        document = json.loads(Path(path).read_text())
        for event in document.pop("traceEvents"):
            if isinstance(event.get("pid"), int):
                event["pid"] = rename(rank, event["pid"])
            events.append(event)
        head = head or document
    target.write_text(json.dumps({**head, "traceEvents": events}))
    return str(target)


@pytest.fixture
def paths(tmp_path):
    return [t.path for t in write_kineto(quick("late rank"), tmp_path)]


@pytest.mark.parametrize("style", STYLES)
def test_each_rank_is_reported_as_from_its_own_file(style, paths, tmp_path):
    one = together(paths, tmp_path / "merged.json", STYLES[style])
    found = settle_ranks(analyse_file(one, Options()), None)
    apart = settle_ranks([r for p in paths for r in analyse_file(p, Options())], None)
    assert [r.rank for r in found] == [0, 1, 2, 3]
    for mine, own in zip(found, apart, strict=True):
        assert (mine.steps, mine.whole, mine.gpus) == (own.steps, own.whole, 1)
        assert [d.id for d in mine.diagnoses] == [d.id for d in own.diagnoses]
        assert mine.calls.keys() == own.calls.keys()


@pytest.mark.parametrize(
    "rename",
    [
        lambda rank, process: f"job{rank}",
        lambda rank, process: process + rank if process > 100 else process,
        lambda rank, process: 1_000_000 * rank + process if process > 100 else process,
    ],
    ids=["other names", "as recorded", "not on the device"],
)
def test_launches_that_cannot_be_told_apart_are_refused(rename, paths, tmp_path):
    with pytest.raises(InputError, match="give the trace of each rank"):
        analyse_file(together(paths, tmp_path / "merged.json", rename), Options())


def test_a_process_with_a_large_number_is_one_rank(paths, tmp_path):
    one = together(paths[:1], tmp_path / "one.json", lambda _, p: p + 3_000_000 if p else p)
    (report,) = analyse_file(one, Options())
    (own,) = analyse_file(paths[0], Options())
    assert (report.steps, report.rank) == (own.steps, own.rank)


DATA = Path(__file__).parents[3] / "data/traces"
CPU = [DATA / f"megatron-overlap.rank{rank}.json.gz" for rank in (0, 1)]


@pytest.mark.parametrize("style", STYLES)
def test_cpu_ranks_are_told_apart(style, tmp_path):
    plain = []
    for rank, path in enumerate(CPU):
        plain.append(tmp_path / f"rank{rank}.json")
        plain[-1].write_bytes(gzip.decompress(path.read_bytes()))
    one = together(plain, tmp_path / "merged.json", STYLES[style])
    found = settle_ranks(analyse_file(one, Options()), None)
    apart = settle_ranks([r for p in plain for r in analyse_file(str(p), Options())], None)
    assert [(r.rank, r.source) for r in found] == [(0, "cpu"), (1, "cpu")]
    for mine, own in zip(found, apart, strict=True):
        assert (mine.steps, mine.whole) == (own.steps, own.whole)


def test_cpu_ranks_that_cannot_be_told_apart_are_refused(tmp_path):
    plain = []
    for rank, path in enumerate(CPU):
        plain.append(tmp_path / f"rank{rank}.json")
        plain[-1].write_bytes(gzip.decompress(path.read_bytes()))
    one = together(plain, tmp_path / "merged.json", lambda rank, process: process + rank)
    with pytest.raises(InputError, match="give the trace of each rank"):
        analyse_file(one, Options())
