"""Where reports go: a function, a SummaryWriter of TensorBoard, or a run of Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from overlapkit.errors import InputError
from overlapkit.monitor.report import OverlapReport

PREFIX = "overlap"
"""What the names of all scalars begin with."""


@runtime_checkable
class Writer(Protocol):
    """What is used of TensorBoard's SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


@runtime_checkable
class Run(Protocol):
    """What is used of a run of Weights & Biases (`wandb.init()`), or of the module `wandb`."""

    def log(self, data: dict[str, Any], *, commit: bool) -> Any: ...


Sink: TypeAlias = "Callable[[OverlapReport], Any] | Writer | Run"


def sinks_of(given: Sink | Sequence[Sink]) -> list[Callable[[OverlapReport], Any]]:
    """A function for each place that reports go to.

    Raises:
        InputError: something is no function and has neither `add_scalar` nor `log`.
    """
    each = list(given) if isinstance(given, (list, tuple)) else [given]
    return [_function(sink) for sink in each]


def scalars(report: OverlapReport) -> dict[str, float]:
    """The figures of a report by name; times in milliseconds."""
    figures = {
        "step_ms": report.step_us,
        "compute_ms": report.compute_us,
        "exposed_comm_ms": report.exposed_comm_us,
        "hidden_comm_ms": report.hidden_comm_us,
        "exposed_memory_ms": report.exposed_memory_us,
        "idle_ms": report.idle_us,
        "waiting_for_data_ms": report.waiting_for_data_us,
        "waiting_for_host_ms": report.waiting_for_host_us,
        **{f"exposed_{d}_ms": us for d, us in report.exposed_by_dimension.items()},
    }
    values = {f"{PREFIX}/{name}": us / 1000 for name, us in figures.items()}
    values[f"{PREFIX}/regression"] = float(report.regression is not None)
    return values


def _function(sink: Any) -> Callable[[OverlapReport], Any]:
    if isinstance(sink, Writer):
        return lambda report: _write(sink, report)
    if isinstance(sink, Run):
        return lambda report: _log(sink, report)
    if callable(sink):
        return sink  # type: ignore[no-any-return]
    raise InputError(
        f"report={type(sink).__name__}: give a function, a SummaryWriter (add_scalar) or a run of "
        "Weights & Biases (log)"
    )


def _write(writer: Any, report: OverlapReport) -> None:
    for tag, value in scalars(report).items():
        writer.add_scalar(tag, value, report.step)
    if hasattr(writer, "add_text"):
        writer.add_text(f"{PREFIX}/report", str(report), report.step)


def _log(run: Any, report: OverlapReport) -> None:
    # Without commit it joins the training's own next row, whatever steps that counts.
    run.log(
        {**scalars(report), f"{PREFIX}/step": report.step, f"{PREFIX}/report": str(report)},
        commit=False,
    )
