"""Training loops of PyTorch's wrappers and of frameworks over them, as programs of a `Machine`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from support.field.machine import (
    ROCM_6,
    TORCH_1_8,
    TORCH_1_13,
    TORCH_2_1,
    TORCH_2_6,
    Machine,
)

GEMM = "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT"
ATTENTION = (
    "void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, "
    "cutlass::bfloat16_t>, false, true>(Flash_fwd_params)"
)
GELU = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl(at::"
    "TensorIteratorBase&)::{lambda()#1}, std::array<char*, 2ul> >(int, std::array<char*, 2ul>)"
)
ADAM = (
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous "
    "namespace)::FusedOptimizerTensorListMetadata<4>, at::native::(anonymous namespace)::"
    "FusedAdamMathFunctor<float, 4, (ADAM_MODE)1, false> >(int)"
)
SPLIT = "void at::native::split_with_sizes_copy_out_contiguous_no_cast_kernel(char**, long*, long)"
CHUNK_CAT = "void at::native::chunk_cat_cuda_kernel<c10::BFloat16, float>(c10::BFloat16**, float*)"
NORM = (
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>()"
)
ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
ALL_GATHER = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
REDUCE_SCATTER = "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
SEND_RECV = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
ACCUMULATE = "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad"
BACKWARD_THREAD = 4077
COMM = 20


@contextmanager
def step(m: Machine, number: int) -> Iterator[None]:
    """One iteration under torch.profiler's schedule."""
    with m.range(f"ProfilerStep#{number}", "annotation"):
        yield


def load_batch(m: Machine, wait_us: float = 20.0) -> None:
    """The next batch from a DataLoader, and its copy to the device."""
    with m.range("enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__", "annotation"):
        m.spend(wait_us)
    with m.range("aten::to"), m.range("aten::copy_"):
        m.copy("Memcpy HtoD (Pinned -> Device)", 30)


def layer(m: Machine, us: float, name: str = "aten::linear") -> float:
    """One transformer layer's kernels, of one pass."""
    with m.range(name):
        m.kernel(NORM, 0.05 * us)
        m.kernel(GEMM, 0.35 * us)
        m.kernel(ATTENTION, 0.2 * us)
        m.kernel(GELU, 0.05 * us)
        return m.kernel(GEMM, 0.35 * us)


def optimizer(m: Machine, us: float, after: list[float] | None = None, name: str = "AdamW") -> None:
    """A fused optimizer's step; it waits for what reduces the gradients."""
    with m.range(f"Optimizer.step#{name}.step", "annotation"):
        m.kernel(ADAM, us / 2, after=after or ())
        m.kernel(ADAM, us / 2)
    with m.range(f"Optimizer.zero_grad#{name}.zero_grad", "annotation"):
        m.spend(5)


def ddp(
    m: Machine,
    *,
    steps: int = 4,
    first: int = 10,
    layers: int = 8,
    buckets: int = 4,
    bucket_us: float = 700.0,
    kernel: str = ALL_REDUCE,
    label: str | None = "nccl:all_reduce",
    marks: Callable[[Machine, int], Any] = step,
    wait_us: float = 20.0,
) -> Machine:
    """DistributedDataParallel: each bucket is reduced when its gradients are complete."""
    group = ("0", "default_pg", list(range(m.world or 8)))
    for number in range(first, first + steps):
        with marks(m, number):
            load_batch(m, wait_us)
            with m.range("DistributedDataParallel.forward", "annotation"):
                for _ in range(layers):
                    layer(m, 400)
            reduced: list[float] = []
            with m.on(BACKWARD_THREAD):
                for index in range(layers):
                    with m.range("autograd::engine::evaluate_function: AddmmBackward0"):
                        done = layer(m, 800, "AddmmBackward0")
                    if (index + 1) % (layers // buckets) == 0:
                        with m.range(ACCUMULATE), m.range("c10d::allreduce_"):
                            reduced.append(
                                m.collective(
                                    kernel,
                                    bucket_us,
                                    COMM,
                                    "allreduce",
                                    group=group,
                                    after=[done],
                                    label=label,
                                    nbytes=25 << 20,
                                )
                            )
            optimizer(m, 500, reduced)
            m.wait(m.free())
    return m


def torch_1_8_ddp() -> Machine:
    """PyTorch 1.8: old categories, no groups, no ranges on the device."""
    m = Machine(TORCH_1_8, gpu="Tesla V100-SXM2-32GB")
    return ddp(m, kernel="ncclAllReduceRingLLKernel_sum_f32(ncclColl)", label=None)


def torch_2_8_ddp() -> Machine:
    """PyTorch 2.8, eager: the buckets' reductions are hidden but for the last one."""
    world = list(range(16))
    m = Machine(TORCH_2_6, world=16, groups=[("0", "default_pg", world)])
    return ddp(m, layers=16, buckets=8, bucket_us=500)


def rocm_ddp() -> Machine:
    """ROCm: RCCL's generic kernel says no operation."""
    m = Machine(ROCM_6, world=8, groups=[("0", "default_pg", list(range(8)))])
    m.gpu = "AMD Instinct MI300X"
    return ddp(m, kernel="ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)")


def ddp_with_buffers() -> Machine:
    """DDP that broadcasts large buffers before each forward pass."""
    group = ("0", "default_pg", list(range(8)))
    m = Machine(TORCH_2_6, world=8, groups=[group])
    kernel = "ncclDevKernel_Broadcast_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
    for number in range(4):
        with step(m, number):
            with (
                m.range("DistributedDataParallel.forward", "annotation"),
                m.range("c10d::broadcast_"),
            ):
                label, after = "nccl:broadcast", [m.free()]
                ready = m.collective(
                    kernel, 900, COMM, "broadcast", group=group, after=after, label=label
                )
            m.kernel(GEMM, 3000, after=[ready])
            m.wait(m.free())
    return m


def trainer_without_steps() -> Machine:
    """A Trainer that has no profiler schedule: no step is marked."""
    m = Machine(TORCH_2_6, world=8, groups=[("0", "default_pg", list(range(8)))])
    return ddp(m, steps=5, marks=lambda _m, _n: nullcontext())


def lightning_ddp() -> Machine:
    """Lightning's PyTorchProfiler: its own annotations around the hooks, and ProfilerStep."""

    @contextmanager
    def marks(m: Machine, number: int) -> Iterator[None]:
        prefix = "[pl][profile]"
        with (
            m.range(f"ProfilerStep#{number}", "annotation"),
            m.range(f"{prefix}run_training_batch", "annotation"),
            m.range(f"{prefix}[LightningModule]GPT.optimizer_step", "annotation"),
            m.range(f"{prefix}[Strategy]DDPStrategy.training_step", "annotation"),
        ):
            yield

    return ddp(Machine(TORCH_2_6, world=2, groups=[("0", "default_pg", [0, 1])]), marks=marks)


def fsdp1(m: Machine | None = None, *, steps: int = 3, layers: int = 6) -> Machine:
    """FSDP1 of PyTorch 1.13: gathers on a stream of their own; kernels say nothing of groups."""
    m = m or Machine(TORCH_1_13, world=8, gpu="NVIDIA A100-SXM4-80GB")
    gather = "ncclKernel_AllGather_RING_LL_Sum_int8_t(ncclWorkElem)"
    reduce = "ncclKernel_ReduceScatter_RING_LL_Sum_half(ncclWorkElem)"

    def unshard() -> float:
        with (
            m.range("FullyShardedDataParallel._pre_forward_unshard", "annotation"),
            m.range("c10d::_allgather_base_"),
        ):
            label = "nccl:_all_gather_base"
            return m.collective(gather, 250, 16, "_allgather_base", label=label)

    for number in range(2, 2 + steps):
        with step(m, number):
            load_batch(m)
            with m.range("FullyShardedDataParallel.forward", "annotation"):
                for _ in range(layers):
                    ready = unshard()
                    m.kernel(NORM, 20, after=[ready])
                    layer(m, 350)
            scattered: list[float] = []
            with m.on(BACKWARD_THREAD):
                for _ in range(layers):
                    with m.range("FullyShardedDataParallel._pre_backward_hook", "annotation"):
                        ready = unshard()
                    m.kernel(GEMM, 20, after=[ready])
                    done = layer(m, 700, "AddmmBackward0")
                    with (
                        m.range("FullyShardedDataParallel._post_backward_hook", "annotation"),
                        m.range("c10d::_reduce_scatter_base_"),
                    ):
                        scattered.append(
                            m.collective(
                                reduce,
                                300,
                                16,
                                "_reduce_scatter_base",
                                after=[done],
                                label="nccl:_reduce_scatter_base",
                            )
                        )
            optimizer(m, 300, scattered)
            m.wait(m.free())
    return m


def fsdp2(
    m: Machine | None = None,
    *,
    steps: int = 3,
    layers: int = 8,
    gather_us: float = 180.0,
    tensor: tuple[str, str, list[int]] | None = None,
    prefetch: bool = True,
    ac: int = 1,
) -> Machine:
    """fully_shard on each layer, as torchtitan does; with a `tensor` group, 2-D."""
    shard = ("3", "mesh_dp_shard", list(range(8)))
    groups = [("0", "default_pg", list(range(64))), shard] + ([tensor] if tensor else [])
    m = m or Machine(TORCH_2_6, world=64 if tensor else 8, groups=groups)

    def gather(name: str, after: float) -> float:
        with m.range(f"FSDP::all_gather ({name})", "annotation"):
            m.kernel(SPLIT, 5, stream=24)
            with m.range("c10d::_allgather_base_"):
                return m.collective(
                    ALL_GATHER,
                    gather_us,
                    28,
                    "_allgather_base",
                    group=shard,
                    after=[after],
                    label="nccl:_all_gather_base",
                    nbytes=50 << 20,
                )

    def copy_out(name: str, ready: float) -> None:
        with m.range(f"FSDP::all_gather_copy_out ({name})", "annotation"):
            m.kernel(SPLIT, 15, after=[ready])

    def tp(kernel: str, called: str, us: float) -> None:
        assert tensor is not None
        with m.range(f"_c10d_functional::{called}"):
            done = m.collective(kernel, us, 32, called, group=tensor, after=[m.free()])
        m.kernel(GELU, 5, after=[done])

    def one(us: float, name: str) -> float:
        if tensor is None:
            return layer(m, us, name)
        tp(ALL_GATHER, "all_gather_into_tensor", 60)
        layer(m, us / 2, name)
        tp(REDUCE_SCATTER, "reduce_scatter_tensor", 60)
        return layer(m, us / 2, name)

    for number in range(5, 5 + steps):
        with step(m, number):
            load_batch(m)
            ready = gather("layers.0", m.free())
            for index in range(layers):
                with m.range(f"FSDP::pre_forward (layers.{index})", "annotation"):
                    copy_out(f"layers.{index}", ready)
                    if prefetch and index + 1 < layers:
                        ready = gather(f"layers.{index + 1}", 0.0)
                done = one(500, "aten::linear")
                if not prefetch and index + 1 < layers:
                    ready = gather(f"layers.{index + 1}", done)
            scattered: list[float] = []
            with m.on(BACKWARD_THREAD):
                ready = gather(f"layers.{layers - 1}", 0.0)
                for index in reversed(range(layers)):
                    with m.range(f"FSDP::pre_backward (layers.{index})", "annotation"):
                        copy_out(f"layers.{index}", ready)
                        if prefetch and index:
                            ready = gather(f"layers.{index - 1}", 0.0)
                    done = one(1000, "AddmmBackward0")
                    if not prefetch and index:
                        ready = gather(f"layers.{index - 1}", done)
                    with m.range(f"FSDP::post_backward_reduce (layers.{index})", "annotation"):
                        catted = m.kernel(CHUNK_CAT, 20, stream=26, after=[done])
                        with m.range("c10d::_reduce_scatter_base_"):
                            scattered.append(
                                m.collective(
                                    REDUCE_SCATTER,
                                    220,
                                    26,
                                    "_reduce_scatter_base",
                                    group=shard,
                                    after=[catted],
                                    label="nccl:_reduce_scatter_base",
                                    nbytes=100 << 20,
                                )
                            )
            optimizer(m, 300, scattered)
            m.wait(m.free())
    return m


def torchtitan_fsdp() -> Machine:
    """torchtitan on 8 GPUs: what prefetching hides, and the two gathers that nothing can hide."""
    return fsdp2()


def torchtitan_fsdp_tp() -> Machine:
    """torchtitan, FSDP2 x TP 8 with sequence parallelism and without asynchronous TP."""
    return fsdp2(tensor=("5", "mesh_tp", list(range(8))))


def torchtitan_pipeline(*, ranks: tuple[int, int] = (1, 4), fill_us: float = 600) -> Machine:
    """torchtitan, 1F1B of torch.distributed.pipelining on the second of four stages."""
    rank, stages = ranks
    mesh = ("2", "mesh_pp", list(range(stages)))
    m = Machine(TORCH_2_6, rank=rank, world=stages, groups=[("0", "default_pg", mesh[2]), mesh])

    def p2p(us: float, called: str, after: float = 0.0) -> float:
        with m.range("nccl:coalesced", "annotation"):
            return m.collective(
                SEND_RECV, us, 36, called, group=mesh, after=[after], label=f"nccl:{called} 0->1"
            )

    for number in range(3, 6):
        with step(m, number), m.range("Schedule1F1B", "annotation"):
            for index in range(8):
                ready = p2p(fill_us if index == 0 else 60, "recv")
                with m.range(f"Forward {index}", "annotation"):
                    m.kernel(NORM, 10, after=[ready])
                    done = layer(m, 500)
                p2p(40, "send", done)
            for index in range(8):
                ready = p2p(500 if index == 0 else 60, "recv")
                with m.on(BACKWARD_THREAD), m.range(f"Backward {index}", "annotation"):
                    m.kernel(NORM, 10, after=[ready])
                    done = layer(m, 1000, "AddmmBackward0")
                p2p(40, "send", done)
            optimizer(m, 300, [m.free()])
            m.wait(m.free())
    return m


def torch_2_1_ddp_waiting_for_data() -> Machine:
    """A slow DataLoader: each step begins with 6 ms of waiting."""
    return ddp(Machine(TORCH_2_1, world=8), wait_us=6000)
