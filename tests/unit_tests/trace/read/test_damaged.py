"""Mutated traces: an error in one line or a report whose parts add up, never a traceback."""

from __future__ import annotations

import gzip
import io
import json
import sqlite3

import msgspec
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from rich.console import Console

from overlapkit.errors import InputError
from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.document import trace_document
from overlapkit.trace.page import trace_page
from overlapkit.trace.rank_report import Options
from overlapkit.trace.ranks import settle_ranks
from overlapkit.trace.tables import show_trace
from support import tiny_trace as tiny
from support.property_tests import examples
from support.trace_generator import SCENARIOS, write_kineto, write_nsys

SEED = json.dumps(
    tiny.document(
        [
            tiny.step(1, 1000, 200),
            tiny.kernel(tiny.GEMM, 1000.125, 100, correlation=1, grid=[1, 2, 3]),
            tiny.kernel(
                tiny.REDUCE_SCATTER,
                1050,
                100.5,
                stream=20,
                **{"Collective name": "reduce_scatter", "In msg nelems": 8, "Group size": 2},
            ),
            tiny.kernel("Memcpy HtoD (Pinned -> Device)", 1160, 10, cat="gpu_memcpy"),
            tiny.kernel("launch", 900, 3, cat="cuda_runtime", correlation=1),
            tiny.kernel("gloo:all_reduce", 900, 3, cat="user_annotation"),
            tiny.kernel("aten::mm", 900, 3, cat="cpu_op"),
        ],
        distributedInfo={"rank": 0, "world_size": 2, "pg_config": [{"pg_name": "0"}]},
        deviceProperties=[{"id": 0, "name": "NVIDIA H100"}],
    )
).encode()
TOKENS = [
    b"null", b"NaN", b"-Infinity", b"1e999", b"-1", b"99999999999999999999", b'"', b"\\", b"{",
    b"}", b"[", b"]", b",", b":", b"\xff", b"\0", b'"x"', b"true", b"{}", b"[[]]", b"\\ud800",
    b"ProfilerStep#99999999999999999999", b"nccl", b"1.5e3", b"0.0005", b'"stream 7"',
]  # fmt: skip


def survive(path) -> None:
    try:
        reports = analyse_file(str(path), Options(owners=True, timeline=True))
    except InputError as error:
        assert "\n" not in str(error)
        return
    reports = settle_ranks(reports, None)
    document = trace_document(reports)
    json.dumps(msgspec.to_builtins(document), allow_nan=False)
    msgspec.json.encode(document)
    show_trace(document, Console(file=io.StringIO(), width=100))
    trace_page(document, [report.timeline for report in reports]).encode()
    for report in reports:
        for times in (report.whole, *report.steps):
            assert sum(times.parts.values()) == times.step
            assert min(times.parts.values()) >= 0


@examples(40, 1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_text(tmp_path, data):
    text = bytearray(SEED)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text)))
        length = data.draw(st.sampled_from([0, 1, 2, 5, 30, 200]))
        token = data.draw(st.sampled_from(TOKENS) | st.binary(max_size=6))
        text[place : place + length] = token
    path = tmp_path / "t.json"
    path.write_bytes(bytes(text))
    survive(path)


@examples(40, 800, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_values(tmp_path, data):
    """Well-formed JSON with any value anywhere."""
    value = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    value = value | st.builds(list) | st.builds(dict) | st.just("7")
    value = value | st.lists(st.integers(), max_size=3)
    document = json.loads(SEED)
    for _ in range(data.draw(st.integers(1, 4))):
        target = data.draw(st.sampled_from([document, *document["traceEvents"]]))
        if isinstance(target.get("args"), dict) and data.draw(st.booleans()):
            target = target["args"]
        keys = [k for k in target if k != "traceEvents"] or ["more"]
        target[data.draw(st.sampled_from(keys))] = data.draw(value)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(document))
    survive(path)


@examples(40, 400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=3))
def test_mutated_gzip(tmp_path, place, replacement):
    packed = bytearray(gzip.compress(SEED * 1, mtime=0))
    place %= len(packed)
    packed[place : place + len(replacement)] = replacement
    path = tmp_path / "t.json.gz"
    path.write_bytes(bytes(packed))
    survive(path)


def test_one_bad_event_costs_one_event(tmp_path):
    """A missing quote or brace in a large file must not swallow the rest of it."""
    truth = write_kineto(SCENARIOS["dp overlapped"].but(noise=0), tmp_path)[0]
    path = tmp_path / "rank0.json"
    text = path.read_text()
    middle = text.index('"cat": "kernel"', len(text) // 2)
    for old, new in (
        ('"cat": "kernel"', '"cat": "kernel'),
        ('"cat": "kernel"', '"cat": kernel"'),
        ('"args": {', '"args": {{'),
        ('"args": {', '"args": }'),
        ('"grid": [', '"grid": ]'),
        ('"grid": [', '"grid": [['),
    ):
        damaged = text[:middle] + text[middle:].replace(old, new, 1)
        path.write_text(damaged)
        (report,) = analyse_file(str(path), Options())
        assert truth.device_events - 4 <= report.kernels <= truth.device_events, new
        assert any("unreadable" in w for w in report.warnings), new


def test_mutated_databases(tmp_path):
    write_nsys(SCENARIOS["dp overlapped"].but(noise=0, steps=1), tmp_path)
    path = tmp_path / "rank0.sqlite"
    whole = path.read_bytes()
    other = tmp_path / "other.sqlite"
    for step in range(25):
        raw = bytearray(whole)
        place = (step * 7919 * 131) % len(raw)
        raw[place : place + 40] = bytes([step * 4 % 256]) * 40
        other.write_bytes(bytes(raw))
        survive(other)
    for keep in (20, 100, 5000, len(whole) // 2):
        other.write_bytes(whole[:keep])
        survive(other)


def test_databases_of_other_shape(tmp_path):
    path = tmp_path / "t.sqlite"

    def made(*statements: str) -> None:
        path.unlink(missing_ok=True)
        with sqlite3.connect(path) as connection:
            for statement in statements:
                connection.execute(statement)
        survive(path)

    table = "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL"
    made("CREATE TABLE a (b)")
    made(f"{table} (x)")
    made(f"{table} (start, end)")
    made(f"{table} (start, end)", "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (1, 5)")
    made(
        f"{table} (start, end, deviceId, globalPid)",
        "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES ('a', x'00', 'd', NULL), (5, 1, 0, 0), "
        "(1, 9223372036854775807, 0, 0), (3, 4, 1e30, 'p'), (10, 12, 0, 0)",
    )
    made(
        "CREATE VIEW CUPTI_ACTIVITY_KIND_KERNEL AS WITH RECURSIVE c(start, end) AS "
        "(SELECT 1, 2 UNION ALL SELECT start + 1, end + 1 FROM c) SELECT * FROM c"
    )
