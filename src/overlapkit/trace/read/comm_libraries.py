"""Which library a kernel that communicates belongs to, by the names that profilers print.

The names are those of the kernels in the public sources of each library. They are looked for in the
name of the function with its namespaces, without template arguments and parameters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Library:
    """A library whose kernels communicate.

    Attributes:
        name: what it is called in `EventClass`.
        kernels: what their names contain.
        operation: what they do where their names do not say; "other" where they do several things.
        dimension: the parallel dimension that the library serves; None where it serves several.
        likely: the one that it serves in most programs.
    """

    name: str
    kernels: re.Pattern[str]
    operation: str = "other"
    dimension: str | None = None
    likely: str | None = None


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


LIBRARIES: tuple[Library, ...] = (
    # Transformer Engine, transformer_engine/common/comm_gemm_overlap/userbuffers.
    Library("userbuffers", _any(r"userbuffers"), dimension="TP"),
    # DeepEP (csrc/kernels) and libraries with its interface: UCCL-EP, NIXL-EP, other forks.
    # Its layout kernels only count tokens. HybridEP is its branch for large NVLink domains.
    Library(
        "deep_ep",
        _any(
            r"(?:^|::)(?:intranode|internode(?:_ll)?|(?:intra|inter)_?node_?ll)::"
            r"(?!get_dispatch_layout|layout)",
            r"(?:deep_ep|uccl(?:_ep)?|nixl_ep|mooncake|\bep)::(?:\w+::)*(?!layout|get_dispatch_layout)"
            r"\w*(?:dispatch|combine|notify|barrier|low_latency|engram|pp_send|pp_recv)",
            r"hybrid_?ep\w*(?:::\w+)*(?:::|_)(?:dispatch|combine|device_sync|update_expected|all)",
        ),
        dimension="EP",
    ),
    # NCCL EP (NVIDIA/nccl, contrib/nccl_ep); its other kernels scan, permute and convert in place.
    Library(
        "nccl_ep",
        re.compile(
            r"nccl_?ep\w*?(?:::\w+)*?(?:::|_)?(?:dispatch|combine|device_sync|barrier)", re.I
        ),
        dimension="EP",
    ),
    # MORI-EP (ROCm/mori, src/ops/dispatch_combine).
    Library("mori", _any(r"\bEp(?:Dispatch|Combine)\w*", r"mori::moe::"), dimension="EP"),
    # TensorRT-LLM and FlashInfer, communicationKernels/moeAlltoAllKernels, fusedMoeCommKernels.
    Library(
        "moe all-to-all",
        _any(
            r"moeA2A(?!Sanitize)\w*(?:Dispatch|Combine)\w*",
            r"moe_?[aA]ll_?[tT]o_?[aA]ll(?!\w*[pP]repare)\w*",
            r"moe_comm::(?:\w+::)*\w*(?:dispatch|combine|[aA]ll_?[tT]o_?[aA]ll)",
        ),
        "all_to_all",
        dimension="EP",
    ),
    # perplexityai/pplx-kernels and pplx-garden.
    Library(
        "pplx",
        _any(
            r"pplx(?:_kernels)?::(?:\w+::)*\w*(?:[dD]ispatch|[cC]ombine)",
            r"\ba2a_(?:dispatch|combine)_(?:send|recv)",
        ),
        dimension="EP",
    ),
    # TensorRT-LLM's and FlashInfer's all-reduce, alone and fused with a norm: customAllReduce.cu,
    # trtllm_allreduce_fusion.cuh, trtllm_mnnvl_allreduce.cuh, moeAllReduceFusionKernels.cu.
    Library(
        "fused all-reduce",
        _any(
            r"all_?reduce_fusion\w*",
            r"(?:one|two)[sS]hot_?[aA]ll_?[rR]educe\w*",
            r"(?:trtllm|mnnvl)\w*all_?reduce",
            r"[lL]amport",
            r"(?:one|two)_shot_all_reduce_norm",
        ),
        "all_reduce",
        likely="TP",
    ),
    # vLLM's, SGLang's and AITER's custom_all_reduce.cuh; quickreduce (csrc/quickreduce).
    Library(
        "custom all-reduce",
        _any(
            r"cross_device_reduce",
            r"cross_device_(?:store|load)",
            r"quickreduce::",
            r"allreduce_prototype_(?:one|two)shot",
            r"(?:vllm|sglang|sgl_kernel|aiter)::(?:\w+::)*\w*(?:all_?reduce|all_?gather_(?:vec|last)"
            r"|reduce_?scatter)",
        ),
        "all_reduce",
        likely="TP",
    ),
    # All-to-alls of torch.distributed._symmetric_memory over NVSHMEM (nvshmem_extension.cu).
    Library(
        "symmetric memory",
        _any(r"(?:^|::)(?:exchangeSplitAndOffset|allToAllV)(?:Kernel)?(?:_\w+)?$"),
        "all_to_all",
    ),
    # NVSHMEM's own kernels, and those of programs that call it (cuDecomp's all-to-all).
    Library("nvshmem", _any(r"nvshmem")),
    # NCCL and RCCL of all generations (ncclKernel_, ncclDevKernel_, ncclSymkDevKernel_), MSCCL,
    # MSCCL++, Meta's ctran, and vendors' libraries with NCCL's interface.
    Library(
        "nccl",
        re.compile(
            r"nccl(?!_?ep)|rccl|msccl(?:kernel|pp|::)|\bctran|[a-z]ccl(?:Dev)?Kernel|"
            # RCCL 2.30 and ctran over direct access to peers (src/include/algorithms).
            r"(?:^|::)dda(?:All(?:Reduce|Gather|ToAll)|ReduceScatter)",
            re.IGNORECASE,
        ),
    ),
    Library("hccl", _any(r"^hcom_", r"\bhccl", r"Hccl")),
    Library("oneccl", _any(r"\boneccl", r"oneapi::ccl::", r"\bxccl", r"(?:^|::)ccl::")),
    # torch.distributed._symmetric_memory (CUDASymmetricMemoryOps.cu), and kernels in Triton over
    # symmetric memory.
    Library(
        "symmetric memory",
        _any(
            r"multimem_\w*(?:reduce|gather|scatter|broadcast|all_?to_?all|one_shot|two_shot)",
            r"(?:one|two)_shot_(?:\w+_)?(?:all_(?:reduce|gather|to_all)|reduce_scatter)",
            r"all_?(?:reduce|gather|to_?all)_\w*(?:one|two)_shot",
            r"all_?(?:reduce|gather)\w*_(?:multimem|nvls|(?:intra|inter)_node)",
            r"reduce_?scatter\w*_(?:multimem|nvls|(?:intra|inter)_node)",
            r"symm(?:etric)?_mem\w*(?:all_?reduce|all_?gather|reduce_?scatter|all_?to_?all)",
            r"(?:put|wait)_signal_kernel",
        ),
    ),
)
"""The libraries; the first that matches counts."""

_COMPILED = re.compile(r"^triton_\w+_fused_")
"""Kernels of TorchInductor have the names of operators around them, also of collectives."""

_FUSED = re.compile(
    r"flux::|(?:^|[:_ ])(?:ag_(?:\w+_)?gemm|gemm_(?:rs|ar)(?![a-z]))|"
    r"all_?gather_(?:group(?:ed)?_)?(?:gemm|matmul)|"
    r"(?:gemm|matmul)_?(?:all_?reduce|reduce_?scatter|all_?to_?all)|mega_?moe|"
    r"consumer_\w*gemm|gemm\w*_(?:all_?reduce|reduce_?scatter)",
    re.IGNORECASE,
)

_SUSPICIOUS = re.compile(
    r"dispatch|combine|all_?reduce|all_?gather|reduce_?scatter|all_?(?:2|to)_?all|a2a|"
    r"send_?recv|isend|irecv|multimem|(?:one|two)_?shot|cross_device|peer_?(?:push|pull|copy)|"
    r"(?:intra|inter)_?node|symm_?mem",
    re.IGNORECASE,
)
# Kernels of attention and routing combine and dispatch within a device, and so do reductions.
_LOCAL = re.compile(
    r"at(?:tn|ten)|flash|fmha|\bmla|split_?k|softmax|lse|scan|gating|top_?k|rout|sort|align|"
    r"permut|token_count|layout|norm|quant|rope|gemm|matmul|memcpy|memset|expert_?(?:map|count)|"
    r"elementwise|embedding|grad|sampl|mamba|ssd|ssm|logits|\bcub::|thrust|reduce_kernel|"
    r"segmented|(?:moe|expert|top)\w*(?:sum|reduc)|sum_?reduce|histogram|finalize|prepare|sanitize|"
    r"copy_?(?:in|out)",
    re.IGNORECASE,
)


@cache
def library_of(function: str) -> Library | None:
    """The library of a kernel that communicates; None for other kernels.

    Args:
        function: the name of the kernel with its namespaces, without arguments.
    """
    if _COMPILED.match(function):
        return None
    for library in LIBRARIES:
        if library.kernels.search(function):
            return library
    return None


def is_fused(name: str) -> bool:
    """Whether a kernel computes and communicates at once; it counts as compute."""
    return _FUSED.search(name) is not None and _COMPILED.match(name) is None


def is_suspicious(function: str) -> bool:
    """Whether the name of a kernel of no known library speaks of communication.

    Args:
        function: as in `library_of`.
    """
    if _COMPILED.match(function) or _LOCAL.search(function):
        return False
    return _SUSPICIOUS.search(function) is not None
