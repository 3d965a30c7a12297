"""Iterations of inference engines: their own ranges around the work of one batch.

The names are those of vLLM (execute_context_N(tokens)_generation_N(tokens), in newer versions with
more inside the brackets, and "gpu_model_runner: forward"), SGLang (step[DECODE bs=N]) and
TensorRT-LLM ([Executor] _forward_step N: N ctx reqs, N gen reqs).

An iteration is no training step: it serves as many requests as are there, and prefills or decodes.
Iterations of different batches differ in length by an order of magnitude.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

_VLLM = re.compile(
    r"execute_(?:\d+_)?context_(?P<context>\d+)\([^()]*\)_generation_(?P<generation>\d+)\("
)
_SGLANG = re.compile(r"step\[(?P<mode>[A-Z_]+) bs=(?P<size>\d+)")
_TENSORRT_LLM = re.compile(
    r"\[Executor\] _forward_step[^:]*: (?P<context>\d+) ctx reqs,.*?(?P<generation>\d+) gen reqs"
)
_MODES = {"EXTEND": "prefill"}
_FORWARD = "gpu_model_runner: forward"
"""What vLLM calls the forward pass of any batch, where it names no batch."""


@cache
def batch_of(name: str) -> str | None:
    """The batch that an engine's range names, as "decode, 32 requests"; None for other ranges.

    Empty where the range is an iteration and names no batch.
    """
    found = _SGLANG.match(name)
    if found is not None:
        mode = found["mode"]
        return _batch(_MODES.get(mode, mode.lower().replace("_", " ")), int(found["size"]))
    found = _VLLM.match(name) or _TENSORRT_LLM.match(name)
    if found is not None:
        context, generation = int(found["context"]), int(found["generation"])
        if context and generation:
            return f"prefill of {context} and decode of {generation} requests"
        return _batch("prefill" if context else "decode", context or generation)
    return "" if name == _FORWARD else None


def _batch(kind: str, requests: int) -> str:
    return f"{kind}, {requests} request{'s' if requests != 1 else ''}"


def iterations(ranges: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """The ranges that are iterations, in order: those that name a batch, if there are any.

    Args:
        ranges: name, start and end of each engine's range.
    """
    found = sorted((start, end, name) for name, start, end in ranges)
    named = [one for one in found if batch_of(one[2])]
    chosen = named or found
    inside: list[tuple[str, int, int]] = []
    for start, end, name in chosen:
        # One range inside another is a part of that iteration.
        if not inside or start >= inside[-1][2]:
            inside.append((name, start, end))
    return inside


def batches(names: Sequence[str]) -> Counter[str]:
    """How often each batch runs, by the names of iterations."""
    return Counter(batch_of(name) or "" for name in names)
