"""The generator of profiles: its truth is right, and its files show the same."""

from __future__ import annotations

import gzip
import json
import sqlite3
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.trace_generator import (
    CHANGES,
    SCENARIOS,
    Scenario,
    parts,
    write_kineto,
    write_nsys,
)
from support.trace_truth import COMMUNICATION, COMPUTE, MEMORY, DeviceWork

DEVICE = {"kernel", "gpu_memcpy", "gpu_memset", "Kernel", "Memcpy", "Memset"}


def load(path: str) -> dict[str, Any]:
    """A trace with its numbers exact."""
    raw = Path(path).read_bytes()
    text = gzip.decompress(raw) if path.endswith(".gz") else raw
    return json.loads(text, parse_float=Decimal)


def span(event: dict[str, Any]) -> tuple[int, int]:
    """Start and end in nanoseconds."""
    return int(event["ts"] * 1000), int((event["ts"] + event["dur"]) * 1000)


def kind_of(name: str) -> int:
    """An own, crude classification by name."""
    if any(word in name for word in ("nccl", "userbuffers", "deep_ep", "nvshmem", "PtoP")):
        return COMMUNICATION
    return MEMORY if name.startswith(("Memcpy", "Memset")) else COMPUTE


@given(
    st.lists(
        st.tuples(
            st.integers(-5, 45), st.integers(0, 20), st.sampled_from([COMPUTE, MEMORY, "TP", "DP"])
        ),
        max_size=25,
    )
)
def test_sweep_agrees_with_marking_each_nanosecond(events: list[tuple[int, int, Any]]) -> None:
    """The truth's own algorithm against the dumbest one there is."""
    work = DeviceWork()
    marks: dict[Any, set[int]] = {kind: set() for kind in (COMPUTE, MEMORY, "TP", "DP")}
    for start, length, kind in events:
        dimension = kind if isinstance(kind, str) else None
        work.add(start, start + length, COMMUNICATION if dimension else kind, dimension)
        marks[kind] |= set(range(max(0, start), min(40, start + length)))
    truth = work.truth(0, 40)
    comm, compute = marks["TP"] | marks["DP"], marks[COMPUTE]
    assert truth.compute_ns == len(compute)
    assert truth.comm_ns == len(comm)
    assert truth.exposed_comm_ns == len(comm - compute)
    assert truth.hidden_comm_ns == len(comm & compute)
    assert truth.memory_ns == len(marks[MEMORY])
    assert truth.exposed_memory_ns == len(marks[MEMORY] - comm - compute)
    assert truth.idle_ns == 40 - len(comm | compute | marks[MEMORY])
    for dimension in truth.comm_by_dimension:
        assert truth.exposed_by_dimension[dimension] == len(marks[dimension] - compute)


@pytest.mark.parametrize("name", SCENARIOS)
def test_truth_adds_up_and_matches_the_file(name: str, tmp_path: Path) -> None:
    """Each step's parts sum to it, and the file read back gives the same nanoseconds."""
    scenario = SCENARIOS[name]
    for rank in write_kineto(scenario, tmp_path):
        for truth in [*rank.steps.values(), rank.whole]:
            assert sum(parts([truth]).values()) == truth.step_ns
            assert truth.hidden_comm_ns + truth.exposed_comm_ns == truth.comm_ns
            assert max(truth.exposed_by_dimension.values()) <= truth.exposed_comm_ns
        events = load(rank.path)["traceEvents"]
        device = [event for event in events if event.get("cat") in DEVICE]
        assert len(device) == rank.device_events
        assert sum("cat" in event for event in events) == rank.events
        assert rank.device_events < 0.12 * rank.events
        read = DeviceWork()
        for event in device:
            kind = kind_of(event["name"])
            read.add(*span(event), kind, "other" if kind == COMMUNICATION else None)
        whole = read.truth(min(read.start), max(read.end))
        assert parts([whole]) == parts([rank.whole])
        assert whole.hidden_comm_ns == rank.whole.hidden_comm_ns


def test_steps_tile_the_trace(tmp_path: Path) -> None:
    """One step starts where the other ends; a gap is idle time at a step's end."""
    idle = {}
    for gap in (0, 70_000):
        steps = list(write_kineto(Scenario(gap_ns=gap), tmp_path)[0].steps.values())
        assert {after.start_ns - before.end_ns for before, after in pairwise(steps)} == {0}
        idle[gap] = [step.idle_ns for step in steps[:-1]]
    assert {b - a for a, b in zip(idle[0], idle[70_000], strict=True)} == {70_000}


@pytest.mark.parametrize("name", ["everything", "gap between steps", "2024", "layernorm waits"])
def test_step_ranges_enclose_their_work(name: str, tmp_path: Path) -> None:
    """Device ranges, one per stream, span the step; launches are in the range on the host."""
    rank = write_kineto(SCENARIOS[name], tmp_path)[0]
    events = load(rank.path)["traceEvents"]
    launches = {
        event["args"]["correlation"]: span(event)
        for event in events
        if event.get("cat") == "cuda_runtime"
    }
    in_order = [launches[correlation] for correlation in sorted(launches)]
    assert all(before[1] <= after[0] for before, after in pairwise(in_order))
    device = [event for event in events if event.get("cat") in DEVICE]
    base = min(span(event)[0] for event in device) - rank.whole.start_ns
    for number, truth in rank.steps.items():
        ranges = [event for event in events if event.get("name") == f"ProfilerStep#{number}"]
        on_device = [span(event) for event in ranges if event["cat"] == "gpu_user_annotation"]
        (host,) = (span(event) for event in ranges if event["cat"] == "user_annotation")
        assert len(on_device) > 1
        assert min(start for start, _ in on_device) - base == truth.start_ns
        last = max(end for _, end in on_device) - base
        assert last <= truth.end_ns if SCENARIOS[name].gap_ns else last == truth.end_ns
        for event in device:
            start, end = span(event)
            if truth.start_ns <= start - base < truth.end_ns:
                launch = launches[event["args"]["correlation"]]
                assert host[0] <= launch[0] <= launch[1] <= host[1]
                assert launch[1] <= start <= end <= truth.end_ns + base


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_equal_seeds_give_equal_bytes(suffix: str, tmp_path: Path) -> None:
    """And another seed another file."""
    contents = []
    for index, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(index)
        folder.mkdir()
        write_kineto(Scenario(seed=seed), folder, gz=suffix.endswith("gz"))
        contents.append((folder / f"rank0{suffix}").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_at_least_bytes_adds_whole_steps(tmp_path: Path) -> None:
    """A file grows by steps until it is large enough."""
    rank = write_kineto(Scenario(steps=1), tmp_path, at_least_bytes=3_000_000)[0]
    assert 3_000_000 <= Path(rank.path).stat().st_size < 4_000_000
    assert len(rank.steps) > 3


@pytest.mark.parametrize("change", CHANGES)
def test_change_moves_the_part_it_names(change: str, tmp_path: Path) -> None:
    """The part that a change is said to move accounts for most of the difference of steps."""
    base, new, moved = CHANGES[change]
    before = write_kineto(base, tmp_path)[0].whole
    after = write_kineto(new, tmp_path)[0].whole
    differences = {part: value - parts([before])[part] for part, value in parts([after]).items()}
    slower = after.step_ns - before.step_ns
    assert sum(differences.values()) == slower
    if moved:
        assert slower > 0.05 * before.step_ns
        assert differences[moved] > 0.8 * slower
    else:
        assert abs(slower) < 0.01 * before.step_ns


def test_scenarios_show_what_they_are_named_after(tmp_path: Path) -> None:
    """Overlap hides, its absence exposes, in the dimension concerned."""

    def whole(name: str) -> Any:
        return write_kineto(SCENARIOS[name], tmp_path)[0].whole

    overlapped, exposed = whole("dp overlapped"), whole("dp exposed")
    assert overlapped.overlap_pct > 60
    assert exposed.overlap_pct == 0
    assert whole("one bucket").exposed_comm_ns > 2 * overlapped.exposed_comm_ns
    for name, cause in (("single queue", "single_queue"), ("layernorm waits", "layernorm_waits")):
        without = write_kineto(SCENARIOS[name].but(**{cause: False}), tmp_path)[0].whole
        assert whole(name).exposed_comm_ns > 1.2 * without.exposed_comm_ns
        assert whole(name).step_ns > 1.02 * without.step_ns
    assert whole("slowed compute").compute_ns > 1.02 * overlapped.compute_ns
    assert whole("tp exposed").exposed_by_dimension["TP"] > 10_000_000
    assert whole("tp userbuffers").exposed_by_dimension["TP"] == 0
    assert whole("tp peer copies").comm_by_dimension["TP"] > 10_000_000
    assert whole("pp bubbles").exposed_by_dimension["PP"] > 5_000_000
    assert whole("pp interleaved").exposed_by_dimension["PP"] == 0
    assert whole("ep all-to-all").exposed_by_dimension["EP"] > 5_000_000
    assert whole("ep deepep").exposed_by_dimension["EP"] == 0


def test_the_late_rank_waits_least(tmp_path: Path) -> None:
    """Every other rank's collectives run for the time that the late one stalled."""
    scenario = SCENARIOS["late rank"]
    ranks = write_kineto(scenario, tmp_path)
    late = ranks.pop(2)
    for rank in ranks:
        assert rank.waited_ns > 0.9 * scenario.late_ns * scenario.steps
    assert late.waited_ns < 0.3 * scenario.late_ns * scenario.steps


def test_metadata_names_the_group_of_each_collective(tmp_path: Path) -> None:
    """Descriptions, sizes and ranks agree with the groups of the file's head."""
    scenario = SCENARIOS["everything"]
    rank = write_kineto(scenario, tmp_path)[1]
    trace = load(rank.path)
    groups = {group["pg_name"]: group for group in trace["distributedInfo"]["pg_config"]}
    seen = set()
    for event in trace["traceEvents"]:
        arguments = event.get("args", {})
        if event.get("cat") == "kernel" and event["name"].startswith("nccl"):
            group = groups[arguments["Process Group Name"]]
            assert arguments["Process Group Description"] == group["pg_desc"]
            assert arguments["Group size"] == len(group["ranks"])
            assert arguments["Process Group Ranks"] == str(group["ranks"])
            assert rank.rank in group["ranks"]
            seen.add(group["pg_desc"])
    assert "TENSOR_MODEL_PARALLEL_GROUP" not in seen  # userbuffers carry it
    assert len(seen) == 6


@pytest.mark.parametrize("name", ["everything", "tp peer copies", "ep deepep"])
def test_nsys_export_holds_the_same_work(name: str, tmp_path: Path) -> None:
    """The database's intervals give the truth of the JSON's."""
    expected = write_kineto(SCENARIOS[name], tmp_path)[0]
    rank = write_nsys(SCENARIOS[name], tmp_path)[0]
    assert rank.steps == expected.steps
    database = sqlite3.connect(rank.path)
    read = DeviceWork()
    kernels = database.execute(
        "SELECT start, end, value FROM CUPTI_ACTIVITY_KIND_KERNEL"
        " JOIN StringIds ON StringIds.id = demangledName"
    )
    for start, end, text in kernels:
        kind = kind_of(text)
        read.add(start, end, kind, "other" if kind == COMMUNICATION else None)
    for start, end, copy in database.execute(
        "SELECT start, end, copyKind FROM CUPTI_ACTIVITY_KIND_MEMCPY"
    ):
        read.add(start, end, *((COMMUNICATION, "other") if copy == 10 else (MEMORY, None)))
    for start, end in database.execute("SELECT start, end FROM CUPTI_ACTIVITY_KIND_MEMSET"):
        read.add(start, end, MEMORY, None)
    assert parts([read.truth(min(read.start), max(read.end))]) == parts([expected.whole])
    ranges = database.execute("SELECT text FROM NVTX_EVENTS WHERE text IS NOT NULL").fetchall()
    assert [text for (text,) in ranges] == [f"ProfilerStep#{number}" for number in rank.steps]


@pytest.mark.parametrize(
    "wrong",
    [
        {"tp_comm": "magic"},
        {"dp": 8, "ep": 3},
        {"ranks": 9},
        {"generation": "2022"},
    ],
)
def test_impossible_scenarios_are_refused(wrong: dict[str, Any]) -> None:
    """With the value that is wrong."""
    with pytest.raises(ValueError, match=str(next(reversed(wrong.values())))):
        Scenario(**wrong)
