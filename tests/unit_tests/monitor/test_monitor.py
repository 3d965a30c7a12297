"""The monitor in a loop, with the real profiler and the real worker."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overlapkit import InputError
from overlapkit.monitor import OverlapMonitor, OverlapReport
from support.late import Late, needs

torch = Late("torch")
torch_profiler = Late("torch.profiler")

pytestmark = needs("torch")

PATIENCE = 120.0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary folder of the monitor's worker, which must be empty after every test."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setenv("TMPDIR", str(made))
    yield made
    eventually(lambda: not list(made.iterdir()))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger="overlapkit.monitor")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "overlapkit.monitor"]


def eventually(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


def compute() -> None:
    matrix = torch.ones(64, 64, requires_grad=True)
    (matrix @ matrix).sum().backward()


def train(monitor: OverlapMonitor, steps: int) -> None:
    for _ in range(steps):
        compute()
        monitor.step()


def finish(monitor: OverlapMonitor) -> None:
    """Wait for the analysis, without a step."""
    assert monitor._analysis is not None
    monitor._analysis.wait(PATIENCE)


def recording() -> bool:
    return bool(torch.autograd._profiler_enabled())


class TestWindows:
    def test_reports_are_of_the_steps_after_the_first_of_a_window(self) -> None:
        got: list[OverlapReport] = []
        with OverlapMonitor(every=5, steps=2, report=got.append) as monitor:
            train(monitor, 7)
            finish(monitor)
            train(monitor, 5)
            finish(monitor)
            train(monitor, 1)
        assert [(r.step, r.steps, r.rank) for r in got] == [(7, 2, 0), (12, 2, 0)]
        assert monitor.skipped == 0

    def test_the_profiler_runs_in_windows_only(self) -> None:
        seen = []
        with OverlapMonitor(every=6, steps=2, report=[]) as monitor:
            for step in range(1, 13):
                if step == 10:
                    finish(monitor)
                compute()
                seen += [step] if recording() else []
                monitor.step()
        assert seen == [6, 7, 8, 12]

    def test_figures_add_up_and_the_step_is_the_one_that_was_timed(self) -> None:
        got: list[OverlapReport] = []
        with OverlapMonitor(every=3, steps=1, report=got.append) as monitor:
            for _ in range(4):
                compute()
                time.sleep(0.05)
                monitor.step()
        (report,) = got
        parts = report.compute_us + report.exposed_comm_us
        parts += report.exposed_memory_us + report.idle_us
        assert parts == pytest.approx(report.step_us, abs=0.01)
        assert report.step_us >= 50_000 and report.idle_us >= 40_000
        assert report.stall_us > 0

    def test_numbers_of_the_run_are_reported(self) -> None:
        got: list[OverlapReport] = []
        with OverlapMonitor(every=3, steps=1, report=got.append) as monitor:
            for number in range(9001, 9005):
                compute()
                monitor.step(number)
        assert [r.step for r in got] == [9004]

    def test_a_function_can_be_followed_by_a_step(self) -> None:
        got: list[OverlapReport] = []
        monitor = OverlapMonitor(every=3, steps=1, report=got.append)
        train_step = monitor.after(lambda value: (compute(), value)[1])
        assert [train_step(value) for value in range(4)] == [0, 1, 2, 3]
        monitor.close()
        assert [r.step for r in got] == [4]

    def test_other_ranks_do_not_profile(self) -> None:
        with OverlapMonitor(every=3, steps=1, report=[], ranks=[1, 2]) as monitor:
            for _ in range(8):
                monitor.step()
                assert not recording() and monitor._analysis is None

    def test_a_late_analysis_leaves_the_next_window_out(
        self, warnings: Callable[[], list[str]]
    ) -> None:
        got: list[OverlapReport] = []
        with OverlapMonitor(every=4, steps=1, report=got.append) as monitor:
            train(monitor, 5)
            assert monitor._analysis is not None
            os.kill(monitor._analysis._process.pid, signal.SIGSTOP)
            train(monitor, 8)
            assert not got and not recording() and monitor.skipped == 2
            os.kill(monitor._analysis._process.pid, signal.SIGCONT)
            finish(monitor)
            train(monitor, 1)
            assert [(r.step, r.skipped) for r in got] == [(5, 2)]
        assert len(warnings()) == 1 and "still runs" in warnings()[0]

    @pytest.mark.parametrize("options", [{"steps": 0}, {"every": 3}, {"every": 9, "steps": 8}])
    def test_numbers_that_leave_no_step_alone_are_refused(self, options: dict[str, int]) -> None:
        with pytest.raises(InputError, match="or more"):
            OverlapMonitor(**options)


class TestOtherProfilers:
    def test_nothing_starts_beside_a_profiler(
        self, warnings: Callable[[], list[str]], tmp_path: Path
    ) -> None:
        with OverlapMonitor(every=3, steps=1, report=[]) as monitor:
            with torch_profiler.profile() as users:
                train(monitor, 4)
                assert monitor.skipped == 1
            users.export_chrome_trace(str(tmp_path / "users.json"))
            assert "aten::mm" in (tmp_path / "users.json").read_text()
            train(monitor, 3)
            assert monitor._analysis is not None
        assert len(warnings()) == 1 and "another profiler is in use" in warnings()[0]

    def test_nothing_starts_beside_a_profiler_in_its_warm_up(self, tmp_path: Path) -> None:
        with OverlapMonitor(every=3, steps=1, report=[]) as monitor:
            users = torch_profiler.profile()
            users.prepare_trace()
            train(monitor, 4)
            users.start_trace()
            compute()
            users.stop_trace()
            assert monitor.skipped == 1
        users.export_chrome_trace(str(tmp_path / "users.json"))
        assert "aten::mm" in (tmp_path / "users.json").read_text()

    @pytest.mark.parametrize("stops", ["before", "after"])
    def test_a_profiler_that_starts_in_a_window_has_its_profile(
        self, stops: str, warnings: Callable[[], list[str]], tmp_path: Path
    ) -> None:
        with OverlapMonitor(every=3, steps=1, report=[]) as monitor:
            train(monitor, 2)
            users = torch_profiler.profile()
            try:
                users.prepare_trace()
            except RuntimeError:
                pytest.skip("this torch refuses a second profiler")
            users.start_trace()
            compute()
            if stops == "before":
                users.stop_trace()
            train(monitor, 2)
            if stops == "after":
                users.stop_trace()
            users.export_chrome_trace(str(tmp_path / "users.json"))
            assert monitor.skipped == 1 and monitor._analysis is None
        assert "aten::mm" in (tmp_path / "users.json").read_text()
        assert len(warnings()) == 1 and "began in a window" in warnings()[0]

    def test_a_profiler_that_warms_up_in_a_window_has_its_profile(self, tmp_path: Path) -> None:
        with OverlapMonitor(every=3, steps=1, report=[]) as monitor:
            train(monitor, 2)
            users = torch_profiler.profile()
            try:
                users.prepare_trace()
            except RuntimeError:
                pytest.skip("this torch refuses a second profiler")
            train(monitor, 3)
            users.start_trace()
            compute()
            users.stop_trace()
            users.export_chrome_trace(str(tmp_path / "users.json"))
        assert "aten::mm" in (tmp_path / "users.json").read_text()


class TestFailures:
    def test_an_exception_of_the_loop_passes_and_ends_the_profiler(self) -> None:
        with (
            pytest.raises(ZeroDivisionError),
            OverlapMonitor(every=3, steps=1, report=[]) as monitor,
        ):
            train(monitor, 2)
            assert recording()
            raise ZeroDivisionError
        assert not recording()
        with torch_profiler.profile() as users:
            compute()
        assert any(event.key == "aten::mm" for event in users.key_averages())

    def test_a_report_that_raises_is_one_warning(self, warnings: Callable[[], list[str]]) -> None:
        got: list[OverlapReport] = []

        def broken(report: OverlapReport) -> None:
            got.append(report)
            raise OSError("no connection")

        with OverlapMonitor(every=4, steps=1, report=broken) as monitor:
            for _ in range(2):
                train(monitor, 5 if not got else 4)
                finish(monitor)
                train(monitor, 1)
        assert len(got) == 2
        assert len(warnings()) == 1 and "no connection" in warnings()[0]

    def test_a_broken_profiler_switches_the_monitor_off(
        self, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: Any) -> None:
            raise RuntimeError("CUPTI_ERROR_UNKNOWN")

        monkeypatch.setattr("torch.profiler.profile.start_trace", broken)
        with OverlapMonitor(every=3, steps=1, report=[]) as monitor:
            train(monitor, 12)
        (warning,) = warnings()
        assert "CUPTI_ERROR_UNKNOWN" in warning and "the training goes on" in warning

    def test_a_torch_without_kineto_is_said(
        self, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.profiler.kineto_available", lambda: False)
        with OverlapMonitor(every=3, steps=1, report=[]) as monitor:
            train(monitor, 12)
        (warning,) = warnings()
        assert "built without Kineto" in warning

    def test_a_killed_analysis_is_one_warning_and_three_switch_it_off(
        self, warnings: Callable[[], list[str]]
    ) -> None:
        with OverlapMonitor(every=3, steps=1, report=[]) as monitor:
            for _ in range(3):
                while monitor._analysis is None:
                    train(monitor, 1)
                monitor._analysis._process.kill()
                finish(monitor)
                train(monitor, 1)
            assert monitor.skipped == 3
            train(monitor, 6)
            assert monitor._analysis is None
        first, off = warnings()
        assert "status -9" in first and "3 analyses failed" in off

    def test_an_interpreter_that_does_not_start_is_a_warning(
        self, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        monkeypatch.setattr("overlapkit.monitor.analysis.shutil.which", lambda name: None)
        with OverlapMonitor(every=3, steps=1, report=[]) as monitor:
            train(monitor, 5)
        (warning,) = warnings()
        assert "/nonexistent/python" in warning

    def test_a_step_in_another_thread_during_a_window_is_ignored(
        self, warnings: Callable[[], list[str]]
    ) -> None:
        with OverlapMonitor(every=3, steps=1, report=[]) as monitor:
            train(monitor, 2)
            thread = threading.Thread(target=monitor.step)
            thread.start()
            thread.join()
            assert recording()
        (warning,) = warnings()
        assert "another thread" in warning

    def test_a_forked_process_leaves_the_window_alone(self) -> None:
        got: list[OverlapReport] = []
        with OverlapMonitor(every=3, steps=1, report=got.append) as monitor:
            train(monitor, 2)
            child = os.fork()
            if child == 0:
                monitor.step()
                monitor.step()
                monitor.close()
                os._exit(0 if monitor._recording is not None else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            train(monitor, 2)
        assert [r.step for r in got] == [4]


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, overlapkit.monitor; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
