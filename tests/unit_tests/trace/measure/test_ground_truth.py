"""Generated profiles, whose overlap is known by construction, are measured to the nanosecond."""

from __future__ import annotations

import pytest

from overlapkit.trace.analyse import analyse
from overlapkit.trace.compare.comparison import compare, side_of
from overlapkit.trace.diagnose.ranks import diagnoses_of
from overlapkit.trace.rank_report import Options, RankReport
from overlapkit.trace.ranks import across, settle_ranks
from support.trace_generator import (
    CHANGES,
    SCENARIOS,
    RankTruth,
    Scenario,
    write_kineto,
    write_nsys,
)

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


def quick(name: str) -> Scenario:
    """The scenario without the noise of a real host, which other tests read."""
    return SCENARIOS[name].but(noise=0, steps=2)


def analysed(truths: list[RankTruth], **options) -> list[RankReport]:
    reports = analyse([t.path for t in truths], Options(**options))
    return settle_ranks(reports, "name" if len(truths) > 1 else None)


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


@pytest.mark.parametrize(
    ("name", "diagnosis", "rule"),
    [
        ("one bucket", "single-bucket", "core.single-bucket"),
        ("dp exposed", "grad-reduce-after-backward", "dp.defaults"),
        ("tp exposed", "tp-overlap-off", "tp.off-unless-asked"),
        ("pp bubbles", "pipeline-exposed", "pp.not-interleaved"),
        ("single queue", "one-queue", "launch.env-one-queue"),
        ("layernorm waits", "layernorm-waits", "launch.layernorm-margin"),
        ("ep all-to-all", "expert-exchange-exposed", "ep.off-unless-asked"),
        ("slowed compute", "compute-slowed", None),
        ("late rank", "late-rank", None),
    ],
)
def test_a_problem_has_its_diagnosis_and_rule(name, diagnosis, rule, tmp_path):
    reports = analysed(write_kineto(quick(name), tmp_path))
    found = {d.id: d for d in diagnoses_of(reports, across(reports))}
    assert diagnosis in found
    assert found[diagnosis].rule == rule
    assert found[diagnosis].cost_us > 0
    assert found[diagnosis].evidence


@pytest.mark.parametrize(
    "name", ["dp overlapped", "tp userbuffers", "tp peer copies", "pp interleaved", "ep deepep"]
)
def test_a_good_run_has_no_diagnoses(name, tmp_path):
    reports = analysed(write_kineto(quick(name), tmp_path))
    assert diagnoses_of(reports, across(reports)) == []


def test_the_late_rank_is_found(tmp_path):
    truths = write_kineto(quick("late rank"), tmp_path)
    reports = analysed(truths)
    together = across(reports)
    assert together.late_rank == 2
    assert {r: w.waiting_ns for r, w in together.waiting.items()} == {
        t.rank: t.waited_ns for t in truths
    }


@pytest.mark.parametrize("factor", [1.0, 1.4])
def test_compute_beside_communication_is_compared_with_the_same_alone(factor, tmp_path):
    scenario = SCENARIOS["slowed compute"].but(slowdown=factor, steps=6, noise=0)
    (report,) = analysed(write_kineto(scenario, tmp_path))
    assert report.slowed.ratio == pytest.approx(factor, rel=0.08)


@pytest.mark.parametrize("name", CHANGES)
def test_a_comparison_finds_the_part_that_changed(name, tmp_path):
    sides = []
    for label, scenario in zip(("base", "new"), CHANGES[name][:2], strict=True):
        folder = tmp_path / label
        folder.mkdir()
        sides.append(
            side_of(label, analysed(write_kineto(scenario.but(noise=0), folder), owners=True))
        )
    comparison = compare(*sides)
    parts = {p: comparison.part_change(p) for p in comparison.base.parts}
    assert sum(parts.values()) == pytest.approx(comparison.change, abs=1)
    moved = CHANGES[name][2]
    if not moved:
        assert comparison.verdict == "same"
        return
    assert comparison.verdict == "slower"
    assert max(parts, key=lambda p: parts[p]) == moved
    assert parts[moved] > 0.9 * comparison.change
    for side in sides:
        for part, owners in side.owners.items():
            assert sum(owners.values()) == pytest.approx(side.parts[part], abs=1)
