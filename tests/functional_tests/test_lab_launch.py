"""Ranks of a lab as they really start, fail, hang and are killed; and what is left of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from overlapkit.lab.events import FOLDER_VARIABLE, Tail
from overlapkit.lab.link.kernel import NEW_NETWORK, become_root_of_a_user_namespace, unshare

pytestmark = pytest.mark.functional

HERE = Path(__file__).parent
GONE_S = 60.0


def _permitted(*calls: Callable[[], None]) -> bool:
    """Whether the system lets a process do this, tried in a child."""
    child = os.fork()
    if child == 0:
        with suppress(OSError):
            for call in calls:
                call()
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _new_network() -> None:
    unshare(NEW_NETWORK)


ROOT = _permitted(_new_network)
USER = _permitted(become_root_of_a_user_namespace, _new_network)
needs_links = pytest.mark.skipif(
    not (ROOT or USER), reason="network namespaces are not permitted on this machine"
)
needs_user_namespaces = pytest.mark.skipif(
    not USER, reason="user namespaces are not permitted on this machine"
)


class Lab:
    """A running lab_driver: a process of its own, to be interrupted."""

    def __init__(self, tmp_path: Path, **order: Any) -> None:
        self.scratch = tmp_path / "scratch"
        self.folder = self.scratch / "work"
        self.temporary = tmp_path / "temporary"
        for folder in (self.folder, self.temporary):
            folder.mkdir(parents=True)
        self.order = {"folder": str(self.folder), "scratch": str(self.scratch), **order}
        self.events: list[dict[str, Any]] = []

    @contextmanager
    def running(self) -> Iterator[Lab]:
        driver = subprocess.Popen(
            [sys.executable, "-m", "lab_driver", json.dumps(self.order)],
            env={
                **os.environ,
                "PYTHONPATH": str(HERE),
                "TMPDIR": str(self.temporary),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        self.driver = driver
        try:
            yield self
        finally:
            driver.kill()
            driver.communicate()

    def until(self, event: str, rank: int | None = None) -> dict[str, Any]:
        """The next event of a name; what is told before it is kept as well."""
        assert self.driver.stdout is not None
        for line in self.driver.stdout:
            self.events.append(json.loads(line))
            told = self.events[-1]
            if told["event"] == event and rank in (None, told.get("rank")):
                return told
        raise AssertionError(f"no {event!r} among {self.events}")

    def of(self, event: str) -> list[dict[str, Any]]:
        return [told for told in self.events if told["event"] == event]

    def processes(self) -> list[int]:
        """Every process on the machine that was started for this lab's ranks."""
        mark = f"{FOLDER_VARIABLE}={self.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def assert_nothing_is_left(self) -> None:
        deadline = time.monotonic() + GONE_S
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
        for told in self.of("ready"):
            if told["namespace"] != str(Path("/proc/self/ns/net").readlink()):
                # A process that the kernel is still taking apart holds its namespace a moment more.
                while (held := _holders(told["namespace"])) and time.monotonic() < deadline:
                    time.sleep(0.05)
                assert held == []
        assert [name for _, name in socket.if_nameindex() if name.startswith("rank")] == []
        assert list(self.temporary.iterdir()) == []

    def assert_only_logs_and_events(self) -> None:
        names = {entry.name for entry in self.folder.iterdir()}
        kept = {"supervisor.log", "torchrun.log", "logs", "failures.json"}
        assert names - kept <= {"events.rank0.jsonl", "events.rank1.jsonl"}


def _holders(namespace: str) -> list[str]:
    """What keeps a network namespace alive: processes, descriptors and mounts."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                held = [process / "ns/net", *(process / "fd").iterdir()]
                found += [str(path) for path in held if _link(path) == namespace]
    if namespace in Path("/proc/self/mountinfo").read_text():
        found.append("a mount")
    return found


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """One whole run over a link that changes its rate, with ranks that print 15 MB a stream."""
    lab = Lab(tmp_path_factory.mktemp("measured"), what="measure")
    with lab.running():
        lab.until("link")
        assert lab.driver.wait() == 0
    return lab


@needs_links
def test_ranks_run_in_namespaces_of_their_own(measured: Lab) -> None:
    assert {told["rank"] for told in measured.of("joined")} == {0, 1}
    namespaces = {told["namespace"] for told in measured.of("ready")}
    assert len(namespaces | {str(Path("/proc/self/ns/net").readlink())}) == 3
    [link] = measured.of("link")
    assert (link["kind"], link["shaped"]) == ("kernel", True)


@needs_links
@pytest.mark.parametrize("rank", [0, 1])
def test_the_rate_is_that_of_the_link_and_can_be_changed(measured: Lab, rank: int) -> None:
    told = [event for event in measured.of("measured") if event["rank"] == rank]
    assert [event["mbit"] for event in told] == [None, 40.0, 160.0, None]
    free, slow, faster, free_again = (event["seconds"] for event in told)
    # 3 MB take 0.6 s at 40 Mbit/s, of which a burst of 5 ms goes at once.
    assert slow > 0.9 * 24 / 40
    assert faster > 0.8 * 24 / 160
    assert min(free, free_again) < slow
    assert all(3_000_000 < event["sent"] < 3_600_000 for event in told)


def test_megabytes_of_output_go_to_the_ranks_own_logs(measured: Lab) -> None:
    for rank in (0, 1):
        for stream in ("stdout", "stderr"):
            [log] = measured.folder.glob(f"logs/*/attempt_0/{rank}/{stream}.log")
            assert log.stat().st_size >= 15_000_000


def test_a_finished_run_leaves_only_logs_and_events(measured: Lab) -> None:
    measured.assert_nothing_is_left()
    measured.assert_only_logs_and_events()
    assert {told["temporary"] for told in measured.of("ready")} == {str(measured.folder / "tmp")}


@pytest.mark.parametrize(
    ("what", "link", "said"),
    [
        ("kill", "shaped", ["rank 1 was killed by SIGKILL"]),
        ("exit", "none", ["rank 1 ended with exit status 3", "the second rank leaves"]),
        ("raise", "shaped", ["rank 1 failed", "the second rank gives up"]),
    ],
)
def test_a_failing_rank_is_named_and_the_rest_ended(
    tmp_path: Path, what: str, link: str, said: list[str]
) -> None:
    lab = Lab(tmp_path, what=what, link=link)
    with lab.running():
        message = lab.until("error")["message"]
        assert lab.driver.wait() == 2
    # Rank 0 fails as well, of the lost connection: it is not the one to look at.
    assert message.startswith(said[0])
    assert all(part in message for part in said)
    assert len(lab.of("step")) == 6
    lab.assert_nothing_is_left()
    lab.assert_only_logs_and_events()


def test_a_hanging_rank_is_named_with_the_place_where_it_stands(tmp_path: Path) -> None:
    lab = Lab(tmp_path, what="hang", silence_when_running_s=3.0)
    with lab.running():
        message = lab.until("error")["message"]
    assert message.startswith("no rank has sent an event for 3 s")
    assert "rank 1" in message and "waits_forever (lab_worker.py:" in message
    assert "all_reduce" in message
    lab.assert_nothing_is_left()


def test_a_run_is_bounded_in_time(tmp_path: Path) -> None:
    lab = Lab(tmp_path, what="loop", timeout_s=0.5)
    with lab.running():
        message = lab.until("error")["message"]
    assert message.startswith("the ranks did not finish within 0.5 s")
    lab.assert_nothing_is_left()
    lab.assert_only_logs_and_events()


@pytest.mark.parametrize(("number", "what"), [(signal.SIGINT, "idle"), (signal.SIGTERM, "loop")])
def test_an_interrupted_lab_ends_its_ranks(
    tmp_path: Path, number: signal.Signals, what: str
) -> None:
    lab = Lab(tmp_path, what=what)
    with lab.running():
        lab.until("step", rank=1)
        assert len(lab.processes()) >= 5
        lab.driver.send_signal(number)
        lab.driver.wait(GONE_S)
        # Once the lab itself has ended, nothing is left to wait for.
        assert lab.processes() == []
    lab.assert_nothing_is_left()
    lab.assert_only_logs_and_events()


def test_a_killed_lab_takes_its_ranks_and_its_scratch_folder_along(tmp_path: Path) -> None:
    lab = Lab(tmp_path, what="loop")
    with lab.running():
        lab.until("step", rank=1)
        lab.driver.kill()
        lab.driver.wait()
        lab.assert_nothing_is_left()
    deadline = time.monotonic() + GONE_S
    while lab.scratch.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lab.scratch.exists()


@needs_links
def test_a_killed_supervisor_takes_the_ranks_along(tmp_path: Path) -> None:
    lab = Lab(tmp_path, what="idle")
    with lab.running():
        lab.until("step", rank=1)
        [supervisor] = [pid for pid in lab.processes() if _parent(pid) == lab.driver.pid]
        os.kill(supervisor, signal.SIGKILL)
        assert "supervisor" in lab.until("error")["message"]
        lab.assert_nothing_is_left()


def _parent(pid: int) -> int | None:
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("PPid:")[2].split()[0])
    return None


@needs_user_namespaces
def test_a_user_without_privileges_gets_the_same_link(tmp_path: Path) -> None:
    lab = Lab(tmp_path, what="kill", permitted="user")
    with lab.running():
        message = lab.until("error")["message"]
    assert message.startswith("rank 1 was killed by SIGKILL")
    assert len({told["namespace"] for told in lab.of("ready")}) == 2
    lab.assert_nothing_is_left()


@needs_user_namespaces
def test_without_namespaces_connections_are_paced_or_the_lab_says_what_is_lost(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path, what="measure", permitted="none")
    with lab.running():
        link = lab.until("link")
    assert link["kind"] in ("paced", "unshaped")
    assert "not permitted" in link["isolation"]
    assert "unshare" in link["reason"] or "No space left" in link["reason"]
    if link["kind"] == "paced":
        for rank in (0, 1):
            told = [event for event in lab.of("measured") if event["rank"] == rank]
            free, slow, faster, free_again = (event["seconds"] for event in told)
            assert slow > 0.8 * 24 / 40
            assert faster > 0.5 * 24 / 160
            assert min(free, free_again) < slow
            assert all(3_000_000 <= event["sent"] < 3_600_000 for event in told)
    lab.assert_nothing_is_left()


@needs_user_namespaces
def test_without_namespaces_a_killed_lab_still_takes_its_ranks_along(tmp_path: Path) -> None:
    lab = Lab(tmp_path, what="idle", permitted="none")
    with lab.running():
        lab.until("step", rank=1)
        lab.driver.kill()
        lab.driver.wait()
        lab.assert_nothing_is_left()


def test_a_rank_also_runs_under_a_torchrun_that_others_started(tmp_path: Path) -> None:
    command = "-m torch.distributed.run --standalone --nproc-per-node 2 -m lab_worker measure"
    subprocess.run(
        [sys.executable, *command.split()],
        env={
            **os.environ,
            "PYTHONPATH": str(HERE),
            "TMPDIR": str(tmp_path),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            FOLDER_VARIABLE: str(tmp_path),
        },
        capture_output=True,
        check=True,
        timeout=300,
    )
    told = list(Tail(tmp_path, ranks=2).new())
    assert {event.rank for event in told} == {0, 1}
    measured = [event.data for event in told if event.data["event"] == "measured"]
    assert [data["mbit"] for data in measured] == 2 * [None, 40.0, 160.0, None]
    # Nothing is shaped: at 40 Mbit/s 3 MB would take 0.6 s, at 160 a quarter of it.
    limited = [data for data in measured if data["mbit"] is not None]
    assert any(data["seconds"] < 0.8 * 24 / data["mbit"] for data in limited)
    assert all(3_000_000 <= data["sent"] < 3_600_000 for data in measured)
