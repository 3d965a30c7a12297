"""No input ends in an internal error: every command is given damaged, strange and mutated files."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from overlapkit.config.schema import known_keys
from support import tiny_trace as tiny
from support.property_tests import examples

DATA = Path(__file__).parents[1] / "data"
ENDLESS_S = 120
"""Far beyond what any of these takes: what does not end by then does not end."""

TRACE = DATA / "traces" / "megatron-overlap.rank0.json.gz"
CLUSTER = ("--gpu", "h100", "--world-size", "64")
# Every place of the command line where a file can be given.
COMMANDS = {
    "explain": ("explain", "{}", *CLUSTER),
    "explain, the second": ("explain", "{yaml}", "{}", *CLUSTER),
    "explain, a script": ("explain", "--from-megatron-lm", "{}", *CLUSTER),
    "explain, the environment": ("explain", "{yaml}", *CLUSTER, "--env-file", "{}"),
    "plan": ("plan", "{}", *CLUSTER),
    "plan, a script": ("plan", "--from-megatron-lm", "{}", *CLUSTER),
    "doctor": ("doctor", "{}", *CLUSTER),
    "doctor, a trace": ("doctor", "--trace", "{}"),
    "trace": ("trace", "{}", "--html", "{out}.html"),
    "trace, annotated": ("trace", "{}", "--json", "--annotate", "{out}.json"),
    "trace, several": ("trace", "{trace}", "{}"),
    "trace, the configuration": ("trace", "{trace}", "--config", "{}"),
    "compare": ("compare", "{trace}", "{}", "--force"),
    "compare, a configuration": (
        *("compare", "{trace}", "{trace}"),
        *("--config-base", "{yaml}", "--config-new", "{}"),
    ),
    "lab, the results": ("lab", "--collect", "{}"),
    "skill": ("skill", "render", "--check", "--root", "{}"),
}
# These train a model when their input is valid.
LAB = {
    "lab, the configuration": ("lab", "--config", "{}"),
    "lab, the text": ("lab", "dp", "--corpus", "{}"),
}
CONFIG: dict[str, Any] = yaml.safe_load("""
model:
  {num_layers: 8, hidden_size: 1024, num_attention_heads: 8, seq_length: 4096, vocab_size: 32000,
  tensor_model_parallel_size: 2, sequence_parallel: true, context_parallel_size: 2,
  pipeline_model_parallel_size: 2, virtual_pipeline_model_parallel_size: 2, num_moe_experts: 8,
  expert_model_parallel_size: 4, moe_router_topk: 2, moe_ffn_hidden_size: 512, moe_layer_freq: 1,
  num_query_groups: 8, ffn_hidden_size: 4096, cp_comm_type: p2p, window_size: [127, 0],
  recompute_modules: [core_attn]}
ddp: {use_distributed_optimizer: true, overlap_grad_reduce: true, bucket_size: 4000}
comm_overlap: {tp_comm_overlap: true}
mixed_precision: bf16_mixed
train: {micro_batch_size: 1, global_batch_size: 64}
""")
EVENTS = [
    tiny.step(1, 1000, 200),
    tiny.kernel(tiny.GEMM, 1000.125, 100, correlation=1, grid=[1, 2, 3]),
    tiny.kernel(
        *(tiny.REDUCE_SCATTER, 1050, 100.5, 20),
        **{"Collective name": "reduce_scatter", "In msg nelems": 8, "Group size": 2},
    ),
    tiny.kernel("launch", 900, 3, cat="cuda_runtime", correlation=1),
    tiny.kernel("aten::mm", 900, 3, cat="cpu_op"),
]
PROFILE = tiny.document(
    EVENTS,
    distributedInfo={"rank": 0, "world_size": 2, "pg_config": [{"pg_name": "0", "ranks": [0, 1]}]},
    deviceProperties=[{"id": 0, "name": "NVIDIA H100"}],
)
SCRIPT = """\
#!/bin/bash
TP=${TP:-2}
ARGS=(--tensor-model-parallel-size $TP --num-layers 8 --hidden-size 1024 --seq-length 2048)
for flag in --bf16 --overlap-grad-reduce; do ARGS+=("$flag"); done
torchrun --nproc-per-node 8 pretrain_gpt.py "${ARGS[@]}" --num-attention-heads $((4 * TP))
"""
VALUES = [
    *("x", "", "123", "true", "\u202e\u00e9", 0, 1, -1, 7, 1.5, 10**17, 2**62, 1e308, -math.inf),
    *(math.nan, True, False, None, [], ["a"], [1, 0], [None], [[1]], {}, {"a": 1}),
]


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it does not end")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(ENDLESS_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def give(overlapkit, tmp_path: Path) -> Callable[..., None]:
    """`give(command, name)`: runs a command of the tables with a file, and checks how it ends."""
    run = tmp_path / "valid.yaml"
    run.write_text(yaml.safe_dump(CONFIG))

    def check(command: tuple[str, ...], name: str, *statuses: int) -> None:
        names = {"yaml": run, "trace": TRACE, "out": tmp_path / "out"}
        words = [name if word == "{}" else word.format(**names) for word in command]
        result = overlapkit(*words)
        assert result.status in (statuses or (0, 1, 2)), result
        if result.status == 2:
            assert (result.out, result.err.count("\n")) == ("", 1), result
        assert "internal error" not in result.err and "Traceback" not in result.err, result

    return check


def _quadratic(path: Path) -> None:
    path.write_text('{"traceEvents":[' + '{"ph":"X",' * 25_000)


def _quotes(path: Path) -> None:
    # Each string swallows the brackets that would close an event.
    path.write_text('{"traceEvents":[' + '{"ph":"X","name":"a,\n' * 25_000)


def _heads(path: Path) -> None:
    path.write_text('{"a":[' + "1," * 250_000 + '1,"traceEvents":[' * 25_000)


def _two_processes(path: Path) -> None:
    """An export with two processes on GPU 0, the second with a single memset."""
    place = "start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER, globalPid INTEGER, "
    with sqlite3.connect(path) as export:
        for kind, more in (("KERNEL", ", shortName INTEGER"), ("MEMSET", "")):
            columns = f"{place}correlationId INTEGER{more}"
            export.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_{kind} ({columns})")
        export.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
        export.execute("INSERT INTO StringIds VALUES (1, 'gemm')")
        export.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, 0, 7, ?, ?, 1)",
            [(1000 * n, 1000 * n + 600, 100 << 24, n + 1) for n in range(400)],
        )
        row = (5000, 5100, 0, 7, 101 << 24, 9999)
        export.execute("INSERT INTO CUPTI_ACTIVITY_KIND_MEMSET VALUES (?, ?, ?, ?, ?, ?)", row)


MADE = {
    "quadratic.json": _quadratic,
    "quotes.json": _quotes,
    "heads.json": _heads,
    "two_processes.sqlite": _two_processes,
}
FOUND = ("far.json", "surrogate.json", "cp_comm_type.yaml")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The damaged files by name."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, make in MADE.items():
        make(folder / name)
    made = {name: str(folder / name) for name in MADE}
    return {**made, **{name: str(DATA / "damaged" / name) for name in FOUND}}


@pytest.mark.parametrize("name", [*FOUND, *MADE])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_damaged_file(command: tuple[str, ...], name: str, damaged, give) -> None:
    give(command, damaged[name])


def test_what_is_usable_in_a_damaged_profile_is_measured(damaged, overlapkit) -> None:
    def measured(name: str) -> tuple[int, list[str]]:
        document = overlapkit("trace", damaged[name], "--json").document
        return document["ranks"][0]["device_events"], document["warnings"]

    events, warnings = measured("far.json")
    assert events == 1 and any("a day or more from the others" in w for w in warnings)
    events, warnings = measured("surrogate.json")
    assert events == 1 and any("without a usable time" in w for w in warnings)
    events, warnings = measured("two_processes.sqlite")
    assert events == 400 and any("0 (of another process)" in w for w in warnings)
    assert "too damaged" in overlapkit("trace", damaged["quadratic.json"]).err
    refused = overlapkit("plan", damaged["cp_comm_type.yaml"], *CLUSTER)
    assert refused.status == 2 and "cp_comm_type.yaml:1: model.cp_comm_type" in refused.err


NAMES = {
    "nothing": "",
    "missing": "/nowhere/at/all",
    "longer than a name can be": "x" * 300,
    "longer than a path can be": "/x" * 5000,
    "a NUL": "a\0b",
    "a newline": "a\nb",
    "bytes that are not UTF-8": "\udcff\udcfe",
    "a character without an encoding": "\ud800",
    "terminal codes": "\x1b[31m",
    "zeros without an end": "/dev/zero",
    "memory": "/proc/self/mem",
    "an environment": "/proc/self/environ",
}


@pytest.mark.parametrize("name", [*NAMES, "a FIFO", "a socket"])
@pytest.mark.parametrize("command", {**COMMANDS, **LAB}.values(), ids={**COMMANDS, **LAB})
def test_a_name_that_is_no_usable_file(
    command: tuple[str, ...], name: str, give, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not in the checkout, which `skill render` would find above it.
    monkeypatch.chdir(tmp_path)
    path = NAMES.get(name, str(tmp_path / "it"))
    if name == "a FIFO":
        os.mkfifo(path)
    elif name == "a socket":
        os.mknod(path, 0o140666)
    give(command, path, 2)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    if at:
        yield at
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*at, key))


def _changed(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(document)
    place = changed
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    return changed


SETTINGS = [
    *_places(CONFIG),
    *((section, key) for section in ("model", "ddp") for key in sorted(known_keys(section))),
]
ONE_FILE = [HealthCheck.function_scoped_fixture]


@examples(100, 4000, suppress_health_check=ONE_FILE)
@given(
    at=st.sampled_from(SETTINGS),
    value=st.sampled_from(VALUES),
    command=st.sampled_from(["explain", "plan", "doctor", "compare, a configuration"]),
)
def test_a_setting_of_any_kind(at, value, command, give, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(_changed(CONFIG, at, value)), encoding="utf-8")
    give(COMMANDS[command], str(path))


@examples(100, 4000, suppress_health_check=ONE_FILE)
@given(
    at=st.sampled_from(list(_places(PROFILE))),
    value=st.sampled_from([*VALUES, "\ud800", "9" * 30, 2**70]),
    command=st.sampled_from(["trace", "trace, annotated", "doctor, a trace"]),
)
def test_a_value_of_a_profile_of_any_kind(at, value, command, give, tmp_path: Path) -> None:
    path = tmp_path / "rank0.json"
    path.write_text(json.dumps(_changed(PROFILE, at, value)))
    give(COMMANDS[command], str(path))


TEXTS = {
    "a configuration": (yaml.safe_dump(CONFIG), ("explain", "plan")),
    "a script": (SCRIPT, ("explain, a script", "plan, a script")),
    "an environment": ("export A=1\nB='x y'\n# c\nD=$A\n", ("explain, the environment",)),
    "a profile": (json.dumps(PROFILE), ("trace", "trace, annotated")),
}
INSERTED = [
    *("", "{", "}", "[", "]", "(", ")", '"', "'", "`", "$(", "${", "$((1/0))", "$((9**9**9))"),
    *("{1..99999999}", "<<E\n", "*a", "&a ", "!!int ", "\t", "\n", "\\", "\0", "9" * 40, "while "),
]


@pytest.mark.parametrize(("text", "commands"), TEXTS.values(), ids=TEXTS)
@examples(60, 2000, suppress_health_check=ONE_FILE)
@given(data=st.data())
def test_a_text_that_is_cut_off_or_torn(text, commands, data, give, tmp_path: Path) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)) | st.just(len(text)))
    torn = text[:start] + data.draw(st.sampled_from(INSERTED)) + text[end:]
    path = tmp_path / "torn"
    path.write_text(torn)
    give(COMMANDS[data.draw(st.sampled_from(commands))], str(path))
