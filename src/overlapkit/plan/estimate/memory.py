"""How much memory the fullest GPU needs: an estimate with a stated margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from overlapkit.config.run import Run
from overlapkit.errors import InputError
from overlapkit.plan.estimate.activations import layer_activations, layer_input, logits
from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.estimate.optimizer_time import optimizer_shard
from overlapkit.plan.figure import Figure, given, literal, smallest, total
from overlapkit.plan.workload.layers import LayerWork
from overlapkit.plan.workload.parameters import COUNTED
from overlapkit.plan.workload.step import Workload

MARGIN = 0.05
"""Share of the memory that is kept free for what is not counted: the CUDA context and loaded
kernels, NCCL's and userbuffers' buffers, GEMM workspaces, and what fragmentation loses."""

_SIZES = {"float32": 4, "fp32": 4, "bfloat16": 2, "bf16": 2, "float16": 2, "fp16": 2, "uint8": 1}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the GPU that needs most.

    Attributes:
        weights, gradients, optimizer, activations: the parts.
        needed: their sum.
        capacity: of the GPU.
        usable: the capacity less the margin.
        stage: the pipeline stage of that GPU.
    """

    weights: Figure
    gradients: Figure
    optimizer: Figure
    activations: Figure
    needed: Figure
    capacity: Figure
    usable: Figure
    stage: int

    @property
    def fits(self) -> bool:
        """Whether the run needs no more than can be used."""
        return self.needed.value <= self.usable.value


def memory(run: Run, workload: Workload, machine: Machine) -> Memory:
    """The memory of the pipeline stage that needs most.

    Args:
        run: its configurations, effective.
        workload: of that run.
        machine: the GPU's memory.

    Raises:
        InputError: an unknown optimizer dtype.
    """
    usable = (machine.memory * (1 - MARGIN)).called("usable memory", "B")
    # Of stages with the same parameters, the first has the most microbatches in flight.
    last = workload.layout.pp - 1
    first_of: dict[Any, int] = {}
    for stage, params in enumerate(workload.parameters):
        layers = tuple(sorted(workload.stages[stage].items()))
        first_of.setdefault((params, layers, stage == 0, stage == last), stage)
    found = [_of_stage(run, workload, machine, usable, stage) for stage in first_of.values()]
    return max(found, key=lambda one: one.needed.value)


def _of_stage(run: Run, workload: Workload, machine: Machine, usable: Figure, stage: int) -> Memory:
    weights = _weights(run, workload, stage)
    gradients = _gradients(workload, stage)
    optimizer = _optimizer(run, workload, stage)
    activations = _activations(workload, stage)
    needed = (weights + gradients + optimizer + activations).called(
        f"memory needed on stage {stage}", "B"
    )
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        needed=needed,
        capacity=machine.memory,
        usable=usable,
        stage=stage,
    )


def _weights(run: Run, workload: Workload, stage: int) -> Figure:
    params, low = workload.parameters[stage].all, workload.precision
    size = literal(workload.base.operand_bytes, "B")
    fp4 = low.name == "nvfp4"
    kept = given(f"parameters kept in {'FP4' if fp4 else 'FP8'}", params.fp8, "", COUNTED)
    other = given("other parameters per rank", params.all - params.fp8, "", COUNTED)
    # Hopper's tensor cores need FP8 operands transposed, and block scales differ by direction.
    both = given("small copies of a weight", 2, "", "one for each direction")
    weights = other * size + kept * both * literal(low.operand_bytes if fp4 else 1, "B")
    if low is not workload.base:
        # Weights quantized for the first microbatch are kept for the others.
        layers = params.all - params.fp8 - _vocabulary(workload, stage)
        cached = given("parameters quantized each step", max(layers, 0), "", COUNTED)
        weights = weights + cached * both * literal(low.operand_bytes, "B")
    if workload.exchange.per_layer:
        # The current layer and the one that is being gathered are complete.
        layer = given(
            "parameters of a layer", workload.parameters[stage].largest_layer.all, "", COUNTED
        )
        weights = weights * _share(workload, stage) + 2 * layer * size
    return weights.called("weights", "B")


def _vocabulary(workload: Workload, stage: int) -> int:
    """Parameters of embedding and output layer, which no recipe quantizes."""
    shape = workload.shape
    parts = [row[stage] for row in workload.layout.parts]
    one = shape.vocab // shape.tp * shape.hidden
    embeddings = sum(part.first or part.predicts for part in parts)
    if shape.tied and workload.layout.pp == 1:
        return one
    return one * (embeddings + sum(part.last for part in parts))


def _gradients(workload: Workload, stage: int) -> Figure:
    params = given("parameters per rank", workload.parameters[stage].all.all, "", COUNTED)
    size = given("gradient bytes", workload.exchange.gradient_bytes, "B", "ddp.grad_reduce_in_fp32")
    gradients = params * size
    if workload.layout.sharding in ("gradients", "parameters"):
        layer = given(
            "parameters of a layer", workload.parameters[stage].largest_layer.all, "", COUNTED
        )
        gradients = gradients * _share(workload, stage) + 2 * layer * size
    return gradients.called("gradients", "B")


def _share(workload: Workload, stage: int) -> Figure:
    """The share of a stage's parameters that one rank keeps. Experts have fewer copies."""
    params = workload.parameters[stage].all
    all_params = given("parameters per rank", params.all, "", COUNTED)
    return (optimizer_shard(workload, params) / all_params).called("share kept by a rank")


def _optimizer(run: Run, workload: Workload, stage: int) -> Figure:
    shard = optimizer_shard(workload, workload.parameters[stage].all)
    aware = bool(getattr(run.optimizer, "use_precision_aware_optimizer", False))
    sizes = [
        _size(run.optimizer, name) if aware else 4
        for name in ("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
    ]
    if aware and getattr(run.optimizer, "store_param_remainders", False) and sizes[0] == 4:
        # Only the 16 bits that the BF16 weight lacks are kept with it.
        sizes[0] = 2
    each = given("optimizer state bytes", sum(sizes), "B", "master weight and Adam's two moments")
    state = shard * each
    if workload.offload.optimizer:
        state = state * given(
            "share on the GPU",
            1 - workload.offload.optimizer,
            "",
            "optimizer.optimizer_offload_fraction",
        )
    return state.called("optimizer state", "B")


def _size(optimizer: Any, name: str) -> int:
    dtype = str(getattr(optimizer, name, None) or "float32").rpartition(".")[2]
    if dtype not in _SIZES:
        raise InputError(f"optimizer.{name}={dtype}: unknown dtype; known are {', '.join(_SIZES)}")
    return _SIZES[dtype]


def _activations(workload: Workload, stage: int) -> Figure:
    """The activations of all microbatches in flight on a stage.

    With one forward, one backward (1F1B), stage s has at most p - s microbatches in flight.
    Interleaved, the warm-up of stage s is 2 (p - s - 1) + (v - 1) p chunks, and one more is being
    computed.
    """
    layout = workload.layout
    of_kinds = []
    for kind, count in sorted(workload.stages[stage].items()):
        layer = workload.layers[kind]
        layers = given(f"{layer.name} layers of stage {stage}", count, "", "model.num_layers")
        of_kinds.append(layers * _kept(workload, layer))
    of_pass = total(of_kinds, "B").called("activations of a microbatch", "B")
    if workload.offload.layers:
        number = max(sum(workload.stages[stage].values()), 1)
        moved = min(workload.offload.layers, number)
        of_pass = of_pass * given(
            "share of layers not offloaded",
            1 - moved / number,
            "",
            "model.cpu_offloading_num_layers",
        )
    ahead = layout.pp - stage
    chunks = 2 * (ahead - 1) + (layout.vp - 1) * layout.pp + 1
    in_flight = given(
        "microbatches in flight", ahead if layout.vp == 1 else chunks / layout.vp, "", "schedule"
    )
    in_flight = smallest(in_flight, given("microbatches", layout.microbatches, "", "schedule"))
    kept = in_flight * of_pass
    if any(work.recompute.full_layers for work in workload.layers):
        # While a layer is recomputed, all of its activations exist.
        recomputed = (_of_layer(workload, workload.layers[kind]) for kind in workload.stages[stage])
        kept = kept + max(
            recomputed, default=given("recomputed layer", 0, "B", "a stage without layers")
        )
    if stage == layout.pp - 1:
        kept = kept + logits(workload)
    return kept.called("activations", "B")


def _of_layer(workload: Workload, work: LayerWork) -> Figure:
    return layer_activations(workload, work)


def _kept(workload: Workload, work: LayerWork) -> Figure:
    share = work.recompute.full_layers
    if not share:
        return _of_layer(workload, work)
    again = given("share of layers recomputed", share, "", "model.recompute_num_layers")
    return again * layer_input(workload) + (1 - again) * _of_layer(workload, work)
