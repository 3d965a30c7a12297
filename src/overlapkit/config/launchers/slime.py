"""slime: reinforcement learning that passes its flags on to Megatron-LM, started by ray.

Facts of slime's slime/utils/arguments.py (002fa9d6ba) and
slime/backends/megatron_utils/arguments.py (1cddc5d32e): Megatron-LM's own parser reads the flags,
slime's are added to it, and a few of Megatron-LM's are set afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from overlapkit.config.launchers.origin import Origin
from overlapkit.config.megatron_lm.arguments import Arguments
from overlapkit.config.megatron_lm.dialect import Dialect
from overlapkit.config.shell.slurm import number_of
from overlapkit.config.shell.values import Field

TRAIN_VARIABLES = "--train-env-vars"
"""The flag with the training processes' own variables, as JSON."""

_MARKS = frozenset({"--actor-num-nodes", "--actor-num-gpus-per-node", "--rollout-num-gpus"})
_OWN = re.compile(
    r"--(actor|critic|ref|rollout|sglang|router|eval|reward|custom|advantage|opsm|tis|icepop|"
    r"update-weight|num-gpus-per-node|num-critic|n-samples|hf-checkpoint|model-name|colocate|"
    r"offload|train-|prompt-data|input-key|label-key|metadata-key|tool-key|apply-chat|rm-|"
    r"num-rollout|num-epoch|num-steps-per|over-sampling|dynamic-sampling|buffer|partial-rollout|"
    r"use-(kl|tis|opsm|routing|rollout|slime|dynamic|fault|critic|wandb)|kl-|entropy-|eps-|gamma|"
    r"lambd|balance-data|max-tokens-per-gpu|log-|dump-|load-debug|save-debug|debug-|wandb|"
    r"megatron-to-hf|only-train|freeze-params|recompute-loss|allgather-cp|group-rm|multimodal|"
    r"loss-mask|value-clip|normalize-adv|disable-(compute|rewards|grpo)|qkv-format|release-train)"
)
"""slime's own flags, by the start of their names."""


def is_slime(arguments: Sequence[Field]) -> bool:
    """Whether a job's arguments are slime's."""
    return any(word.text.partition("=")[0] in _MARKS for word in arguments)


def _settled(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What slime sets after the flags are parsed, whatever they say."""
    fp16 = "--fp16" in flags
    dtype = "torch.float16" if fp16 else "torch.bfloat16"
    settled: dict[str, Any] = {
        "ddp.use_distributed_optimizer": True,
        "optimizer.use_distributed_optimizer": True,
        "model.variable_seq_lengths": True,
        "model.bf16": not fp16,
        "optimizer.bf16": not fp16,
        "model.params_dtype": dtype,
        "model.pipeline_dtype": dtype,
        "optimizer.params_dtype": dtype,
    }
    if flags.get("--moe-token-dispatcher-type", "allgather") == "allgather":
        settled["model.moe_token_dispatcher_type"] = "alltoall"
    return settled


def _defaults(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {} if "--seq-length" in flags else {"model.seq_length": 4096}


DIALECT = Dialect(
    "slime", own=lambda name: _OWN.match(name) is not None, defaults=_defaults, settled=_settled
)


def world_size_of(arguments: Sequence[Field]) -> tuple[int | None, int | None]:
    """GPUs of the training job, and of each of its nodes; None where they are not known.

    slime's defaults are one node with eight GPUs.
    """
    nodes = _number(arguments, "--actor-num-nodes", 1)
    each = _number(arguments, "--actor-num-gpus-per-node", 8)
    return (None if nodes is None or each is None else nodes * each), each


def _number(arguments: Sequence[Field], flag: str, default: int) -> int | None:
    found: int | None = default
    for n, word in enumerate(arguments):
        name, is_set, text = word.text.partition("=")
        if name != flag:
            continue
        value = word if is_set or n + 1 >= len(arguments) else arguments[n + 1]
        found = None if value.unknown is not None else number_of(text if is_set else value.text)
    return found


def origin(arguments: Arguments) -> Origin:
    """Whose launch it is, with what slime sets by itself."""
    shown = ", ".join(dict.fromkeys(arguments.own[:4]))
    more = len(set(arguments.own)) - 4
    own = f"; its own flags ({shown}{f' and {more} more' if more > 0 else ''}) are passed over"
    return Origin(
        "slime",
        (
            "this is slime's launch: Megatron-LM reads its flags, so Megatron-LM's rules are "
            f"applied to the training of the actor{own if arguments.own else ''}",
            "slime sets the distributed optimizer, bf16 unless --fp16 is given, variable sequence "
            "lengths, and alltoall instead of allgather by itself "
            "(slime/backends/megatron_utils/arguments.py, 1cddc5d32e)",
        ),
        unread=False,
        takes_flags=True,
    )
