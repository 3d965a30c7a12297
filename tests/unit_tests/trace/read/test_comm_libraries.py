"""Which kernels communicate, by names as profilers print them, and which only seem to."""

from __future__ import annotations

import pytest

from overlapkit.trace.read.comm_libraries import is_fused, is_suspicious
from overlapkit.trace.read.device_work import COMMUNICATION, COMPUTE
from overlapkit.trace.read.kernel_names import classify, function_of, short

# The name, the library, and the operation.
COMMUNICATE = [
    ("ncclKernel_AllReduce_RING_LL_Sum_float(ncclDevComm*, unsigned long, ncclWork*)",
     "nccl", "all_reduce"),
    ("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*)", "nccl", "send_recv"),
    ("ncclAllReduceRingLLKernel_sum_f32(ncclColl)", "nccl", "all_reduce"),
    ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
     "nccl", "reduce_scatter"),
    ("ncclDevKernel_AllGather_RING_LL", "nccl", "all_gather"),
    ("ncclDevKernel_Broadcast_RING_LL()", "nccl", "broadcast"),
    ("ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)", "nccl", "other"),
    ("_Z23ncclDevKernel_Generic_424ncclDevKernelArgsStorageILm4096EE", "nccl", "other"),
    ("ncclDevFunc_AllReduce_Sum_f32_RING_LL", "nccl", "all_reduce"),
    ("ncclSymkDevKernel_AllReduce_RSxLDMC_AGxSTMC_sum_bf16(ncclSymkDevWorkArgs4K)",
     "nccl", "all_reduce"),
    ("ncclSymDevKernel_AllGather_LL(ncclSymDevArgs)", "nccl", "all_gather"),
    ("ncclSymkDevKernel_ReduceScatter_LDMC_sum_f8e4m3", "nccl", "reduce_scatter"),
    ("ncclKernelAllGatherCtranDirect(int*, CtranAlgoDeviceState*)", "nccl", "all_gather"),
    ("void ncclKernelAllToAllvCtran<float>(int*)", "nccl", "all_to_all"),
    ("ncclKernelSend(int*)", "nccl", "send_recv"),
    ("mscclKernel_Sum_half_LL_false(ncclDevComm*, mscclAlgo*)", "nccl", "other"),
    ("void mscclpp::collective::allreduceKernel<half>(half*)", "nccl", "all_reduce"),
    ("pcclKernel_twoShotAllReduceKernel", "fused all-reduce", "all_reduce"),
    ("void kuserbuffers_pushrecv(int, int, int, int, int*, int*, int)", "userbuffers", "send_recv"),
    ("void userbuffers_fp16_sum_inplace_gpu_rr_rs_oop<8>(int)", "userbuffers", "reduce_scatter"),
    ("userbuffers_fp16_sum_inplace_gpu_mc_ag<8>", "userbuffers", "all_gather"),
    ("void deep_ep::intranode::dispatch<8, 768, 8192>(int4*, float*)", "deep_ep", "dispatch"),
    ("void deep_ep::internode_ll::combine<true, 7168, 9>(void*)", "deep_ep", "combine"),
    ("void deep_ep::internode::notify_dispatch<false, 2>(int const*)", "deep_ep", "dispatch"),
    ("void dpsk::ep::internode::dispatch<false, 8, false, 8>(int4*)", "deep_ep", "dispatch"),
    ("_ZN4dpsk2ep9internode8dispatchILb0ELi8ELb0ELi8EEEvP4int4", "deep_ep", "dispatch"),
    ("_ZN7deep_ep9intranode7combineI13__nv_bfloat16Li8ELi768", "deep_ep", "combine"),
    ("void dpsk::ep::internode::combine<false, 8, __nv_bfl", "deep_ep", "combine"),
    ("void uccl::internode_ll::dispatch<true, false, 7168>(void*)", "deep_ep", "dispatch"),
    ("void nixl_ep::dispatch<true>(void*)", "deep_ep", "dispatch"),
    ("void hybrid_ep::dispatch_kernel<hybrid_ep::inter_node_group<4>>()", "deep_ep", "dispatch"),
    ("hybrid_ep::device_sync_kernel(unsigned int*)", "deep_ep", "other"),
    ("nccl_ep_jit_ht_dispatch_kernel(nccl_ep::hybridep::dispatch_args)", "nccl_ep", "dispatch"),
    ("nccl_ep_jit_ll_combine_kernel", "nccl_ep", "combine"),
    ("void meta::comms::ddaAllReduceFlatIpc<hip_bfloat16, 8, false>(hip_bfloat16* const*)",
     "nccl", "all_reduce"),
    ("void meta::comms::ddaReduceScatterFabricLL<float>(float**)", "nccl", "reduce_scatter"),
    ("void c10d::nvshmem_extension::allToAllV_2d<true>(void*)", "symmetric memory", "all_to_all"),
    ("exchangeSplitAndOffset(long*, int, int)", "symmetric memory", "all_to_all"),
    ("EpDispatchIntraNodeKernel_bf16", "mori", "dispatch"),
    ("void mori::moe::EpCombineInterNodeKernel<hip_bfloat16>(mori::moe::EpArgs)",
     "mori", "combine"),
    ("void tensorrt_llm::kernels::moe_comm::moeA2ADispatchKernel<8>(int const*)",
     "moe all-to-all", "dispatch"),
    ("moeA2ACombineKernel", "moe all-to-all", "combine"),
    ("a2a_dispatch_send_kernel", "pplx", "dispatch"),
    ("void a2a_kernels::a2a_combine_recv_kernel<true>(unsigned long)", "pplx", "combine"),
    ("void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<"
     "(flashinfer::trtllm_allreduce_fusion::AllReduceFusionPattern)1, __nv_bfloat16, 8>(int)",
     "fused all-reduce", "all_reduce"),
    ("void flashinfer::trtllm_mnnvl_allreduce::twoshotAllreduceKernel<(unsigned char)4>(float)",
     "fused all-reduce", "all_reduce"),
    ("void tensorrt_llm::kernels::twoShotAllReduceKernel<half, 8>(AllReduceParams)",
     "fused all-reduce", "all_reduce"),
    ("void tensorrt_llm::kernels::lamport_style_one_shot_all_reduce_norm_kernel<8>(int)",
     "fused all-reduce", "all_reduce"),
    ("oneshotAllreduceFusionKernel", "fused all-reduce", "all_reduce"),
    ("void aiter::allreduce_fusion_kernel_1stage<std::bfloat16_t, 4, true>(aiter::RankData*)",
     "fused all-reduce", "all_reduce"),
    ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>(vllm::RankData*)",
     "custom all-reduce", "all_reduce"),
    ("void sglang::cross_device_reduce_2stage<half, 4>(RankData*)",
     "custom all-reduce", "all_reduce"),
    ("void aiter::reduce_scatter_cross_device_store<hip_bfloat16, 8>(aiter::RankData*)",
     "custom all-reduce", "reduce_scatter"),
    ("void quickreduce::allreduce_prototype_twoshot<AllReduceTwoshot<__half, CodecQ4>>()",
     "custom all-reduce", "all_reduce"),
    ("void (anonymous namespace)::multimem_all_reduce_kernel<c10::BFloat16, 16>(c10::BFloat16*)",
     "symmetric memory", "all_reduce"),
    ("void two_shot_all_reduce_kernel_inplace<float, 4, 8>(float**)",
     "symmetric memory", "all_reduce"),
    ("multimem_one_shot_reduce_kernel", "symmetric memory", "reduce"),
    ("_multimem_all_gather_kernel", "symmetric memory", "all_gather"),
    ("all_reduce_one_shot_push_kernel", "symmetric memory", "all_reduce"),
    ("allreduce_two_shot_multimem_intra_node_kernel", "symmetric memory", "all_reduce"),
    ("void nvshmemi_proxy_barrier_on_stream<1>()", "nvshmem", "barrier"),
    ("void cudecomp::cudecomp_nvshmem_alltoallv_k<double>(int)", "nvshmem", "all_to_all"),
    ("hcom_allReduce__503_0_1", "hccl", "all_reduce"),
    ("hcom_alltoallv__210_1_1", "hccl", "all_to_all"),
    ("oneapi::ccl::v1::allreduce_small<float>", "oneccl", "all_reduce"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "library", "operation"), COMMUNICATE)
def test_kernels_of_communication_libraries_are_known(name, library, operation):
    found = classify(name)
    assert (found.kind, found.library, found.operation) == (COMMUNICATION, library, operation)


COMPUTES = [
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, "
    "at::native::func_wrapper_t<float, at::native::sum_functor<float>>>>(float)",
    "void at::native::vectorized_gather_kernel<16, long>(char*, char*, long*)",
    "void at::native::_scatter_gather_elementwise_kernel<128, 8>(int)",
    "void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl<"
    "at::native::BinaryFunctor<float>>>(int)",
    "void at::native::index_elementwise_kernel<128, 4>(int)",
    "void cub::DeviceReduceKernel<cub::DeviceReducePolicy<float>>(float*)",
    "void cub::CUB_200700_800_NS::detail::reduce::DeviceReduceSingleTileKernel<int>(int*)",
    "void cub::DeviceSegmentedReduceKernel<cub::DeviceReducePolicy<float>>(float*)",
    "void cub::DeviceScanKernel<cub::DispatchScan<int>>(int*)",
    "void thrust::cuda_cub::core::_kernel_agent<thrust::cuda_cub::__reduce::ReduceAgent<int>>()",
    "void flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<128>>(params)",
    "void flash::FlashAttnFwdCombine<cute::tuple<int>>(params)",
    "void cutlass::device_kernel<flash::FlashAttnFwdCombine<64>>(params)",
    "fmhaSm100fKernel_QkvE4m3OBfloat16H128Reduction",
    "void vllm::moe::topkGatingSoftmax<8, 8, 4, 16>(float const*)",
    "void vllm::moe::moe_align_block_size_kernel<int>(int*)",
    "void moe_sum_reduce_kernel<float>(float*)",
    "void deep_ep::layout::get_dispatch_layout<256, 32>(long const*, int*)",
    "void deep_ep::internode::get_dispatch_layout<256, 32>(long const*)",
    "void hybrid_ep::scan<512, 8>(bool const*)",
    "moeA2ASanitizeExpertIdsKernel",
    "nccl_ep_jit_ht_scan_kernel",
    "void nccl_ep::hybridep::convert_topk_to_routing_map_kernel<long>(long const*)",
    "moe_combine_topk_reduce_kernel",
    "_permute_kernel",
    "_unpermute_kernel",
    "_moe_unpermute_combine_topk",
    "topk_gating_dispatch_kernel",
    "permute_and_dispatch_layout_kernel",
    "void transformer_engine::fused_router::fused_topk_with_score_function_kernel<float>(int)",
    "triton_poi_fused_all_gather_into_tensor_cat_3",
    "triton_red_fused__to_copy_add_all_reduce_mean_7",
    "triton_poi_fused_one_shot_all_reduce_2",
    "triton_per_fused_reduce_scatter_tensor_rms_norm_0",
    "splitKreduce_kernel",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float>(int)",
    "nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT",
    "void cutlass::device_kernel<dpsk::grouped_gemm::cuda::fp8_ptp128c::GemmKernel>(Params)",
    "void (anonymous namespace)::softmax_warp_forward<float, 8>(float*)",
    "void multi_tensor_apply_kernel<TensorListMetadata<2>, L2NormFunctor<float>>(int)",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdam>(int)",
    "embedding_backward_feature_kernel",
    "void at::native::tensor_kernel_scan_innermost_dim<float>(float*)",
    "_ssd_combine_states_kernel",
    "merge_attn_states_kernel",
    "fsdp::all_gather_copy_in",
    "Memset (Device)",
]  # fmt: skip


@pytest.mark.parametrize("name", COMPUTES)
def test_kernels_that_only_reduce_gather_or_route_on_the_device_do_not_communicate(name):
    assert classify(name).kind != COMMUNICATION
    assert not is_suspicious(function_of(name))


SUSPICIOUS = [
    "void my_company::expert_exchange::dispatch_tokens<8>(int*)",
    "custom_allreduce_push_kernel",
    "void acme::fast_all_gather<half>(half*)",
    "tokens_all2all_kernel",
    "peer_push_kernel",
]


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_unknown_kernels_with_names_of_communication_are_suspicious(name):
    assert classify(name).kind == COMPUTE
    assert is_suspicious(function_of(name))


FUSED = [
    "void cutlass::device_kernel<bytedance::flux::Sm90AGGemmKernel<float>>(Params)",
    "kernel_ag_gemm_intra_node",
    "sm100_fp8_fp4_mega_moe_impl",
    "void cutlass::gemm_reduce_scatter<float>(Params)",
    "kernel_consumer_gemm_persistent",
]


@pytest.mark.parametrize("name", FUSED)
def test_a_kernel_that_computes_and_communicates_counts_as_compute_and_is_told_apart(name):
    assert classify(name).kind == COMPUTE
    assert is_fused(name)


def test_mangled_names_are_shown_as_namespaces_and_function():
    assert short("_ZN4dpsk2ep9internode8dispatchILb0ELi8EEEvP4int4") == "internode::dispatch"
    assert short("_Z23ncclDevKernel_Generic_424ncclDevKernelArgsStorageILm4096EE") == (
        "ncclDevKernel_Generic_4"
    )
    assert function_of("_Z") == "_Z"
