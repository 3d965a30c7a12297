"""What real files contain besides well-formed events: right figures with a warning, or an error."""

from __future__ import annotations

import gzip
import json

import msgspec
import pytest

from overlapkit.errors import InputError
from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.document import trace_document
from overlapkit.trace.rank_report import Options, RankReport
from support import tiny_trace as tiny

GEMM, RS = tiny.GEMM, tiny.REDUCE_SCATTER
# Compute [0, 100), communication [50, 150): 50 us hidden, 50 us exposed.
PAIR = [tiny.kernel(GEMM, 1000, 100), tiny.kernel(RS, 1050, 100, stream=20)]


def report_of(path: str) -> RankReport:
    (report,) = analyse_file(path, Options())
    whole = report.whole
    assert sum(whole.parts.values()) == whole.step
    return report


def figures(report: RankReport) -> tuple[float, float, float]:
    whole = report.whole
    return whole.compute / 1000, whole.exposed_comm / 1000, whole.hidden_comm / 1000


def of(tmp_path, events, **head) -> RankReport:
    return report_of(tiny.write(tmp_path / "t.json", events, **head))


def of_text(tmp_path, text: str | bytes, name: str = "t.json") -> RankReport:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return report_of(str(path))


def warned(report: RankReport, words: str) -> bool:
    return any(words in w for w in report.warnings)


def test_the_plain_pair(tmp_path):
    report = of(tmp_path, PAIR)
    assert figures(report) == (100, 50, 50)
    assert report.whole.overlap_pct == 50
    assert warned(report, "no steps are marked")


@pytest.mark.parametrize(
    "extra",
    [
        {"ph": "X", "cat": "kernel", "name": GEMM, "ts": 1001, "args": {"device": 0}},
        tiny.kernel(GEMM, 1001, -5),
        tiny.kernel(GEMM, 1001, None),
        tiny.kernel(GEMM, None, 5),
        tiny.kernel(GEMM, 1001, 9e18),
        tiny.kernel(GEMM, 1001, 1e300),
        tiny.kernel(GEMM, 9e17, 5),
        tiny.kernel(GEMM, -(10**14), 5),
        tiny.kernel(GEMM, "soon", 5),
        tiny.kernel(GEMM, True, 5),
        tiny.kernel(GEMM, [1], {"a": 1}),
    ],
)
def test_device_events_without_a_usable_time_are_omitted_and_counted(tmp_path, extra):
    many = [tiny.kernel(GEMM, 1000 + i, 1) for i in range(20)]
    report = of(tmp_path, [*PAIR, extra, *many])
    assert figures(report) == (100, 50, 50)
    assert warned(report, "omitted")


@pytest.mark.parametrize(
    "extra",
    [
        tiny.kernel("x", 1, 1, cat="cpu_op"),
        tiny.kernel("x", 1, 1e6, cat="python_function"),
        {"ph": "s", "id": 1, "pid": 0, "tid": 0, "ts": 1, "cat": "ac2g", "name": "ac2g"},
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "GPU 0"}},
        {"ph": "B", "cat": "kernel", "name": GEMM, "ts": 5},
        {"ph": "X", "cat": "Trace", "name": "PyTorch Profiler (0)", "ts": 0, "dur": 1e6},
        {"ph": "X", "cat": "cuda_sync", "name": "Stream Wait", "ts": 0, "dur": 1e6, "args": {}},
        None,
        7,
        "text",
        [],
        {},
        {"ph": 5, "cat": None, "name": ["x"]},
    ],
)
def test_events_other_than_device_work_change_nothing(tmp_path, extra):
    report = of(tmp_path, [extra, *PAIR, extra])
    assert figures(report) == (100, 50, 50)


def test_old_categories_and_streams_as_text(tmp_path):
    events = [
        {**tiny.kernel(GEMM, 1000, 100, stream="7"), "cat": "Kernel"},
        {**tiny.kernel("ncclKernel_AllReduce_RING_LL_Sum_float()", 1050, 100), "cat": "Kernel"},
        {**tiny.kernel("Memcpy HtoD (Pinned -> Device)", 1160, 10), "cat": "Memcpy"},
        {**tiny.kernel("Memset (Device)", 1180, 10), "cat": "Memset"},
    ]
    events[1].update(args={}, tid="stream 20", pid=0)
    report = of(tmp_path, events)
    assert figures(report) == (100, 50, 50)
    assert report.whole.memory == 20_000
    assert report.whole.idle == 20_000


def test_events_without_arguments_or_with_strange_ones(tmp_path):
    events = [dict(e) for e in PAIR]
    del events[0]["args"]
    events[1]["args"] = ["nothing"]
    assert figures(of(tmp_path, events)) == (100, 50, 50)
    events[1]["args"] = {"device": None, "stream": {"a": 1}, "Group size": "many", "dtype": 7}
    assert figures(of(tmp_path, events)) == (100, 50, 50)


def test_overlapping_kernels_of_one_stream_count_once(tmp_path):
    events = [tiny.kernel(GEMM, 1000.0, 60.001), tiny.kernel(GEMM, 1060.0, 40), PAIR[1]]
    assert figures(of(tmp_path, events)) == (100, 50, 50)


@pytest.mark.parametrize("base", [0, 5_731_583_040_127, 1_712_345_678_901_234])
def test_nanoseconds_survive_at_any_magnitude(tmp_path, base):
    text = json.dumps(tiny.document([tiny.kernel(GEMM, "A", 0.003), tiny.kernel(RS, "B", 1.25)]))
    text = text.replace('"A"', f"{base}.001").replace('"B"', f"{base}.002")
    report = of_text(tmp_path, text)
    whole = report.whole
    assert (whole.step, whole.compute, whole.hidden_comm, whole.exposed_comm) == (
        1251,
        3,
        2,
        1248,
    )


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "nan", "-inf"])
def test_literals_that_json_does_not_have(tmp_path, literal):
    text = json.dumps(tiny.document([{**PAIR[0], "args": {"occupancy": 0, "l": [0, 0]}}, PAIR[1]]))
    text = text.replace('"occupancy": 0', f'"occupancy": {literal}')
    text = text.replace("[0, 0]", f"[{literal}, {literal}]")
    report = of_text(tmp_path, text)
    assert figures(report) == (100, 50, 50)
    assert warned(report, "NaN or Infinity")


def test_an_event_whose_duration_is_nan_is_omitted(tmp_path):
    text = json.dumps(tiny.document([*PAIR, tiny.kernel(GEMM, 1200, 7)]))
    report = of_text(tmp_path, text.replace('"dur": 7', '"dur": NaN'))
    assert figures(report) == (100, 50, 50)
    assert warned(report, "without a usable time")


def test_invalid_utf8_in_a_kernel_name(tmp_path):
    text = json.dumps(tiny.document(PAIR)).encode().replace(GEMM.encode(), b"nvjet\xff\xfe", 1)
    report = of_text(tmp_path, text)
    assert figures(report) == (100, 50, 50)
    assert warned(report, "invalid UTF-8")


def test_control_characters_and_unescaped_backslashes(tmp_path):
    text = json.dumps(tiny.document([*PAIR, tiny.kernel("odd", 1200, 10)]))
    assert figures(of_text(tmp_path, text.replace("odd", "a\tb\nc")))[0] == 110
    report = of_text(tmp_path, text.replace("odd", "C:\\path"))
    assert figures(report) == (110, 50, 50)
    assert warned(report, "not escaped, repaired")


def test_names_with_escape_sequences_and_surrogates(tmp_path):
    nasty = "nccl\\ud800\\u001b[31m\\u0000"
    text = json.dumps(tiny.document([*PAIR, tiny.kernel("odd", 1200, 10)]))
    report = of_text(tmp_path, text.replace("odd", nasty))
    assert figures(report) == (100, 60, 50)
    written = msgspec.json.encode(trace_document([report]))
    assert b"\\u001b" not in written and "\ufffd".encode() in written


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_a_truncated_file_is_read_up_to_its_end(tmp_path, keep):
    events = [tiny.kernel(GEMM, 1000 + 10 * i, 5) for i in range(400)]
    text = json.dumps(tiny.document([*PAIR, *events]), indent=1)
    report = of_text(tmp_path, text[: int(len(text) * keep)])
    assert warned(report, "truncated")
    assert 0.9 * keep * 400 < report.kernels < 402


def test_a_truncated_compressed_file(tmp_path):
    events = [tiny.kernel(GEMM, 1000 + 10 * i, 5 + i / 7) for i in range(4000)]
    packed = gzip.compress(json.dumps(tiny.document(events)).encode())
    report = of_text(tmp_path, packed[: len(packed) // 2], "t.json.gz")
    assert warned(report, "truncated")
    assert 500 < report.kernels < 4000


def test_gzip_is_recognized_by_content_and_can_have_several_members(tmp_path):
    text = json.dumps(tiny.document(PAIR)).encode()
    packed = gzip.compress(text[:100]) + gzip.compress(text[100:])
    assert figures(of_text(tmp_path, packed, "t.json")) == (100, 50, 50)
    assert figures(of_text(tmp_path, text, "t.json.gz")) == (100, 50, 50)
    assert figures(of_text(tmp_path, gzip.compress(text) + b"\0" * 512, "p.json")) == (100, 50, 50)


@pytest.mark.parametrize("indent", [None, 0, 4])
def test_any_layout_of_the_json(tmp_path, indent):
    document = tiny.document([*PAIR, *(tiny.kernel("x", 5, 1, cat="cpu_op") for _ in range(50))])
    document["after"] = {"list": [{"a": 1}, {"b": 2}], "text": '}, {"ph": "no", ]}'}
    text = json.dumps(document, indent=indent)
    report = of_text(tmp_path, text)
    assert figures(report) == (100, 50, 50)
    assert not warned(report, "ends in")
    assert figures(of_text(tmp_path, "\ufeff" + text)) == (100, 50, 50)
    assert figures(of_text(tmp_path, json.dumps(document["traceEvents"]))) == (100, 50, 50)
    first = {"traceEvents": document["traceEvents"], "distributedInfo": {"rank": 3}}
    assert of_text(tmp_path, json.dumps(first, indent=indent)).rank == 3


def test_events_in_strings_and_nested_lists_are_not_split(tmp_path):
    tricky = tiny.kernel('}, {"ph": "X"}, {', 1200, 10, shapes=[{"a": [1]}, {"b": 2}])
    assert figures(of(tmp_path, [*PAIR, tricky, tricky]))[0] == 110


def test_more_than_one_block(tmp_path, monkeypatch):
    monkeypatch.setattr("overlapkit.trace.read.byte_source.BLOCK", 777)
    tricky = tiny.kernel('}, {"ph": "X"}, {', 1200, 10, shapes=[{"a": [1]}, {"b": 2}])
    many = [tiny.kernel(GEMM, 2000 + 10 * i, 5) for i in range(300)]
    text = json.dumps(tiny.document([*PAIR, tricky, *many]))
    for content in (text.encode(), gzip.compress(text.encode())):
        report = of_text(tmp_path, content)
        assert report.kernels == 303
        assert report.whole.compute == (100 + 10 + 300 * 5) * 1000
        assert report.warnings == [
            "no steps are marked: all figures are of the whole trace",
            *report.warnings[1:],
        ]


def test_several_devices_are_reported_separately(tmp_path):
    other = [{**e, "args": {**e["args"], "device": 1}} for e in PAIR]
    other[0]["dur"] = 50
    reports = analyse_file(tiny.write(tmp_path / "t.json", [*PAIR, *other]), Options())
    assert [r.device for r in reports] == [0, 1]
    assert [figures(r) for r in reports] == [(100, 50, 50), (50, 100, 0)]


def test_a_device_with_hardly_any_work_is_omitted(tmp_path):
    stray = tiny.kernel("Memset (Device)", 1010, 0.1, cat="gpu_memset", device=5)
    report = of(tmp_path, [*PAIR, stray])
    assert report.device == 0
    assert warned(report, "device 5 omitted")


def test_a_device_number_other_than_the_rank(tmp_path):
    events = [{**e, "args": {**e["args"], "device": 3}} for e in PAIR]
    report = of(tmp_path, events, distributedInfo={"rank": 11, "world_size": 16})
    assert (report.rank, report.device, report.world_size) == (11, 3, 16)


def test_steps_on_the_device_take_precedence_over_the_host(tmp_path):
    events = [
        *PAIR,
        tiny.step(3, 1000, 120),
        tiny.step(4, 1120, 30),
        tiny.step(3, 900, 10, "user_annotation"),
    ]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    assert [(t.window.number, t.step) for t in report.steps] == [(3, 120_000), (4, 30_000)]
    assert [t.exposed_comm for t in report.steps] == [20_000, 30_000]


def test_steps_of_the_host_are_projected_by_launches(tmp_path):
    events = [
        launch(10, 1),
        launch(20, 2),
        launch(110, 3),
        tiny.kernel(GEMM, 1000, 100, correlation=1),
        tiny.kernel(RS, 1050, 100, stream=20, correlation=2),
        tiny.kernel(GEMM, 1200, 40, correlation=3),
        tiny.step(1, 0, 100, "user_annotation"),
        tiny.step(2, 100, 100, "user_annotation"),
        tiny.step(3, 200, 100, "user_annotation"),
    ]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    assert [(t.window.number, t.step) for t in report.steps] == [(1, 200_000), (2, 40_000)]
    assert warned(report, "1 of 3 steps launched no work")


def launch(ts, correlation):
    return tiny.kernel("cudaLaunchKernel", ts, 2, cat="cuda_runtime", correlation=correlation)


def test_steps_among_the_operators_of_old_traces(tmp_path):
    events = [
        {**launch(10, 1), "cat": "Runtime"},
        {**tiny.kernel(GEMM, 1000, 100, correlation=1), "cat": "Kernel"},
        tiny.step(7, 0, 100, "Operator"),
    ]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    assert [(t.window.number, t.step) for t in report.steps] == [(7, 100_000)]


def test_a_step_without_a_number_does_not_widen_a_numbered_one(tmp_path):
    events = [
        *PAIR,
        tiny.step(0, 1000, 50),
        {**tiny.step(0, 1000, 150), "name": "ProfilerStep"},
    ]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    assert [(t.window.number, t.step) for t in report.steps] == [(0, 50_000)]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", [*PAIR, events[-1]]), Options())
    assert [(t.window.number, t.step) for t in report.steps] == [(0, 150_000)]


def test_a_step_ends_where_the_next_one_begins(tmp_path):
    steps = [tiny.step(1, 1000, 100), tiny.step(2, 1050, 100)]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", [*PAIR, *steps]), Options())
    assert [(t.step, t.comm) for t in report.steps] == [(50_000, 0), (100_000, 100_000)]


def launched(at, start, length, correlation):
    return [launch(at, correlation), tiny.kernel(GEMM, start, length, correlation=correlation)]


def test_a_range_on_the_device_that_covers_one_kernel_is_not_the_step(tmp_path):
    events = [
        *launched(10, 1000, 3000, 1),
        *launched(20, 4000, 20, 2),
        *launched(30, 4020, 4000, 3),
        tiny.step(1, 0, 9500, "user_annotation"),
        tiny.step(1, 4000, 20),
    ]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    assert [(t.window.number, t.step, t.compute) for t in report.steps] == [
        (1, 8_500_000, 7_020_000)
    ]


def test_without_launches_ranges_on_the_device_count_only_with_the_work_in_them(tmp_path):
    work = [tiny.kernel(GEMM, 1000, 3000), tiny.kernel(GEMM, 4000, 20)]
    host = tiny.step(1, 500, 4000, "user_annotation")
    whole, part = tiny.step(1, 1000, 3020), tiny.step(1, 4000, 20)
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", [*work, host, whole]), Options())
    assert [t.step for t in report.steps] == [3_020_000]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", [*work, host, part]), Options())
    assert [t.step for t in report.steps] == [4_000_000]
    assert warned(report, "steps are ranges on the host")


def test_short_ranges_on_the_device_alone_mark_where_steps_begin(tmp_path):
    events = []
    for n in range(4):
        at = 1000 + 10_000 * n
        events += [tiny.kernel(GEMM, at, 200), tiny.kernel(GEMM, at + 200, 9000)]
        events += [tiny.step(n, at, 200)] if n != 2 else []
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    # Step 2 has no range, so where step 1 ends is not known either.
    assert [(t.window.number, t.step) for t in report.steps] == [(0, 10_000_000)]
    assert warned(report, "a step runs from the start of one to that of the next")


def test_a_pause_between_steps_belongs_to_none(tmp_path):
    events = [
        *launched(10, 100, 900, 1),
        *launched(20_010, 20_100, 900, 2),
        tiny.step(1, 0, 1100, "user_annotation"),
        tiny.step(2, 20_000, 1100, "user_annotation"),
    ]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    assert [t.step for t in report.steps] == [1_000_000, 1_000_000]


def test_work_without_a_launch_causes_a_warning(tmp_path):
    events = [
        launch(10, 1),
        tiny.kernel(GEMM, 1000, 100, correlation=1),
        tiny.kernel(RS, 1050, 100, stream=20, correlation=2),
        tiny.step(1, 0, 100, "user_annotation"),
    ]
    (report,) = analyse_file(tiny.write(tmp_path / "t.json", events), Options())
    assert [t.step for t in report.steps] == [100_000]
    assert warned(report, "1 of 2 device events have no launch")


def test_an_event_that_is_recorded_twice_counts_once(tmp_path):
    events = [
        tiny.kernel(GEMM, 1000, 100, correlation=1),
        tiny.kernel(RS, 1050, 100, stream=20, correlation=2),
    ]
    # An event that starts and ends together with another one is not a repetition of it.
    twin = tiny.kernel(RS, 1050, 100, stream=24, correlation=3)
    report = of(tmp_path, [*events, *events, twin, events[1]])
    assert figures(report) == (100, 50, 50)
    assert report.kernels == 3
    assert [c.count for c in report.collectives] == [2]
    assert warned(report, "3 x device event recorded twice")


def test_a_kernel_without_a_name_causes_a_warning(tmp_path):
    report = of(tmp_path, [*PAIR, tiny.kernel("", 1000, 10)])
    assert warned(report, "1 x device event without a name, counted as compute")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"   \n ", "white space"),
        (b"hello", "neither JSON nor"),
        (b"\x89PNG\r\n", "neither JSON nor"),
        (b"{}", "no list traceEvents"),
        (b'{"a": 1', "no list traceEvents"),
        (b'{"traceEvents": []}', "no device work"),
        (b'{"traceEvents": [', "no device work"),
        (b"[]", "no device work"),
        (b'{"a": [1,, "traceEvents": [{}]}', "not valid JSON before"),
        (gzip.compress(b"", mtime=0), "white space"),
        (b"\x1f\x8b\x08 broken", "gzip"),
        (b"[" * 2_200_000, "no device work"),
        (b'{"traceEvents": [' + b'{"a":' * 230_000, "no device work"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        analyse_file(str(path), Options())
    assert "\n" not in str(caught.value)


def test_no_usable_device_event(tmp_path):
    with pytest.raises(InputError, match="usable time"):
        of(tmp_path, [tiny.kernel(GEMM, None, 1)])


@pytest.mark.parametrize("filler", [b" ", b'{"ph":"X"},'])
def test_a_bomb_is_refused(tmp_path, monkeypatch, filler):
    monkeypatch.setattr("overlapkit.trace.read.files.compression.FREE_BYTES", 1 << 20)
    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(b'{"traceEvents": [')
        stream.write(filler * ((30 << 20) // len(filler)))
    with pytest.raises(InputError, match="expands to more than"):
        analyse_file(str(path), Options())
