"""What a rank reports, and how it is read while it is being written."""

from __future__ import annotations

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
    found = list(tail.new())
    assert [event.data["event"] for event in found] == ["first", "second"]
    assert found[1].data["values"] == [1, None, "a\nb"]
    assert {event.rank for event in found} == {1}
    assert found[0].time <= found[1].time
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
def test_only_a_rank_can_report(
    rank_one: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, said: str
) -> None:
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=said):
        emit({"event": "lost"})
