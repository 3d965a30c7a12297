"""Megatron-DeepSpeed: Megatron's model under DeepSpeed's engine.

DeepSpeed reduces the gradients, shards the optimizer (ZeRO) and runs the pipeline. Facts of
DeepSpeed's documentation of its JSON configuration, "ZeRO Optimizations for FP16 Training":
overlap_comm is off by default below stage 3, reduce_bucket_size and allgather_bucket_size are
5e8 elements, contiguous_gradients is on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overlapkit.config.shell.values import Field
from overlapkit.config.text_file import exists, read_text
from overlapkit.errors import InputError

_MARKS = ("--deepspeed", "--deepspeed_config", "--deepspeed-config", "--zero-stage")
_CONFIG = ("--deepspeed_config", "--deepspeed-config")
_MOST_BYTES = 256 * 1024
_WAY_ON = (
    "no answer is given: look at it in a profile (overlapkit trace), or give Megatron-LM's own "
    "flags after --"
)


def is_deepspeed(arguments: Sequence[Field]) -> bool:
    """Whether a job's arguments hand the training to DeepSpeed."""
    return any(word.text.partition("=")[0] in _MARKS for word in arguments)


def refusal(arguments: Sequence[Field], where: str, folder: Path) -> InputError:
    """That this is Megatron-DeepSpeed, with what DeepSpeed decides there.

    Args:
        arguments: of the job.
        where: the place of the launch.
        folder: that of the script, in which DeepSpeed's JSON may be.
    """
    name = _option(arguments, _CONFIG)
    zero = _zero(name, folder) if name else None
    stage = _option(arguments, ("--zero-stage",))
    if zero is not None:
        stage = str(zero.get("stage", 0))
        overlap = zero.get("overlap_comm", stage == "3")
        known = f"ZeRO stage {stage}, overlap_comm {str(overlap).lower()}" + "".join(
            f", {key} {zero[key]}" for key in ("reduce_bucket_size",) if key in zero
        )
        decides = f"{name} decides: {known}"
    else:
        there = name or "its JSON configuration"
        decides = (
            f"zero_optimization in {there} decides: stage, overlap_comm, reduce_bucket_size, "
            f"contiguous_gradients{f' (--zero-stage {stage})' if stage else ''}"
        )
    return InputError(
        f"{where}: this is Megatron-DeepSpeed: DeepSpeed, not Megatron-LM, reduces the gradients "
        f"and sends between pipeline stages, so Megatron-LM's rules do not hold; {decides}; "
        f"{_WAY_ON}"
    )


def zero_text(data: dict[str, Any]) -> str:
    """What ZeRO does in a DeepSpeed configuration, in words."""
    zero = data.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    stage = zero.get("stage", 0)
    overlap = zero.get("overlap_comm", stage == 3)
    return f"ZeRO stage {stage}, overlap_comm {str(overlap).lower()}"


def _option(arguments: Sequence[Field], names: Sequence[str]) -> str:
    for n, word in enumerate(arguments):
        name, is_set, text = word.text.partition("=")
        if name in names:
            return text if is_set else arguments[n + 1].text if n + 1 < len(arguments) else ""
    return ""


def _zero(name: str, folder: Path) -> dict[str, Any] | None:
    """The section of ZeRO in DeepSpeed's JSON, where that exists here."""
    path = next((p for p in (name, str(folder / name)) if exists(p)), None)
    if path is None:
        return None
    try:
        content = json.loads(read_text(path, what="DeepSpeed configuration", most=_MOST_BYTES))
    except (InputError, ValueError, RecursionError):
        return None
    zero = content.get("zero_optimization", {}) if isinstance(content, dict) else None
    return zero if isinstance(zero, dict) else None
