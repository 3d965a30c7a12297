"""Forks of Megatron-LM, and its versions before Megatron-Core, known by flags that they alone have.

Their own code is not known here. Each flag is a fact of the parser that `Fork.source` names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from overlapkit.config.launchers.origin import Origin

_MOST_NAMED = 4


@dataclass(frozen=True)
class Fork:
    """A program with Megatron-LM's flags and others of its own.

    Attributes:
        name: as its makers write it.
        marks: the names of flags that it alone has, without dashes; a name that ends with - is the
            beginning of several.
        source: where they are, with the commit.
        differs: how it is known to differ in what overlaps, as a sentence; empty where it is not.
        own_data_parallel: whether it certainly reduces gradients in another way than Megatron-Core.
        is_former: whether it is older than Megatron-Core, whose rules then say nothing certain.
    """

    name: str
    marks: frozenset[str]
    source: str
    differs: str = ""
    own_data_parallel: bool = False
    is_former: bool = False

    def has(self, flag: str) -> bool:
        """Whether it alone has a flag, given with its dashes; - and _ are the same."""
        name = flag.removeprefix("--").replace("_", "-")
        begun = any(name.startswith(mark) for mark in self.marks if mark.endswith("-"))
        return begun or name in self.marks


def _marks(names: str) -> frozenset[str]:
    return frozenset(names.split())


FORMER = {
    "--model-parallel-size": "--tensor-model-parallel-size",
    "--batch-size": "--micro-batch-size",
}
"""Flags of Megatron-LM 1 and their present names; from version 2 on Megatron-LM stops at them
(megatron/arguments.py, 00129014dc)."""

FORKS = (
    Fork(
        "MindSpeed (Ascend)",
        _marks(
            "use-ascend-mc2 use-ascend-coc coc-mode coc-parallel-num coc-fused-kernel "
            "moe-alltoall-overlap-comm moe-allgather-overlap-comm moe-permutation-async-comm "
            "moe-fb-overlap schedules-method moe-zero-memory moe-tp-extend-ep use-pipe-experts "
            "pipe-experts-multi-data pipe-experts-multi-stream context-parallel-algo "
            "ulysses-degree-in-cp use-cp-send-recv-overlap use-fused-ring-attention-update "
            "use-fused-rmsnorm use-fused-swiglu use-fused-rotary-pos-emb reuse-fp32-param "
            "use-nanopipe optimize-send-recv-comm optimize-vpp-send-recv-comm "
            "optimize-recomp-communication-level enable-zero3 npu-deterministic swap-attention "
            "recompute-activation-function recompute-in-bubble recompute-in-advance "
            "gemm-gradient-accumulation-fusion use-fusion-attn-v2 optimizer-selection "
            "hccl-slice-size use-multiparameter-pipeline-model-parallel "
            "adaptive-recompute-device-swap automated-pipeline"
        ),
        "mindspeed/arguments.py, 02c49f5de1",
        "it sends between pipeline stages without batch_p2p_comm and interleaves two stages too",
    ),
    Fork(
        "Pai-Megatron-Patch",
        _marks(
            "patch-tokenizer-type max-padding-length n-head-kv shared-moe-ffn-hidden-size "
            "enable-shared-expert moe-expert-parallel-size expert-tensor-parallelism "
            "optimizer-offload-policy optimizer-offload-chunk-size "
            "use-llama2-rotary-position-embeddings use-mistral-rotary-position-embeddings"
        ),
        "megatron_patch/arguments.py, 11cf2493ee",
    ),
    Fork(
        "HYGON's Megatron-LM",
        _marks(
            "use-hip-profiler pipe-sp-splits pipe-sp-strategy recompute-layer-ids "
            "comm-time-log-iter use-ckpt-memory-cache"
        ),
        "dcu_megatron/training/arguments.py, 03d114362a",
        "it delays the gradients of weights beside overlapped gradient reduction in its own way",
    ),
    Fork(
        "FlagScale",
        _marks(
            "enable-hetero hetero-device-types hetero-current-device-type "
            "hetero-pipeline-layer-split hetero-process-meshes hetero-use-cpu-communication "
            "enable-simulator hetero-mode hetero-pipeline-stages"
        ),
        "the parser's group of heterogeneous training",
        "its meshes may divide the GPUs otherwise than the parallel sizes say",
    ),
    Fork(
        "Megatron-Dion",
        _marks("dion- fully-shard-model-parallel-size replicate-model-parallel-size"),
        "the key arguments in krafton-ai/Megatron-Dion's README",
        "its optimizer shards and replicates over groups of its own",
    ),
    Fork(
        "swiss-ai's Megatron-LM",
        _marks("goldfish-loss goldfish-k goldfish-h ademamix-"),
        "the launch scripts of swiss-ai",
    ),
    Fork(
        "Primus (AMD)",
        _marks("use-turbo- turbo- enable-primus-turbo"),
        "Primus' documentation of its turbo settings",
        "its kernels and its dispatch of tokens replace those of Megatron-Core",
    ),
    Fork(
        "Megatron-LLM (EPFL)",
        _marks("use-rms-norm use-post-ln num-attention-heads-kv"),
        "megatron/arguments.py, 01f831365d",
    ),
    Fork(
        "Megatron-LM before Megatron-Core (versions 1 to 3)",
        _marks(
            "DDP-impl contiguous-buffer-in-local-ddp use-contiguous-buffers-in-local-ddp "
            "no-contiguous-buffers-in-local-ddp use-checkpoint-lr-scheduler "
            "checkpoint-granularity checkpoint-method checkpoint-num-layers "
            "activations-checkpoint-method activations-checkpoint-num-layers "
            "distribute-checkpointed-activations model-parallel-size batch-size"
        ),
        "megatron/arguments.py, 00129014dc",
        "its local data parallelism reduces the gradients after the backward pass",
        own_data_parallel=True,
        is_former=True,
    ),
)
"""In the order in which they are looked for."""


def is_of_a_fork(flag: str) -> bool:
    """Whether some fork alone has a flag."""
    return any(fork.has(flag) for fork in FORKS)


def fork_of(flags: Collection[str]) -> tuple[Fork, tuple[str, ...]] | None:
    """The fork that has flags alone which a job is given, and these; None where none has.

    Args:
        flags: of the job, with their dashes.
    """
    for fork in FORKS:
        found = tuple(flag for flag in flags if fork.has(flag))
        if found:
            return fork, found
    return None


def origin(flags: Collection[str]) -> Origin | None:
    """Whose launch it is, by the flags of a job; None where it may be Megatron-LM's own."""
    found = fork_of(flags)
    if found is None:
        return None
    fork, marks = found
    shown = ", ".join(marks[:_MOST_NAMED])
    more = len(marks) - _MOST_NAMED
    remarks = [
        f"this is a launch of {fork.name}, by {shown}{f' and {more} more' if more > 0 else ''} "
        f"({fork.source}): its own code is not known here, so Megatron-LM's rules are applied to "
        "the flags that both have, and whether they hold there is not known"
    ]
    if fork.differs:
        remarks.append(f"{fork.name}: {fork.differs}")
    return Origin(
        fork.name,
        tuple(remarks),
        own_data_parallel=fork.own_data_parallel,
        other_rules=fork.is_former,
        takes_flags=True,
    )
