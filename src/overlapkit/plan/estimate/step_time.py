"""How long a step takes on a machine, part by part, and which communication is exposed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from overlapkit.plan.estimate.gradient_time import exchange_time
from overlapkit.plan.estimate.layer_time import LayerTime, layer_time
from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.estimate.offload_time import activation_copies, host_update
from overlapkit.plan.estimate.optimizer_time import optimizer_time
from overlapkit.plan.estimate.overlap import Overlap
from overlapkit.plan.estimate.roofline import collective_time
from overlapkit.plan.figure import Figure, given, largest, smallest, total
from overlapkit.plan.workload.step import Workload

BATCHES = "global batch / (micro-batch x DP)"

PARTS = (
    "matrix products",
    "attention",
    "memory-bound kernels",
    "host",
    "contention",
    "TP exposed",
    "CP exposed",
    "EP exposed",
    "PP exposed",
    "DP exposed",
    "pipeline bubble",
    "activation offload",
    "optimizer",
)
"""What a step consists of. The parts of an estimate add up to its step."""


@dataclass(frozen=True)
class Exposure:
    """Seconds of one dimension's communication in a step: `exposed + hidden = total`."""

    total: Figure
    exposed: Figure
    hidden: Figure


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A step of the slowest rank.

    Attributes:
        step: seconds.
        parts: seconds by `PARTS`, which add up to `step`.
        communication: by dimension, for those that communicate.
        tokens_per_second: of each GPU.
        model_flops_per_second: of each GPU, model FLOPs.
        bubble_share: the bubble over the rest of the step.
    """

    step: Figure
    parts: Mapping[str, Figure]
    communication: Mapping[str, Exposure]
    tokens_per_second: Figure
    model_flops_per_second: Figure
    bubble_share: Figure

    @property
    def exposed(self) -> Figure:
        """Exposed communication of all dimensions together."""
        return total((one.exposed for one in self.communication.values()), "s").called(
            "exposed communication", "s"
        )


def estimate(workload: Workload, machine: Machine, overlap: Overlap) -> Estimate:
    """The time of a step.

    The slowest stage works through all microbatches. Before and after them it waits for the other
    stages to fill and drain, which interleaving shortens (Narayanan et al., Efficient Large-Scale
    Language Model Training on GPU Clusters Using Megatron-LM, 2021, section 2.2).

    Raises:
        InputError: the machine has no rate for the workload's precision.
    """
    layout = workload.layout
    alone = min(layout.pp / layout.microbatches, 1.0)
    layers = [layer_time(work, machine, overlap, alone=alone) for work in workload.layers]
    vocabulary = layer_time(workload.vocabulary, machine, overlap)
    stages = [_stage(workload, stage, layers, vocabulary) for stage in range(layout.pp)]
    times = [_stage_time(stage, layers_of) for stage, layers_of in enumerate(stages)]
    slowest_stage = max(range(layout.pp), key=lambda stage: times[stage].value)
    slowest = stages[slowest_stage]
    scale = _scale(workload, machine, slowest)

    parts = _compute(workload, slowest, scale)
    communication = _communication(workload, machine, overlap, slowest)
    for dimension, exposure in communication.items():
        parts[f"{dimension} exposed"] = exposure.exposed
    # A layer's own contention is among its compute; these run beside the layers.
    hidden = [communication[each].hidden for each in ("PP", "DP") if each in communication]
    contention = [parts["contention"], *(each * machine.communication_share for each in hidden)]
    parts["contention"] = total(contention).called("contention", "s")
    bubble = _scaled(_bubble(workload, times), scale).called("pipeline bubble", "s")
    parts["pipeline bubble"] = bubble
    copies = activation_copies(workload, machine, slowest_stage, layers)
    if copies is not None:
        parts["activation offload"] = (copies * _passes(workload)).called("activation offload", "s")
    on_gpu = _scaled(optimizer_time(workload, machine), scale).called("optimizer", "s")
    on_host = host_update(workload, machine)
    parts["optimizer"] = on_gpu if on_host is None else (on_gpu + on_host).called("optimizer", "s")
    parts = {name: parts[name] for name in PARTS if name in parts}
    step = total(parts.values()).called("step", "s")
    world = given("GPUs", layout.world, "", "--world-size")
    return Estimate(
        step=step,
        parts=parts,
        communication=communication,
        tokens_per_second=(layout.step_tokens / step / world).called(
            "tokens per second and GPU", "tokens/s"
        ),
        model_flops_per_second=(workload.model_flops / step / world).called(
            "model FLOP/s of a GPU", "FLOP/s"
        ),
        bubble_share=(bubble / (step - bubble)).called("bubble over the rest of the step", ""),
    )


_Stage = list[tuple[Figure, LayerTime]]
"""Number of layers of each kind and the time of each."""

_COMPUTE: dict[str, Callable[[LayerTime], Figure]] = {
    "matrix products": lambda time: time.forward.gemms + time.backward.gemms,
    "attention": lambda time: time.forward.attention + time.backward.attention,
    "memory-bound kernels": lambda time: time.forward.traffic + time.backward.traffic,
    "host": lambda time: time.forward.host + time.backward.host,
    "contention": lambda time: time.forward.contention + time.backward.contention,
}


def _compute(workload: Workload, layers: _Stage, scale: Figure | None) -> dict[str, Figure]:
    """Seconds of a stage's compute in a step, by part."""
    passes = _passes(workload)
    parts = {}
    for name, pick in _COMPUTE.items():
        picked = [(count, pick(time)) for count, time in layers]
        of_pass = total((count * time for count, time in picked if time.value), "s")
        parts[name] = _scaled(of_pass * passes, scale).called(name, "s")
    return parts


def _communication(
    workload: Workload, machine: Machine, overlap: Overlap, layers: _Stage
) -> dict[str, Exposure]:
    """A stage's communication in a step, by dimension, where there is any."""
    found = {name: _of_dimension(name, layers, _passes(workload)) for name in ("TP", "CP", "EP")}
    forward, backward = _chunk_times(layers, workload.layout.vp)
    if workload.boundary is not None:
        found["PP"] = _boundary(workload, machine, overlap, forward)
    exchange = exchange_time(workload, machine, overlap, forward, backward)
    if exchange is not None:
        hidden = _hidden("DP", exchange.total, exchange.exposed)
        found["DP"] = Exposure(exchange.total, exchange.exposed, hidden)
    return {name: exposure for name, exposure in found.items() if exposure is not None}


def _passes(workload: Workload) -> Figure:
    return given("microbatches", workload.layout.microbatches, "", BATCHES)


def _stage(
    workload: Workload, stage: int, layers: list[LayerTime], vocabulary: LayerTime
) -> _Stage:
    result = []
    for kind, count in sorted(workload.stages[stage].items()):
        name = f"{workload.layers[kind].name} layers of stage {stage}"
        result.append((given(name, count, "", "model.num_layers"), layers[kind]))
    if stage == workload.layout.pp - 1:
        heads = given("output layers", workload.heads, "", "on the last stage")
        result.append((heads, vocabulary))
    return result


def _stage_time(stage: int, layers: _Stage) -> Figure:
    return total((count * time.all for count, time in layers), "s").called(
        f"stage {stage}, one microbatch", "s"
    )


def _chunk_times(layers: _Stage, chunks: int) -> tuple[Figure, Figure]:
    """Forward and backward of one model chunk of a stage, for one microbatch."""
    number = given(
        "model chunks of a stage", chunks, "", "model.virtual_pipeline_model_parallel_size"
    )
    forward = total((count * time.forward.all for count, time in layers), "s") / number
    backward = total((count * time.backward.all for count, time in layers), "s") / number
    return forward.called("forward of a chunk", "s"), backward.called("backward of a chunk", "s")


def _of_dimension(dimension: str, layers: _Stage, passes: Figure) -> Exposure | None:
    found = [
        (count, one)
        for count, time in layers
        for phase in (time.forward, time.backward)
        for one in phase.communication
        if one.dimension == dimension
    ]
    if not found:
        return None
    entire = (total(count * one.total for count, one in found) * passes).called(
        f"{dimension} communication", "s"
    )
    exposed = (total(count * one.exposed for count, one in found) * passes).called(
        f"{dimension} exposed", "s"
    )
    return Exposure(entire, exposed, _hidden(dimension, entire, exposed))


def _hidden(dimension: str, entire: Figure, exposed: Figure) -> Figure:
    return (entire - exposed).called(f"{dimension} hidden", "s")


def _boundary(workload: Workload, machine: Machine, overlap: Overlap, forward: Figure) -> Exposure:
    """Boundary activations. With overlap, only those sent while the pipeline fills and drains have
    no compute beside them."""
    assert workload.boundary is not None
    each = collective_time(workload.boundary, machine)
    count = given("boundary messages", workload.boundary.count, "", "2 x VPP x microbatches")
    entire = (count * each).called("PP communication", "s")
    if not overlap.pp:
        return Exposure(
            entire,
            entire.called("PP exposed", "s"),
            given("PP hidden", 0, "s", "overlap_p2p_comm is off"),
        )
    stages = given("PP", workload.layout.pp, "stages", "model.pipeline_model_parallel_size")
    filling = smallest(2 * (stages - 1), count).called("messages of filling and draining", "")
    exposed = filling * each + (count - filling) * largest(each - forward, 0)
    exposed = smallest(exposed, entire).called("PP exposed", "s")
    return Exposure(entire, exposed, _hidden("PP", entire, exposed))


def _bubble(workload: Workload, times: Iterable[Figure]) -> Figure:
    """How long a stage waits while the others fill and drain: `(p - 1) / v` microbatches."""
    layout = workload.layout
    if layout.pp == 1:
        return given("pipeline bubble", 0, "s", "one stage")
    stages = given("PP", layout.pp, "stages", "model.pipeline_model_parallel_size")
    chunks = given("VPP", layout.vp, "chunks", "model.virtual_pipeline_model_parallel_size")
    mean = (total(times) / stages).called("mean stage, one microbatch", "s")
    return ((stages - 1) / chunks * mean).called("filling and draining", "s")


def _scale(workload: Workload, machine: Machine, layers: _Stage) -> Figure | None:
    """Measured compute of a step over the modelled one; None where nothing was measured."""
    if machine.step_compute is None:
        return None
    of_pass = total(
        (count * (time.forward.compute + time.backward.compute) for count, time in layers), "s"
    )
    modelled = (of_pass * _passes(workload) + optimizer_time(workload, machine)).called(
        "modelled compute of a step", "s"
    )
    return (machine.step_compute / modelled).called("measured over modelled compute")


def _scaled(time: Figure, scale: Figure | None) -> Figure:
    return time if scale is None else time * scale
