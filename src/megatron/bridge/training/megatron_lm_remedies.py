"""The remedies of shared rules, as flags of Megatron-LM's command line."""

from __future__ import annotations

import re

from megatron.bridge.training.decisions import RULES

_PASS_PRESET = "pass --tp-comm-overlap-cfg with a YAML file of the settings of "


_REMEDIES = {
    "tp.userbuffers-default": "pass --tp-comm-overlap-cfg with a YAML file for your GPU, sizes "
    "and precision",
    "tp.preset-fit": "pass --tp-comm-overlap-cfg with a file for these sizes, or compare profiles "
    "with and without this one",
    "ub.split-dgrad-switch": "pass --tp-comm-overlap-rs-dgrad",
    "ep.off-unless-asked": "pass --overlap-moe-expert-parallel-comm",
    "ep.needs-expert-parallel": "pass --expert-model-parallel-size above 1",
    "ep.needs-experts": "pass --num-experts above 1",
    "ep.needs-dispatcher": "pass --moe-token-dispatcher-type alltoall",
    "ep.needs-half-precision": "pass --bf16",
    "ep.needs-virtual-pipeline": "pass --num-virtual-stages-per-pipeline-rank",
    "ep.no-full-recompute": "omit --recompute-granularity full, or make it selective",
    "ep.no-recompute-method": "omit --recompute-method",
    "ep.no-recompute-layers": "omit --recompute-num-layers",
    "ep.no-moe-recompute": "remove moe from --recompute-modules",
    "ep.no-shared-expert-overlap": "omit --moe-shared-expert-overlap",
    "ep.one-mtp-layer": "omit --mtp-num-layers, or make it 1 with PP > 1",
    "ep.delay-needs-ep-overlap": "pass --overlap-moe-expert-parallel-comm as well",
    "ep.delay-graph-needs-fusion": "omit --no-gradient-accumulation-fusion",
    "ep.delay-graph-no-attention-bias": "pass --disable-bias-linear and omit --add-qkv-bias",
    "tp.one-nvlink-domain": "pass a --tensor-model-parallel-size that one NVLink domain "
    "has, or omit --tp-comm-overlap",
    "tp.bootstrap-needs-mpi": "pass --tp-comm-bootstrap-backend nccl, or start the job with srun "
    "--mpi=pmix",
    "tp.userbuffers-fixed-length": "omit --variable-seq-lengths and pad every batch to "
    "--seq-length, or omit --tp-comm-overlap",
    "core.bucket-ignored": "pass --overlap-grad-reduce",
    "core.single-bucket": "pass a --ddp-bucket-size well below the parameters per rank",
    "core.layout-sets-vpp": "",
    "core.p2p-warmup-flush": "omit --overlap-p2p-communication-warmup-flush, or interleave "
    "the schedule",
    "core.defer-embedding-wgrad": "use pipeline parallelism, a --wgrad-deferral-limit that is not "
    "negative, and no --no-gradient-accumulation-fusion",
    "core.reuse-grad-buf-needs": "pass --fp8-param-gather, or omit "
    "--reuse-grad-buf-for-mxfp8-param-ag",
    "core.fp8-param-needs": "pass --fp8-format, or omit --fp8-param-gather",
    "core.expert-parallel-needs-experts": "pass --num-experts, and an "
    "--expert-model-parallel-size that divides the ranks",
    "core.ep-overlap-mtp-zero": "omit --mtp-num-layers",
    "core.ep-overlap-mtp-needs-pipeline": "pass --pipeline-model-parallel-size above 1, or omit "
    "--mtp-num-layers",
    "core.ep-overlap-graph-kind": "omit --cuda-graph-impl, or make it transformer_engine",
    "core.ep-overlap-needs": "remove moe and mlp from the CUDA-graph scopes, or omit "
    "--cuda-graph-impl",
    "core.early-release-needs-ep-overlap": "omit --ep-overlap-early-attn-memory-release",
    "core.dispatch-wgrad-excludes": "omit --overlap-dispatch-backward-with-experts-wgrad",
    "core.dispatch-wgrad-needs-te": "omit --overlap-dispatch-backward-with-experts-wgrad, or use "
    "Transformer Engine 2.3.0 or newer",
    "core.delay-wgrad-needs": "pass --overlap-moe-expert-parallel-comm",
    "core.delay-wgrad-legacy-gemm": "omit --moe-use-legacy-grouped-gemm",
    "core.delay-wgrad-graph-needs-te": "use Transformer Engine 2.10.0 or newer, or omit "
    "--cuda-graph-impl",
    "core.num-buckets-excludes": "omit --ddp-num-buckets or --ddp-bucket-size",
    "core.mxfp8-gather-needs-reuse": "pass --reuse-grad-buf-for-mxfp8-param-ag",
    "core.mxfp8-reuse-excludes-step": "omit --overlap-param-gather-with-optimizer-step",
    "core.optimizer-instances-need": "pass --use-distributed-optimizer",
    "core.optimizer-instances-exclude": "omit --ddp-reduce-scatter-with-fp32-accumulation",
    "core.layer-wise-excludes-step": "omit --overlap-param-gather-with-optimizer-step",
    "core.layer-wise-one-instance": "omit --num-distributed-optimizer-instances",
    "core.fp32-local-accumulation": "omit --accumulate-allreduce-grads-in-fp32",
    "core.weight-shards-average": "omit --ddp-average-in-collective",
    "core.graph-scope-twice": "omit --cuda-graph-scope",
    "core.graph-full-iteration": "pass --cuda-graph-impl full_iteration",
    "core.flex-sm-counts": "pass --moe-flex-dispatcher-num-sms alone",
    "core.ncclep-needs-flex": "pass --moe-token-dispatcher-type flex",
    "core.ncclep-serialised": "pass --moe-ncclep-static-shape",
    "core.ep-overlap-ncclep-offload": "remove expert_fc1 from --offload-modules",
    "core.fp4-param-needs": "pass --fp4-format, or omit --fp4-param-gather",
    "core.layout-vpp-differs": "omit --num-virtual-stages-per-pipeline-rank",
    "core.stages-divide-layers": "pass a --pipeline-model-parallel-size that divides the "
    "layers, or both --decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers",
    "core.chunks-divide-layers": "pass a --num-virtual-stages-per-pipeline-rank that divides the "
    "layers of a stage",
    "core.batch-divides": "pass a --global-batch-size that is a multiple of micro-batch x "
    "data-parallel size",
    "core.microbatches-fill-pipeline": "pass a --global-batch-size with a multiple of as many "
    "microbatches as there are stages",
    "core.param-gather-needs-optimizer": "pass --use-distributed-optimizer",
    "core.param-gather-layer-wise": "pass --use-distributed-optimizer",
    "core.nccl-ub-expandable": "omit --use-nccl-ub, or expandable_segments from "
    "PYTORCH_CUDA_ALLOC_CONF",
    "core.nccl-ub-expandable-torch": "use torch 2.11 or newer, or omit --use-nccl-ub",
    "core.shared-expert-overlap-needs": "pass --moe-token-dispatcher-type alltoall, or omit "
    "--moe-shared-expert-overlap",
}
"""By the id of the rule; empty where a command line has nothing to fix."""

_OTHERWISE = {
    "core.stages-divide-layers": "pass another --pipeline-model-parallel-size",
    "core.chunks-divide-layers": "use no virtual pipeline",
    "core.microbatches-fill-pipeline": "use no virtual pipeline",
    "wrong.optimizer-instances": "omit --overlap-grad-reduce and --overlap-param-gather",
    "wrong.fp8-forced-gather": "pass --eval-iters 0 and save only after the last step",
}
"""By the id of a rule whose decisions have their changes of settings: what else is a remedy."""


_KEY = re.compile(r"=|\b(model|ddp|optimizer|comm_overlap|mixed_precision|dataset)\.")


def otherwise_in_flags(rule_id: str, rest: str) -> str:
    """The alternatives to the changes of settings of a shared rule, on a command line.

    Args:
        rule_id: the rule that decided.
        rest: its remedy after the changes, which is kept where it names no setting.
    """
    if not _KEY.search(rest):
        return rest
    fix = RULES[rule_id].fix
    newer = f"use {fix} or newer" if fix is not None else ""
    return ", or ".join(filter(None, (_OTHERWISE.get(rule_id, ""), newer)))


def remedy_in_flags(rule_id: str, remedy: str) -> str | None:
    """How to get another outcome of a shared rule on Megatron-LM's command line.

    Args:
        rule_id: the rule that decided.
        remedy: its remedy for a configuration with keys.
    """
    named = remedy.partition("set comm_overlap.tp_comm_overlap_cfg to ")[2]
    if named:
        return _PASS_PRESET + named
    return _REMEDIES.get(rule_id, remedy) or None
