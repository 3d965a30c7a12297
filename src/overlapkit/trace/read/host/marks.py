"""Ranges on the host that say what launched a kernel, and names that say which framework ran.

A range is an operator, an annotation (also NVTX's) or a Python function. Kept are those that speak
of communication or of waiting for data. Without numpy, see `recorded`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

Framework = Literal[
    "megatron",
    "deepspeed",
    "torchtitan",
    "fsdp2",
    "fsdp1",
    "ddp",
    "data-parallel",
    "vllm",
    "sglang",
    "tensorrt_llm",
    "engine",
]
"""What trains or serves: the software whose settings decide on overlap."""

# Operators and annotations of PyTorch (torch/csrc/distributed/c10d, fully_shard's
# record_function labels, the reducer), NCCL's NVTX ranges, and libraries' operators.
_OPERATORS = re.compile(
    r"c10d::|record_param_comms|_?c10d_functional(?:_autograd)?::|symm_mem::|"
    r"nccl:|rccl:|nccl[A-Z]\w+$|gloo:|"
    r"FSDP::|FullyShardedDataParallel|DistributedDataParallel|"
    # The hooks that reduce gradients run inside the node that accumulates them.
    r"autograd::engine::evaluate_function: torch::autograd::AccumulateGrad|"
    r"enumerate\(DataLoader\)|"
    r"(?:vllm|sgl_kernel|sglang|trtllm|_C_custom_ar|flashinfer|deep_ep|mori|pplx\w*)\w*::\w*"
    r"(?:all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|dispatch|combine|_ar\b)"
)
# Python functions are recorded as "path(line): function". These files and functions communicate,
# or wait for data.
_FRAMES = re.compile(
    r"(?:"
    r"megatron/core/(?:tensor_parallel/(?:mappings|layers)|pipeline_parallel/p2p_communication|"
    r"distributed/\w+|optimizer/distrib_optimizer|transformer/moe/(?:token_dispatcher|fused_a2a)|"
    r"transformer/moe/moe_utils|ssm/mamba_context_parallel)"
    r"|transformer_engine/pytorch/(?:distributed|attention/\S*context_parallel\w*)"
    r"|deepspeed/(?:runtime/(?:zero|pipe|comm)/\w+|comm/\w+|sequence/\w+|moe/sharded_moe)"
    r"|torchtitan/(?:distributed|parallelisms)/\w+"
    r"|vllm/distributed/\S+|sglang/srt/(?:distributed/\S+|layers/dp_attention)"
    r"|(?:deep_ep|hybrid_ep\w*|mori|pplx\w*|uccl\w*)/\S+"
    r"|torch/distributed/(?:distributed_c10d|_functional_collectives|pipelining/\w+|fsdp/\S+|"
    r"_composable/\S+|algorithms/\S+|tensor/parallel/\w+)"
    r"|torch/nn/parallel/distributed"
    r"|torch/utils/data/(?:dataloader|_utils/\w+)"
    r"|yunchang/\S+|ring_flash_attn/\S+|xfuser/\S+"
    r")\.py\(\d+\): "
    # The same in Nsight Systems.
    r"|^megatron\.core\.(?:tensor_parallel|pipeline_parallel\.p2p_communication|distributed|"
    r"optimizer|transformer\.moe)\."
    r"|^megatron\.core\.transformer\.(?:mlp|attention)\.\S*(?:linear_\w+|qkv)$"
    r"|^transformer_engine\.(?:AttnFuncWithCP\w*\.|\S+(?:comm\w*|grad_output_preprocess)$)"
    r"|^(?:DeepSpeedZero\w*|PartitionedParameterCoordinator)\."
    # Functions of Megatron-Core and Transformer Engine, as PyTorch names their operators.
    r"|^_(?:(?:CopyTo|ReduceFrom|ScatterTo|GatherFrom)ModelParallelRegion|"
    r"VocabParallelCrossEntropy|Linear|LayerNormLinear|LayerNormMLP)(?:Backward)?$"
    r"|^LinearWith(?:GradAccumulationAndAsyncCommunication|FrozenWeight)(?:Backward)?$"
    r"|^AttnFuncWithCP\w+$"
)
# torch/distributed's own helpers run for every module and do not communicate.
_IDLE_FRAMES = re.compile(
    r": (?:__init__|<\w+>|get_\w+|is_\w+|_get_\w+|_is_\w+|_check\w*|_rank_not_in_group|forward|"
    r"__getattr__|wrapper|decorate\w*|_fn|inner)$"
)
_WAITING = re.compile(
    r"enumerate\(DataLoader\)|torch/utils/data/dataloader\.py\(\d+\): __next__|"
    r"(?:data_iterator|next_batch|get_batch)\b"
)

_FRAMEWORK: tuple[tuple[Framework, re.Pattern[str]], ...] = (
    (
        "vllm",
        re.compile(r"(?:^|/)vllm/|^vllm::|^execute_(?:\d+_)?context_\d+\(|^gpu_model_runner: "),
    ),
    ("sglang", re.compile(r"(?:^|/)sglang/|^sglang::|^sgl_kernel::|^step\[[A-Z_]+ bs=\d")),
    ("tensorrt_llm", re.compile(r"(?:^|/)tensorrt_llm/|^trtllm::|^\[Executor\] _forward_step")),
    # In Nsight Systems Megatron's functions have dots (nvtx_range_push, nvtx_decorator), and those
    # of DeepSpeed their qualified names (instrument_w_nvtx).
    (
        "megatron",
        re.compile(r"(?:^|/)megatron/(?:core|training|bridge|legacy)/|^megatron\.core\."),
    ),
    (
        "deepspeed",
        re.compile(
            r"(?:^|/)deepspeed/|"
            r"^(?:DeepSpeed(?:Engine|Zero|ZeRo)\w*|PartitionedParameterCoordinator)\."
        ),
    ),
    ("torchtitan", re.compile(r"(?:^|/)torchtitan/")),
    ("fsdp2", re.compile(r"^FSDP::|_composable/fsdp/|fsdp/_fully_shard/")),
    ("fsdp1", re.compile(r"^FullyShardedDataParallel\.|fsdp/fully_sharded_data_parallel\.py")),
    ("data-parallel", re.compile(r"^DataParallel\.|torch/nn/parallel/data_parallel\.py")),
    ("ddp", re.compile(r"^DistributedDataParallel\.|^c10d::reducer|torch/nn/parallel/distributed")),
)


TRAINING = "training"
"""What is counted beside the frameworks: names of backward passes and optimizers."""

_TRAINS = re.compile(
    r"^autograd::engine::evaluate_function|^Optimizer\.step#|^FSDP::post_backward|"
    r"^FullyShardedDataParallel\._post_backward"
)


def is_waiting_for_data(name: str) -> bool:
    """Whether a range on the host waits for the next batch."""
    return _WAITING.search(name) is not None


class Names(dict[str | None, bool]):
    """Whether to keep ranges of a name; and the frameworks that the names speak of.

    Attributes:
        frameworks: how many different names speak of each, and of `TRAINING`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frameworks: Counter[str] = Counter()

    def __missing__(self, name: str | None) -> bool:
        text = name or ""
        for framework, pattern in _FRAMEWORK:
            if pattern.search(text):
                self.frameworks[framework] += 1
                break
        if _TRAINS.match(text):
            self.frameworks[TRAINING] += 1
        kept = _OPERATORS.match(text) is not None or (
            _FRAMES.search(text) is not None and _IDLE_FRAMES.search(text) is None
        )
        kept = kept or is_waiting_for_data(text)
        self[name] = kept
        return kept
