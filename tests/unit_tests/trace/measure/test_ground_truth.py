"""Generated profiles, whose overlap is known by construction, are measured to the nanosecond."""

from __future__ import annotations

import pytest

from overlapkit.trace.rank_report import RankReport
from support.trace_generator import SCENARIOS, RankTruth, write_kineto, write_nsys
from support.trace_reports import analysed, quick

FIELDS = (
    "step",
    "compute",
    "comm",
    "exposed_comm",
    "hidden_comm",
    "memory",
    "exposed_memory",
    "idle",
)
DESCRIBED = [n for n, s in SCENARIOS.items() if s.metadata or s.tp_comm != "nccl"]


def assert_times(report: RankReport, truth: RankTruth, *, steps: bool = True) -> None:
    pairs = [(report.whole, truth.whole)]
    if steps:
        assert [t.window.number for t in report.steps] == sorted(truth.steps)
        pairs += [(t, truth.steps[t.window.number]) for t in report.steps]
    for found, true in pairs:
        for name in FIELDS:
            assert getattr(found, name) == getattr(true, f"{name}_ns"), name
        assert sum(found.parts.values()) == found.step
        assert found.overlap_pct == pytest.approx(true.overlap_pct)


@pytest.mark.parametrize("name", SCENARIOS)
def test_kineto(name, tmp_path):
    scenario = quick(name)
    truths = write_kineto(scenario, tmp_path, gz=True)
    for report, truth in zip(analysed(truths), truths, strict=True):
        assert_times(report, truth, steps=scenario.annotations != "none")
        assert report.kernels == truth.device_events
        if name in DESCRIBED:
            for found, true in zip(report.steps, truth.steps.values(), strict=False):
                exposed = {d: t.exposed for d, t in found.by_dimension.items()}
                assert exposed == true.exposed_by_dimension
                comm = {d: t.comm for d, t in found.by_dimension.items()}
                assert comm == true.comm_by_dimension


@pytest.mark.parametrize("name", ["dp overlapped", "everything", "ep deepep", "no steps"])
def test_nsys(name, tmp_path):
    scenario = quick(name)
    truths = write_nsys(scenario, tmp_path)
    for report, truth in zip(analysed(truths), truths, strict=True):
        assert_times(report, truth, steps=scenario.annotations != "none")
        assert report.source == "nsys"


def test_collectives_are_counted_with_their_bytes(tmp_path):
    truth = write_kineto(quick("everything"), tmp_path)[0]
    (report,) = analysed([truth])
    counts, sizes = {}, {}
    for c in report.collectives:
        if c.traffic.group is not None:
            key = (c.traffic.dimension, c.traffic.operation)
            counts[key] = counts.get(key, 0) + c.count
            sizes[key] = sizes.get(key, 0) + (c.bytes or 0)
    assert counts == truth.whole.collectives
    assert sizes == truth.whole.bytes
    assert report.collectives[0].exposed_ns == max(c.exposed_ns for c in report.collectives)
    assert all(c.bus_gb_s is None or 0 < c.bus_gb_s < 2000 for c in report.collectives)


@pytest.mark.parametrize("factor", [1.0, 1.4])
def test_compute_beside_communication_is_compared_with_the_same_alone(factor, tmp_path):
    scenario = SCENARIOS["slowed compute"].but(slowdown=factor, steps=6, noise=0)
    (report,) = analysed(write_kineto(scenario, tmp_path))
    assert report.slowed.ratio == pytest.approx(factor, rel=0.08)
