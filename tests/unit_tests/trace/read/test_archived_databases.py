"""Exports and reports of Nsight Systems in archives: unpacked into a temporary file, and read."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from overlapkit.errors import InputError
from overlapkit.trace.analyse import analyse, analyse_file
from overlapkit.trace.rank_report import Options
from overlapkit.trace.read.files.folders import find_traces
from support.trace_generator import SCENARIOS, write_nsys

ARCHIVES = ["run.zip", "run.tar", "run.tar.gz"]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def packed(folder: Path, name: str, *members: tuple[str, Path]) -> str:
    """An archive of these files."""
    archive = folder / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w") as out:
            for member, path in members:
                out.write(path, member)
    else:
        with tarfile.open(archive, "w:gz" if name.endswith("gz") else "w") as out:
            for member, path in members:
                out.add(path, member)
    return str(archive)


def export(folder: Path) -> Path:
    write_nsys(SCENARIOS["dp overlapped"].but(noise=0, steps=2), folder)
    return folder / "rank0.sqlite"


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_export_is_read(name, temporary, tmp_path):
    plain = export(tmp_path)
    (expected,) = analyse_file(str(plain), Options())
    archive = packed(tmp_path, name, ("a/rank0.sqlite", plain), ("a/rank1.sqlite", plain))
    paths = find_traces([archive]).paths
    assert paths == [f"{archive}/a/rank0.sqlite", f"{archive}/a/rank1.sqlite"]
    for report, path in zip(analyse(paths, Options()), paths, strict=True):
        assert report.whole.parts == expected.whole.parts
        assert report.path == path
    assert list(temporary.iterdir()) == []


def test_what_is_wrong_with_it_names_the_archive(temporary, tmp_path):
    broken = tmp_path / "rank0.sqlite"
    broken.write_bytes(export(tmp_path).read_bytes()[:3000])
    archive = packed(tmp_path, "run.zip", ("rank0.sqlite", broken))
    with pytest.raises(InputError) as error:
        analyse_file(f"{archive}/rank0.sqlite", Options())
    assert str(error.value).startswith(f"{archive}/rank0.sqlite: ")
    assert str(temporary) not in str(error.value)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_report_is_exported_by_nsys(name, temporary, tmp_path, monkeypatch):
    plain = export(tmp_path)
    (expected,) = analyse_file(str(plain), Options())
    folder = tmp_path / "bin"
    folder.mkdir()
    # What nsys export --type sqlite --output OUT REPORT does, seen from outside.
    (folder / "nsys").write_text('#!/bin/sh\ntest -f "$6" && cp "$6" "$5"\n')
    (folder / "nsys").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.defpath}")
    archive = packed(tmp_path, name, ("rank0.nsys-rep", plain))
    (report,) = analyse(find_traces([archive]).paths, Options())
    assert report.whole.parts == expected.whole.parts
    assert report.path == f"{archive}/rank0.nsys-rep"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("name", "unpack"), [("run.zip", "unzip"), ("run.tar.gz", "tar -xf")])
def test_without_nsys_the_commands_are_given(name, unpack, tmp_path, monkeypatch):
    report = tmp_path / "rank 0.nsys-rep"
    report.write_bytes(b"x")
    archive = packed(tmp_path, name, ("rank 0.nsys-rep", report))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as error:
        analyse_file(f"{archive}/rank 0.nsys-rep", Options())
    assert str(error.value).endswith(
        f"{unpack} {archive} 'rank 0.nsys-rep' && "
        "nsys export --type sqlite --output 'rank 0.sqlite' 'rank 0.nsys-rep'"
    )
