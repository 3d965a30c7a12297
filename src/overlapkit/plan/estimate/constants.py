"""The efficiencies that are on no data sheet, each with its physical meaning, in one place.

`Constants` holds for every model and layout. `SHARES` says how much of the rates that follow from
it the GEMMs and attention of a GPU and precision really sustain in training.
`benchmarks/plan_vs_published.py` compares the estimates with published throughput. It estimates a
row with shares that no row of the same layout was fitted to, to show whether they generalise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from overlapkit.plan.figure import Figure, given


class Constants(NamedTuple):
    """The efficiencies.

    Attributes:
        tensor: share of the tensor cores' data-sheet rate that a large GEMM sustains where power
            does not limit it. The rest is lost to the prologue and epilogue of each tile, and to
            clocks below the boost.
        flop_energy: J per TFLOP of a matrix product in any precision: accumulation, clocks,
            leakage, and the rest of the chip.
        bit_energy: J per TFLOP and bit of an operand: multipliers, registers and shared memory.
            A GEMM sustains at most the GPU's power over its energy. On Blackwell that is less than
            the tensor cores could do: rates follow the power of B200, GB200 and GB300 rather than
            their data-sheet rates, and FP4 is far from twice as fast as FP8.
        bf16_energy: J per TFLOP of a BF16 product, in place of the two above. A multiplier's energy
            grows faster than linearly with the significand, which has 8 bits in BF16 and 4 or fewer
            in FP8 and FP4. From the GEMMs that SimuMax measured on B200
            (`benchmarks/plan_vs_operators.py`); Hopper and Ampere do not reach their power in BF16.
        attention_forward: share of the tensor cores' data-sheet rate that the products of a
            flash-attention forward sustain where its blocks fill the GPU.
        attention_backward: the same of a backward: five products share registers and shared memory,
            and gradients are added atomically.
        memory: share of the memory's bandwidth at which a GEMM's operands are read, or the host's
            memory: refresh, and read-write turnarounds.
        passes: share of the memory's bandwidth that kernels sustain which pass over several tensors
            and do little else (norms, activations, additions, the optimizer): reads and writes
            alternate, and few bytes are in flight. SimuMax measured 0.666 on B200
            (github.com/MooreThreads/SimuMax, configs/system/b200_bf16_ceperm.json, 2026).
        scan: bytes that the kernels of Mamba's scan move for each SM and clock. They are written in
            Triton for small products of matrices and wait for these rather than for memory, which
            could deliver 11 on Hopper and 22 on Blackwell. Chosen on the published rows of Nemotron
            3 (eight layouts on H100, B200, B300, GB200 and GB300), and the same for all.
        link: share of a link's bandwidth that large collectives sustain: headers and flags.
        processors: SMs (not a share) that a running collective occupies.
        shares: see `SHARES`.
    """

    tensor: float
    flop_energy: float
    bit_energy: float
    bf16_energy: float
    attention_forward: float
    attention_backward: float
    memory: float
    passes: float
    scan: float
    link: float
    processors: float
    shares: Mapping[str, float]


SHARES: Mapping[str, float] = {
    "a100 bf16": 1.09,
    "attention ampere": 1.00,
    "attention blackwell": 0.93,
    "attention hopper": 0.78,
    "b200 bf16": 0.94,
    "b200 fp8 blockwise": 0.96,
    "b200 fp8 current": 1.00,
    "b200 fp8 delayed": 0.96,
    "b200 mxfp8": 1.07,
    "b200 nvfp4": 1.10,
    "b300 bf16": 1.08,
    "b300 fp8 blockwise": 1.02,
    "b300 fp8 current": 1.02,
    "b300 fp8 delayed": 1.02,
    "b300 mxfp8": 1.10,
    "b300 nvfp4": 1.17,
    "gb200 bf16": 1.00,
    "gb200 fp8 blockwise": 0.95,
    "gb200 fp8 current": 0.95,
    "gb200 fp8 delayed": 0.95,
    "gb200 mxfp8": 0.98,
    "gb200 nvfp4": 1.10,
    "gb300 bf16": 1.16,
    "gb300 fp8 blockwise": 1.12,
    "gb300 fp8 current": 1.13,
    "gb300 fp8 delayed": 1.12,
    "gb300 mxfp8": 1.24,
    "gb300 nvfp4": 1.31,
    "h100 bf16": 1.13,
    "h100 fp8 blockwise": 1.02,
    "h100 fp8 current": 1.06,
    "h100 fp8 delayed": 0.93,
}
"""By GPU and precision: the share of its rates that GEMMs and attention sustain in whole training
steps, where clocks, software of its time and what lies between kernels count. 1 for others. By
"attention" and generation: the share of attention's rate in addition. Fitted to published rows by
`benchmarks/plan_vs_published.py --fit`. A class with few rows, or none, takes after the other
precisions of its GPU, and after its precision on other GPUs."""

SAME_CHIP: Mapping[str, str] = {"a800": "a100", "h200": "h100", "h800": "h100"}
"""GPUs that differ only in memory or NVLink from one whose shares are known: they compute alike."""

CONSTANTS = Constants(
    tensor=0.61,
    flop_energy=0.22,
    bit_energy=0.03,
    bf16_energy=0.9,
    attention_forward=0.57,
    attention_backward=0.47,
    memory=0.85,
    passes=0.67,
    scan=4.6,
    link=0.8,
    processors=16,
    shares=SHARES,
)

SUSTAINED = 0.94
"""Share of the rate that an operator has alone which it keeps in a training step: the clock falls
with the power of a whole step, and caches hold what other kernels left. Fitted to 13 steps of the
B200 machine whose operators were measured (`benchmarks/plan_with_rates.py`)."""
KERNEL_S = 4e-6
"""Seconds from the last thread block of a kernel to the first of the next, which is queued."""
PASS_S = 20e-6
"""Seconds of a memory-bound kernel beyond its bytes over the bandwidth: the gap before it, and the
start and end in which it does not fill the memory. SimuMax takes 30 us for a kernel alone on B200
(the same file); in a layer the next one is queued."""
COLLECTIVE_S = 20e-6
"""Seconds until all members of a collective run its kernel: its start, and the wait for the last of
them. SimuMax measured 22 to 26 us in training on 8 B200 (the same file)."""
LAUNCH_S = 27e-6
"""Seconds that the host needs to start one operation of a layer: Python, the module's own checks,
PyTorch's dispatcher and autograd, and the driver. Chosen, together with the sum of squares in
`overlapkit.plan.estimate.roofline.host_time`, on the mixtures of benchmarks/data."""
OVERLAPPED_HOST = 1.5
"""How much longer the host needs for a layer with overlap_moe_expert_parallel_comm: the layer is
cut into nodes, each with an autograd graph of its own, which wait for each other's events
(Megatron-Core's combined_1f1b schedule). Recipes of Qwen3 turned it off for that: 20.1 became
16.9 s (github.com/NVIDIA-NeMo/Megatron-Bridge/pull/1760). Chosen on the mixtures of
benchmarks/data."""
NVLINK_HOP_S = 8e-6
"""Seconds for one step of a ring within an NVLink domain: a synchronisation through the peer's
memory, and the start of its pipeline. SimuMax measured 5.5 us a step (all-reduce), 8.0
(reduce-scatter), 9.2 (all-gather) and 7.3 (all-to-all) on 8 B200 (the same file)."""
NETWORK_HOP_S = 10e-6
"""Seconds for one step of a ring between nodes: a network adapter's round trip and the proxy that
starts it, as in `megatron.bridge.training.bucket_size`."""
TCP_LINK = 0.4
"""Share of an Ethernet link's bandwidth that NCCL's collectives sustain over sockets, without RDMA:
4 to 6 GB/s of a 100 Gbit/s link (github.com/NVIDIA/nccl/issues/450, all-reduce, 32 V100)."""
TCP_HOP_S = 40e-6
"""Seconds for one step of a ring between nodes over sockets: 38 to 46 us for a message of 8 bytes
(github.com/NVIDIA/nccl-tests/issues/82, broadcast between two nodes)."""
TILE = (128, 256)
"""Rows and columns of the result that a thread block (on Blackwell a pair of them) computes: the
largest tile whose fp32 sums fit next to the operands' buffers."""


HEAD = 128
"""Largest head size whose blocks of a sequence fit into shared memory at full length."""


class AttentionPace(NamedTuple):
    """How a pass of attention falls short of its rate (`benchmarks/plan_vs_operators.py`).

    Attributes:
        waves: blocks for each SM with which half of the rate is reached. Blocks of a causal
            sequence differ in work, and the last of them run alone.
        wide: share of the rate where heads are larger than `HEAD`, as in multi-latent attention.
    """

    waves: float
    wide: float


ATTENTION = {"forward": AttentionPace(1.6, 1.0), "backward": AttentionPace(0.6, 0.77)}


def constant(name: str, value: float, unit: str = "") -> Figure:
    """A constant of this file as a figure, with this file as its source."""
    return given(name, value, unit, "overlapkit/plan/estimate/constants.py")
