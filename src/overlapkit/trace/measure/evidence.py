"""What the ranges say that were open on the host when a communication was launched."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from overlapkit.trace.read.kernel_names import operation

POINT_TO_POINT = frozenset({"send", "recv", "send_recv"})
"""Operations between two ranks."""

# PyTorch's operators and the labels of its NCCL backend, and NCCL's own NVTX ranges. The rest of
# the name is that of the collective.
_COLLECTIVE = re.compile(
    r"(?:c10d::|_?c10d_functional(?:_autograd)?::|symm_mem::|nccl:|rccl:)(?P<torch>\w+)|"
    r"(?:nccl|rccl)(?P<nccl>[A-Z]\w+)$"
)
_EXCHANGE = re.compile(r"all_?to_?all", re.IGNORECASE)
_BARRIER = re.compile(r"barrier", re.IGNORECASE)
# A group of any operations; around a kernel that sends and receives, a group of those.
_COALESCED = re.compile(r"nccl:coalesced|batch_isend_irecv|coalescing_manager")
_FUNCTIONAL = re.compile(r"_?c10d_functional")
_FRAME = re.compile(r"(?P<file>\S+)\.py\(\d+\): (?P<function>.*)$")


@dataclass(frozen=True)
class Evidence:
    """What the ranges say; None where they say nothing.

    Attributes:
        operation: of the collective that was called.
        dimension: the parallel dimension that the calling code serves.
        point_to_point: whether sends and receives were grouped.
        functional: whether a functional collective was called, as by DTensor.
        general: whether the dimension is that of functions which take any group.
        mixed: whether code for a group over several dimensions called.
    """

    operation: str | None = None
    dimension: str | None = None
    point_to_point: bool = False
    functional: bool = False
    general: bool = False
    mixed: bool = False


NOTHING = Evidence()
"""Of a communication whose launch is not recorded."""


@cache
def evidence(ranges: tuple[str, ...]) -> Evidence:
    """What the ranges that were open at a launch say.

    Args:
        ranges: their names, the outermost first.
    """
    called = _called(ranges)
    of_experts = any(_DISPATCHER.search(name) for name in ranges)
    return Evidence(
        operation=called,
        dimension=_served(ranges, called),
        point_to_point=any(_COALESCED.search(name) for name in ranges),
        functional=any(_FUNCTIONAL.match(name) for name in ranges),
        general=any(_MAPPING.search(name) for name in ranges),
        # Experts are gathered over the tensor-parallel ranks too.
        mixed=of_experts and called not in _EXPERTS,
    )


def _called(ranges: tuple[str, ...]) -> str | None:
    """The collective that was called: the outermost, since NCCL makes some of others."""
    for name in ranges:
        match = _COLLECTIVE.match(name)
        if match is None:
            continue
        if _BARRIER.search(name):
            return "barrier"
        called = match.group("torch") or match.group("nccl")
        found = operation(called)
        if found == "send_recv":
            found = "recv" if re.search("recv", called, re.IGNORECASE) else "send"
        if found != "other":
            return found
    for name in reversed(ranges):
        frame = _FRAME.match(name)
        if frame is not None and _EXCHANGE.search(frame.group("function")):
            return "all_to_all"
    return None


_EXPERTS = ("all_to_all", "dispatch", "combine", None)
_LAST_GRADIENTS = (
    ("embedding", re.compile(r"embedding")),
    ("TP", re.compile(r"layernorm|non_tensor_model_parallel|router")),
)
# The file of a Python function, or the label of a range, and the dimension that it serves. Inner
# ranges come first, and for one range the first that matches.
_SERVES: tuple[tuple[str, re.Pattern[str]], ...] = (
    # Nsight Systems has dots for the slashes of a file.
    ("PP", re.compile(r"megatron[./]core[./]pipeline_parallel[./]p2p_communication\.")),
    ("DP", re.compile(r"megatron[./]core[./]distributed[./](?!finalize_model_grads)")),
    (
        "DP",
        re.compile(
            r"megatron[./]core[./]optimizer[./](?:distrib_optimizer|layer_wise_optimizer)\."
        ),
    ),
    ("EP", re.compile(r"megatron[./]core[./]transformer[./]moe[./]fused_a2a\.")),
    ("CP", re.compile(r"megatron/core/ssm/mamba_context_parallel\.")),
    ("CP", re.compile(r"transformer_engine/pytorch/attention/\S*context_parallel")),
    ("TP", re.compile(r"transformer_engine/pytorch/distributed\.py\(\d+\): \w*along_first_dim")),
    ("DP", re.compile(r"^(?:DeepSpeedZero\w*|PartitionedParameterCoordinator)\.")),
    ("DP", re.compile(r"deepspeed/runtime/zero/|deepspeed/runtime/comm/coalesced_collectives\.")),
    ("PP", re.compile(r"deepspeed/runtime/pipe/")),
    ("CP", re.compile(r"deepspeed/sequence/")),
    ("EP", re.compile(r"deepspeed/moe/sharded_moe\.")),
    ("EP", re.compile(r"torchtitan/(?:\w+/)*(?:expert_parallel|deepep/\w+|hybridep\w*)\.")),
    ("TP", re.compile(r"torchtitan/(?:\w+/)*tensor_parallel\.")),
    ("TP", re.compile(r"(?:vllm|sglang/srt)/distributed/communication_op\.py\(\d+\): \w*tensor_m")),
    ("TP", re.compile(r"sglang/srt/distributed/communication_op\.py\(\d+\): attention_tensor_m")),
    ("EP", re.compile(r"vllm/distributed/device_communicators/all2all\.")),
    ("EP", re.compile(r"(?:deep_ep|hybrid_ep\w*|mori|pplx\w*|uccl\w*)/\S+: \w*(?:disp|comb)")),
    ("CP", re.compile(r"(?:yunchang|ring_flash_attn|xfuser)/|_context_parallel/|_ring_attention")),
    ("PP", re.compile(r"torch/distributed/pipelining/")),
    ("DP", re.compile(r"torch/distributed/(?:fsdp|_composable|algorithms/ddp_comm_hooks)/")),
    ("DP", re.compile(r"FSDP::|FullyShardedDataParallel\.(?!forward|_to_kwargs|rate_limiter)")),
    # Gradients are accumulated in parameters, and hooks on that reduce them.
    ("DP", re.compile(r"autograd::engine::evaluate_function: torch::autograd::AccumulateGrad")),
    ("TP", re.compile(r"torch/distributed/tensor/parallel/")),
    # Asynchronous tensor parallelism (torch/distributed/_symmetric_memory): chunks are gathered
    # before products, or reduced after them.
    ("TP", re.compile(r"^symm_mem::fused_(?:scaled_)?(?:all_gather|matmul)_")),
    ("TP", re.compile(r"megatron[./]core[./]tensor_parallel[./]layers\.")),
    # Ranges of Transformer Engine (NVTE_NVTX_ENABLED=1): what its layers communicate, and its
    # attention over a sequence that is divided.
    (
        "TP",
        re.compile(
            r"^transformer_engine\._\w+\.(?:for|back)ward\.(?:\S+\.)?"
            r"(?:\w*_parallel_comm\w*|\w*input_cast_comm|grad_output_preprocess)$"
        ),
    ),
    ("CP", re.compile(r"^transformer_engine\.AttnFuncWithCP\w*\.|^AttnFuncWithCP\w+$")),
    # Functions of Megatron-Core by their class, as PyTorch names their operators. Those with
    # sequence in their name also serve experts.
    (
        "TP",
        re.compile(
            r"^(?:_(?:CopyTo|ReduceFrom|ScatterTo|GatherFrom)ModelParallelRegion|"
            r"LinearWithGradAccumulationAndAsyncCommunication|LinearWithFrozenWeight|"
            r"_VocabParallelCrossEntropy)(?:Backward)?$"
        ),
    ),
)
# Layers that communicate over tensor-parallel ranks, where nothing else does with one of these
# operations: hooks also gather parameters there, and backward passes reduce the scales of FP8.
_LAYERS = (
    # Transformer Engine's functions, as PyTorch names their operators.
    (
        re.compile(r"^_(?:Linear|LayerNormLinear|LayerNormMLP)$"),
        ("all_gather", "reduce_scatter", "all_reduce"),
    ),
    (
        re.compile(r"^_(?:Linear|LayerNormLinear|LayerNormMLP)Backward$"),
        ("all_gather", "reduce_scatter"),
    ),
    # Megatron-Core's ranges (nvtx_range_push).
    (
        re.compile(
            r"^megatron\.core\.transformer\.(?:mlp|attention)\.(?:\w+\.)*"
            r"(?:linear_fc1|linear_fc2|qkv|linear_proj)$"
        ),
        ("reduce_scatter", "all_reduce"),
    ),
)
# DDP broadcasts the model's buffers before the forward pass, which may communicate otherwise.
_OF_BUFFERS = re.compile(r"DistributedDataParallel\.forward")
_MAPPING = re.compile(
    r"megatron/core/tensor_parallel/mappings\.py\(\d+\): (?P<function>.*)|"
    r"megatron\.core\.tensor_parallel\.mappings\.(?P<dotted>.*)"
)
_FINAL = re.compile(r"megatron/core/distributed/finalize_model_grads\.py\(\d+\): (?P<function>.*)")
_DISPATCHER = re.compile(
    r"megatron[./]core[./]transformer[./]moe[./](?:token_dispatcher|moe_utils)\."
)


def _served(ranges: tuple[str, ...], called: str | None) -> str | None:
    """The dimension that the innermost range of known purpose serves."""
    if any(_DISPATCHER.search(name) for name in ranges):
        # It also gathers over the tensor-parallel ranks, and over both.
        return "EP" if called in _EXPERTS else None
    if called == "broadcast" and any(_OF_BUFFERS.match(name) for name in ranges):
        return "DP"
    for name in reversed(ranges):
        match = _FINAL.search(name)
        if match is not None:
            function = match.group("function")
            return next((d for d, word in _LAST_GRADIENTS if word.search(function)), None)
        match = _MAPPING.search(name)
        if match is not None:
            # Its all-to-all serves whoever calls it.
            function = match.group("function") or match.group("dotted")
            return None if _EXCHANGE.search(function) else "TP"
        for dimension, pattern in _SERVES:
            if pattern.search(name):
                return dimension
        for pattern, operations in _LAYERS:
            if pattern.search(name):
                return "TP" if called in operations else None
    return None
