"""Ranks of several files: where they are read, and which rank the others wait for."""

from __future__ import annotations

import pytest

from overlapkit.errors import InputError
from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options
from overlapkit.trace.ranks import across, rank_in_name, settle_ranks
from support import tiny_trace as tiny
from support.trace_generator import write_kineto
from support.trace_reports import analysed, quick


def test_the_late_rank_is_found(tmp_path):
    truths = write_kineto(quick("late rank"), tmp_path)
    reports = analysed(truths)
    together = across(reports)
    assert together.late_rank == 2
    assert {r: w.waiting_ns for r, w in together.waiting.items()} == {
        t.rank: t.waited_ns for t in truths
    }


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("rank3.json", 3),
        ("trace_rank-12.json.gz", 12),
        ("rank[5]_step10.json", 5),
        ("gpu2.sqlite", 2),
        ("trace_7.json", 7),
        ("4.json.gz", 4),
        ("host_123.1700000000000.pt.trace.json", None),
        ("trace.json", None),
    ],
)
def test_rank_in_a_files_name(name, rank):
    assert rank_in_name(f"/some/rank9/{name}") == rank


def test_ranks_by_position_cause_a_warning(tmp_path):
    events = [tiny.kernel(tiny.GEMM, 1000, 100)]
    paths = [tiny.write(tmp_path / name, events) for name in ("a.json", "b.json")]
    reports = [report for path in paths for report in analyse_file(path, Options())]
    settled = settle_ranks(reports, None)
    assert [r.rank for r in settled] == [0, 1]
    assert "not every file states its rank" in settled[0].warnings[-1]
    with pytest.raises(InputError, match="--rank-from name"):
        settle_ranks(reports, "name")
