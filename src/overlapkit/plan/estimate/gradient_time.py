"""How much of the gradient reduction and the parameter gathering is exposed in a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.estimate.overlap import Overlap
from overlapkit.plan.estimate.roofline import collective_time
from overlapkit.plan.figure import Figure, given, largest, smallest, total
from overlapkit.plan.workload.gradient_exchange import ChunkExchange
from overlapkit.plan.workload.step import Workload

SCHEDULE = "pipeline schedule"
"""Source of what follows from the order of microbatches and chunks."""


@dataclass(frozen=True)
class ExchangeTime:
    """Seconds of data-parallel communication in a step, and those that nothing hides."""

    total: Figure
    exposed: Figure


def exchange_time(
    workload: Workload, machine: Machine, overlap: Overlap, forward: Figure, backward: Figure
) -> ExchangeTime | None:
    """The exchange of the stage that waits longest for it; None where there is none.

    Args:
        workload: what a step does.
        machine: rates and links.
        overlap: what is hidden.
        forward, backward: seconds of one model chunk for one microbatch.
    """
    exchange = workload.exchange
    if not any(one.gradients or one.parameters for row in exchange.chunks for one in row):
        return None
    if exchange.per_layer:
        return _layer_by_layer(workload, machine, overlap, forward, backward)
    # Of stages with the same parameters, the first has the least time to spare.
    first_of = {tuple(map(id, row)): n for n, row in reversed(list(enumerate(exchange.chunks)))}
    stages = sorted(first_of.values())
    sides = []
    for side in (
        _Side("gradients", overlap.dp_gradients, backward),
        _Side("parameters", overlap.dp_parameters, forward),
    ):
        found = [side.time(workload, machine, stage) for stage in stages]
        # One stage may have the most to exchange, and another wait longest for it.
        most = max(one.total for one in found)
        longest = max(one.exposed for one in found)
        sides.append(ExchangeTime(most, longest))
    return ExchangeTime(
        total(side.total for side in sides).called("DP communication", "s"),
        total(side.exposed for side in sides).called("DP exposed", "s"),
    )


@dataclass(frozen=True)
class _Side:
    """The reduction of gradients, or the gathering of parameters, which is its reverse in time.

    Attributes:
        name: "gradients" or "parameters".
        on: whether it is overlapped.
        chunk: seconds of one model chunk, for one microbatch, of the pass that it hides under.
    """

    name: str
    on: bool
    chunk: Figure

    def time(self, workload: Workload, machine: Machine, stage: int) -> ExchangeTime:
        """The exchange of one stage.

        A chunk's gradients are complete with its last microbatch's backward. Chunks finish one
        after the other, a group of PP microbatches apart, so that the reductions of all but the
        first chunk (the last to finish) have that long to hide. Within the first chunk, its last
        bucket has nothing left to hide under. A later stage finishes earlier, by one chunk for each
        stage before it, and nothing waits for it in the meantime.
        """
        name, chunks = self.name, workload.exchange.chunks[stage]
        counts = Counter(id(chunk) for chunk in chunks)
        times = {
            id(chunk): self._of_chunk(chunk, machine).called(
                f"{name} of chunk {number} of stage {stage}", "s"
            )
            for number, chunk in reversed(list(enumerate(chunks)))
        }
        entire = total(_times(count, times[key]) for key, count in counts.items()).called(
            f"{name} exchange", "s"
        )
        if not self.on:
            return ExchangeTime(entire, entire.called(f"{name} exposed", "s"))
        alone = given("share in the last bucket", chunks[0].alone, "", "ddp.bucket_size")
        last = (times[id(chunks[0])] * alone).called(f"{name} of the last bucket", "s")
        window = self.chunk * (1 - alone)
        if len(chunks) > 1:
            more = (len(chunks) - 1) * workload.layout.pp
            window = window + given("later chunks x PP", more, "", SCHEDULE) * self.chunk
        window = window.called(f"{self.chunk.name} that {name} hide under", "s")
        slack = (given("stages before", stage, "", SCHEDULE) * self.chunk).called(
            f"{name} slack of stage {stage}", "s"
        )
        exposed = largest(largest(last, entire - window) - slack, 0)
        return ExchangeTime(entire, smallest(exposed, entire).called(f"{name} exposed", "s"))

    def _of_chunk(self, chunk: ChunkExchange, machine: Machine) -> Figure:
        collectives = chunk.gradients if self.name == "gradients" else chunk.parameters
        return total((collective_time(one, machine) for one in collectives), "s")


def _times(count: int, time: Figure) -> Figure:
    return time if count == 1 else given("chunks alike", count, "", SCHEDULE) * time


def _layer_by_layer(
    workload: Workload, machine: Machine, overlap: Overlap, forward: Figure, backward: Figure
) -> ExchangeTime:
    """FSDP: each microbatch gathers every layer's parameters twice and scatters its gradients.

    While a layer computes, the parameters of the next are gathered and the gradients of the last
    are scattered. Nothing runs before the first layer of a pass.
    """
    layout = workload.layout
    passes = given("microbatches", layout.microbatches, "", "global batch / (micro-batch x DP)")
    chunks = [one for row in workload.exchange.chunks for one in row]
    stage = max(chunks, key=lambda one: sum(each.payload.value for each in one.gradients))
    layers = max(len(row[0].layers) for row in layout.parts)
    edge = given("share of the first layer", 1 / max(layers, 1), "", "1 / layers")
    gather = total((collective_time(one, machine) for one in stage.parameters), "s").called(
        "parameters gathered once", "s"
    )
    scatter = total((collective_time(one, machine) for one in stage.gradients), "s").called(
        "gradients scattered", "s"
    )
    chunks_of_stage = given("model chunks of a stage", layout.vp, "", SCHEDULE)
    entire = (passes * chunks_of_stage * (2 * gather + scatter)).called("DP communication", "s")
    in_forward = gather
    if overlap.dp_parameters:
        in_forward = largest(gather * edge, gather - forward)
    in_backward = gather + scatter
    if overlap.dp_parameters and overlap.dp_gradients:
        in_backward = largest((gather + scatter) * edge, gather + scatter - backward)
    elif overlap.dp_gradients:
        in_backward = gather + largest(scatter * edge, scatter - backward)
    exposed = passes * chunks_of_stage * (in_forward + in_backward)
    return ExchangeTime(entire, smallest(exposed, entire).called("DP exposed", "s"))
