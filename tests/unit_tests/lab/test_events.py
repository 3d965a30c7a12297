"""What a rank tells, and how it is read while it is being written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from overlapkit.errors import InputError
from overlapkit.lab.events import FOLDER_VARIABLE, Tail, emit, events_file


@pytest.fixture
def rank_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    return tmp_path


def test_events_arrive_once_in_order_with_their_rank(rank_one: Path) -> None:
    tail = Tail(rank_one, ranks=2)
    assert list(tail.new()) == []
    emit({"event": "first"})
    emit({"event": "second", "values": [1, None, "a\nb"]})
    told = list(tail.new())
    assert [event.data["event"] for event in told] == ["first", "second"]
    assert told[1].data["values"] == [1, None, "a\nb"]
    assert {event.rank for event in told} == {1}
    assert told[0].time <= told[1].time
    assert list(tail.new()) == []
    emit({"event": "third"})
    assert [event.data["event"] for event in tail.new()] == ["third"]


def test_a_line_that_is_half_written_waits_for_its_rest(rank_one: Path) -> None:
    emit({"event": "whole", "text": "x" * 3_000_000})
    file = events_file(rank_one, 1)
    line = file.read_bytes()
    file.write_bytes(line[:-10])
    tail = Tail(rank_one, ranks=2)
    assert list(tail.new()) == []
    file.write_bytes(line)
    assert [event.data["event"] for event in tail.new()] == ["whole"]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [(FOLDER_VARIABLE, None, FOLDER_VARIABLE), ("RANK", None, "RANK"), ("RANK", "x", "RANK='x'")],
)
def test_only_a_rank_can_tell(
    rank_one: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, said: str
) -> None:
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=said):
        emit({"event": "lost"})


def test_starting_ranks_imports_no_torch() -> None:
    code = (
        "import sys, overlapkit.lab.launch.start, overlapkit.lab.link.rank_side\n"
        "import overlapkit.lab.launch.agent\n"
        "print([name for name in ('torch', 'megatron.core', 'pyroute2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
