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
    "tp.userbuffers-fixed-length": "omit --variable-seq-lengths and pad every batch to "
    "--seq-length, or omit --tp-comm-overlap",
    "core.sent-then-freed": "use megatron-core 0.18.0 or newer",
    "core.stages-divide-layers": "pass a --pipeline-model-parallel-size that divides the "
    "layers, or both --decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers",
    "core.chunks-divide-layers": "pass a --num-virtual-stages-per-pipeline-rank that divides the "
    "layers of a stage",
    "core.sequence-divides-cp": "pass a --seq-length that is a multiple of 2 x CP",
    "core.sequence-divides-tp": "pass a --seq-length that is a multiple of CP x TP, or omit "
    "--sequence-parallel",
    "core.cp-a2a-divides-heads": "omit --cp-comm-type",
    "core.batch-divides": "pass a --global-batch-size that is a multiple of micro-batch x "
    "data-parallel size",
    "core.checkpoint-shard-of-padding": "pass --dist-ckpt-optim-fully-reshardable",
    "core.microbatches-fill-pipeline": "pass a --global-batch-size with a multiple of as many "
    "microbatches as there are stages",
}
"""By the id of a rule whose decisions may have no changes of settings."""

_OTHERWISE = {
    "wrong.optimizer-instances": "omit --overlap-grad-reduce and --overlap-param-gather",
    "wrong.fp8-forced-gather": "pass --eval-iters 0 and save only after the last step",
    "core.nccl-ub-expandable": "omit --use-nccl-ub",
    "core.nccl-ub-expandable-torch": "omit --use-nccl-ub, or use torch 2.11 or newer",
    "core.stages-divide-layers": "pass another --pipeline-model-parallel-size",
    "core.batch-divides": "pass another --micro-batch-size",
    "core.expert-parallel-needs-experts": "pass --num-experts",
    "core.ep-overlap-mtp-needs-pipeline": "pass --pipeline-model-parallel-size above 1",
    "core.checkpoint-shard-of-padding": "pass --dist-ckpt-optim-fully-reshardable",
    "core.recompute-mlp-bias": "pass --disable-bias-linear",
    "core.shared-expert-overlap-needs": "pass --moe-token-dispatcher-type alltoall",
    "ep.needs-expert-parallel": "pass --expert-model-parallel-size above 1",
    "ep.needs-experts": "pass --num-experts above 1",
    "ep.one-mtp-layer": "omit --mtp-num-layers, or make it 1 with PP > 1",
    "tp.one-nvlink-domain": "omit --tp-comm-overlap",
}
"""By the id of a rule whose decisions have their changes of settings: what else is a remedy."""


_KEY = re.compile(r"(?<!--mpi)=|\b(model|ddp|optimizer|comm_overlap|mixed_precision|dataset)\.")


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
