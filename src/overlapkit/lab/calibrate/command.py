"""`overlapkit lab calibrate`: rates that are measured on this machine."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from overlapkit.config.reading import Reading
from overlapkit.errors import InputError
from overlapkit.hardware import find_gpu
from overlapkit.lab.calibrate.job import JOB_FILE, RESULT_FILE, Job, Result
from overlapkit.lab.calibrate.shapes import grid, messages, of_run, stream
from overlapkit.lab.hunt.command import budget_s
from overlapkit.lab.launch.start import Launch, run_ranks
from overlapkit.lab.request import installed, visible_gpus
from overlapkit.output.console import write_json, write_text
from overlapkit.output.files import outputs
from overlapkit.plan.rates.document import RatesDocument
from overlapkit.plan.rates.text import rates_lines, unread_lines

GRACE_S = 300.0
"""Seconds beyond the budget: to start, to import torch, and to finish an operator."""
MOST_RANKS = 64


@dataclass(frozen=True, kw_only=True)
class CalibrateRequest:
    """The options of the command; see `overlapkit lab calibrate --help`."""

    arguments: Sequence[str] = ()
    model: str | None = None
    world_size: int | None = None
    from_megatron_lm: bool = False
    reading: Reading = field(default_factory=Reading)
    device: str = "cpu"
    ranks: int = 1
    budget: str = "5m"
    out: str | None = None
    as_json: bool = False


def run(request: CalibrateRequest) -> int:
    """The command; its exit status.

    Raises:
        InputError: bad input, a missing dependency, or ranks that fail.
    """
    files = [text for text in request.arguments if "=" not in text]
    (target,) = outputs({"--out": request.out}, files)
    rates = measure(request)
    if target is not None:
        target.write(msgspec.json.format(msgspec.json.encode(rates), indent=1).decode() + "\n")
    if target is None or request.as_json:
        write_json(rates)
        for line in unread_lines(rates):
            print(f"overlapkit: {line}", file=sys.stderr)
    else:
        assert request.out is not None
        write_text("".join(f"{line}\n" for line in rates_lines(rates, request.out)))
    return 0


def measure(request: CalibrateRequest) -> RatesDocument:
    """The rates of this machine.

    Raises:
        InputError: as of `run`.
    """
    seconds = budget_s(request.budget)
    if not 1 <= request.ranks <= MOST_RANKS:
        raise InputError(f"--ranks {request.ranks}: give 1 to {MOST_RANKS}")
    if not installed("torch"):
        raise InputError("lab calibrate needs torch, which is not installed; install torch")
    if request.device == "cuda":
        _need_gpus(request.ranks)
    if request.arguments or request.model is not None or request.from_megatron_lm:
        gemms, attention = of_run(
            request.arguments,
            model=request.model,
            world_size=request.world_size,
            from_megatron_lm=request.from_megatron_lm,
            reading=request.reading,
        )
    elif request.world_size is not None:
        raise InputError(
            f"--world-size {request.world_size}: is of a run; give its CONFIG, or --model NAME"
        )
    else:
        gemms, attention = grid(request.device)
    job = Job(
        device=request.device,
        budget_s=seconds,
        gemms=gemms,
        attention=attention,
        collectives=messages(request.device, request.ranks),
        stream_bytes=stream(request.device),
    )
    result = _measured(job, request.ranks)
    return RatesDocument(
        gpu=_short(result.name),
        measured="alone",
        source=f"overlapkit lab calibrate: {result.name}, torch {result.torch}",
        gemms=result.gemms,
        attention=result.attention,
        memory=result.memory,
        collectives=result.collectives,
        unread=result.unread,
    )


def _need_gpus(ranks: int) -> None:
    """Check that each rank has a GPU.

    Raises:
        InputError: there are fewer.
    """
    gpus, _ = visible_gpus()
    if not gpus:
        raise InputError("--device cuda: no CUDA GPU is visible; omit --device to measure the CPU")
    if ranks > gpus:
        raise InputError(f"--ranks {ranks}: only {gpus} GPUs are visible; give at most {gpus}")


def _short(device: str) -> str:
    """A device's name as --gpu takes it; one that is not known keeps its own."""
    try:
        return device if device == "cpu" else find_gpu(device)[0]
    except InputError:
        # What was measured is kept. `overlapkit plan` says that it does not know this GPU.
        return device


def _measured(job: Job, ranks: int) -> Result:
    """What ranks on this machine measure."""
    with tempfile.TemporaryDirectory(prefix="overlapkit-calibrate-") as folder:
        place = Path(folder)
        (place / JOB_FILE).write_bytes(msgspec.json.encode(job))
        launch = Launch(
            ranks=ranks,
            module="overlapkit.lab.rank.operators",
            args=(folder,),
            folder=place,
            environment={},
            link="none",
            timeout_s=job.budget_s + GRACE_S,
            silence_s=GRACE_S,
            scratch=place,
        )
        run_ranks(launch, lambda event: None)
        return msgspec.json.decode((place / RESULT_FILE).read_bytes(), type=Result)
