"""ms-swift: ``megatron sft|pt|rlhf``, a command line over Megatron-LM's arguments.

Facts of ms-swift 3's swift/megatron/argument/megatron_args.py (00840e65ad): names with - or _, a
value after every switch, defaults of its own, and CUDA_DEVICE_MAX_CONNECTIONS=1, which it sets in
every process. It hands the result to Megatron-LM's own parser. Its version 4 builds the
configurations of Megatron-Core without that parser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from megatron.bridge.recipes.launch_queues import CONNECTIONS
from megatron.bridge.training.rules.context import Launcher
from overlapkit.config.launchers.origin import Origin
from overlapkit.config.megatron_lm.arguments import Arguments
from overlapkit.config.megatron_lm.dialect import Dialect
from overlapkit.config.megatron_lm.unknown_flags import misspelt
from overlapkit.config.shell.follow import Started
from overlapkit.config.shell.slurm import number_of
from overlapkit.config.shell.values import Field

COMMANDS = ("sft", "pt", "rlhf", "export")
"""What ``megatron`` can be told to do."""

SET_BY_ITSELF = {CONNECTIONS: "1"}
"""The variables that ms-swift sets in every process, whatever the shell has."""

DEFAULTS: dict[str, Any] = {
    "train.micro_batch_size": 1,
    "train.global_batch_size": 16,
    "model.recompute_granularity": "selective",
    "model.recompute_modules": ["core_attn"],
    "model.expert_tensor_parallel_size": 1,
    "model.moe_token_dispatcher_type": "alltoall",
    "model.moe_grouped_gemm": True,
    "model.normalization": "RMSNorm",
    "model.add_bias_linear": False,
    "model.gated_linear_unit": True,
    "model.position_embedding_type": "rope",
    "ddp.use_distributed_optimizer": True,
    "optimizer.use_distributed_optimizer": True,
}
"""Defaults of ms-swift that are not Megatron-LM's, by dotted key."""


def start_of_arguments(started: Started) -> int | None:
    """Where ms-swift's arguments begin in the words of a program; None for another program."""
    texts = [word.text for word in started.words]
    for n in range(len(texts) - 1):
        if PurePosixPath(texts[n]).name == "megatron" and texts[n + 1] in COMMANDS:
            return n + 2
        if texts[n].endswith("swift/cli/_megatron/main.py") and texts[n + 1] in COMMANDS:
            return n + 2
    return None


def _defaults(flags: Mapping[str, Any]) -> dict[str, Any]:
    dtype = "torch.float16" if "--fp16" in flags else "torch.bfloat16"
    found = {
        **DEFAULTS,
        "model.bf16": "--fp16" not in flags,
        "optimizer.bf16": "--fp16" not in flags,
        "model.params_dtype": dtype,
        "model.pipeline_dtype": dtype,
        "optimizer.params_dtype": dtype,
    }
    experts = flags.get("--expert-model-parallel-size") or 1
    if experts > 1 and "--num-experts" not in flags:
        # The checkpoint has experts, or ranks could not divide them: their number is not known.
        found["model.num_moe_experts"] = experts
    return found


DIALECT = Dialect(
    "ms-swift",
    either_spelling=True,
    own=lambda name: misspelt(name) is None,
    defaults=_defaults,
)


def world_size_of(environment: Mapping[str, Field]) -> tuple[int | None, int | None, str]:
    """GPUs of the job, of each node, and why the first is not known.

    ms-swift starts torchrun with NPROC_PER_NODE and NNODES of its environment where either is set,
    and one process otherwise.
    """
    if "NPROC_PER_NODE" not in environment:
        return None, None, "NPROC_PER_NODE, from which ms-swift takes it, is not set here"
    each = _number(environment, "NPROC_PER_NODE")
    nodes = _number(environment, "NNODES")
    if each is None or nodes is None:
        return None, each, "NPROC_PER_NODE or NNODES has no value that is known"
    return nodes * each, each, ""


def _number(environment: Mapping[str, Field], name: str) -> int | None:
    value = environment.get(name)
    if value is None:
        return 1
    return None if value.unknown is not None else number_of(value.text)


def launcher_of(each: int | None) -> Launcher:
    """How ms-swift starts the job's processes."""
    return Launcher("torchrun", each, has_mpi=False)


def origin(arguments: Arguments, words: Sequence[Field]) -> Origin:
    """Whose launch it is, its defaults, and what is not read."""
    remarks = [
        "this is ms-swift's launch: it hands its flags to Megatron-LM's parser, so Megatron-LM's "
        "rules are applied (ms-swift 4 has no parser of Megatron-LM: there its own checks apply)",
        "the defaults are ms-swift's where they differ (megatron_args.py, 00840e65ad: distributed "
        "optimizer on, micro batch 1, global batch 16); it sets "
        f"{CONNECTIONS}=1 itself",
        "the model's sizes and number type come from its checkpoint, which is not read: bf16 is "
        "assumed; pass --num_layers, --hidden_size and the like as overrides (model.num_layers=36)",
    ]
    if "model.num_moe_experts" in arguments.defaults:
        remarks.append("expert parallelism: the model is taken to have experts")
    texts = [word.text for word in words]
    if "lora" in texts:
        remarks.append(
            "LoRA: only the adapters have gradients and optimizer state, so data-parallel "
            "communication is far smaller than the model"
        )
    files = [text for text in texts if text.endswith((".yaml", ".yml", ".json"))]
    if "--config" in texts or (files and texts and texts[0] in files):
        remarks.append(f"the arguments in {', '.join(files) or 'its file'} are not read")
    return Origin("ms-swift", tuple(remarks))
