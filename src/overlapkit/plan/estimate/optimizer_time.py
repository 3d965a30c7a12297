"""The step of the optimizer: it reads and writes every parameter's state once."""

from __future__ import annotations

from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.figure import Figure, given, literal
from overlapkit.plan.workload.parameters import COUNTED, Parameters
from overlapkit.plan.workload.step import Workload

STATE_BYTES = 4 + 2 * 12
"""Bytes per parameter of Adam with fp32 state: the gradient is read, the master weight and two
moments are read and written."""
NORM_BYTES = 4
"""Bytes per parameter to clip the norm: the gradient is read once more."""
ZEROED_BYTES = 4
"""Bytes per parameter to clear the gradient buffer, of which every rank has all."""


def optimizer_time(workload: Workload, machine: Machine) -> Figure:
    """Seconds of memory traffic on the stage with the most parameters."""
    params = workload.parameters[workload.worst_stage].all
    shard = optimizer_shard(workload, params)
    all_params = given("parameters per rank", params.all, "", COUNTED)
    weight = given(
        "weight bytes written", workload.base.operand_bytes, "B", "mixed_precision.params_dtype"
    )
    moved = shard * (literal(STATE_BYTES + NORM_BYTES, "B") + weight)
    if workload.offload.optimizer:
        # The norm of all gradients is the GPU's; the host has its own estimate.
        source = "optimizer.optimizer_offload_fraction"
        kept = given("share on the GPU", 1 - workload.offload.optimizer, "", source)
        moved = shard * literal(NORM_BYTES, "B") + kept * shard * (
            literal(STATE_BYTES, "B") + weight
        )
    if workload.layout.sharding in ("none", "optimizer"):
        moved = moved + all_params * literal(ZEROED_BYTES, "B")
    if workload.precision.quantize_bytes:
        # Weights are quantized for the first microbatch and kept for the others.
        moved = moved + all_params * literal(workload.precision.quantize_bytes, "B")
    return (moved.called("optimizer bytes", "B") / machine.memory_bandwidth).called(
        "optimizer", "s"
    )


def optimizer_shard(workload: Workload, params: Parameters) -> Figure:
    """Parameters whose optimizer state one rank keeps."""
    layout = workload.layout
    if layout.sharding == "none":
        return given("parameters of a rank's optimizer", params.all, "", COUNTED)
    dense = max(layout.replicas // layout.instances, 1)
    expert = max(layout.expert_replicas // layout.instances, 1)
    shard = given("dense parameters per rank", params.dense, "", COUNTED) / given(
        "their shards", dense, "", "DP x CP / distributed-optimizer instances"
    )
    if params.expert:
        shard = shard + given("expert parameters per rank", params.expert, "", COUNTED) / given(
            "experts' shards", expert, "", "DP x CP x TP / (EP x expert TP) / instances"
        )
    return shard.called("parameters of a rank's optimizer", "")
