"""The documents of `trace --json` and `compare --json` match their schemas."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlapkit.trace.diagnose.diagnosis import DIAGNOSES
from support.documents import check_document
from support.trace_generator import SCENARIOS, write_kineto, write_nsys

TRACES = Path(__file__).parents[2] / "data" / "traces"


@pytest.mark.parametrize(
    "name", ["everything", "late rank", "no metadata", "no rank", "no steps", "slowed compute"]
)
def test_a_report(name, overlapkit, tmp_path):
    write_kineto(SCENARIOS[name].but(noise=0), tmp_path)
    document = overlapkit("trace", str(tmp_path), "--json").document
    check_document(document)
    for diagnosis in document["diagnoses"]:
        rules = DIAGNOSES[diagnosis["id"]]
        # Of exposed communication, one kind of several has a rule.
        without = (None,) if not rules or diagnosis["id"] == "exposed-communication" else ()
        assert diagnosis["rule"] in (*rules, *without)


def test_a_report_of_nsys(overlapkit, tmp_path):
    write_nsys(SCENARIOS["ep deepep"].but(steps=1), tmp_path)
    check_document(overlapkit("trace", str(tmp_path), "--json").document)


def test_a_report_of_a_cpu_trace(overlapkit):
    traces = [str(TRACES / f"megatron-pipeline.rank{rank}.json.gz") for rank in (0, 1)]
    check_document(overlapkit("trace", *traces, "--json").document)
