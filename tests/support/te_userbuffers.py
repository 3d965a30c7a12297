"""Drives Transformer Engine's real ``initialize_ub`` without a GPU, and records what it does.

Its Python code, its compiled extension and the process group (gloo, one rank) are real. The two
questions that ``initialize_ub`` asks the GPU are answered for it, and the two communicator classes
are replaced by recorders: a recorder lets the real constructor convert its arguments, which refuses
wrong types, and notes them when it fails for want of a GPU.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

from megatron.bridge.training.decisions import Decision, Outcome
from megatron.bridge.training.tp_overlap_presets import PRESETS, parse_preset_name
from megatron.bridge.training.userbuffers.facts import GEMMS
from megatron.bridge.training.userbuffers.settings import as_te_dict, check_userbuffers

try:
    import transformer_engine
    import transformer_engine_torch as tex
    from transformer_engine.pytorch.module import base as te_base

    MISSING = ""
except Exception as error:  # a broken build fails with an OSError, an AssertionError ...
    MISSING = f"Transformer Engine cannot be imported: {type(error).__name__}: {error}"

COMMAND = (
    "TE_EVIDENCE=docs/evidence/te-initialize-ub.json "
    "python -m pytest tests/functional_tests/test_te_initialize_ub.py"
)

Config = Mapping[str, Any]
# How a run's GEMMs are quantized, as arguments of check_userbuffers.
RUNS: dict[str, dict[str, bool]] = {
    "bf16": {"fp8": False},
    "fp8": {"fp8": True},
    "fp8 with bf16 layers": {"fp8": True, "also_bf16": True},
}

RING = {"method": "ring_exchange", "num_sm": 1, "cga_size": 1, "set_sm_margin": False}
PIPELINE = {"method": "pipeline", "num_sm": 16, "cga_size": 2, "num_splits": 4}
BULK = {"method": "bulk", "num_sm": 4, "cga_size": 2, "set_sm_margin": False}
ATOMIC = {"atomic_gemm": True}


@dataclass(frozen=True)
class Refused:
    """A configuration that both refuse: Transformer Engine with `error`, ours by `rule`."""

    cfg: Config
    run: str
    error: str
    rule: str


REFUSED = {
    "unknown setting": Refused(
        {"proj_fprop": PIPELINE | {"num_sms": 8}}, "bf16", "TypeError", "ub.key-name"
    ),
    "settings that are no mapping": Refused(
        {"proj_fprop": "pipeline"}, "bf16", "AttributeError", "ub.shape"
    ),
    "num_sm as text": Refused(
        {"proj_fprop": PIPELINE | {"num_sm": "16"}}, "bf16", "TypeError", "ub.key-type"
    ),
    "num_sm as a float": Refused(
        {"proj_fprop": PIPELINE | {"num_sm": 16.0}}, "bf16", "TypeError", "ub.key-type"
    ),
    "num_sm beyond 32 bits": Refused(
        {"proj_fprop": PIPELINE | {"num_sm": 2**31}}, "bf16", "TypeError", "ub.key-type"
    ),
    "set_sm_margin as text": Refused(
        {"proj_fprop": PIPELINE | {"set_sm_margin": "true"}}, "bf16", "TypeError", "ub.key-type"
    ),
    "aggregate as a list": Refused(
        {"qkv_fprop": RING | {"aggregate": [False]}}, "bf16", "TypeError", "ub.key-type"
    ),
    "unknown method on a dgrad": Refused(
        {"qkv_dgrad": BULK | {"method": "bulky"}}, "bf16", "KeyError", "ub.method-name"
    ),
    **{
        f"pipeline on {gemm}": Refused(
            {gemm: PIPELINE}, "bf16", "ValueError", "ub.pipeline-all-gather"
        )
        for gemm in ("qkv_fprop", "fc1_fprop", "proj_dgrad", "fc2_dgrad")
    },
    "bulk on proj_wgrad": Refused({"proj_wgrad": BULK}, "bf16", "ValueError", "ub.method-gemm"),
    "pipeline dgrad with settings for its wgrad": Refused(
        {"fc1_dgrad": PIPELINE, "fc1_wgrad": BULK}, "bf16", "ValueError", "ub.split-dgrad-wgrad"
    ),
    "ring_exchange dgrad with settings for its wgrad": Refused(
        {"qkv_dgrad": RING, "qkv_wgrad": BULK}, "fp8", "ValueError", "ub.split-dgrad-wgrad"
    ),
    "pipeline dgrad, FP8 and BF16 layers": Refused(
        {"fc1_dgrad": PIPELINE}, "fp8 with bf16 layers", "ValueError", "ub.split-dgrad-modes"
    ),
    "atomic_gemm without FP8": Refused(
        {"fc2_fprop": PIPELINE | ATOMIC}, "bf16", "ValueError", "ub.atomic-fp8"
    ),
    "atomic_gemm, FP8 and BF16 layers": Refused(
        {"fc2_fprop": PIPELINE | ATOMIC}, "fp8 with bf16 layers", "ValueError", "ub.atomic-fp8"
    ),
    "atomic ring on the all-gather only": Refused(
        {"qkv_fprop": RING | ATOMIC, "proj_fprop": RING}, "fp8", "ValueError", "ub.atomic-pair"
    ),
    "atomic ring on the reduce-scatter only": Refused(
        {"fc2_fprop": RING | ATOMIC}, "fp8", "ValueError", "ub.atomic-pair"
    ),
}

NOTED: dict[str, tuple[Config, str]] = {
    "fp8_buf: [false] in an FP8 run": ({"proj_fprop": PIPELINE | {"fp8_buf": [False]}}, "fp8"),
    "fp8_buf: [false] in a BF16 run": ({"proj_fprop": PIPELINE | {"fp8_buf": [False]}}, "bf16"),
    "unknown GEMM": ({"fc3_fprop": RING}, "bf16"),
    "bulk on proj_fprop": ({"proj_fprop": BULK}, "bf16"),
    "ring_exchange on proj_fprop alone": ({"proj_fprop": {"method": "ring_exchange"}}, "bf16"),
    "atomic_gemm on a bulk overlap": ({"qkv_wgrad": BULK | ATOMIC}, "fp8"),
}


COLLECTIVES = {"AG": "all-gather", "RS": "reduce-scatter"}


@dataclass(frozen=True)
class Seen:
    """One communicator that Transformer Engine asked for."""

    communicator: str
    collective: str
    buffer: str
    settings: Mapping[str, Any]


def recorder(name: str) -> type:
    real = getattr(tex, name)

    class Recorder:
        def __init__(
            self, shape: Any, dtype: Any, helper: Any, tp_size: int, comm_type: Any, **settings: Any
        ) -> None:
            try:
                real(shape, dtype, helper, tp_size, comm_type=comm_type, **settings)
            except RuntimeError as error:
                if "CUDA Error" not in str(error):
                    raise
            del settings["use_cublasmp"], settings["num_max_streams"]
            buffer = str(dtype).removeprefix("torch.")
            self.seen = Seen(name, COLLECTIVES[comm_type.name], buffer, settings)

    return Recorder


@contextlib.contextmanager
def without_gpu() -> Iterator[None]:
    """Makes `initialize` possible: one gloo rank, the recorders, and answers for the GPU."""
    import torch

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    with mock.patch.multiple(
        tex,
        CommOverlap=recorder("CommOverlap"),
        CommOverlapP2P=recorder("CommOverlapP2P"),
        device_supports_multicast=lambda: True,
        get_stream_priority_range=lambda: (0, -5),
    ):
        yield
    te_base.destroy_ub()
    torch.distributed.destroy_process_group()


def initialize(cfg: Config | None, run: str, tp_size: int = 4) -> dict[str, Seen]:
    """What Transformer Engine builds per GEMM, in the first of the run's quantization modes."""
    te_base._ub_communicators, te_base._ub_initialized = None, False
    none, fp8 = te_base.UserBufferQuantizationMode.NONE, te_base.UserBufferQuantizationMode.FP8
    modes = {"bf16": [none], "fp8": [fp8], "fp8 with bf16 layers": [fp8, none]}[run]
    te_base.initialize_ub(
        shape=[8192, 8192],
        tp_size=tp_size,
        quantization_modes=modes,
        ub_cfgs=None if cfg is None else dict(cfg),
        bootstrap_backend="gloo",
    )
    return {
        gemm: communicator.seen
        for (gemm, mode), communicator in te_base._ub_communicators.items()
        if mode is modes[0]
    }


def errors(cfg: Config, run: str) -> list[Decision]:
    return [d for d in check_userbuffers(cfg, **RUNS[run]) if d.outcome is Outcome.ERROR]


def preset_run(name: str) -> tuple[str, int]:
    key = parse_preset_name(name)
    return key.precision, key.tensor_parallel_size


def implements(cls: str, operation: str) -> bool:
    """Whether a communicator class has the operation, by its declaration in the C++ header."""
    header = Path(transformer_engine.__file__).parent / (
        "common/include/transformer_engine/comm_gemm_overlap.h"
    )
    declared = header.read_text().split(f"class {cls} :")[1].split("\n};")[0]
    return "NVTE_ERROR" not in declared.split(f"void {operation}(")[1].split("\n\n")[0]


def as_json(seen: Seen, method: str) -> dict[str, Any]:
    return {
        "method": method,
        "communicator": seen.communicator,
        "collective": seen.collective,
        "buffer": seen.buffer,
        **seen.settings,
    }


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def record() -> dict[str, Any]:
    presets, refusals, notes = {}, {}, {}
    for name in PRESETS:
        precision, tp_size = preset_run(name)
        plain = as_te_dict(PRESETS[name])
        built = initialize(plain, precision, tp_size)
        gemms = {
            gemm: as_json(seen, plain.get(gemm, {}).get("method", GEMMS[gemm].method))
            for gemm, seen in built.items()
        }
        presets[name] = {
            "precision": precision,
            "tensor_parallel_size": tp_size,
            "accepted": True,
            "left_to_transformer_engine": [gemm for gemm in gemms if gemm not in plain],
            "gemms": gemms,
        }
    for case, refused in REFUSED.items():
        try:
            initialize(refused.cfg, refused.run)
            theirs = None
        except Exception as error:
            theirs = first_line(error)
        ours = [
            {"rule": d.rule, "knob": d.knob, "reason": d.reason}
            for d in errors(refused.cfg, refused.run)
        ]
        refusals[case] = {
            "config": refused.cfg,
            "run": refused.run,
            "transformer_engine": theirs,
            "check_userbuffers": ours,
        }
    for case, (cfg, run) in NOTED.items():
        built = initialize(cfg, run)
        notes[case] = {
            "config": cfg,
            "run": run,
            "transformer_engine": {
                gemm: as_json(built[gemm], cfg[gemm]["method"]) if gemm in built else "ignored"
                for gemm in cfg
            },
            "check_userbuffers": [
                {"rule": d.rule, "knob": d.knob, "effective": d.effective, "reason": d.reason}
                for d in check_userbuffers(cfg, **RUNS[run])
            ],
        }
    defaults = {
        gemm: as_json(seen, GEMMS[gemm].method) for gemm, seen in initialize(None, "fp8").items()
    }
    return {
        "schema": "overlapkit/evidence/te-initialize-ub/v1",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": COMMAND,
        "versions": {
            name: version(name) for name in ("transformer-engine", "torch", "megatron-core")
        },
        "replaced": [
            "the end of the communicators' constructors, which needs a GPU",
            "transformer_engine_torch.device_supports_multicast",
            "transformer_engine_torch.get_stream_priority_range",
        ],
        "presets": presets,
        "transformer_engine_defaults_fp8": defaults,
        "refused": refusals,
        "noted": notes,
    }
