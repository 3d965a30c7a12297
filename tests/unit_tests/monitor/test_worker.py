"""What the process beside the training makes of a trace."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import overlapkit
from overlapkit import InputError
from overlapkit.monitor.worker import Order, analyse

RECORDED = Path(__file__).parents[2] / "data/traces/megatron-no-overlap.rank1.json.gz"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.json"
    path.write_bytes(gzip.decompress(RECORDED.read_bytes()))
    return path


def order(path: Path, *, uses_gpu: bool = False, config: str | None = None) -> Order:
    return Order(step=700, steps=(2, 4), rank=1, uses_gpu=uses_gpu, config=config, path=str(path))


def test_the_report_has_the_figures_of_trace(trace: Path) -> None:
    document = overlapkit.trace(trace, steps="2:4")
    report = analyse(order(trace))
    assert (report.step, report.steps, report.rank) == (700, 2, 1)
    median = document.ranks[0].median
    assert report.step_us == median.step_us and report.exposed_comm_us == median.exposed_comm_us
    assert report.exposed_by_dimension["DP"] == median.by_dimension["DP"].exposed_comm_us
    assert [f.id for f in report.findings] == [d.id for d in document.diagnoses]
    assert report.findings[0].remedy == document.diagnoses[0].remedy


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_an_incomplete_trace_gives_no_figures(trace: Path, kept: float) -> None:
    content = trace.read_bytes()
    trace.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match="incomplete"):
        analyse(order(trace))


def test_no_trace_file_system_block_ends_like_a_whole_trace(trace: Path) -> None:
    content = trace.read_bytes()
    for size in range(4096, len(content), 4096):
        trace.write_bytes(content[:size])
        with pytest.raises(InputError, match="incomplete"):
            analyse(order(trace))


def test_a_trace_that_was_not_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not written"):
        analyse(order(tmp_path / "trace.json"))


def test_a_gpu_without_device_work_gives_no_figures_of_the_cpu(trace: Path) -> None:
    with pytest.raises(InputError, match="no work of the GPU"):
        analyse(order(trace, uses_gpu=True))


def test_the_configuration_that_is_named_is_read(trace: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text("model: {tensor_model_parallel_size: 4}\n")
    with pytest.raises(InputError, match="does not divide the 2 ranks"):
        analyse(order(trace, config=str(run)))
    run.write_text("model: {tensor_model_parallel_size: 1}\n")
    # The cross entropy reduces over the tensor-parallel group, which has one rank here.
    assert analyse(order(trace, config=str(run))).exposed_by_dimension.keys() == {"DP", "TP"}
