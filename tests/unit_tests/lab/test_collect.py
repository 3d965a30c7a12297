"""`overlapkit lab --collect`: a finished run is shown again, and damaged files are one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.lab.document import RESULTS_FILE
from overlapkit.lab.measurements import read_blocks
from support import lab_run


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder of a run with --out."""
    text = msgspec.json.format(msgspec.json.encode(lab_run.document()), indent=2)
    (tmp_path / RESULTS_FILE).write_bytes(text + b"\n")
    return tmp_path


def test_kept_results_are_printed_as_they_were_written(kept: Path, overlapkit: Any) -> None:
    result = overlapkit("lab", "--collect", str(kept), "--json")
    # One of the recorded claims is not confirmed.
    assert result.status == EXIT_FINDING
    assert result.out == (kept / RESULTS_FILE).read_text(encoding="utf-8")


def test_kept_results_are_shown_with_their_claims(kept: Path, overlapkit: Any) -> None:
    result = overlapkit("lab", "--collect", str(kept))
    assert result.status == EXIT_FINDING
    for claim in lab_run.document().scenarios[0].claims:
        assert claim.claim in result.out
    assert "3 claims: 1 confirmed, 1 not confirmed, 1 not testable here (12 s)" in result.out


def test_signs_that_a_terminal_would_obey_are_not_printed(kept: Path, overlapkit: Any) -> None:
    document = json.loads((kept / RESULTS_FILE).read_text(encoding="utf-8"))
    document["scenarios"][0]["title"] = "red \x1b[31m"
    (kept / RESULTS_FILE).write_text(json.dumps(document), encoding="utf-8")
    result = overlapkit("lab", "--collect", str(kept))
    assert "red" in result.out
    assert "\x1b" not in result.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dp"], "arguments"),
        (["--steps", "3", "--device", "cuda"], "device, steps"),
        (["--out", "again"], "omit --out"),
    ],
)
def test_what_does_not_apply_is_refused(
    kept: Path, overlapkit: Any, arguments: list[str], said: str
) -> None:
    result = overlapkit("lab", "--collect", str(kept), *arguments)
    assert (result.status, result.out) == (2, "")
    assert said in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"schema": "overlapkit/trace/v1"}', b"[" * 100_000]
)
def test_damaged_results_are_one_line(kept: Path, overlapkit: Any, content: bytes) -> None:
    (kept / RESULTS_FILE).write_bytes(content)
    result = overlapkit("lab", "--collect", str(kept))
    assert (result.status, result.out) == (2, "")
    assert str(kept / RESULTS_FILE) in result.err
    assert result.err.count("\n") == 1


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, overlapkit: Any) -> None:
    result = overlapkit("lab", "--collect", str(tmp_path))
    assert (result.status, result.out) == (2, "")
    assert str(tmp_path) in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("damage", ["cut", "missing", "other variants", "another type"])
def test_a_damaged_result_of_a_rank_is_named(tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(lab_run.FOLDER, tmp_path / "run"))
    file = folder / "block1.rank0.json"
    result = json.loads(file.read_bytes())
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "missing":
        file.unlink()
    elif damage == "other variants":
        result["variants"].pop()
        file.write_text(json.dumps(result))
    else:
        result["rate_mbit"] = "fast"
        file.write_text(json.dumps(result))
    with pytest.raises(InputError) as raised:
        read_blocks(folder, lab_run.job(), lab_run.RANKS)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)
