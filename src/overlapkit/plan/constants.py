"""The efficiencies that no data sheet tells, each with its physical meaning, in one place.

They hold for every model, GPU, precision and layout alike. `benchmarks/plan_vs_published.py`
compares what follows from them with published throughput, and estimates each row again without
having seen it (leave-one-out) to tell whether they generalise.
"""

from __future__ import annotations

from typing import NamedTuple

from overlapkit.plan.figure import Figure, given


class Constants(NamedTuple):
    """The efficiencies, all shares of a data-sheet figure unless said otherwise.

    Attributes:
        tensor: of the tensor cores' rate that a large GEMM sustains. Its main loop issues nearly
            every cycle; what is lost is clock, since matrix products at full rate draw more than
            the GPU's power limit, and the prologue and epilogue of each tile.
        attention_backward: of the same rate that a flash-attention backward sustains, in which five
            products share registers and shared memory and gradients are added atomically.
        memory: of the memory's bandwidth that a streaming kernel sustains: refresh, read-write
            turnarounds and the start and end of each kernel.
        link: of a link's bandwidth that large collectives sustain: protocol headers and flags.
        processors: SMs (not a share) that a running collective occupies.
    """

    tensor: float
    attention_backward: float
    memory: float
    link: float
    processors: float


CONSTANTS = Constants(tensor=0.68, attention_backward=0.55, memory=0.85, link=0.8, processors=16)

KERNEL_S = 4e-6
"""From one kernel's last thread block to the next one's first, with its launch already queued."""
NVLINK_HOP_S = 2e-6
"""One step of a ring within an NVLink domain: a synchronisation through the peer's memory."""
NETWORK_HOP_S = 10e-6
"""One step of a ring between nodes: a network adapter's round trip and the proxy that starts it; as
in `megatron.bridge.training.bucket_size`."""
TILE = (128, 256)
"""Rows and columns of the result that a thread block (a pair of them on Blackwell) computes: the
largest tile whose fp32 sums fit beside the operands' buffers."""


def constant(name: str, value: float, unit: str = "") -> Figure:
    """A constant of this file as a figure that names its place."""
    return given(name, value, unit, "overlapkit/plan/constants.py")
