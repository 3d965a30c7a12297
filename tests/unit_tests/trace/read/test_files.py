"""Folders, archives, compression and other formats: read, left out with a note, or named."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from overlapkit.errors import InputError
from overlapkit.trace.analyse import analyse_file
from overlapkit.trace.rank_report import Options
from overlapkit.trace.read.files import archives
from overlapkit.trace.read.files.folders import Traces, find_traces
from support import tiny_trace as tiny
from support.trace_generator import SCENARIOS, write_nsys

TEXT = json.dumps(
    tiny.document(
        [tiny.kernel(tiny.GEMM, 1000 + 10 * i, 7, correlation=i + 1) for i in range(300)],
        distributedInfo={"rank": 3, "world_size": 8},
    )
).encode()
TRUTH = (300, 3)


def figures(path: str) -> tuple[int, int | None]:
    (report,) = analyse_file(path, Options())
    assert report.whole.compute == 300 * 7000
    assert report.path == path
    return report.kernels, report.rank


def only(found: Traces) -> str:
    (path,) = found.paths
    return path


def refusal(path: Path | str) -> str:
    with pytest.raises(InputError) as error:
        analyse_file(only(find_traces([str(path)])), Options())
    return str(error.value)


def add(archive: Path, **content: bytes) -> None:
    """Write an archive; a name's double underscore is a slash, a single one a dot."""
    named = {n.replace("__", "/").replace("_", "."): c for n, c in content.items()}
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, text in named.items():
                packed.writestr(name, text)
        return
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as packed:
        for name, text in named.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            packed.addfile(info, io.BytesIO(text))


@pytest.mark.parametrize("name", ["run.zip", "run.tar", "run.tar.gz", "run.tgz"])
def test_traces_in_archives_are_read_where_they_are(tmp_path, name):
    archive = tmp_path / name
    add(archive, readme_txt=b"hello", a__rank0_json=TEXT, a__rank1_json_gz=gzip.compress(TEXT))
    before = sorted(tmp_path.rglob("*"))
    found = find_traces([str(archive)])
    assert found.paths == [f"{archive}/a/rank0.json", f"{archive}/a/rank1.json.gz"]
    assert [figures(path) for path in found.paths] == [TRUTH, TRUTH]
    (note,) = found.notes
    assert "1 file is left out" in note and "readme.txt" in note
    assert sorted(tmp_path.rglob("*")) == before
    assert find_traces([f"{archive}/a/rank0.json"]).paths == [f"{archive}/a/rank0.json"]


@pytest.mark.parametrize("name", ["run.zip", "run.tar", "run.tar.gz"])
def test_a_name_in_an_archive_leads_nowhere_else(tmp_path, name):
    secret = tmp_path / "secret.json"
    secret.write_bytes(TEXT)
    folder = tmp_path / "inner"
    folder.mkdir()
    archive = folder / name
    add(archive, **{"../secret_json": b'{"traceEvents": [{}]}', "/etc/passwd": b"x"})
    (path,) = find_traces([str(archive)]).paths
    with pytest.raises(InputError, match="no device work"):
        analyse_file(path, Options())
    assert secret.read_bytes() == TEXT


@pytest.mark.parametrize("name", ["run.zip", "run.tar", "run.tar.gz"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_damaged_archive_is_one_line_or_read_up_to_its_end(tmp_path, name, keep):
    archive = tmp_path / name
    add(archive, rank0_json=TEXT)
    raw = archive.read_bytes()
    archive.write_bytes(raw[: int(len(raw) * keep)])
    try:
        (path,) = find_traces([str(archive)]).paths
        (report,) = analyse_file(path, Options())
    except InputError as error:
        assert "\n" not in str(error) and str(archive) in str(error)
    else:
        # A tar archive ends with padding.
        assert report.kernels == 300 or any("truncated" in w for w in report.warnings)


def test_an_archive_that_expands_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("overlapkit.trace.read.files.compression.FREE_BYTES", 1 << 20)
    for name in ("run.zip", "run.tar.gz"):
        archive = tmp_path / name
        add(archive, rank0_json=b" " * (8 << 20))
        with pytest.raises(InputError, match="expands to more than 500 times"):
            analyse_file(f"{archive}/rank0.json", Options())


def test_an_archive_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    for name in ("run.zip", "run.tar"):
        add(tmp_path / name, a_json=b"", b_json=b"", c_json=b"")
        with pytest.raises(InputError, match="more than 2 files"):
            find_traces([str(tmp_path / name)])


def test_links_in_an_archive_are_not_followed(tmp_path):
    archive = tmp_path / "run.tar.gz"
    secret = tmp_path / "secret.json"
    secret.write_bytes(TEXT)
    with tarfile.open(archive, "w:gz") as packed:
        for name, kind in (("rank0.json", tarfile.SYMTYPE), ("rank1.json", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            packed.addfile(info)
    assert "contains no trace" in refusal(archive)
    assert "contains no rank0.json" in refusal(f"{archive}/rank0.json")


def test_an_encrypted_archive_is_one_line(tmp_path):
    archive = tmp_path / "run.zip"
    add(archive, rank0_json=TEXT)
    raw = bytearray(archive.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(bytes(raw))
    assert "unpack it" in refusal(f"{archive}/rank0.json")


def test_what_an_archive_lacks_is_one_line(tmp_path):
    archive = tmp_path / "run.zip"
    add(archive, rank0_json=TEXT)
    assert "contains no rank1.json" in refusal(f"{archive}/rank1.json")
    plain = tmp_path / "rank0.json"
    plain.write_bytes(TEXT)
    assert "no archive" in refusal(f"{plain}/rank1.json")
    assert "no such file" in refusal(f"{tmp_path}/none/rank1.json")


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not installed")
def test_zstd_is_expanded_by_its_program(tmp_path, monkeypatch):
    path = tmp_path / "rank0.json.zst"
    path.write_bytes(subprocess.run(["zstd", "-cq"], input=TEXT, capture_output=True).stdout)
    assert figures(str(path)) == TRUTH
    assert figures(only(find_traces([str(tmp_path)]))) == TRUTH
    path.write_bytes(path.read_bytes()[:20])
    assert "damaged zstd data" in refusal(path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "zstd -d" in refusal(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_other_encodings_are_read(tmp_path, encoding):
    path = tmp_path / "rank0.json"
    path.write_bytes(TEXT.decode().encode(encoding))
    assert figures(str(path)) == TRUTH


def test_a_folder_is_searched_and_what_is_no_trace_is_said(tmp_path):
    for name, content in {
        "a/host_7.123.pt.trace.json": TEXT,
        "a/deep/er/rank1.json.gz": gzip.compress(TEXT),
        "a/config.json": b'{"model": {"layers": [{"ph": 1}]}}',
        "a/list.json": b"[1, 2, 3]",
        "events.out.tfevents.17.host": b"\0\1",
        "notes.md": b"hello",
        ".hidden.json": TEXT,
        "more.tar.gz": b"",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    add(tmp_path / "more.tar.gz", rank2_json=TEXT)
    (tmp_path / "a" / "again.json").symlink_to(tmp_path / "a" / "host_7.123.pt.trace.json")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    found = find_traces([str(tmp_path)])
    inside = [path.removeprefix(f"{tmp_path}/") for path in found.paths]
    assert inside[:1] == ["more.tar.gz/rank2.json"]
    assert len(inside) == 3 and inside[-1] == "a/deep/er/rank1.json.gz"
    assert [figures(path) for path in found.paths] == [TRUTH] * 3
    (note,) = found.notes
    assert "6 files are left out" in note and "and 3 more" in note


def test_a_folder_without_a_trace_names_what_is_in_it(tmp_path):
    (tmp_path / "host.xplane.pb").write_bytes(b"\n\1")
    assert "host.xplane.pb is a profile of JAX" in refusal(tmp_path)
    add(tmp_path / "run.zip", readme_txt=b"x")
    assert "contains no trace" in refusal(tmp_path / "run.zip")


def test_an_empty_trace_in_a_folder_is_not_passed_over(tmp_path):
    (tmp_path / "rank0.json").write_bytes(TEXT)
    (tmp_path / "rank1.json").write_bytes(b"")
    found = find_traces([str(tmp_path)])
    with pytest.raises(InputError, match=r"rank1.json: is empty"):
        [analyse_file(path, Options()) for path in found.paths]


JAX = {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}}
ASCEND = {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "Ascend Hardware"}}
NCCL = {"ph": "b", "cat": "GROUP_API", "name": "Group API", "id": 0, "pid": 3, "tid": 1, "ts": 1}
HOST_ONLY = {"ph": "X", "name": "x", "pid": 1, "tid": 1, "ts": 1, "dur": 2}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.json", json.dumps({"traceEvents": [JAX, HOST_ONLY]}).encode(), "JAX"),
        ("t.json.gz", gzip.compress(json.dumps({"traceEvents": [JAX]}).encode(), mtime=0), "JAX"),
        ("trace_view.json", json.dumps([ASCEND, HOST_ONLY]).encode(), "Ascend"),
        ("trace.json", json.dumps([NCCL, HOST_ONLY]).encode(), "NCCL's profiler plugin"),
        ("t.json", b'{"schema": "1.1.1-chakra.0.0.4", "pid": 7, "nodes": [{}]}', "execution trace"),
        ("t.json", b'{"rocprofiler-sdk-tool": [{"metadata": {}}]}', "rocprofv3"),
        ("t.json", b'{"schema": "overlapkit/trace/v1", "files": []}', "--merge"),
        ("x.xplane.pb", b"\n\x05hello", "xplane|XSpace"),
        ("x.pftrace", b"\n\x05hello", "Perfetto"),
        ("x.ncu-rep", b"NVR\0", "Nsight Compute"),
        ("snapshot.pickle", b"\x80\x04\x95", "pickle"),
        ("snapshot", b"\x80\x04\x95", "pickle"),
        ("events.out.tfevents.1700000000.host", b"\x18\0\0", "TensorBoard"),
        ("t.html", b"<!DOCTYPE html>", "page"),
        ("t.json", b'{"a": 1}', "has no list traceEvents"),
        ("t.bin", b"\x7fELF", "neither JSON nor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_formats_are_named(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        analyse_file(str(path), Options())
    assert "ProfilerActivity.CUDA" not in str(error.value)


def test_a_database_of_rocprofv3_is_named(tmp_path):
    path = tmp_path / "results.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE rocpd_kernel_dispatch (id)")
    assert "rocpd" in refusal(path)


def program(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "nsys").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "nsys").chmod(0o755)


def test_a_report_of_nsight_systems_is_exported_by_nsys(tmp_path, monkeypatch):
    write_nsys(SCENARIOS["dp overlapped"].but(noise=0, steps=1), tmp_path)
    (expected,) = analyse_file(str(tmp_path / "rank0.sqlite"), Options())
    path = tmp_path / "report 1.nsys-rep"
    path.write_bytes((tmp_path / "rank0.sqlite").read_bytes())
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.defpath}")
    # What nsys export --type sqlite --output OUT REPORT does, seen from outside.
    program(
        tmp_path / "bin", 'test "$1 $2 $3 $4" = "export --type sqlite --output" && cp "$6" "$5"'
    )
    (report,) = analyse_file(str(path), Options())
    assert report.whole.parts == expected.whole.parts
    assert report.path == str(path)
    program(tmp_path / "bin", "echo broken report >&2; exit 3")
    assert "nsys export failed (broken report)" in refusal(path)
    program(tmp_path / "bin", 'echo no database > "$5"')
    assert str(path) in refusal(path)
    assert list(temporary.iterdir()) == []


def test_without_nsys_the_command_is_given(tmp_path, monkeypatch):
    path = tmp_path / "r.nsys-rep"
    path.write_bytes(b"x")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"nsys export --type sqlite --output {tmp_path}/r.sqlite {path}" in refusal(path)


def test_an_export_beside_its_report_is_read_once(tmp_path):
    write_nsys(SCENARIOS["dp overlapped"].but(noise=0, steps=1), tmp_path)
    (tmp_path / "rank0.nsys-rep").write_bytes(b"x")
    names = [Path(path).name for path in find_traces([str(tmp_path)]).paths]
    assert "rank0.sqlite" in names and "rank0.nsys-rep" not in names
