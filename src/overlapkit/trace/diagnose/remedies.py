"""What to try for a problem, in the settings of the software that ran.

Sources:

- DDP: docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html.
- DataParallel: docs.pytorch.org/docs/stable/generated/torch.nn.DataParallel.html.
- FSDP1: docs.pytorch.org/docs/stable/fsdp.html for the defaults, and notes/fsdp.html: gathers run
  ahead by themselves from a stream of their own, and forward_prefetch only saves the time in which
  the CPU issues a layer.
- FSDP2: docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html, and commit f2805a0408 of
  pytorch: one gather ahead in forward, and one in backward, unless modules are named.
- DeepSpeed: deepspeed/runtime/zero/config.py: overlap_comm is about gradients alone.
- Asynchronous tensor parallelism: torch/_inductor/config.py (_micro_pipeline_tp) and
  fx_passes/micro_pipeline_tp.py, which looks for all-gathers and reduce-scatters beside products.
- torchtitan: torchtitan/config/job_config.py, and torchtitan/distributed/tensor_parallel.py for
  what asynchronous tensor parallelism needs.
- Megatron's settings are those of `explain`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from overlapkit.trace.diagnose.framework import ENGINES
from overlapkit.trace.read.host.marks import Framework

Problem = Literal[
    "one reduction",
    "late reductions",
    "parameter gather",
    "tensor parallel",
    "tensor parallel without sequence parallel",
    "pipeline",
    "interleaved pipeline",
    "pipeline bubble",
    "experts",
    "bandwidth",
    "exposed",
    "exposed elsewhere",
    "exposed between replicas",
    "exposed buffers",
    "exposed context exchange",
]
"""What a diagnosis is about, as far as the remedy depends on the software."""


class Remedy(NamedTuple):
    """What to try.

    Attributes:
        text: in the software's own settings; of Megatron, in keys of Megatron-Bridge.
        rule: the rule of `explain` that applies; None for software without rules.
        flags: the same in flags of Megatron-LM; empty where the text names no setting.
    """

    text: str
    rule: str | None = None
    flags: str = ""


_ELSE: dict[Problem, Problem] = {
    "exposed between replicas": "exposed",
    "exposed buffers": "exposed",
    "exposed context exchange": "exposed elsewhere",
}
"""Special cases of problems, for software that has no setting for them alone."""

_SEE = Remedy("overlapkit explain CONFIG shows what is in effect, and why not")

_MEGATRON: dict[Problem, Remedy] = {
    "one reduction": Remedy(
        'set comm_overlap.bucket_size="auto" (or to much less than the number of parameters per '
        "rank), with overlap_grad_reduce on",
        "core.single-bucket",
        "pass --ddp-bucket-size with much less than the number of parameters per rank, with "
        "--overlap-grad-reduce",
    ),
    "late reductions": Remedy(
        "set ddp.overlap_grad_reduce=true with the distributed optimizer; overlapkit explain "
        "shows why it is off",
        "dp.defaults",
        "pass --overlap-grad-reduce",
    ),
    "parameter gather": Remedy(
        "set ddp.overlap_param_gather=true (it needs the distributed optimizer and "
        "overlap_grad_reduce), with several buckets",
        "core.param-gather-needs",
        "pass --overlap-param-gather, --overlap-grad-reduce and --use-distributed-optimizer",
    ),
    "tensor parallel": Remedy(
        "set comm_overlap.tp_comm_overlap=true (it needs Transformer Engine)",
        "tp.off-unless-asked",
        "pass --tp-comm-overlap",
    ),
    "tensor parallel without sequence parallel": Remedy(
        "set model.sequence_parallel=true and comm_overlap.tp_comm_overlap=true (it needs "
        "Transformer Engine)",
        "tp.needs-sequence-parallel",
        "pass --sequence-parallel and --tp-comm-overlap",
    ),
    "pipeline": Remedy(
        "set model.virtual_pipeline_model_parallel_size above 1, which also turns "
        "overlap_p2p_comm on",
        "pp.not-interleaved",
        "pass --num-virtual-stages-per-pipeline-rank, or --num-layers-per-virtual-pipeline-stage",
    ),
    "interleaved pipeline": Remedy(
        "set overlap_p2p_comm=true and batch_p2p_comm=false",
        "pp.interleaved",
        "omit --no-overlap-p2p-communication",
    ),
    # The bubble is (stages - 1) / (microbatches x chunks per stage) of the ideal time: Narayanan et
    # al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM" (2021).
    "pipeline bubble": Remedy(
        "run more microbatches in a step (a larger global_batch_size or a smaller "
        "micro_batch_size), or more chunks per stage (virtual_pipeline_model_parallel_size)",
        "pp.not-interleaved",
        "--global-batch-size, --micro-batch-size and --num-virtual-stages-per-pipeline-rank",
    ),
    "experts": Remedy(
        "set comm_overlap.overlap_moe_expert_parallel_comm=true (overlapkit explain shows what "
        "it needs)",
        "ep.off-unless-asked",
        "pass --overlap-moe-expert-parallel-comm",
    ),
    "bandwidth": Remedy(
        "communicate less often or less: more microbatches per step, fewer data-parallel ranks "
        "for more model parallelism, gradients reduced in BF16; and check with NCCL_DEBUG=INFO "
        "that NCCL uses the fast network"
    ),
    "exposed": _SEE,
    "exposed elsewhere": _SEE,
    "exposed context exchange": Remedy(
        "set model.cp_comm_type=p2p, whose ring runs beside attention; attention waits for every "
        "other exchange",
        "core.cp-exchange-exposed",
        "pass --cp-comm-type p2p",
    ),
}

_DDP: dict[Problem, Remedy] = {
    "one reduction": Remedy(
        "set bucket_cap_mb of DistributedDataParallel to a fraction of the gradients' size (25 is "
        "its default), so that the first buckets are reduced during the backward pass"
    ),
    "late reductions": Remedy(
        "check what delays the buckets: bucket_cap_mb, find_unused_parameters=True, no_sync() "
        "around the backward pass, or a graph that torch.compile does not split at buckets"
    ),
    "bandwidth": Remedy(
        "communicate less: accumulate gradients under no_sync(), or compress them with a "
        "communication hook such as bf16_compress_hook; and check with NCCL_DEBUG=INFO that NCCL "
        "uses the fast network"
    ),
    "exposed buffers": Remedy(
        "the model's buffers are broadcast before each forward pass: set broadcast_buffers=False "
        "of DistributedDataParallel where each replica may keep its own (running statistics of "
        "BatchNorm, for which SyncBatchNorm is another way)"
    ),
    "exposed": Remedy(
        "try another bucket_cap_mb, gradient_as_bucket_view=True and static_graph=True of "
        "DistributedDataParallel"
    ),
}

_ONE_PROCESS = Remedy(
    "use DistributedDataParallel with one process per GPU: DataParallel copies the model to every "
    "GPU in each step, and adds the gradients up on one GPU after the backward pass"
)

_DATA_PARALLEL: dict[Problem, Remedy] = dict.fromkeys(("bandwidth", "exposed"), _ONE_PROCESS)

_FSDP_BANDWIDTH = (
    "communicate less: shard within a node and replicate across nodes, keep parameters gathered "
    "between forward and backward, or gather and reduce in lower precision; and check with "
    "NCCL_DEBUG=INFO that NCCL uses the fast network"
)

_ASYNC_TP = Remedy(
    "compile the model with asynchronous tensor parallelism (torch._inductor.config."
    "_micro_pipeline_tp, with symmetric memory enabled for the group); it needs sequence "
    "parallelism, that is all-gathers and reduce-scatters instead of all-reduces"
)

_FSDP2: dict[Problem, Remedy] = {
    "tensor parallel": _ASYNC_TP,
    "tensor parallel without sequence parallel": _ASYNC_TP,
    "parameter gather": Remedy(
        "gather earlier: set_modules_to_forward_prefetch and set_modules_to_backward_prefetch with "
        "two or more modules; fully_shard each layer and not only the root; "
        "reshard_after_forward=False saves the backward gathers where memory allows"
    ),
    "late reductions": Remedy(
        "apply fully_shard to each layer, so that gradients are reduced during the backward pass, "
        "and check set_requires_gradient_sync"
    ),
    "one reduction": Remedy(
        "apply fully_shard to each layer and not only to the root module: each call makes a group "
        "of parameters that is gathered and reduced on its own"
    ),
    "exposed between replicas": Remedy(
        "replicas of the sharded model all-reduce their gradients: shard over more ranks of the "
        "mesh, or reduce once for several microbatches (set_requires_all_reduce, "
        "set_is_last_backward)"
    ),
    "bandwidth": Remedy(
        f"{_FSDP_BANDWIDTH} (a 2-D mesh, reshard_after_forward, MixedPrecisionPolicy)"
    ),
    "exposed": Remedy(
        "see prefetching (set_modules_to_forward_prefetch, set_modules_to_backward_prefetch), "
        "reshard_after_forward, and which modules fully_shard is applied to"
    ),
}

_FSDP1: dict[Problem, Remedy] = {
    "parameter gather": Remedy(
        "wrap each layer with auto_wrap_policy, and keep backward_prefetch at BACKWARD_PRE (the "
        "default); where the CPU launches late, set forward_prefetch=True (for layers that run in "
        "the same order each time); limit_all_gathers=False lets more gathers run ahead, for "
        "memory"
    ),
    "late reductions": Remedy(
        "wrap each layer with auto_wrap_policy, so that gradients are reduced during the backward "
        "pass"
    ),
    "one reduction": Remedy(
        "wrap each layer with auto_wrap_policy: one wrapped module is one gather and one reduction"
    ),
    "exposed between replicas": Remedy(
        "replicas all-reduce their gradients (HYBRID_SHARD, NO_SHARD): shard over more ranks, or "
        "accumulate gradients under no_sync()"
    ),
    "bandwidth": Remedy(f"{_FSDP_BANDWIDTH} (HYBRID_SHARD, SHARD_GRAD_OP, MixedPrecision)"),
    "exposed": Remedy(
        "see forward_prefetch, backward_prefetch, limit_all_gathers and auto_wrap_policy of "
        "FullyShardedDataParallel"
    ),
}

_DEEPSPEED: dict[Problem, Remedy] = {
    "parameter gather": Remedy(
        "with ZeRO 3, raise zero_optimization.stage3_prefetch_bucket_size, and "
        "stage3_max_live_parameters with it; ZeRO 1 and 2 gather at the end of each step, where "
        "only fewer or cheaper steps help (gradient accumulation)"
    ),
    "late reductions": Remedy(
        "set zero_optimization.overlap_comm=true with contiguous_gradients, and a "
        "reduce_bucket_size well below the number of parameters"
    ),
    "one reduction": Remedy(
        "set zero_optimization.reduce_bucket_size to a fraction of the number of parameters, with "
        "overlap_comm=true"
    ),
    "bandwidth": Remedy(
        "communicate less: more gradient accumulation steps, a lower ZeRO stage where memory "
        "allows, hierarchical partitioning (zero_hpz_partition_size) or quantized communication "
        "(zero_quantized_weights, zero_quantized_gradients); and check with NCCL_DEBUG=INFO that "
        "NCCL uses the fast network"
    ),
    "exposed": Remedy("see overlap_comm and the bucket sizes under zero_optimization"),
}

_TORCHTITAN: dict[Problem, Remedy] = {
    **_FSDP2,
    "parameter gather": Remedy(
        "see parallelism.fsdp_reshard_after_forward (never keeps parameters gathered), and the "
        "prefetching that the model's parallelize function sets up"
    ),
    "tensor parallel": Remedy(
        "set parallelism.enable_async_tensor_parallel, with compile.enable and model in "
        "compile.components"
    ),
    "tensor parallel without sequence parallel": Remedy(
        "set parallelism.enable_async_tensor_parallel, with compile.enable and model in "
        "compile.components; it needs sequence parallelism"
    ),
    "pipeline": Remedy(
        "choose an interleaved schedule (parallelism.pipeline_parallel_schedule, such as "
        "Interleaved1F1B), with more microbatches"
    ),
}

_BESIDE = Remedy("run this communication beside compute that does not need its result")

# An interleaved schedule is known from a configuration alone, and so of Megatron alone.
_GENERAL: dict[Problem, Remedy] = {
    "one reduction": Remedy(
        "divide the gradients into several buckets, and reduce each as soon as it is complete"
    ),
    "late reductions": Remedy("begin each reduction as soon as its gradients are complete"),
    "parameter gather": Remedy(
        "gather the next layers' parameters while the current layer computes"
    ),
    "tensor parallel": Remedy(
        "divide each collective, and run its parts beside the matrix products that they feed"
    ),
    "tensor parallel without sequence parallel": Remedy(
        "divide each collective, and run its parts beside the matrix products that they feed"
    ),
    "pipeline": Remedy("use an interleaved schedule, with more microbatches"),
    "pipeline bubble": Remedy(
        "run more microbatches in a step, or use a schedule with a smaller bubble (interleaved, "
        "zero bubble)"
    ),
    "experts": Remedy("exchange the tokens of one microbatch while another one computes"),
    "bandwidth": Remedy(
        "communicate less often or less, and check with NCCL_DEBUG=INFO that NCCL uses the fast "
        "network"
    ),
    "exposed": _BESIDE,
    "exposed elsewhere": _BESIDE,
}

_ENGINE = Remedy(
    "this is an inference engine, to which settings of training do not apply: see its own "
    "options for tensor and expert parallelism (fused all-reduce, two batches in turn)"
)

_OF: dict[Framework, dict[Problem, Remedy]] = {
    "megatron": _MEGATRON,
    "ddp": _DDP,
    "data-parallel": _DATA_PARALLEL,
    "fsdp2": _FSDP2,
    "fsdp1": _FSDP1,
    "deepspeed": _DEEPSPEED,
    "torchtitan": _TORCHTITAN,
}


def remedy(problem: Problem, framework: Framework | None) -> Remedy:
    """What to try for a problem, in the software's own settings where it has any for it."""
    if framework in ENGINES:
        return _ENGINE
    own = _OF.get(framework, {}) if framework is not None else {}
    if problem not in own:
        problem = _ELSE.get(problem, problem)
    return own.get(problem) or _GENERAL[problem]
