"""Which of several failing ranks is named, and what is shown of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from overlapkit.lab.events import Event
from overlapkit.lab.launch.failure import LabError, Raised, RankLog, failed, hanging, last_lines

KILLED, ABORTED, ENDED = -signal.SIGKILL, -signal.SIGABRT, -signal.SIGTERM


def work_folder(tmp_path: Path, codes: dict[int, int]) -> Path:
    (tmp_path / "failures.json").write_text(json.dumps(codes))
    for rank in codes:
        logs = tmp_path / f"logs/lab_x/attempt_0/{rank}"
        logs.mkdir(parents=True)
        (logs / "stderr.log").write_text(f"line of rank {rank}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("codes", "raised", "named"),
    [
        # A lost connection is an exception of its own in every other rank.
        ({0: 1, 1: KILLED}, {0: 10.0}, 1),
        ({0: 1, 1: 3}, {0: 10.0}, 1),
        # The exception that came first, by the ranks' own account.
        ({0: 1, 1: 1, 2: 1}, {0: 10.2, 1: 10.1, 2: 10.3}, 1),
        # Libraries abort when a peer is gone; torchrun ends the rest.
        ({0: ABORTED, 1: 1}, {1: 10.0}, 1),
        ({0: ENDED, 1: 1}, {1: 10.0}, 1),
        ({0: ABORTED}, {}, 0),
    ],
)
def test_the_rank_that_failed_of_itself_is_named(
    tmp_path: Path, codes: dict[int, int], raised: dict[int, float], named: int
) -> None:
    error = failed(
        work_folder(tmp_path, codes), 1, {rank: Raised(when) for rank, when in raised.items()}
    )
    assert error.summary.startswith(f"rank {named} ")
    assert error.lines == [f"line of rank {named}"]
    assert str(error).endswith(f"line of rank {named}")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (7, "ended with exit status 7"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-63, "was killed by signal 63"),
    ],
)
def test_how_a_rank_ended_is_said(tmp_path: Path, code: int, said: str) -> None:
    assert failed(work_folder(tmp_path, {0: code}), 1, {}).summary == f"rank 0 {said}"


def test_those_that_torchrun_ended_are_not_blamed(tmp_path: Path) -> None:
    error = failed(work_folder(tmp_path, {0: ENDED, 1: KILLED, 2: 1}), 1, {2: Raised(10.0)})
    assert error.summary == "rank 1 was killed by SIGKILL, rank 2 ended with exit status 1 after it"


def test_torchrun_itself_may_fail(tmp_path: Path) -> None:
    (tmp_path / "torchrun.log").write_text("usage: torchrun\n")
    error = failed(tmp_path, 2, {})
    assert str(error) == "torchrun ended with exit status 2; last lines: usage: torchrun"


def test_only_the_end_of_a_huge_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    with log.open("wb") as file:
        # More than any memory holds, and next to nothing on the disk.
        file.truncate(500_000_000_000)
        file.seek(0, os.SEEK_END)
        file.write(b"".join(b"\nline %d" % number for number in range(100)))
    assert last_lines(log) == [f"line {number}" for number in range(80, 100)]
    assert last_lines(log, log.stat().st_size - len("\nline 99"))[-1] == "line 98"


def test_a_rank_that_never_started_has_been_silent_longest(tmp_path: Path) -> None:
    error = hanging(
        "no rank has sent an event for 9 s",
        tmp_path,
        ranks=2,
        supervisor=os.getpid(),
        pids={},
        last_events={0: 1.0},
    )
    assert error.summary.startswith("no rank has sent an event for 9 s: rank 1 has not started")
    assert "rank 0 has ended" in error.summary


def test_ranks_that_hang_in_the_same_place_are_named_together(tmp_path: Path) -> None:
    error = hanging(
        "no rank has sent an event for 9 s",
        tmp_path,
        ranks=5,
        supervisor=os.getpid(),
        pids={},
        last_events={0: 1.0, 1: 1.0},
    )
    assert error.summary == (
        "no rank has sent an event for 9 s: ranks 2, 3, 4 have not started; ranks 0, 1 have ended"
    )


def test_the_exception_of_a_rank_is_the_message_and_its_log_is_for_debugging(
    tmp_path: Path,
) -> None:
    said = {"event": "failed", "type": "ValueError", "message": "no such dtype", "place": "core:7"}
    raised = Raised.of(Event(0, 10.0, said), "run")
    error = failed(work_folder(tmp_path, {0: 1}), 1, {0: raised})
    assert str(error) == "rank 0 failed in variant run: ValueError: no such dtype (core:7)"
    assert isinstance(error.__cause__, RankLog)
    assert str(error.__cause__) == "line of rank 0"


def test_a_rank_that_was_killed_after_an_exception_of_another_is_not_taken_for_it(
    tmp_path: Path,
) -> None:
    error = failed(work_folder(tmp_path, {0: KILLED}), 1, {0: Raised(1.0, "ValueError: late")})
    assert error.summary == "rank 0 was killed by SIGKILL"


def test_warnings_of_libraries_are_not_the_message(tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    log.write_text(
        "/site/torch/x.py:12: FutureWarning: this is old\n"
        "  warnings.warn(\n"
        "[W1126 20:10:11.123 socket.cpp:1] no name\n"
        "W1126 20:10:11.123000 99 torch/run.py:1] threads\n"
        "terminate called after throwing an instance of 'X'\n"
    )
    error = LabError("rank 0 was killed by SIGABRT", log)
    assert str(error) == (
        "rank 0 was killed by SIGABRT; last lines: "
        "terminate called after throwing an instance of 'X'"
    )
    assert len(error.lines) == 5
