"""Rows of published training throughput, as runs that `overlapkit.plan` can estimate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from published_recipes import pipeline_split, recipe_for, release_of

from megatron.bridge.training.runtime_update import update_runtime
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.overrides import parse_override
from overlapkit.config.run import build_run, read_settings
from overlapkit.config.yaml_file import Document
from overlapkit.errors import InputError
from overlapkit.plan.estimate.constants import CONSTANTS, Constants
from overlapkit.plan.estimate.machine import machine_of
from overlapkit.plan.estimate.overlap import NO_OVERLAP, Overlap, overlap_of
from overlapkit.plan.estimate.step_time import Estimate, estimate
from overlapkit.plan.estimate.sureness import kind_of
from overlapkit.plan.inputs import PRECISIONS, recipe_of
from overlapkit.plan.models import named_model
from overlapkit.plan.workload.step import Workload, workload

DATA = Path(__file__).resolve().parent / "data"
SHAPES = DATA / "model_shapes.json"
CP_COMM = {"simumax-b200": "a2a"}
"""cp_comm_type of an origin's rows, as its guide tells (MooreThreads/SimuMax 1b8ca90b,
docs/b200/b200_real_repro_guide.md, section 7); p2p is Megatron-Core's default."""
TOOLS = {"simumax_ms": "SimuMax", "calculon_ms": "Calculon"}
"""Keys of a row that state another tool's estimate of the step, in ms."""


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A row as published; what a table does not list has its default.

    Attributes:
        model, system, precision: in the words of the table.
        gpus: of the job.
        gbs, mbs: global batch and micro-batch, in sequences of `seq` tokens.
        fsdp: ranks that FSDP shards over; 0 without.
        tp, pp, cp, ep, etp: ranks; `vp` chunks of a stage, None and 1 without virtual stages.
        origin: the table that the row is from (`set` in the file).
        recompute: "full", or the modules that are recomputed; None where nothing is told.
        overlap: "off", "no_tp" (all but tensor parallelism's), "on"; None where not told.
        dist_opt: whether the optimizer's state is sharded.
        grad_fp32: whether gradients are reduced in fp32.
        dispatcher: of the tokens to experts.
        simumax_ms, calculon_ms: the step as another tool estimates it.
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
    etp: int | None = None
    model_tflops_per_gpu: float | None = None
    origin: str = msgspec.field(name="set", default="")
    recompute: str | list[str] | None = None
    overlap: str | None = None
    dist_opt: bool = True
    grad_fp32: bool = False
    dispatcher: str | None = None
    simumax_ms: float | None = None
    calculon_ms: float | None = None


@dataclass(frozen=True)
class Row:
    """A published measurement and the work that it measured.

    Attributes:
        published: the row of the table.
        name: shown in the report.
        gpu: its short name.
        work: what a step does.
        overlap: what is hidden.
    """

    published: Published
    name: str
    gpu: str
    work: Workload
    overlap: Overlap

    @property
    def tokens_per_second(self) -> float:
        """Of each GPU, as published."""
        return self.published.tokens_per_sec_per_gpu

    @property
    def model_tflops(self) -> float | None:
        """Of each GPU, as published."""
        return self.published.model_tflops_per_gpu

    @property
    def release(self) -> tuple[int, ...]:
        """Numbers of the release that was measured; none where the table names none."""
        return release_of(self.published.release)

    @property
    def kind(self) -> str:
        """Dense, MoE or hybrid."""
        return kind_of(self.work)

    @property
    def machine(self) -> tuple[object, ...]:
        """What layouts are compared on: origin, model, GPUs, precision and sequence."""
        one = self.published
        return (
            one.origin,
            *self.model,
            self.gpu,
            one.gpus,
            self.work.precision.name,
            one.seq,
        )

    @property
    def model(self) -> tuple[object, ...]:
        """The model by its sizes, since tables name it differently."""
        shape = self.work.shape
        experts = shape.experts.count if shape.experts else 0
        return shape.hidden, shape.ffn, len(shape.blocks), shape.vocab, experts

    @property
    def layout(self) -> tuple[object, ...]:
        """How the model is divided and recomputed."""
        one = self.published
        again = one.recompute if isinstance(one.recompute, str) else tuple(one.recompute or ())
        virtual = one.vp if one.vp and one.vp > 1 else 1
        return one.tp, one.pp, virtual, one.cp, one.ep or 1, bool(one.fsdp), one.mbs, again

    @property
    def measured_layout(self) -> tuple[object, ...]:
        """A layout of a model on a GPU, whatever the release, the batch and the table."""
        return *self.model, self.gpu, self.work.precision.rate, *self.layout


class _Table(msgspec.Struct, frozen=True):
    rows: list[Published]


class _Shapes(msgspec.Struct, frozen=True):
    models: dict[str, dict[str, Any]]


@cache
def _shapes() -> dict[str, dict[str, Any]]:
    return msgspec.json.decode(SHAPES.read_bytes(), type=_Shapes).models


def read_rows(*paths: Path) -> tuple[list[Row], list[str]]:
    """The rows of files, and for each that cannot be estimated the reason.

    Raises:
        InputError: a file cannot be read.
    """
    rows, refused = [], []
    for path in paths:
        for number, row in enumerate(_published(path), start=1):
            try:
                read = read_row(row)
                estimated(read)
            except InputError as error:
                place = f"row {number}, {row.model} on {row.gpus} x {row.system}"
                refused.append(f"{place}: {error}")
            else:
                rows.append(read)
    return rows, refused


def _published(path: Path) -> list[Published]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Table).rows
    except OSError as error:
        raise InputError(f"--rows {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise InputError(f"--rows {path}: {error}") from None


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
    unknown = recipe_for(row, system, recipe)
    data = {
        "model": _model(row) | ({} if row.recompute else unknown.settings()),
        "ddp": {"use_distributed_optimizer": row.dist_opt},
        "optimizer": {"use_distributed_optimizer": row.dist_opt},
        "train": {"micro_batch_size": row.mbs, "global_batch_size": row.gbs},
        "mixed_precision": unknown.mixed_precision or recipe,
        "comm_overlap": unknown.overlap(row.tp),
    }
    if row.fsdp:
        data["ddp"] |= {
            "use_megatron_fsdp": True,
            "data_parallel_sharding_strategy": "optim_grads_params",
        }
    changes = [] if unknown.mixed_precision else ["first_last_layers_bf16=false"]
    changes += [f"grad_reduce_in_fp32={str(row.grad_fp32).lower()}"]
    overrides = [parse_override(f"mixed_precision.{text}", data) for text in changes]
    run = build_run(read_settings(Document("published", data, {}), overrides))
    update_runtime(run, row.gpus, software=AssumedSoftware(), strict=False)
    overlap = overlap_of(run)
    if row.overlap == "off":
        overlap = NO_OVERLAP
    elif row.overlap == "no_tp":
        overlap = replace(overlap, tp=False)
    return Row(row, _name(row, system), system, workload(run, row.gpus), overlap)


def _model(row: Published) -> dict[str, Any]:
    """The settings of the model section."""
    virtual = row.vp if row.vp and row.vp > 1 else None
    shape = _shapes().get(row.model) or named_model(row.model)
    model = shape | {
        "tensor_model_parallel_size": row.tp,
        "pipeline_model_parallel_size": row.pp,
        "context_parallel_size": row.cp,
        "expert_model_parallel_size": row.ep or 1,
        "virtual_pipeline_model_parallel_size": virtual,
        "sequence_parallel": row.tp > 1,
        "seq_length": row.seq,
    }
    model |= pipeline_split(row.model, model, row.pp, virtual or 1)
    if row.etp:
        model["expert_tensor_parallel_size"] = row.etp
    if row.cp > 1 and row.origin in CP_COMM:
        model["cp_comm_type"] = CP_COMM[row.origin]
    if row.dispatcher:
        model["moe_token_dispatcher_type"] = row.dispatcher
    if row.recompute == "full":
        model |= {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    elif row.recompute:
        model |= {"recompute_granularity": "selective", "recompute_modules": row.recompute}
    return model


def _name(row: Published, system: str) -> str:
    sizes = [
        f"{k}{getattr(row, k)}" for k in ("tp", "pp", "cp", "ep") if (getattr(row, k) or 1) > 1
    ]
    sizes += [f"vp{row.vp}"] if row.vp and row.vp > 1 else []
    sizes += [f"fsdp{int(row.fsdp)}"] if row.fsdp else []
    batch = f"mbs{row.mbs} gbs{row.gbs}"
    name = f"{row.model.lower()} {row.precision} {row.gpus}x{system} {' '.join([*sizes, batch])}"
    return name + (f" ({row.release.split()[0]})" if row.release else "")


def estimated(row: Row, constants: Constants = CONSTANTS) -> Estimate:
    """The step of a row."""
    return estimate(row.work, machine_of(row.gpu, constants=constants), row.overlap)


def error(row: Row, constants: Constants = CONSTANTS) -> float:
    """(estimated - published) / published."""
    return estimated(row, constants).tokens_per_second.value / row.tokens_per_second - 1


def other_errors(row: Row) -> dict[str, float]:
    """The same error of other tools, by name, where the row states their step."""
    one = row.published
    step_ms = 1e3 * one.gbs * one.seq / (one.tokens_per_sec_per_gpu * one.gpus)
    told = {name: getattr(one, key) for key, name in TOOLS.items()}
    return {name: step_ms / each - 1 for name, each in told.items() if each}
