"""Documents of single ranks, merged: the same as one call on all traces."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import overlapkit
from overlapkit.cli import cli
from overlapkit.errors import InputError
from support import tiny_trace as tiny
from support.trace_generator import write_kineto
from support.trace_reports import quick

DATA = Path(__file__).parents[2] / "data" / "traces"


def trace(*arguments: object) -> str:
    """What `overlapkit trace ... --json` prints."""
    done = CliRunner().invoke(cli, ["trace", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: object) -> str:
    error = CliRunner().invoke(cli, ["trace", *map(str, arguments)]).exception
    assert isinstance(error, InputError), error
    (line,) = str(error).splitlines()
    return line


def documents(folder: Path, paths: list, *options: object) -> list[Path]:
    """A document of each trace, or of each list of traces."""
    folder.mkdir(exist_ok=True)
    written = []
    for number, each in enumerate(paths):
        path = folder / f"{number}.json"
        path.write_text(trace(*(each if isinstance(each, list) else [each]), *options))
        written.append(path)
    return written


def kineto(tmp_path: Path, name: str) -> list[str]:
    return [truth.path for truth in write_kineto(quick(name), tmp_path)]


@pytest.mark.parametrize("name", ["late rank", "dp overlapped", "pp bubbles"])
def test_merged_documents_are_the_document_of_all_traces(tmp_path, name):
    paths = kineto(tmp_path, name)
    one = trace(*paths)
    assert trace("--merge", *documents(tmp_path / "a", paths)) == one
    nodes = [paths[: len(paths) // 2], paths[len(paths) // 2 :]]
    if all(nodes):
        assert trace("--merge", *documents(tmp_path / "b", nodes)[::-1]) == one
    # What was merged can be merged again.
    assert trace("--merge", *documents(tmp_path / "c", [["--merge", *tmp_path.glob("a/*")]])) == one


def test_a_folder_of_documents_of_real_profiles(tmp_path):
    for run in ("ddp", "megatron-overlap", "megatron-pipeline"):
        paths = sorted(DATA.glob(f"{run}.rank*.json.gz"))
        folder = tmp_path / run
        documents(folder, paths)
        assert trace("--merge", folder) == trace(*paths)


def test_ranks_by_name_and_unknown_ones_are_settled_over_all_documents(tmp_path):
    events = [tiny.kernel(tiny.GEMM, 1000, 100), tiny.kernel(tiny.ALL_GATHER, 1050, 100)]
    for names in (["rank5.json", "rank2.json"], ["a.json", "b.json"]):
        paths = [tiny.write(tmp_path / name, events) for name in names]
        merged = trace("--merge", *documents(tmp_path / names[0][0], paths))
        assert merged == trace(*paths)
        ranks = [rank["rank"] for rank in json.loads(merged)["ranks"]]
        assert ranks == ([2, 5] if names[0] == "rank5.json" else [0, 1])


def test_steps_and_configurations_carry_over(tmp_path):
    paths = kineto(tmp_path, "dp overlapped")
    config = tmp_path / "run.yaml"
    config.write_text("model: {tensor_model_parallel_size: 1}\n")
    options = ["--config", config, "--steps", "5:6"]
    document = trace(*paths, *options)
    merged = trace("--merge", *documents(tmp_path / "a", paths, *options))
    assert merged == document
    assert json.loads(merged)["stack"] is not None


def test_different_steps_are_said(tmp_path):
    paths = kineto(tmp_path, "late rank")
    first, *rest = documents(tmp_path / "a", paths)
    steps = [step["number"] for step in json.loads(first.read_text())["ranks"][0]["steps"]]
    first.write_text(trace(paths[0], "--steps", steps[0]))
    (note, *_) = json.loads(trace("--merge", first, *rest))["across_ranks"]["notes"][::-1]
    assert "different steps" in note and f"1, from {steps[0]} to {steps[0]} (rank 0)" in note


def test_different_versions_and_configurations_are_said(tmp_path):
    paths = kineto(tmp_path, "late rank")
    first, second, *rest = documents(tmp_path / "a", paths)
    document = json.loads(first.read_text())
    first.write_text(json.dumps({**document, "version": "9.9"}))
    config = tmp_path / "run.yaml"
    config.write_text("model: {tensor_model_parallel_size: 1}\n")
    second.write_text(trace(paths[1], "--config", config))
    merged = json.loads(trace("--merge", first, second, *rest))
    assert merged["stack"] is None
    for what in ("different versions of overlapkit: 9.9 in", "configurations of different"):
        assert any(what in note and str(tmp_path) in note for note in merged["notes"])
        assert any(what in warning for warning in merged["warnings"])


def test_a_rank_in_two_documents_is_refused(tmp_path):
    paths = kineto(tmp_path, "late rank")
    first, *rest = documents(tmp_path / "a", paths)
    again = tmp_path / "again.json"
    again.write_text(first.read_text())
    assert f"rank 0 is in {first} and in {again}" in refused("--merge", first, *rest, again)
    assert "given twice" in refused("--merge", first, first)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no document"),
        (b"{", "no document"),
        (b"\xff\xfe", "no document"),
        (b"[1]", "no document"),
        (b'{"schema": "overlapkit/plan/v1"}', "no document"),
        (b'{"traceEvents": []}', "is a trace"),
        (b'{"schema": "overlapkit/trace/v1", "ranks": [{}]}', "lacks what merging needs"),
        (b'{"schema": "overlapkit/trace/v1", "ranks": 5}', "no document"),
        (b'{"schema": "overlapkit/trace/v1", "ranks": []}', "contains no rank"),
    ],
)
def test_other_files_are_named(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    line = refused("--merge", path)
    assert said in line and str(path) in line


@pytest.mark.parametrize(
    "report",
    ["", "?", "abcd", base64.b64encode(zlib.compress(b"\x81\xa1a\x01")).decode()],
)
def test_a_report_of_another_form_is_one_line(tmp_path, report):
    path = tmp_path / "a.json"
    document = {"schema": "overlapkit/trace/v1", "version": "9.9", "ranks": [{"report": report}]}
    path.write_text(json.dumps(document))
    assert "written by overlapkit 9.9, cannot be merged" in refused("--merge", path)


@pytest.mark.parametrize(
    "option",
    ["--steps=1", "--html=p.html", "--annotate=t.json", "--config=c", "--comm=x", "--group=a=TP"],
)
def test_options_that_need_the_traces_are_refused(tmp_path, option):
    name = option.split("=")[0]
    assert f"{name}: needs the traces" in refused("--merge", tmp_path, option)


def test_a_program_merges_documents_too(tmp_path):
    paths = kineto(tmp_path, "late rank")
    merged = overlapkit.trace(documents(tmp_path / "a", paths), merge=True)
    assert msgspec.json.encode(merged) == msgspec.json.encode(overlapkit.trace(paths))
    with pytest.raises(InputError, match="steps: needs the traces"):
        overlapkit.trace(tmp_path / "a", merge=True, steps=5)


def test_the_terminal_shows_the_merged_ranks(tmp_path):
    paths = kineto(tmp_path, "late rank")
    merged = documents(tmp_path / "a", paths)
    shown = CliRunner().invoke(cli, ["trace", "--merge", *map(str, merged)])
    assert shown.exit_code == 0
    assert shown.stdout == CliRunner().invoke(cli, ["trace", *paths]).stdout
