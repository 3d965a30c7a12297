"""Generated profiles with a problem have its diagnosis, and good ones have none."""

from __future__ import annotations

import pytest

from overlapkit.trace.diagnose.ranks import diagnoses_of
from overlapkit.trace.ranks import across
from support.trace_generator import write_kineto
from support.trace_reports import analysed, quick


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
