"""Several processes read a file as one does, and leave damaged files to that one."""

from __future__ import annotations

import pytest

from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_document import rank_of
from overlapkit.trace.rank_report import Options
from overlapkit.trace.read import parallel_read as ahead
from support.trace_generator import SCENARIOS, write_kineto


@pytest.fixture
def processes(monkeypatch):
    """Three processes for any file, whose blocks are small enough for all of them."""
    monkeypatch.setattr(ahead, "LARGE", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr("overlapkit.trace.read.byte_source.BLOCK", 20_000)


def both_ways(path: str) -> tuple[object, object, bool]:
    begun = ahead.read_ahead(path)
    assert begun is not None and len(begun.workers) == 3
    collected = []
    collect = type(begun).collect

    class Watched(ahead.Ahead):
        def collect(self):
            collected.append(collect(self))
            return collected[-1]

    several = analyse_file(path, Options(), Watched(begun.workers))
    alone = analyse_file(path, Options())
    used = bool(collected) and collected[-1] is not None
    return list(map(rank_of, several)), list(map(rank_of, alone)), used


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("name", ["everything", "steps on the cpu", "no steps", "2022"])
def test_the_report_is_the_same(name, gz, processes, tmp_path):
    truth = write_kineto(SCENARIOS[name].but(ranks=1), tmp_path, gz=gz)[0]
    several, alone, used = both_ways(truth.path)
    assert several == alone
    assert used


def test_digits_are_kept_here_too(processes, tmp_path):
    truth = write_kineto(SCENARIOS["2024"], tmp_path)[0]
    with pytest.raises(ahead.DigitsNeeded):
        ahead.read_ahead(truth.path).collect()
    reading = ahead.read_ahead(truth.path, exact=True).collect()
    assert sum(len(c.ts) for c in reading.devices.values()) == truth.device_events
    (report,) = analyse_file(truth.path, Options(), ahead.read_ahead(truth.path))
    assert report.whole.exposed_comm == truth.whole.exposed_comm_ns


@pytest.mark.parametrize("old", ['"grid": [', '"cat": "kernel"', '"args": {'])
def test_a_damaged_file_is_read_by_one(old, processes, tmp_path):
    truth = write_kineto(SCENARIOS["dp overlapped"], tmp_path)[0]
    path = tmp_path / "rank0.json"
    text = path.read_text()
    middle = len(text) // 2
    path.write_text(text[:middle] + text[middle:].replace(old, old[:-1], 1))
    several, alone, used = both_ways(truth.path)
    assert several == alone
    assert not used
    path.write_text(text[:middle])
    several, alone, _ = both_ways(truth.path)
    assert several == alone
    assert "truncated" in several[0].warnings[0]


def test_small_files_and_others_are_not_read_ahead(tmp_path):
    small = tmp_path / "t.json"
    small.write_text("{}")
    assert ahead.read_ahead(str(small)) is None
    assert ahead.read_ahead(str(tmp_path)) is None
    assert ahead.read_ahead("/nowhere") is None
