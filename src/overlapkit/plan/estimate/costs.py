"""What a run costs, by estimate, with any of its dimensions overlapped."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

from overlapkit.config.run import Run
from overlapkit.errors import InputError
from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.estimate.memory import Memory, memory
from overlapkit.plan.estimate.overlap import DP_GRADIENTS, DP_PARAMETERS, EP, PP, TP, Overlap
from overlapkit.plan.estimate.step_time import Estimate, estimate
from overlapkit.plan.estimate.sureness import Range, order_of, range_of
from overlapkit.plan.figure import Figure
from overlapkit.plan.workload.gradient_exchange import gradient_exchange
from overlapkit.plan.workload.offload import offload_of
from overlapkit.plan.workload.precision import base_precision, linear_precision
from overlapkit.plan.workload.step import Workload, workload


@dataclass(frozen=True, kw_only=True)
class StepSummary:
    """A step in plain numbers.

    Attributes:
        step_s: seconds of a step.
        tokens_per_s_per_gpu: trained by each GPU.
        parts: seconds by part of the step, which add up to it.
        estimate: the derivation.
        range: what layouts of its class measured; None where none was ever compared.
        apart: ratio of tokens/s up to which the estimate cannot order two layouts of this kind.
    """

    step_s: float
    tokens_per_s_per_gpu: float
    parts: dict[str, float]
    estimate: Estimate
    range: Range | None
    apart: float

    def told_from(self, other: StepSummary) -> bool:
        """Whether the estimate can order this layout and another of the model on the machine."""
        paces = self.tokens_per_s_per_gpu, other.tokens_per_s_per_gpu
        return max(paces) / min(paces) > self.apart

    @property
    def figure(self) -> Figure:
        """Tokens per second and GPU, whose derivation includes all others."""
        return self.estimate.tokens_per_second


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Memory of the fullest GPU, in bytes.

    Attributes:
        needed: by the run.
        states: by weights, gradients and optimizer, whatever is recomputed.
        usable: the capacity less the margin.
        capacity: of the GPU.
        figure: the derivation of `needed`.
        stage: pipeline stage of that GPU.
    """

    needed: float
    states: float
    usable: float
    capacity: float
    figure: Figure
    stage: int

    @property
    def fits(self) -> bool:
        """Whether the run needs no more than can be used."""
        return self.needed <= self.usable

    @property
    def margin(self) -> float:
        """Share of the capacity that is kept free."""
        return 1 - self.usable / self.capacity


@dataclass(frozen=True)
class Costs:
    """Estimates of one run on one machine.

    Attributes:
        run: its configurations, effective.
        world_size: GPUs of the job.
        machine: rates and links.
        work: what the run does in a step.
    """

    run: Run
    world_size: int
    machine: Machine
    work: Workload

    def estimate(self, overlapped: frozenset[str]) -> Estimate:
        """The step with these dimensions overlapped, and the ring of context parallelism."""
        return estimate(self.work, self.machine, overlap_in(overlapped))

    def seconds(self, overlapped: frozenset[str]) -> float:
        """Seconds of that step."""
        return self.estimate(overlapped).step.value

    def summary(self, overlapped: frozenset[str]) -> StepSummary:
        """That step in plain numbers."""
        e = self.estimate(overlapped)
        parts = {name: figure.value for name, figure in e.parts.items()}
        return StepSummary(
            step_s=e.step.value,
            tokens_per_s_per_gpu=e.tokens_per_second.value,
            parts=parts,
            estimate=e,
            range=range_of(self.work, self.machine),
            apart=order_of(self.work).apart,
        )

    def memory(self) -> MemoryNeed:
        """Memory of the fullest GPU."""
        return memory_need(memory(self.run, self.work, self.machine))

    def with_exchange_of(self, run: Run) -> Costs:
        """The same work with the gradient buckets of a run that differs only in its overlap."""
        exchange = gradient_exchange(run, self.work.layout, self.work.parameters)
        work = dataclasses.replace(self.work, exchange=exchange)
        return dataclasses.replace(self, run=run, work=work)

    def reducing_in_16_bits(self) -> Costs:
        """The same run, with gradients reduced in 16 bits."""
        ddp = copy.copy(self.run.ddp)
        ddp.grad_reduce_in_fp32 = False
        return self.with_exchange_of(dataclasses.replace(self.run, ddp=ddp))


def memory_need(found: Memory) -> MemoryNeed:
    """A memory estimate in plain numbers."""
    states = found.weights.value + found.gradients.value + found.optimizer.value
    return MemoryNeed(
        needed=found.needed.value,
        states=states,
        usable=found.usable.value,
        capacity=found.capacity.value,
        figure=found.needed,
        stage=found.stage,
    )


def overlap_in(names: frozenset[str]) -> Overlap:
    """The switches of these dimensions. The ring of context parallelism is always on."""
    return Overlap(
        tp=TP in names,
        dp_gradients=DP_GRADIENTS in names,
        dp_parameters=DP_PARAMETERS in names,
        pp=PP in names,
        cp=True,
        ep=EP in names,
    )


def costs_of_run(run: Run, world_size: int, machine: Machine, *, cut: bool = True) -> Costs | str:
    """The costs of an effective run, or why it cannot be estimated.

    Args:
        run: its configurations, effective.
        world_size: GPUs of the job.
        machine: rates and links.
        cut: False does not cut the gradients into buckets; `with_exchange_of` does.

    Raises:
        InputError: the machine cannot compute in the run's precision, or the run offloads an
            impossible share.
    """
    offload_of(run)
    for precision in {linear_precision(run.model).rate, base_precision(run.model).rate}:
        machine.rate(precision)
    try:
        return Costs(run, world_size, machine, workload(run, world_size, cut=cut))
    except InputError as error:
        return str(error)
