"""How long the host's part of a step takes: copies of activations, and the optimizer's update."""

from __future__ import annotations

from overlapkit.plan.estimate.activations import layer_activations
from overlapkit.plan.estimate.layer_time import LayerTime
from overlapkit.plan.estimate.machine import Host, Machine
from overlapkit.plan.estimate.optimizer_time import optimizer_shard
from overlapkit.plan.figure import Figure, given, largest, literal, total
from overlapkit.plan.workload.step import Workload

UPDATE_BYTES = 4 + 2 * 12 + 2
"""Bytes of the host's memory per parameter of Adam: the gradient is read, the master weight and two
moments are read and written, and the 16-bit weight is written."""


def host_update(workload: Workload, machine: Machine) -> Figure | None:
    """Seconds of the update of offloaded optimizer state; None where nothing is offloaded, or the
    host's memory is not known.

    Gradients go to the host and weights come back while other parameters are updated
    (overlap_cpu_optimizer_d2h_h2d), so that the slowest of the three decides.
    """
    if not workload.offload.optimizer or machine.host is None:
        return None
    shard = optimizer_shard(workload, workload.parameters[workload.worst_stage].all)
    share = given("share on the host", workload.offload.optimizer, "", "optimizer_offload_fraction")
    kept = (shard * share).called("parameters updated by the host", "")
    size = given("gradient bytes", workload.exchange.gradient_bytes, "B", "ddp.grad_reduce_in_fp32")
    link = machine.host.link
    gradients = (kept * size / link).called("gradients to the host", "s")
    weights = (kept * literal(workload.base.operand_bytes, "B") / link).called(
        "weights from the host", "s"
    )
    update = (kept * literal(UPDATE_BYTES, "B") / machine.host.memory).called(
        "update in the host's memory", "s"
    )
    return largest(largest(gradients, weights), update).called("optimizer on the host", "s")


def activation_copies(
    workload: Workload, machine: Machine, stage: int, layers: list[LayerTime]
) -> Figure | None:
    """Seconds for which a microbatch on a stage waits for copies of activations; None where nothing
    is offloaded, or the link is not known.

    A layer's activations leave while the next layer computes, and return while the backward of the
    one after it does (Transformer Engine, pytorch/cpu_offload.py).
    """
    if not workload.offload.layers or machine.host is None:
        return None
    counts = workload.stages[stage]
    number = max(sum(counts.values()), 1)
    share = given(
        "share of layers offloaded",
        min(workload.offload.layers, number) / number,
        "",
        "model.cpu_offloading_num_layers",
    )
    waits = [
        given(f"{workload.layers[kind].name} layers", count, "", "model.num_layers")
        * _waiting(workload, machine.host, kind, layers[kind])
        for kind, count in sorted(counts.items())
    ]
    return (share * total(waits, "s")).called("waiting for copies of activations", "s")


def _waiting(workload: Workload, host: Host, kind: int, layer: LayerTime) -> Figure:
    """What no compute hides of one layer's copies, both ways."""
    copied = layer_activations(workload, workload.layers[kind]) / host.link
    return largest(copied - layer.forward.all, 0) + largest(copied - layer.backward.all, 0)
