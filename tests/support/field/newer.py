"""Programs over newer libraries: copy engines, symmetric memory, NCCL EP, RCCL's direct access."""

from __future__ import annotations

from support.field.engines import SAMPLE
from support.field.machine import ROCM_6, TORCH_2_6, Machine
from support.field.megatron import DP, EP
from support.field.training import (
    ADAM,
    ALL_REDUCE,
    ATTENTION,
    BACKWARD_THREAD,
    CHUNK_CAT,
    GEMM,
    NORM,
    SPLIT,
    ddp,
    layer,
    load_batch,
    optimizer,
    step,
)

PEER_COPY = "Memcpy PtoP (Device -> Device)"
SYMMETRIC_RS = "ncclSymkDevKernel_ReduceScatter_LDMC_sum_bf16(ncclSymkDevWorkArgs4K)"
SYMMETRIC_AG = "ncclSymkDevKernel_AllGather_STMC(ncclSymkDevWorkArgs4K)"
DDA = (
    "void meta::comms::ddaAllReduceFlatIpc<__hip_bfloat16, 8, false>(__hip_bfloat16* const*, "
    "__hip_bfloat16*, unsigned long, __hip_bfloat16 const*, int, meta::comms::IpcGpuBarrier)"
)
SHARD = ("3", "mesh_dp_shard", list(range(8)))


def _described(group: tuple[str, str, list[int]], called: str, nbytes: int) -> dict[str, object]:
    name, description, ranks = group
    return {
        "Collective name": called,
        "dtype": "BFloat16",
        "In msg nelems": nbytes // 2 // len(ranks),
        "Out msg nelems": nbytes // 2,
        "Group size": len(ranks),
        "Process Group Name": name,
        "Process Group Description": description,
        "Process Group Ranks": str(ranks),
    }


def fsdp2_copy_engine(
    *, rank: int = 0, late_us: float = 0.0, copy_us: float = 25.0, prefetch: bool = True
) -> Machine:
    """FSDP2, compiled by layer, with the zero-CTA policy: peers' shards are copied, not sent."""
    groups = [("0", "default_pg", list(range(8))), SHARD]
    m = Machine(TORCH_2_6, rank=rank, world=8, groups=groups)
    described = _described(SHARD, "_allgather_base", 50 << 20)

    def gather(after: float) -> float:
        with (
            m.range("FSDP::all_gather (layers.0)", "annotation"),
            m.range("c10d::_allgather_base_"),
            m.range("record_param_comms", args=described),
            m.range("nccl:_all_gather_base", "annotation"),
        ):
            m.copy("Memcpy DtoD (Device -> Device)", 5, 28, after=[after])
            return [m.copy(PEER_COPY, copy_us, 28) for _ in range(7)][-1]

    def one(us: float) -> float:
        with m.range("Torch-Compiled Region: 0/0", "annotation"):
            m.kernel("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", 0.1 * us)
            m.kernel(GEMM, 0.6 * us)
            return m.kernel("triton_poi_fused_mul_silu_3", 0.3 * us)

    layers = 8
    for number in range(5, 8):
        with step(m, number):
            load_batch(m)
            m.spend(late_us)
            ready = gather(m.free())
            for index in range(layers):
                with m.range("FSDP::pre_forward (layers.0)", "annotation"):
                    m.kernel(SPLIT, 15, after=[ready])
                    if prefetch and index + 1 < layers:
                        ready = gather(0.0)
                done = one(500)
                if not prefetch and index + 1 < layers:
                    ready = gather(done)
            scattered: list[float] = []
            with m.on(BACKWARD_THREAD):
                ready = gather(0.0)
                for index in reversed(range(layers)):
                    with m.range("FSDP::pre_backward (layers.0)", "annotation"):
                        m.kernel(SPLIT, 15, after=[ready])
                        if index:
                            ready = gather(0.0)
                    done = one(1000)
                    with m.range("FSDP::post_backward_reduce (layers.0)", "annotation"):
                        catted = m.kernel(CHUNK_CAT, 20, stream=26, after=[done])
                        with m.range("c10d::_reduce_scatter_base_"):
                            scattered.append(
                                m.collective(
                                    SYMMETRIC_RS,
                                    220,
                                    26,
                                    "_reduce_scatter_base",
                                    group=SHARD,
                                    after=[catted],
                                    label="nccl:_reduce_scatter_base",
                                    nbytes=100 << 20,
                                )
                            )
            optimizer(m, 300, scattered)
            m.wait(m.free())
    return m


def megatron_nccl_ep(*, layers: int = 4, exchange_us: float = 180.0) -> Machine:
    """Megatron-Core whose tokens go through NCCL EP; parameters are gathered symmetrically."""
    groups = [("0", "default_pg", list(range(8))), DP, EP]
    m = Machine(TORCH_2_6, world=8, groups=groups)
    core = "/opt/megatron-lm/megatron/core"
    for number in range(10, 13):
        with step(m, number):
            gathered = 0.0
            for backward in (False, True):
                with m.on(BACKWARD_THREAD) if backward else m.range("forward"):
                    for _ in range(layers):
                        m.kernel(NORM, 10, after=[gathered])
                        if not backward:
                            gather = f"{core}/distributed/param_and_grad_buffer.py(250): start"
                            with m.frames(gather), m.range("c10d::_allgather_base_"):
                                gathered = m.collective(
                                    SYMMETRIC_AG,
                                    200,
                                    80,
                                    "_allgather_base",
                                    group=DP,
                                    label="nccl:_all_gather_base",
                                )
                        layer(m, 400)
                        m.kernel("nccl_ep_jit_ht_scan_kernel", 8)
                        for name in ("dispatch", "combine"):
                            done = m.kernel(
                                f"nccl_ep_jit_ht_{name}_kernel", exchange_us, 50, after=[m.free()]
                            )
                            m.kernel(GEMM, 150, after=[done])
            reduced = []
            for _ in range(layers):
                with m.range("c10d::_reduce_scatter_base_"):
                    reduced.append(
                        m.collective(
                            SYMMETRIC_RS,
                            300,
                            82,
                            "_reduce_scatter_base",
                            group=DP,
                            after=[m.free()],
                            label="nccl:_reduce_scatter_base",
                        )
                    )
            m.kernel(ADAM, 300, after=reduced)
            m.wait(m.free())
    return m


def rocm_ddp_direct() -> Machine:
    """DDP on ROCm whose small buckets go through RCCL's direct access to peers."""
    m = Machine(ROCM_6, world=8, groups=[("0", "default_pg", list(range(8)))])
    m.gpu = "AMD Instinct MI355X"
    return ddp(m, kernel=DDA)


def vllm_graphs(*, symmetric: bool, cycles: int = 1) -> Machine:
    """vLLM, TP 8: two-stage custom all-reduce, or NCCL's symmetric kernel, in CUDA graphs."""
    kernel = (
        "ncclSymkDevKernel_AllReduce_RSxLDMC_AGxSTMC_sum_bf16(ncclSymkDevWorkArgs4K)"
        if symmetric
        else "void vllm::cross_device_reduce_2stage<__nv_bfloat16, 8>(vllm::RankData*, "
        "vllm::RankSignals, vllm::Signal*, __nv_bfloat16*, int, int)"
    )
    ranks = list(range(8))
    groups = [("0", "default_pg", ranks), ("2", "tp:0", ranks), ("5", "ep:0", ranks)]
    m = Machine(TORCH_2_6, world=8, groups=groups)
    for cycle in range(cycles):
        m.spend(40_000 * cycle)
        for index in range(6):
            with m.range(f"execute_{index}_context_0(sq0sk0)_generation_48(sq48)", "annotation"):
                m.copy("Memcpy HtoD (Pinned -> Device)", 3)
                m.start_graph()
                for _ in range(16):
                    m.kernel(NORM, 2)
                    m.kernel(GEMM, 14)
                    m.kernel(ATTENTION, 9)
                    m.kernel(kernel, 11)
                    m.kernel(GEMM, 32)
                    m.kernel(kernel, 11)
                m.end_graph()
                m.kernel(SAMPLE, 20)
                m.wait(m.free())
                m.spend(15)
    return m


def loss_only_steps() -> Machine:
    """A first pipeline stage, one of whose steps only evaluates and communicates nothing."""
    pp = ("2", "mesh_pp", [0, 1])
    m = Machine(TORCH_2_6, world=2, groups=[("0", "default_pg", [0, 1]), pp])
    for number in range(4):
        with step(m, number):
            if number == 2:
                layer(m, 9000)
                m.wait(m.free())
                continue
            for index in range(8):
                after = layer(m, 500)
                with m.range("nccl:coalesced", "annotation"):
                    m.collective(
                        "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)",
                        60,
                        36,
                        "send",
                        group=pp,
                        after=[after],
                        label="nccl:send 0->1",
                    )
                if index > 3:
                    layer(m, 500, "AddmmBackward0")
            m.kernel(ADAM, 300)
            m.wait(max(m.free(), m.free(36)))
    return m


def nvls_ddp() -> Machine:
    """DDP within an NVLink domain: NVLS kernels."""
    m = Machine(TORCH_2_6, world=8, groups=[("0", "default_pg", list(range(8)))])
    return ddp(m, kernel=ALL_REDUCE.replace("RING_LL", "NVLS"))


def asynchronous_tp(*, copy_us: float = 20.0) -> Machine:
    """torchtitan with asynchronous tensor parallelism: chunks are copied beside products."""
    groups = [("5", "mesh_tp", list(range(8))), ("3", "mesh_dp_shard", [0, 8])]
    m = Machine(TORCH_2_6, world=16, groups=[("0", "default_pg", list(range(16))), *groups])
    for number in range(5, 8):
        with step(m, number), m.frames("/opt/torchtitan/torchtitan/train.py(300): train_step"):
            load_batch(m)
            for _ in range(12):
                m.kernel(NORM, 20)
                with m.range("symm_mem::fused_all_gather_matmul"):
                    begin, ready = m.free(), 0.0
                    for chunk in range(8):
                        if chunk:
                            ready = m.copy(PEER_COPY, copy_us, 50, after=[begin])
                        m.kernel(GEMM, 40, after=[ready])
                m.kernel(ATTENTION, 200)
                with m.range("symm_mem::fused_matmul_reduce_scatter"):
                    for chunk in range(8):
                        done = m.kernel(GEMM, 40)
                        if chunk:
                            ready = m.copy(PEER_COPY, copy_us, 51, after=[done])
                    m.kernel(NORM, 20, after=[ready])
            optimizer(m, 300, [m.free()])
            m.wait(m.free())
    return m


def compiled_step() -> Machine:
    """FSDP compiled as one graph: one thread, and a persistent kernel of one grid for all sizes.

    Only the backward pass, whose products are twice as large, communicates.
    """
    m = Machine(TORCH_2_6, world=8, groups=[("0", "default_pg", list(range(8))), SHARD])
    for number in range(3):
        with step(m, number), m.range("Torch-Compiled Region: 0/0", "annotation"):
            for _ in range(8):
                m.kernel("triton_red_fused_native_layer_norm_0", 30)
                m.kernel(GEMM, 400)
                m.kernel(ATTENTION, 150)
            scattered = []
            for _ in range(8):
                m.kernel("triton_poi_fused_gelu_backward_1", 40)
                done = m.kernel(GEMM, 800)
                m.kernel("triton_red_fused_native_layer_norm_backward_2", 40)
                with m.range("_c10d_functional::reduce_scatter_tensor"):
                    scattered.append(
                        m.collective(
                            SYMMETRIC_RS,
                            850,
                            28,
                            "_reduce_scatter_base",
                            group=SHARD,
                            after=[done],
                            label="nccl:_reduce_scatter_base",
                        )
                    )
            m.kernel(ADAM, 300, after=scattered)
            m.wait(m.free())
    return m


def generate_and_train() -> Machine:
    """Reinforcement learning in one process: vLLM generates, then FSDP2 trains."""
    tp = ("9", "tp:0", [0, 1])
    groups = [("0", "default_pg", list(range(8))), tp, SHARD]
    m = Machine(TORCH_2_6, world=8, groups=groups)
    custom = "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*)"
    for number in range(3):
        with step(m, number):
            for _ in range(20):
                with m.frames("/opt/vllm/v1/worker/gpu_model_runner.py(3000): execute_model"):
                    m.kernel(ATTENTION, 60)
                    m.kernel(custom, 5)
            for _ in range(8):
                with (
                    m.range("FSDP::all_gather (l)", "annotation"),
                    m.range("c10d::_allgather_base_"),
                ):
                    ready = m.collective(
                        "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
                        300,
                        28,
                        "_allgather_base",
                        group=SHARD,
                        after=[m.free()],
                        label="nccl:_all_gather_base",
                    )
                with (
                    m.on(BACKWARD_THREAD),
                    m.range("autograd::engine::evaluate_function: AddmmBackward0"),
                ):
                    m.kernel(GEMM, 600, after=[ready])
            optimizer(m, 300)
            m.wait(m.free())
    return m
