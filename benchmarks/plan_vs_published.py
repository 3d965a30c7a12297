"""The plan's estimate beside published training throughput, row by row.

    uv run python benchmarks/plan_vs_published.py [--json] [--rows FILE] [--leave-one-out]

Estimates each row of `src/overlapkit/data/published_throughput.json` (which contains its source)
and prints the error, (estimated - published) / published, the mean of its absolute values, and the
worst. A row that cannot be estimated is reported on standard error, and the exit status is 2.
--leave-one-out fits the efficiency constants to all rows except one and estimates that one with
them, for each row in turn: what the errors would be on new rows.

What a row does not say is assumed as NVIDIA's performance recipes set it: FP8 is current scaling,
without BF16 layers; the overlap is comm_overlap's default, with tp_comm_overlap where TP > 1; FSDP
shards optimizer state, gradients and parameters; layers that do not divide evenly count embedding
and loss as one each; gradients are reduced in BF16. No row says what was recomputed or offloaded:
nothing is assumed to be.

One row contradicts itself: Llama 3 70B with MXFP8 on GB300, PP 4 without virtual stages and 8
microbatches. The bubble would be 3/8 of the work, so that its GPUs would have to compute a quarter
faster than those of the FSDP row, and the micro-batch of 2 would need 1.4 times a GPU's memory. All
other pipelines in the table have virtual stages. The row is estimated as published, and is the
worst.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from megatron.bridge.training.runtime_update import update_runtime
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.overrides import parse_override
from overlapkit.config.run import build_run, read_settings
from overlapkit.config.yaml_file import Document
from overlapkit.errors import EXIT_BAD_INPUT, InputError
from overlapkit.output.console import console, write_json
from overlapkit.plan.estimate.constants import CONSTANTS, FITTED, Constants
from overlapkit.plan.estimate.machine import machine_of
from overlapkit.plan.estimate.overlap import Overlap, overlap_of
from overlapkit.plan.estimate.step_time import Estimate, estimate
from overlapkit.plan.inputs import PRECISIONS, recipe_of
from overlapkit.plan.models import named_model
from overlapkit.plan.workload.step import Workload, workload

ROWS = Path(__file__).resolve().parents[1] / "src/overlapkit/data/published_throughput.json"
PERFORMANCE_RECIPES = ("first_last_layers_bf16=false", "grad_reduce_in_fp32=false")
"""What they change in the mixed-precision recipe. With fp32 gradients the layouts of four rows
would not fit into memory."""

ITERATIONS = 4
DELTA = 0.05
LARGEST_STEP = 0.2


@dataclass(frozen=True)
class Row:
    """A published measurement and the work that it measured."""

    name: str
    gpu: str
    work: Workload
    overlap: Overlap
    tokens_per_second: float
    model_tflops: float | None


class Published(msgspec.Struct, frozen=True):
    """A row as published; what a table does not list has its default.

    Attributes:
        model, system, precision: in the words of the table.
        gpus: of the job.
        gbs, mbs: global batch and micro-batch, in sequences of `seq` tokens.
        fsdp: ranks that FSDP shards over; 0 without.
        tp, pp, cp, ep: ranks; `vp` chunks of a stage, None and 1 without virtual stages.
    """

    model: str
    system: str
    precision: str
    gpus: int
    gbs: int
    mbs: int
    seq: int
    tokens_per_sec_per_gpu: float
    release: str = ""
    fsdp: int | bool | None = 0
    tp: int = 1
    pp: int = 1
    cp: int = 1
    vp: int | None = None
    ep: int | None = 1
    model_tflops_per_gpu: float | None = None


class _Table(msgspec.Struct, frozen=True):
    rows: list[Published]


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a file, and for each that cannot be estimated the reason.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        published = msgspec.json.decode(path.read_bytes(), type=_Table).rows
    except OSError as error:
        raise InputError(f"--rows {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise InputError(f"--rows {path}: {error}") from None
    rows, refused = [], []
    for number, row in enumerate(published, start=1):
        try:
            read = read_row(row)
            estimated(read)
        except InputError as error:
            refused.append(f"row {number}, {row.model} on {row.gpus} x {row.system}: {error}")
        else:
            rows.append(read)
    return rows, refused


def read_row(row: Published) -> Row:
    """The run of a row.

    Raises:
        InputError: an unknown model, GPU or precision, or an impossible layout.
    """
    recipe = recipe_of(row.precision)
    if recipe is None:
        raise InputError(
            f"precision {row.precision!r} is not known; known are {', '.join(PRECISIONS)}"
        )
    system = row.system.lower().replace("dgx", "").split()[0].strip("-")
    virtual = row.vp if row.vp and row.vp > 1 else None
    model = named_model(row.model) | {
        "tensor_model_parallel_size": row.tp,
        "pipeline_model_parallel_size": row.pp,
        "context_parallel_size": row.cp,
        "expert_model_parallel_size": row.ep or 1,
        "virtual_pipeline_model_parallel_size": virtual,
        "sequence_parallel": row.tp > 1,
        "seq_length": row.seq,
    }
    if model["num_layers"] % (row.pp * (virtual or 1)):
        model["account_for_embedding_in_pipeline_split"] = True
        model["account_for_loss_in_pipeline_split"] = True
    ddp: dict[str, Any] = {"use_distributed_optimizer": True}
    if row.fsdp:
        ddp |= {
            "use_megatron_fsdp": True,
            "data_parallel_sharding_strategy": "optim_grads_params",
        }
    data = {
        "model": model,
        "ddp": ddp,
        "optimizer": {"use_distributed_optimizer": True},
        "train": {"micro_batch_size": row.mbs, "global_batch_size": row.gbs},
        "mixed_precision": recipe,
        "comm_overlap": {"tp_comm_overlap": row.tp > 1},
    }
    overrides = [parse_override(f"mixed_precision.{text}", data) for text in PERFORMANCE_RECIPES]
    run = build_run(read_settings(Document("published", data, {}), overrides))
    update_runtime(run, row.gpus, software=AssumedSoftware(), strict=False)
    sizes = [
        f"{k}{getattr(row, k)}" for k in ("tp", "pp", "cp", "ep") if (getattr(row, k) or 1) > 1
    ]
    sizes += [f"vp{virtual}"] if virtual else []
    sizes += [f"fsdp{int(row.fsdp)}"] if row.fsdp else []
    batch = f"mbs{row.mbs} gbs{row.gbs}"
    return Row(
        f"{row.model.lower()} {row.precision} {row.gpus}x{system} {' '.join([*sizes, batch])}"
        + (f" ({row.release.split()[0]})" if row.release else ""),
        system,
        workload(run, row.gpus),
        overlap_of(run),
        row.tokens_per_sec_per_gpu,
        row.model_tflops_per_gpu,
    )


def estimated(row: Row, constants: Constants = CONSTANTS) -> Estimate:
    return estimate(row.work, machine_of(row.gpu, constants=constants), row.overlap)


def error(row: Row, constants: Constants = CONSTANTS) -> float:
    """(estimated - published) / published."""
    return estimated(row, constants).tokens_per_second.value / row.tokens_per_second - 1


def fitted(rows: list[Row], start: Constants, slopes: np.ndarray) -> Constants:
    """The fitted constants that minimize the squares of the log errors.

    The slopes at `start` are used throughout: errors are nearly linear in the logarithms.

    Args:
        slopes: of each row's log error by each of `FITTED`'s logarithm.
    """
    at = np.log([getattr(start, name) for name in FITTED])
    for _ in range(ITERATIONS):
        off = np.array([np.log1p(error(row, _constants(start, at))) for row in rows])
        step, *_ = np.linalg.lstsq(slopes, -off, rcond=None)
        at = at + np.clip(step, -LARGEST_STEP, LARGEST_STEP)
    return _constants(start, at)


def _constants(start: Constants, logarithms: np.ndarray) -> Constants:
    return start._replace(**dict(zip(FITTED, map(float, np.exp(logarithms)), strict=True)))


def slopes_at(rows: list[Row], constants: Constants) -> np.ndarray:
    """How each row's log error changes with the logarithm of each fitted constant."""
    base = np.array([np.log1p(error(row, constants)) for row in rows])
    columns = []
    for name in FITTED:
        more = constants._replace(**{name: getattr(constants, name) * np.exp(DELTA)})
        columns.append((np.array([np.log1p(error(row, more)) for row in rows]) - base) / DELTA)
    return np.stack(columns, axis=1)


def leave_one_out(rows: list[Row]) -> list[float]:
    """Each row's error with constants fitted to all other rows."""
    slopes = slopes_at(rows, CONSTANTS)
    errors = []
    for number, row in enumerate(rows):
        others = [n for n in range(len(rows)) if n != number]
        constants = fitted([rows[n] for n in others], CONSTANTS, slopes[others])
        errors.append(error(row, constants))
    return errors


def _summary(errors: list[float]) -> dict[str, float]:
    sizes = [abs(each) for each in errors]
    return {"mean": sum(sizes) / len(sizes), "worst": max(sizes)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--rows", type=Path, default=ROWS, metavar="FILE", help="other rows")
    parser.add_argument("--leave-one-out", action="store_true", help="cross-validation as well")
    options = parser.parse_args()
    try:
        rows, refused = read_rows(options.rows)
    except InputError as problem:
        rows, refused = [], [str(problem)]
    for line in refused:
        print(f"plan_vs_published: {line}", file=sys.stderr)
    if not rows:
        return EXIT_BAD_INPUT
    estimates = [estimated(row) for row in rows]
    errors = [error(row) for row in rows]
    unseen = leave_one_out(rows) if options.leave_one_out else None
    document: dict[str, Any] = {
        "constants": CONSTANTS._asdict(),
        "fitted": FITTED,
        "error": _summary(errors),
        "rows": [
            {
                "name": row.name,
                "published_tokens_per_second": row.tokens_per_second,
                "estimated_tokens_per_second": one.tokens_per_second.value,
                "error": off,
                "estimated_model_tflops": one.model_flops_per_second.value / 1e12,
                "published_model_tflops": row.model_tflops,
                "parts_s": {name: part.value for name, part in one.parts.items()},
            }
            for row, one, off in zip(rows, estimates, errors, strict=True)
        ],
    }
    if unseen is not None:
        document["leave_one_out"] = _summary(unseen)
        for row, off in zip(document["rows"], unseen, strict=True):
            row["error_left_out"] = off
    if options.json:
        write_json(document)
    else:
        _show(document)
    return EXIT_BAD_INPUT if refused else 0


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="tokens/s/GPU, estimated and published")
    table.add_column("run")
    for column in ("published", "estimated", "error", "left out"):
        table.add_column(column, justify="right")
    for row in document["rows"]:
        left_out = row.get("error_left_out")
        table.add_row(
            row["name"],
            f"{row['published_tokens_per_second']:,.0f}",
            f"{row['estimated_tokens_per_second']:,.0f}",
            f"{row['error']:+.1%}",
            "" if left_out is None else f"{left_out:+.1%}",
        )
    out = console()
    out.print(table)
    for what, title in (("error", "error"), ("leave_one_out", "left out")):
        if what in document:
            sizes = document[what]
            out.print(f"{title}: mean {sizes['mean']:.1%}, worst {sizes['worst']:.1%}")


if __name__ == "__main__":
    raise SystemExit(main())
