"""Names of device work in real profiles of Megatron training."""

from __future__ import annotations

KERNELS = {
    "layernorm": "void transformer_engine::normalization::rmsnorm_fwd_tuned_kernel<transformer_"
    "engine::normalization::Kernel_traits<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float, "
    "unsigned int, 4096u, 1u, 4u, 1u, 16u> >(transformer_engine::normalization::"
    "ForwardKernelParams)",
    "qkv": "nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT",
    "attention": "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, "
    "false, cutlass::bfloat16_t>, false, true, false, false>(flash::Flash_fwd_params)",
    "proj": "nvjet_hsh_192x192_64x4_2x1_v_bz_coopB_TNN",
    "add": "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::"
    "native::CUDAFunctor_add<c10::BFloat16> >(at::TensorIteratorBase&)::{lambda(int)#1}>(int)",
    "fc1": "cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>"
    "(cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8::Params)",
    "swiglu": "triton_poi_fused_mul_silu_split_3",
    "fc2": "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT",
    "router": "void cub::DeviceRadixSortOnesweepKernel<cub::DeviceRadixSortPolicy<float>::Policy"
    "900, false, float, long>(long*, float*)",
    "adam": "void multi_tensor_apply_kernel<TensorListMetadata<4>, AdamFunctor<float, float, int>,"
    " float>(int, int volatile*, TensorListMetadata<4>, AdamFunctor<float, float, int>)",
}
"""Compute kernels by role."""

GEMMS = frozenset({"qkv", "proj", "fc1", "fc2"})

USERBUFFERS = {
    "all_gather": "userbuffers_fp16_sum_inplace_gpu_rr_ag_oop",
    "reduce_scatter": "kuserbuffers_pushsendrecv_multiatomic",
}
DEEPEP = {
    "dispatch": "void deep_ep::intranode::dispatch<8, 768, 8192>(int4*, float*, int*, long*, "
    "float*, int*, int4 const*, long const*)",
    "combine": "void deep_ep::internode::combine<false, 4, __nv_bfloat16>(int4*, float*, "
    "bool const*, int4 const*)",
}
NVSHMEM = {
    "dispatch": "void nvshmemi_alltoall_on_stream_kernel<__nv_bfloat16, (nvshmemi_team_t)0>(int)",
    "combine": "nvshmem_barrier_on_stream_kernel_alltoall",
}

HOST_TO_DEVICE = "Memcpy HtoD (Pinned -> Device)"
DEVICE_TO_HOST = "Memcpy DtoH (Device -> Pageable)"
DEVICE_TO_DEVICE = "Memcpy DtoD (Device -> Device)"
PEER_TO_PEER = "Memcpy PtoP (Device -> Device)"
MEMSET = "Memset (Device)"

# By operation: PyTorch's "Collective name", the part of the kernel's name, the dtype's part.
COLLECTIVES = {
    "all_gather": ("_allgather_base", "AllGather", ""),
    "reduce_scatter": ("_reduce_scatter_base", "ReduceScatter", "Sum"),
    "all_reduce": ("allreduce", "AllReduce", "Sum"),
    "all_to_all": ("all_to_allv", "SendRecv", ""),
    "send": ("send", "SendRecv", ""),
    "recv": ("recv", "SendRecv", ""),
}


def nccl_kernel(operation: str, dtype: str, generation: str) -> str:
    """The name of the NCCL kernel that runs `operation`, as releases of that year spell it."""
    _, stem, reduction = COLLECTIVES[operation]
    if generation == "2022":
        kind = {"BFloat16": "__nv_bfloat16", "Float": "float"}[dtype] if reduction else "int8_t"
        stem = "SendRecv" if stem == "SendRecv" else stem
        return f"ncclKernel_{stem}_RING_LL_Sum_{kind}(ncclDevComm*, unsigned long, ncclWork*)"
    storage = (
        "(ncclDevKernelArgsStorage<4096ul>)"
        if generation == "2025"
        else "(ncclDevComm*, unsigned long, ncclWork*)"
    )
    if stem == "SendRecv":
        return f"ncclDevKernel_SendRecv{storage}"
    kind = {"BFloat16": "bf16", "Float": "f32"}[dtype]
    tail = f"_{reduction}_{kind}" if reduction else ""
    return f"ncclDevKernel_{stem}{tail}_RING_LL{storage}"
