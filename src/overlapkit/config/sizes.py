"""The sizes in a run's settings: within what any model or cluster can have."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from megatron.bridge.training.bucket_size import AUTO, LEAST_BUCKET_SIZE, is_bucket_size
from overlapkit.config.places import Place, in_messages
from overlapkit.config.schema import shown
from overlapkit.errors import InputError

_SIZES = {
    "model": (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "context_parallel_size",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "num_moe_experts",
        "vocab_size",
        "seq_length",
    ),
    "ddp": ("num_distributed_optimizer_instances",),
    "train": ("micro_batch_size", "global_batch_size"),
    "tokenizer": ("vocab_size",),
}
_MAY_BE_ZERO = frozenset({"num_layers", "hidden_size", "num_attention_heads"})
"""Megatron-Core's own defaults, which mean "not set"."""


LARGEST = 2**31 - 1
"""Largest size: beyond any model or cluster."""

_COUNTED = {
    ("num_layers",): 10_000,
    ("num_layers", "num_moe_experts"): 200_000,
    ("pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"): 20_000,
}
"""Largest products of sizes: buckets are counted by looking at each layer, expert and chunk. The
largest published models are below a third of each limit."""


def check_sizes(
    values: dict[str, dict[str, Any] | None], where: Mapping[str, Place], path: str
) -> None:
    """Refuse a size that no run can have, and a comm_overlap section without its required key.

    Args:
        values: section to its keys and values.
        where: dotted key to its place.
        path: the configuration, for what has no place.

    Raises:
        InputError: with the place, the key and the value.
    """
    for section, names in _SIZES.items():
        for name in names:
            value = (values.get(section) or {}).get(name)
            least = 0 if name in _MAY_BE_ZERO else 1
            if value is not None and value < least:
                raise InputError(
                    f"{in_messages(where, f'{section}.{name}', path)}: {section}.{name} must be "
                    f"{least} or more, not {value}"
                )
            if value is not None and value > LARGEST:
                raise InputError(
                    f"{in_messages(where, f'{section}.{name}', path)}: {section}.{name} must be "
                    f"{LARGEST} or less, not {value}"
                )
    _check_work(values.get("model") or {}, where, path)
    for section, other in (("ddp", None), ("comm_overlap", AUTO)):
        size = (values.get(section) or {}).get("bucket_size")
        if size not in (None, other) and not is_bucket_size(size):
            key = f"{section}.bucket_size"
            raise InputError(
                f"{in_messages(where, key, path)}: {key} must be "
                f"{LEAST_BUCKET_SIZE} or more parameters, {f'{other} ' if other else ''}or null, "
                f"not {shown(size)}"
            )
    comm = values.get("comm_overlap")
    if comm is None:
        return
    if not isinstance(comm.get("tp_comm_overlap"), bool):
        raise InputError(
            f"{in_messages(where, 'comm_overlap', path)}: comm_overlap.tp_comm_overlap is "
            "required; add comm_overlap.tp_comm_overlap=true or false"
        )


def _check_work(model: Mapping[str, Any], where: Mapping[str, Place], path: str) -> None:
    for names, most in _COUNTED.items():
        sizes = {f"model.{name}": size for name in names if (size := model.get(name))}
        product = prod(sizes.values())
        if product > most:
            place = in_messages(where, max(sizes, key=lambda name: sizes[name]), path)
            raise InputError(f"{place}: {' x '.join(sizes)} must be {most} or less, not {product}")
