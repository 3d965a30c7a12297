"""Runs to plan, from a few settings."""

from __future__ import annotations

from typing import Any

from megatron.bridge.training.runtime_update import update_runtime
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.run import Run, build_run, read_settings
from overlapkit.config.yaml_file import Document
from overlapkit.plan.estimate.machine import ALL_RANKS, Link, Machine
from overlapkit.plan.figure import given
from overlapkit.plan.workload.step import Workload, workload

SHORT = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "vp": "virtual_pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
}

TINY: dict[str, Any] = {
    "num_layers": 8,
    "hidden_size": 512,
    "ffn_hidden_size": 1024,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "kv_channels": 64,
    "vocab_size": 1024,
    "seq_length": 256,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
}


def effective_run(
    world_size: int,
    *,
    mbs: int = 1,
    gbs: int = 16,
    precision: str | None = "bf16_mixed",
    ddp: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    comm_overlap: dict[str, Any] | None = None,
    **model: Any,
) -> Run:
    """The effective run of a tiny model; `tp`, `pp` … and any model field as keywords."""
    named = {SHORT.get(key, key): value for key, value in model.items()}
    data: dict[str, Any] = {
        "model": TINY | {"sequence_parallel": model.get("tp", 1) > 1} | named,
        "train": {"micro_batch_size": mbs, "global_batch_size": gbs},
        "ddp": {"use_distributed_optimizer": True} | (ddp or {}),
        "optimizer": {"use_distributed_optimizer": True} | (optimizer or {}),
        "comm_overlap": {"tp_comm_overlap": model.get("tp", 1) > 1} | (comm_overlap or {}),
    }
    if precision:
        data["mixed_precision"] = precision
    run = build_run(read_settings(Document("test", data, {})))
    update_runtime(run, world_size, software=AssumedSoftware(), strict=False)
    return run


def work_of(world_size: int, **settings: Any) -> Workload:
    """The workload of `effective_run`."""
    return workload(effective_run(world_size, **settings), world_size)


def plain_machine(**changed: Any) -> Machine:
    """A machine of round numbers, without latencies and without loss to tiles: 1 TFLOP/s of
    everything, memory of 1 TB/s, 1 GB/s between all ranks, a tenth of compute lost to communication
    beside it."""
    values: dict[str, Any] = {
        "name": "round",
        "rates": {
            kind: given(kind, 1e12, "FLOP/s") for kind in ("fp32", "bf16", "fp8", "mxfp8", "nvfp4")
        },
        "attention_forward": given("attention forward rate", 1e12, "FLOP/s"),
        "attention_backward": given("attention backward rate", 1e12, "FLOP/s"),
        "memory_bandwidth": given("memory bandwidth", 1e12, "B/s"),
        "memory": given("memory", 80e9, "B"),
        "links": (Link("link", ALL_RANKS, given("link", 1e9, "B/s"), given("hop", 0, "s")),),
        "communication_share": given("share", 0.1),
        "kernel": given("kernel", 0, "s"),
    }
    return Machine(**(values | changed))
