"""Inference engines, and programs that no step is marked in, as programs of a `Machine`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from support.field.machine import TORCH_2_6, Machine
from support.field.training import ATTENTION, GELU, GEMM, NORM

CUSTOM_AR = (
    "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 4>(vllm::RankData*, vllm::RankSignals, "
    "vllm::Signal*, __nv_bfloat16*, int, int)"
)
NCCL_AR = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
SAMPLE = "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, c10::BFloat16, float>(int)"
TP4 = [0, 1, 2, 3]


def _decode(m: Machine, layers: int, all_reduce: str, us: float, *, graph: bool) -> float:
    """One decoding iteration; of a CUDA graph, one launch stands for all kernels."""
    if graph:
        m.start_graph()
    for _ in range(layers):
        m.kernel(NORM, 2)
        m.kernel(GEMM, 14)
        m.kernel(ATTENTION, 9)
        m.kernel(GEMM, 8)
        m.kernel(all_reduce, us)
        m.kernel(GEMM, 18)
        m.kernel(GELU, 2)
        m.kernel(GEMM, 14)
        m.kernel(all_reduce, us)
    if graph:
        m.end_graph()
    return m.free()


def _maybe(m: Machine, name: str, named: bool) -> AbstractContextManager[None]:
    return m.range(name, "annotation") if named else nullcontext()


def vllm_decode(
    iterations: int = 8, *, named: bool = True, requests: int = 64, all_reduce_us: float = 9
) -> Machine:
    """vLLM V1 decoding with CUDA graphs; with `named`, annotations say what is in a batch."""
    groups = [("0", "default_pg", TP4), ("2", "tp:0", TP4)]
    m = Machine(TORCH_2_6, world=4, groups=groups)
    for _ in range(iterations):
        with _maybe(m, f"execute_context_0(0)_generation_{requests}({requests})", named):
            m.copy("Memcpy HtoD (Pinned -> Device)", 3)
            with _maybe(m, "gpu_model_runner: forward", named):
                done = _decode(m, 16, CUSTOM_AR, all_reduce_us, graph=True)
            with _maybe(m, "gpu_model_runner: sample", named):
                m.kernel(SAMPLE, 20)
                m.copy("Memcpy DtoH (Device -> Pinned)", 3)
            m.wait(max(done, m.free()))
            m.spend(250)
    return m


def vllm_mixed() -> Machine:
    """vLLM with a prefill after every two decodes: six decodes and three prefills."""
    m = Machine(TORCH_2_6, world=4, groups=[("0", "default_pg", TP4), ("2", "tp:0", TP4)])
    for index in range(9):
        prefill = index % 3 == 2
        name = "execute_context_2(4096)_generation_0(0)"
        if not prefill:
            name = f"execute_{index}_context_0(sq0sk0)_generation_{40 + index}(sq1sk300)"
        with m.range(name, "annotation"):
            for _ in range(8):
                m.kernel(NORM, 2)
                m.kernel(GEMM, 400 if prefill else 30)
                m.kernel(ATTENTION, 300 if prefill else 12)
                m.kernel(CUSTOM_AR, 180 if prefill else 9)
            m.wait(m.free())
            m.spend(20)
    return m


def sglang_decode(iterations: int = 8) -> Machine:
    """SGLang decoding; a range marks each batch, and Python functions name the engine."""
    m = Machine(TORCH_2_6)
    frame = "/sgl-workspace/sglang/python/sglang/srt/managers/scheduler.py(800): run_batch"
    for _ in range(iterations):
        with m.frames(frame), m.range("step[DECODE bs=32]", "annotation"):
            m.copy("Memcpy HtoD (Pinned -> Device)", 3)
            done = _decode(m, 12, NCCL_AR, 16, graph=True)
            m.kernel(SAMPLE, 20)
            m.wait(max(done, m.free()))
            m.spend(40)
    return m


def sglang_prefill_deepep(iterations: int = 4) -> Machine:
    """Expert parallelism with DeepEP in an engine: dispatch and combine are exposed."""
    m = Machine(TORCH_2_6)
    frame = "/sgl-workspace/sglang/python/sglang/srt/layers/moe/ep_moe/layer.py(500): forward"
    dispatch = "void deep_ep::internode_ll::dispatch<false, false, 7168>(void*, void*, int*, long*)"
    combine = "void deep_ep::internode_ll::combine<false, 7168, 9>(void*, void*, long const*)"
    for _ in range(iterations):
        with m.frames(frame), m.range("step[EXTEND bs=2 toks=4096]", "annotation"):
            for _ in range(8):
                m.kernel(ATTENTION, 90)
                m.kernel(dispatch, 70)
                m.kernel(GEMM, 160)
                m.kernel(combine, 110)
            m.wait(m.free())
    return m


def trtllm_decode(iterations: int = 6, *, named: bool = True) -> Machine:
    """TensorRT-LLM's PyTorch backend: fused all-reduce; with `named`, ranges name the batch."""
    m = Machine(TORCH_2_6, world=4)
    kernel = (
        "void tensorrt_llm::kernels::ar_fusion::allreduce_fusion_kernel_oneshot_lamport<(tensorrt_"
        "llm::kernels::ar_fusion::AllReduceFusionPattern)1, __nv_bfloat16, 4, true, true>(tensorrt_"
        "llm::kernels::ar_fusion::AllReduceFusionParams)"
    )
    for index in range(iterations):
        name = f"[Executor] _forward_step {index + 1}: 0 ctx reqs, 8 gen reqs"
        with _maybe(m, name, named):
            done = _decode(m, 12, kernel, 7, graph=True)
            m.kernel(SAMPLE, 15)
            m.wait(max(done, m.free()))
            m.spend(30)
    return m


def one_gpu(iterations: int = 5) -> Machine:
    """A single GPU that communicates with nobody, in an evaluation without steps."""
    m = Machine(TORCH_2_6)
    for index in range(iterations):
        for _ in range(6 + index):
            m.kernel(GEMM, 90)
            m.kernel(GELU, 12)
        m.copy("Memcpy DtoH (Device -> Pageable)", 20)
        m.wait(m.free())
        m.spend(100)
    return m
