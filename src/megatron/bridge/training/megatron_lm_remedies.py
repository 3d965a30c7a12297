"""Remedies of the rules that Megatron-LM shares, said in its flags."""

from __future__ import annotations

_GIVE_PRESET = "give --tp-comm-overlap-cfg a YAML file with the settings of "

_REMEDIES = {
    "tp.userbuffers-default": "give --tp-comm-overlap-cfg a YAML file for your GPU, sizes and "
    "precision",
    "tp.preset-fit": "give --tp-comm-overlap-cfg a file for these sizes, or compare profiles with "
    "and without this one",
    "ub.split-dgrad-switch": "give --tp-comm-overlap-rs-dgrad",
    "ep.off-unless-asked": "give --overlap-moe-expert-parallel-comm",
    "ep.needs-expert-parallel": "give --expert-model-parallel-size above 1",
    "ep.needs-experts": "give --num-experts above 1",
    "ep.needs-dispatcher": "give --moe-token-dispatcher-type alltoall",
    "ep.needs-half-precision": "give --bf16",
    "ep.needs-virtual-pipeline": "give --num-virtual-stages-per-pipeline-rank",
    "ep.no-full-recompute": "leave --recompute-granularity full out, or make it selective",
    "ep.no-recompute-method": "leave --recompute-method out",
    "ep.no-recompute-layers": "leave --recompute-num-layers out",
    "ep.no-moe-recompute": "take moe out of --recompute-modules",
    "ep.no-shared-expert-overlap": "leave --moe-shared-expert-overlap out",
    "ep.one-mtp-layer": "leave --mtp-num-layers out, or make it 1 with PP > 1",
    "ep.delay-needs-ep-overlap": "give --overlap-moe-expert-parallel-comm as well",
    "ep.delay-graph-needs-fusion": "leave --no-gradient-accumulation-fusion out",
    "ep.delay-graph-no-attention-bias": "give --disable-bias-linear and leave --add-qkv-bias out",
    "core.bucket-ignored": "give --overlap-grad-reduce",
    "core.single-bucket": "give a --ddp-bucket-size well below the parameters per rank",
    "core.layout-sets-vpp": "",
    "core.p2p-warmup-flush": "leave --overlap-p2p-communication-warmup-flush out, or interleave "
    "the schedule",
    "core.defer-embedding-wgrad": "use pipeline parallelism, a --wgrad-deferral-limit that is not "
    "negative, and no --no-gradient-accumulation-fusion",
    "core.reuse-grad-buf-needs": "give --fp8-param-gather, or leave "
    "--reuse-grad-buf-for-mxfp8-param-ag out",
    "core.fp8-param-needs": "give --fp8-format, or leave --fp8-param-gather out",
    "core.expert-parallel-needs-experts": "give --num-experts, and an "
    "--expert-model-parallel-size that divides",
    "core.ep-overlap-needs": "leave --mtp-num-layers and the flags of CUDA graphs out",
    "core.delay-wgrad-needs": "give --overlap-moe-expert-parallel-comm, and no "
    "--moe-use-legacy-grouped-gemm",
    "core.shared-expert-overlap-needs": "give --moe-token-dispatcher-type alltoall, or leave "
    "--moe-shared-expert-overlap out",
}
"""By the id of the rule; empty where a command line has nothing to mend."""


def remedy_in_flags(rule_id: str, remedy: str) -> str | None:
    """How to get another outcome of a shared rule on Megatron-LM's command line.

    Args:
        rule_id: the rule that decided.
        remedy: what it says for a configuration of keys.
    """
    named = remedy.partition("set comm_overlap.tp_comm_overlap_cfg to ")[2]
    if named:
        return _GIVE_PRESET + named
    return _REMEDIES.get(rule_id, remedy) or None
