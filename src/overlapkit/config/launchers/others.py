"""Configurations that are of no launcher read here: each is named, with the way to an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from overlapkit.config.launchers.deepspeed import zero_text
from overlapkit.config.text_file import read_text
from overlapkit.errors import InputError

_PROFILE = "look at a profile of the job with overlapkit trace"
_MOST_BYTES = 1024 * 1024


def refuse_by_name(path: str) -> None:
    """Refuse a file whose name says that it is no YAML configuration.

    Raises:
        InputError: it is Python or TOML; with what it is and what to do.
    """
    kind = PurePath(path).suffix.lower()
    if kind not in (".py", ".toml"):
        return
    text = read_text(path, what="run configuration", most=_MOST_BYTES)
    raise InputError(f"{path}: {_of_python(text) if kind == '.py' else _of_toml(text)}")


def _of_python(text: str) -> str:
    if "nemo.collections" in text or "nemo_run" in text or "llm.pretrain" in text:
        return (
            "this is a NeMo 2 recipe in Python, which is not executed: write the recipe's "
            "strategy, ddp and megatron_comm_overlap settings as sections model, ddp and "
            "comm_overlap of a YAML file"
        )
    if "megatron.bridge" in text:
        return (
            "this is a Megatron-Bridge recipe in Python, which is not executed: give the "
            "run_config.yaml that the job writes beside its checkpoints, or cfg.to_yaml(FILE)"
        )
    if "torch.distributed.fsdp" in text or "fully_shard" in text:
        return f"this is a program with torch's FSDP, not Megatron: {_PROFILE}"
    return "this is a Python program, which is not executed: give its run configuration as YAML"


def _of_toml(text: str) -> str:
    if "[parallelism]" in text or "[training]" in text:
        return (
            "this is torchtitan's configuration: it trains with torch's FSDP2, which has no "
            f"overlap settings of Megatron; {_PROFILE}"
        )
    return "this is TOML: give a run configuration as YAML, or a launch script"


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda data: all(name in data for name in names)


def _any_of(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda data: any(name in data for name in names)


_DEEPSPEED = _any_of("zero_optimization", "train_micro_batch_size_per_gpu")
_ACCELERATE = _any_of("compute_environment", "deepspeed_config", "fsdp_config")
_SWIFT = _any_of("train_type", "tuner_type", "lora_rank", "padding_free", "mcore_model")
_NAMED: tuple[tuple[Callable[[Mapping[str, Any]], bool], str], ...] = (
    (
        _has("distributed_type"),
        "this is the configuration of Hugging Face accelerate: DeepSpeed, torch's FSDP or its own "
        f"Megatron plugin trains, with settings of their own; {_PROFILE}",
    ),
    (
        _ACCELERATE,
        f"this is the configuration of Hugging Face accelerate, not Megatron's: {_PROFILE}",
    ),
    (
        _any_of("pipe_parallel_size", "pipe-parallel-size", "model_parallel_size"),
        "this is GPT-NeoX's configuration: DeepSpeed reduces the gradients there "
        f"(zero_optimization.overlap_comm), and Megatron-LM's rules do not hold; {_PROFILE}",
    ),
    (
        lambda data: "pre_trainer" in _mapping(data.get("modules")),
        "this is Primus' configuration: give the keys of modules.pre_trainer.overrides as "
        "Megatron-LM's flags, after --from-megatron-lm --",
    ),
    (
        lambda data: _SWIFT(data) and not isinstance(data.get("model"), Mapping),
        "this is ms-swift's configuration: give its keys as flags, after --from-megatron-lm -- "
        "megatron sft --KEY VALUE, or the script that starts it",
    ),
    (
        _has("model_name_or_path", "stage"),
        f"this is LLaMA-Factory's configuration, not Megatron's: {_PROFILE}",
    ),
    (
        _has("base_model", "datasets"),
        f"this is Axolotl's configuration, not Megatron's: {_PROFILE}",
    ),
    (
        _has("architectures", "model_type"),
        "this is a model's config.json of Hugging Face: it has the model's sizes, and no setting "
        "of a run",
    ),
    (
        _any_of("booster", "plugin", "zero"),
        f"this looks like Colossal-AI's configuration, not Megatron's: {_PROFILE}",
    ),
)


def refuse_by_content(data: Mapping[str, Any], path: str) -> None:
    """Refuse the configuration of another known program.

    Raises:
        InputError: with what it is and what to do.
    """
    if _DEEPSPEED(data):
        raise InputError(
            f"{path}: this is DeepSpeed's configuration ({zero_text(dict(data))}): DeepSpeed "
            f"reduces the gradients, and Megatron's rules do not hold; {_PROFILE}"
        )
    target = str(data.get("_target_", ""))
    if target.startswith(("nemo.", "nemo_run.")):
        raise InputError(
            f"{path}: this is a NeMo 2 recipe: its trainer.strategy and "
            "megatron_comm_overlap callback are not read; write them as sections model, ddp and "
            "comm_overlap of a YAML file"
        )
    for matches, text in _NAMED:
        if matches(data):
            raise InputError(f"{path}: {text}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


_PROGRAMS: tuple[tuple[str, str], ...] = (
    ("accelerate launch", "Hugging Face accelerate, whose own settings decide"),
    ("swift sft", "ms-swift without Megatron (megatron sft is its Megatron command)"),
    ("swift pt", "ms-swift without Megatron (megatron pt is its Megatron command)"),
    ("swift rlhf", "ms-swift without Megatron (megatron rlhf is its Megatron command)"),
    ("openrlhf", "OpenRLHF, in which DeepSpeed reduces the gradients"),
    ("torchtitan", "torchtitan, which trains with torch's FSDP2"),
    ("colossalai run", "Colossal-AI, which has its own parallelism"),
    ("llamafactory-cli", "LLaMA-Factory, which trains with DeepSpeed or torch's FSDP"),
    ("axolotl", "Axolotl, which trains with DeepSpeed or torch's FSDP"),
)
"""Programs that train without Megatron, by words of their command."""


def refuse_program(words: Sequence[str], where: str) -> None:
    """Refuse a command of another known program.

    Args:
        words: of the command.
        where: its place.

    Raises:
        InputError: with what it is and what to do.
    """
    command = " ".join(words)
    for name, what in _PROGRAMS:
        if f" {command}".find(f" {name}") >= 0 or (" " not in name and f"{name}." in command):
            raise InputError(
                f"{where}: this starts {what}: no setting of Megatron applies; {_PROFILE}"
            )
