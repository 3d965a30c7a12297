"""Programs as they are recorded with nsys: NVTX ranges are all that names anything."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

from support.field.machine import TORCH_2_6, Machine
from support.field.nsight import Communicator
from support.field.training import (
    ADAM,
    ALL_GATHER,
    ALL_REDUCE,
    BACKWARD_THREAD,
    GELU,
    GEMM,
    NORM,
    REDUCE_SCATTER,
    SEND_RECV,
    layer,
)

TP, DP, PP = (Communicator(0xA1 << 40, 8), Communicator(0xB2 << 40, 4), Communicator(0xC3 << 40, 2))


def nccl(
    m: Machine, kernel: str, us: float, stream: int, called: str, of: Communicator, after: float
) -> float:
    """A collective in NCCL's own range, with its payload."""
    with m.range(called, args={"comm": of.id, "bytes": 1 << 24}):
        return m.kernel(kernel, us, stream, [after])


def megatron(
    *, ranges: bool = True, layers: str | None = None, steps: int = 4, microbatches: int = 4
) -> Machine:
    """Megatron-Core with --profile: TP 8, PP 2, DP 4; no step is marked.

    Args:
        ranges: whether Megatron's own NVTX ranges are on (--nvtx-ranges).
        layers: what else has ranges: "te", Transformer Engine (NVTE_NVTX_ENABLED=1); "pytorch",
            its operators (emit_nvtx), of Megatron's own layers.
        steps: iterations.
        microbatches: of each.
    """
    m = Machine(TORCH_2_6)
    core = "megatron.core"

    def own(name: str) -> Any:
        return m.range(f"{core}.{name}") if ranges else nullcontext()

    def p2p(us: float, called: str, after: float, function: str) -> float:
        name = f"pipeline_parallel.p2p_communication.P2PCommunicator.{function}"
        with own(name), m.range("ncclGroupStart"):
            pass
        with own(name):
            return nccl(m, SEND_RECV, us, 60, called, PP, after)

    numbers = itertools.count(100)

    def operator(name: str) -> Any:
        if layers != "pytorch":
            return nullcontext()
        return m.range(f"{name}, seq = {next(numbers)}, op_id = {next(numbers)}, sizes = [[8, 2]]")

    def linear(name: str, function: str) -> Any:
        if layers == "te":
            return m.range(f"transformer_engine.{name}")
        return operator(function)

    for _ in range(steps):
        for _ in range(microbatches):
            ready = p2p(90, "ncclRecv", 0.0, "recv_forward")
            with own("transformer.transformer_layer.TransformerLayer._forward_attention"):
                m.kernel(NORM, 10, after=[ready])
                for _ in range(4):
                    with linear(
                        "_LayerNormLinear.forward.qkv.gemm_input_cast_comm",
                        "LinearWithGradAccumulationAndAsyncCommunication",
                    ):
                        done = nccl(m, ALL_GATHER, 60, 30, "ncclAllGather", TP, m.free())
                    m.kernel(GEMM, 5, after=[done])
                    layer(m, 400)
                    with linear(
                        "_Linear.forward.proj.row_parallel_comm",
                        "_ReduceScatterToSequenceParallelRegion",
                    ):
                        done = nccl(m, REDUCE_SCATTER, 60, 30, "ncclReduceScatter", TP, m.free())
                    m.kernel(GELU, 5, after=[done])
            p2p(50, "ncclSend", m.free(), "send_forward")
        reduced = []
        with m.on(BACKWARD_THREAD):
            for _ in range(microbatches):
                for _ in range(4):
                    done = nccl(m, ALL_GATHER, 60, 30, "ncclAllGather", TP, m.free())
                    m.kernel(GEMM, 5, after=[done])
                    done = layer(m, 800)
            for _ in range(4):
                node = "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad"
                with operator(node):
                    reduced.append(nccl(m, REDUCE_SCATTER, 500, 82, "ncclReduceScatter", DP, done))
        m.kernel(ADAM, 300, after=reduced)
        for _ in range(2):
            done = nccl(m, ALL_GATHER, 300, 80, "ncclAllGather", DP, m.free())
        m.kernel(GELU, 5, after=[done])
        m.wait(m.free())
        m.spend(200)
    return m


def deepspeed(steps: int = 4) -> Machine:
    """DeepSpeed, ZeRO 3: its NVTX ranges are the qualified names of its functions."""
    m = Machine(TORCH_2_6, gpu="NVIDIA A100-SXM4-80GB")
    world = Communicator(0xD4 << 40, 8)

    def gather() -> float:
        with (
            m.range("PartitionedParameterCoordinator.fetch_sub_module"),
            m.range("PartitionedParameterCoordinator.__all_gather_params"),
        ):
            return nccl(m, ALL_GATHER, 150, 20, "ncclAllGather", world, m.free())

    for _ in range(steps):
        with m.range("DeepSpeedEngine.forward"):
            for _ in range(6):
                m.kernel(NORM, 10, after=[gather()])
                layer(m, 400)
        reduced = []
        with m.range("DeepSpeedEngine.backward"), m.on(BACKWARD_THREAD):
            for _ in range(6):
                m.kernel(NORM, 10, after=[gather()])
                done = layer(m, 800)
                with m.range("DeepSpeedZeroOptimizer_Stage3.__avg_scatter_grads"):
                    reduced.append(
                        nccl(m, REDUCE_SCATTER, 250, 22, "ncclReduceScatter", world, done)
                    )
        with m.range("DeepSpeedZeroOptimizer_Stage3.step"):
            m.kernel(ADAM, 300, after=reduced)
        m.wait(m.free())
        m.spend(100)
    return m


def jax(steps: int = 5) -> Machine:
    """JAX: kernels of XLA, its NVTX ranges, collectives beside and between them."""
    m = Machine(TORCH_2_6)
    for _ in range(steps):
        with m.range("XlaModule:#hlo_module=jit_train_step,program_id=12#"):
            done = 0.0
            for index in range(10):
                with m.range(f"Thunk:#hlo_op=loop_fusion.{index}#"):
                    m.kernel("loop_add_multiply_fusion", 40)
                m.kernel("input_reduce_fusion_3", 30)
                m.kernel("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT", 300)
                with m.range("Thunk:#hlo_op=all-reduce-start#"):
                    done = m.kernel(ALL_REDUCE, 250, 24, after=[m.free()])
            m.kernel("wrapped_slice_fusion", 20, after=[done])
        m.wait(m.free())
        m.spend(150)
    return m
