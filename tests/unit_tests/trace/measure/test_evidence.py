"""What the ranges that launched a communication say of its operation and dimension."""

from __future__ import annotations

import pytest

from overlapkit.trace.measure.evidence import evidence

CALLS = [
    (("c10d::alltoall_base_", "record_param_comms", "nccl:all_to_all"), "all_to_all"),
    (("c10d::alltoall_", "nccl:all_to_allv"), "all_to_all"),
    (("_c10d_functional::all_to_all_single",), "all_to_all"),
    (("ncclGroupStart", "ncclAllToAll"), "all_to_all"),
    (("c10d::allreduce_", "nccl:all_reduce"), "all_reduce"),
    (("c10d::barrier", "c10d::allreduce_", "nccl:all_reduce_barrier"), "barrier"),
    (("nccl:_allgather_base",), "all_gather"),
    (("c10d::_reduce_scatter_base_", "nccl:_reduce_scatter_base"), "reduce_scatter"),
    (("c10d::gather_", "nccl:gather", "ncclRecv"), "gather"),
    (("c10d::scatter_", "nccl:scatter", "ncclSend"), "scatter"),
    (("c10d::send", "nccl:send 0->1"), "send"),
    (("c10d::recv_", "nccl:recv 0<-1"), "recv"),
    (("nccl:coalesced",), None),
    (("record_param_comms",), None),
    (("FSDP::all_gather (layers.0)",), None),
]


@pytest.mark.parametrize(("ranges", "operation"), CALLS)
def test_the_collective_that_was_called_is_the_operation(ranges, operation):
    assert evidence(ranges).operation == operation


CORE = "/opt/megatron-lm/megatron/core/"
SERVED = [
    (("FSDP::all_gather (layers.0)", "c10d::_allgather_base_"), "DP"),
    (("FSDP::post_backward_reduce",), "DP"),
    (("FullyShardedDataParallel._pre_forward",), "DP"),
    # The forward pass of a model is inside, with all its communication.
    (("FullyShardedDataParallel.forward", "c10d::allreduce_"), None),
    (("DistributedDataParallel.forward", "c10d::allreduce_"), None),
    (("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad",), "DP"),
    ((CORE + "pipeline_parallel/p2p_communication.py(165): _p2p_ops", "nccl:coalesced"), "PP"),
    ((CORE + "distributed/param_and_grad_buffer.py(300): start_grad_sync",), "DP"),
    ((CORE + "distributed/finalize_model_grads.py(90): _allreduce_word_embedding_grads",),
     "embedding"),
    ((CORE + "distributed/finalize_model_grads.py(190): _allreduce_layernorm_grads",), "TP"),
    ((CORE + "distributed/finalize_model_grads.py(290): finalize_model_grads",), None),
    ((CORE + "tensor_parallel/mappings.py(21): _reduce", "c10d::allreduce_"), "TP"),
    ((CORE + "tensor_parallel/mappings.py(460): all_to_all", "c10d::alltoall_base_"), None),
    ((CORE + "transformer/moe/token_dispatcher.py(600): token_dispatch",
      CORE + "tensor_parallel/mappings.py(460): all_to_all", "c10d::alltoall_base_"), "EP"),
    # The dispatcher by all-gather has groups over TP and EP.
    ((CORE + "transformer/moe/token_dispatcher.py(240): token_dispatch",
      CORE + "tensor_parallel/mappings.py(140): _gather_along_first_dim",
      "c10d::_allgather_base_"), None),
    (("transformer_engine/pytorch/attention/dot_product_attention/context_parallel.py(90): "
      "flash_attn_p2p_communicate", "nccl:coalesced"), "CP"),
    (("deepspeed/runtime/zero/stage3.py(1400): __reduce_and_partition_ipg_grads",), "DP"),
    (("deepspeed/runtime/pipe/p2p.py(46): send", "c10d::send"), "PP"),
    (("deepspeed/sequence/layer.py(60): single_all_to_all", "c10d::alltoall_base_"), "CP"),
    (("deepspeed/moe/sharded_moe.py(97): _AllToAll", "c10d::alltoall_base_"), "EP"),
    (("vllm/distributed/communication_op.py(12): tensor_model_parallel_all_reduce",), "TP"),
    (("vllm/distributed/device_communicators/all2all.py(50): dispatch",), "EP"),
    (("sglang/srt/distributed/communication_op.py(9): tensor_model_parallel_all_reduce",), "TP"),
    (("torch/distributed/pipelining/schedules.py(500): _batch_p2p", "nccl:coalesced"), "PP"),
    (("/usr/lib/python3/site-packages/deep_ep/buffer.py(320): dispatch",), "EP"),
    (("c10d::allreduce_", "nccl:all_reduce"), None),
]  # fmt: skip


@pytest.mark.parametrize(("ranges", "dimension"), SERVED)
def test_the_code_that_launched_it_tells_the_dimension(ranges, dimension):
    assert evidence(ranges).dimension == dimension


def test_a_group_of_operations_and_functional_collectives_are_noticed():
    assert evidence(("nccl:coalesced",)).point_to_point
    assert not evidence(("nccl:all_to_all",)).point_to_point
    assert evidence(("_c10d_functional::all_reduce", "c10d::allreduce_")).functional
    assert not evidence(("c10d::allreduce_",)).functional
