"""Ranks of several files: where they are read, and which rank the others wait for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overlapkit.errors import InputError
from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.document import trace_document
from overlapkit.trace.rank_report import Options
from overlapkit.trace.ranks import across, rank_in_name, settle_ranks
from overlapkit.trace.text import headline
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
        ("gpu-7_2345.1700000000000000000.pt.trace.json.gz", None),
        ("worker2.1700000000000000000.pt.trace.json", 2),
        ("rank5.1700000000000000000.pt.trace.json.gz", 5),
        ("node3_811-rank-6.1700000000000000000.pt.trace.json.gz", 6),
        ("libkineto_trace_2345.json", None),
        ("rank4.json.zst", 4),
        ("rank4.nsys-rep", 4),
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


def cycle(tmp_path, name: str, start: int, **head) -> str:
    """A trace of one step that begins at a time in microseconds."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    work = [tiny.kernel(tiny.GEMM, start, 100), tiny.kernel(tiny.ALL_GATHER, start + 50, 100)]
    ranges = tiny.step(start // 1000, start, 200)
    return tiny.write(path, [ranges, *work], **head)


def reports_of(paths):
    return [report for path in paths for report in analyse_file(path, Options())]


@pytest.mark.parametrize("where", ["name", "json", "worker"])
def test_several_traces_of_a_rank_are_cycles(tmp_path, where):
    paths = []
    for start in (9000, 1000):
        for rank in (0, 1):
            recorded = {"distributedInfo": {"rank": rank, "world_size": 2}}
            name = f"{start}/rank{rank}.json" if where == "name" else f"{start}/t{'ab'[rank]}.json"
            if where == "worker":
                name = f"node_{70 + rank}.{start}000000000000.pt.trace.json"
            head = recorded if where == "json" else {}
            paths.append(cycle(tmp_path, name, start, **head))
    reports = settle_ranks(reports_of(paths), None)
    assert [(r.rank, r.cycle) for r in reports] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert [r.steps[0].window.number for r in reports] == [1, 9, 1, 9]
    assert set(across(reports).step_ns) == {0, 1}
    document = trace_document(reports)
    assert document.across_ranks.ranks == 2
    assert [(r.rank, r.cycle) for r in document.ranks] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert headline(document).startswith("2 ranks") and "4 traces" in headline(document)


def test_traces_of_one_rank_at_the_same_time_are_no_cycles(tmp_path):
    head = {"distributedInfo": {"rank": 0, "world_size": 2}}
    paths = [cycle(tmp_path, f"{name}.json", 1000, **head) for name in "ab"]
    reports = settle_ranks(reports_of(paths), None)
    assert [r.cycle for r in reports] == [None, None]
    assert any("also the rank of" in w for w in reports[1].warnings)
    assert across(reports) is None


def test_the_late_rank_is_found_over_all_cycles(tmp_path):
    truths = write_kineto(quick("late rank"), tmp_path)
    once = across(analysed(truths))
    paths = []
    for number, shift in enumerate((0, 10**9)):
        for truth in truths:
            document = json.loads(Path(truth.path).read_text())
            for event in document["traceEvents"]:
                if "ts" in event:
                    event["ts"] += shift
            path = tmp_path / f"{number}" / Path(truth.path).name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(document))
            paths.append(str(path))
    twice = across(settle_ranks(reports_of(paths), None))
    assert twice.late_rank == once.late_rank == 2
    for rank, waiting in once.waiting.items():
        assert twice.waiting[rank].waiting_ns == 2 * waiting.waiting_ns
        assert twice.waiting[rank].matched == 2 * waiting.matched


def exchanges(tmp_path, rank, lengths, name="nccl:all_to_all", at=1000, **args):
    """A trace of kernels of sends and receives that a range on their stream surrounds."""
    events = []
    for place, length in enumerate(lengths):
        start = at + 1000 * place
        events += [
            tiny.kernel(tiny.SEND_RECV, start, length, 20, **args),
            {
                "ph": "X",
                "cat": "gpu_user_annotation",
                "name": name,
                "pid": 0,
                "tid": 20,
                "ts": start,
                "dur": length,
            },
        ]
    head = {"distributedInfo": {"rank": rank, "world_size": 2}}
    return tiny.write(tmp_path / f"rank{rank}.json", events, **head)


def late_rank(paths):
    together = across(settle_ranks(reports_of(paths), None))
    return together.late_rank, {r: w.matched for r, w in together.waiting.items()}


def test_the_late_rank_is_found_in_all_to_alls(tmp_path):
    paths = [exchanges(tmp_path, 0, [500] * 4), exchanges(tmp_path, 1, [100] * 4)]
    assert late_rank(paths) == (1, {0: 4, 1: 4})


def test_transfers_of_a_pipeline_are_not_matched(tmp_path):
    paths = [
        exchanges(tmp_path, rank, [length] * 4, name="nccl:send 0->1")
        for rank, length in ((0, 500), (1, 100))
    ]
    assert late_rank(paths) == (None, {})


@pytest.mark.parametrize("ranks", ["[0, 1]", None])
def test_ranks_that_name_a_group_differently_are_matched(tmp_path, ranks):
    paths = []
    for rank, length in ((0, 500), (1, 100)):
        args = {"Process Group Name": f"local_{rank}", "Group size": 2}
        if ranks is not None:
            args["Process Group Ranks"] = ranks
        paths.append(exchanges(tmp_path, rank, [length] * 4, **args))
    assert late_rank(paths) == (1, {0: 4, 1: 4})


def test_groups_of_other_ranks_are_not_matched(tmp_path):
    paths = []
    for rank, length in ((0, 500), (1, 100)):
        args = {"Process Group Name": "7", "Process Group Ranks": f"[{rank}, {rank + 8}]"}
        paths.append(exchanges(tmp_path, rank, [length] * 4, **args))
    assert late_rank(paths) == (None, {})


def waiting(tmp_path, rank, length):
    """Two collectives at once in each of three steps; compute is short."""
    info = {"distributedInfo": {"rank": rank, "world_size": 2}}
    group = {"Process Group Description": "mesh_dp", "Collective name": "allreduce"}
    events = []
    for n in range(3):
        at = 20_000 * n
        events += [tiny.step(n, at, 10_000), tiny.kernel(tiny.GEMM, at, 500)]
        events += [
            tiny.kernel(
                "ncclDevKernel_AllReduce_Sum_f32_RING_LL", at + 1000, length, stream, **group
            )
            for stream in (20, 21)
        ]
    return tiny.write(tmp_path / f"rank{rank}.json", events, **info)


def test_collectives_at_the_same_time_wait_once(tmp_path):
    paths = [waiting(tmp_path, 0, 1000), waiting(tmp_path, 1, 8000)]
    together = across(settle_ranks(reports_of(paths), None))
    assert together.late_rank == 0
    assert together.exposed_waiting_pct == pytest.approx(100 * 8 / 9)
    assert together.waiting[1].exposed_ns == 3 * 8000 * 1000


def test_a_rank_that_waits_for_a_late_one_is_not_bandwidth_bound(overlapkit, tmp_path):
    paths = [waiting(tmp_path, 0, 1000), waiting(tmp_path, 1, 8000)]
    alone = overlapkit("trace", paths[1], "--json").document
    assert "bandwidth-bound" in {d["id"] for d in alone["diagnoses"]}
    both = overlapkit("trace", *paths, "--json").document
    assert {d["id"] for d in both["diagnoses"]} >= {"late-rank"}
    assert "bandwidth-bound" not in {d["id"] for d in both["diagnoses"]}


def test_a_diagnosis_of_some_ranks_names_them(overlapkit, tmp_path):
    paths = [waiting(tmp_path, 0, 7500), waiting(tmp_path, 1, 8000)]
    shared = overlapkit("trace", *paths).out
    assert "ms a step, of which" in shared and "rank 0, 1" not in shared
    # Rank 2 computes all the time.
    busy = [tiny.kernel(tiny.GEMM, 20_000 * n, 9_900) for n in range(3)]
    ranges = [tiny.step(n, 20_000 * n, 10_000) for n in range(3)]
    info = {"distributedInfo": {"rank": 2, "world_size": 3}}
    third = tiny.write(tmp_path / "rank2.json", [*busy, *ranges], **info)
    assert "a step, rank 0, 1, of which" in overlapkit("trace", *paths, third).out
