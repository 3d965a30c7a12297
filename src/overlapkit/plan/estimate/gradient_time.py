"""How much of the gradient reduction and the parameter gathering a step leaves exposed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.estimate.overlap import Overlap
from overlapkit.plan.estimate.roofline import collective_time
from overlapkit.plan.figure import Figure, given, largest, smallest, total
from overlapkit.plan.workload.collectives import Collective
from overlapkit.plan.workload.gradient_exchange import ChunkExchange
from overlapkit.plan.workload.step import Workload

SCHEDULE = "pipeline schedule"


@dataclass(frozen=True)
class ExchangeTime:
    """Seconds a step of data-parallel communication, and those that nothing hides."""

    total: Figure
    exposed: Figure


def exchange_time(
    workload: Workload, machine: Machine, overlap: Overlap, forward: Figure, backward: Figure
) -> ExchangeTime | None:
    """The exchange of the stage that waits longest for it; None where there is none.

    Args:
        forward, backward: seconds of one model chunk for one microbatch.
    """
    exchange = workload.exchange
    if not any(one.gradients or one.parameters for row in exchange.chunks for one in row):
        return None
    if exchange.per_layer:
        return _layer_by_layer(workload, machine, overlap, forward, backward)
    # Of stages that hold the same, the first has the least time to spare.
    first_of = {tuple(map(id, row)): n for n, row in reversed(list(enumerate(exchange.chunks)))}
    stages = sorted(first_of.values())
    sides = []
    for name, pick, on, chunk in (
        ("gradients", _gradients, overlap.dp_gradients, backward),
        ("parameters", _parameters, overlap.dp_parameters, forward),
    ):
        found = [_side(workload, machine, name, pick, on, chunk, stage) for stage in stages]
        # One stage may have most to exchange and another wait longest for it.
        most = max(one.total for one in found)
        longest = max(one.exposed for one in found)
        sides.append(ExchangeTime(most, longest))
    return ExchangeTime(
        total(side.total for side in sides).called("DP communication", "s"),
        total(side.exposed for side in sides).called("DP exposed", "s"),
    )


def _gradients(chunk: ChunkExchange) -> Sequence[Collective]:
    return chunk.gradients


def _parameters(chunk: ChunkExchange) -> Sequence[Collective]:
    return chunk.parameters


def _side(
    workload: Workload,
    machine: Machine,
    name: str,
    pick: Callable[[ChunkExchange], Sequence[Collective]],
    on: bool,
    chunk: Figure,
    stage: int,
) -> ExchangeTime:
    """One stage's reduction (or gathering, which is the same backwards in time).

    A chunk's gradients are complete with its last microbatch's backward. Chunks finish one after
    the other, a group of PP microbatches apart, so that all but the first chunk's reduction (the
    last to finish) have that long to hide; within the first chunk, what its last bucket holds has
    nothing left to hide under. A later stage finishes earlier, by one chunk for each stage before
    it, and nobody waits for it in the meantime.
    """
    chunks = workload.exchange.chunks[stage]
    alike = Counter(id(held) for held in chunks)
    times = {
        id(held): total((collective_time(one, machine) for one in pick(held)), "s").called(
            f"{name} of chunk {number} of stage {stage}", "s"
        )
        for number, held in reversed(list(enumerate(chunks)))
    }
    whole = total(_times(count, times[key]) for key, count in alike.items()).called(
        f"{name} exchange", "s"
    )
    if not on:
        return ExchangeTime(whole, whole.called(f"{name} exposed", "s"))
    alone = given("share in the last bucket", chunks[0].alone, "", "ddp.bucket_size")
    last = (times[id(chunks[0])] * alone).called(f"{name} of the last bucket", "s")
    window = chunk * (1 - alone)
    if len(chunks) > 1:
        others = given("later chunks x PP", (len(chunks) - 1) * workload.layout.pp, "", SCHEDULE)
        window = window + others * chunk
    window = window.called(f"{chunk.name} that {name} hide under", "s")
    slack = (given("stages before", stage, "", SCHEDULE) * chunk).called(
        f"{name} slack of stage {stage}", "s"
    )
    exposed = largest(largest(last, whole - window) - slack, 0)
    return ExchangeTime(whole, smallest(exposed, whole).called(f"{name} exposed", "s"))


def _times(count: int, time: Figure) -> Figure:
    return time if count == 1 else given("chunks alike", count, "", SCHEDULE) * time


def _layer_by_layer(
    workload: Workload, machine: Machine, overlap: Overlap, forward: Figure, backward: Figure
) -> ExchangeTime:
    """FSDP: each microbatch gathers every layer's parameters twice and scatters its gradients.

    While a layer computes, the next one's parameters are gathered and the last one's gradients
    scattered; the first layer of a pass has nothing before it.
    """
    layout = workload.layout
    passes = given("microbatches", layout.microbatches, "", "global batch / (micro-batch x DP)")
    chunks = [one for row in workload.exchange.chunks for one in row]
    stage = max(chunks, key=lambda one: sum(each.payload.value for each in one.gradients))
    layers = max(len(row[0]) for row in layout.chunk_layers)
    edge = given("share of the first layer", 1 / max(layers, 1), "", "1 / layers")
    gather = total((collective_time(one, machine) for one in stage.parameters), "s").called(
        "parameters gathered once", "s"
    )
    scatter = total((collective_time(one, machine) for one in stage.gradients), "s").called(
        "gradients scattered", "s"
    )
    chunks_of_stage = given("model chunks of a stage", layout.vp, "", SCHEDULE)
    whole = (passes * chunks_of_stage * (2 * gather + scatter)).called("DP communication", "s")
    in_forward = gather
    if overlap.dp_parameters:
        in_forward = largest(gather * edge, gather - forward)
    in_backward = gather + scatter
    if overlap.dp_parameters and overlap.dp_gradients:
        in_backward = largest((gather + scatter) * edge, gather + scatter - backward)
    elif overlap.dp_gradients:
        in_backward = gather + largest(scatter * edge, scatter - backward)
    exposed = passes * chunks_of_stage * (in_forward + in_backward)
    return ExchangeTime(whole, smallest(exposed, whole).called("DP exposed", "s"))
