"""The documents of `trace --json` and `compare --json` match their schemas."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlapkit.trace.diagnose.diagnosis import DIAGNOSES
from support.documents import check_document
from support.trace_generator import CHANGES, SCENARIOS, write_kineto, write_nsys

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
        assert diagnosis["rule"] in (rules or (None,))


def test_a_report_of_nsys(overlapkit, tmp_path):
    write_nsys(SCENARIOS["ep deepep"].but(steps=1), tmp_path)
    check_document(overlapkit("trace", str(tmp_path), "--json").document)


def test_a_report_of_a_cpu_trace(overlapkit):
    traces = [str(TRACES / f"megatron-pipeline.rank{rank}.json.gz") for rank in (0, 1)]
    check_document(overlapkit("trace", *traces, "--json").document)


def test_a_comparison(overlapkit, config, tmp_path):
    folders = []
    for name, scenario in zip(("base", "new"), CHANGES["overlap lost"][:2], strict=True):
        (tmp_path / name).mkdir()
        write_kineto(scenario.but(noise=0), tmp_path / name)
        folders.append(str(tmp_path / name))
    document = overlapkit("compare", *folders, "--json").document
    check_document(document)
    assert not document.keys() & {"decisions", "keys"}
    text = "model: {num_layers: 8}\nddp: {use_distributed_optimizer: true}\ncomm_overlap: {%s}\n"
    base = config(text % "tp_comm_overlap: false", "a.yaml")
    new = config(text % "tp_comm_overlap: false, overlap_grad_reduce: false", "b.yaml")
    configs = ("--config-base", base, "--config-new", new)
    document = overlapkit("compare", *folders, *configs, "--json").document
    check_document(document)
    assert document["decisions"] and document["keys"]
    document = overlapkit(
        "compare", *folders, "--config-base", base, "--config-new", base, "--json"
    ).document
    check_document(document)
    assert (document["decisions"], document["keys"]) == ([], [])
