"""The shapes that a configuration file can have, brought to one: that of Megatron-Bridge 0.3.1.

Since then model sections became nested, enums were renumbered and sections were renamed. A wrapper
such as ``_target_: torch.bfloat16`` is read as a name, never imported or called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from overlapkit.config.overrides import Override
from overlapkit.config.schema import core_table, section_fields, shown
from overlapkit.config.yaml_file import Document
from overlapkit.errors import InputError

TRANSFORMER = "transformer"
"""The section of a model, since Megatron-Bridge's main branch of 2026-07-31 (061468b78), that has
the fields of TransformerConfig; the model's own are those of its builder."""


def flatten_model(document: Document, data: dict[str, Any]) -> list[str]:
    """Move the fields of a nested model section to where older versions have them, in place.

    Returns:
        The names of the fields that were moved.

    Raises:
        InputError: the nested section is not a mapping.
    """
    model = data.get("model")
    if not isinstance(model, dict) or TRANSFORMER not in model:
        return []
    inner = model.pop(TRANSFORMER)
    if not isinstance(inner, dict):
        raise InputError(
            f"{document.where('model', TRANSFORMER)}: model.{TRANSFORMER} must be a section with "
            f"keys, not {shown(inner)}"
        )
    # The builder's userbuffers settings are beside it, and null there is no value.
    model.update({key: value for key, value in inner.items() if model.get(key) is None})
    return [key for key in inner if ("model", key) not in document.places]


FILLED_IN_BY_SETUP = frozenset(
    f"{section}.{key}"
    for section in ("model", "ddp", "optimizer", "comm_overlap")
    for key in (*section_fields("comm_overlap"), "use_distributed_optimizer")
    if section != "comm_overlap" or key in ("tp_comm_overlap_cfg", "data_parallel_size")
)
"""Dotted keys that the update of a configuration before training fills in from comm_overlap."""


def setup_was_for(data: Mapping[str, Any]) -> int | None:
    """The data-parallel size for which a dump's settings were made effective before it was written.

    Megatron-Bridge writes a file before that update or after it. Only after it comm_overlap has a
    data-parallel size. None: before it, or nothing shows it.
    """
    comm = data.get("comm_overlap")
    size = comm.get("data_parallel_size") if isinstance(comm, dict) else None
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def unnested(override: Override) -> Override:
    """An override of ``model.transformer.KEY`` as one of ``model.KEY``."""
    prefix = f"{TRANSFORMER}."
    if override.section == "model" and (override.key or "").startswith(prefix):
        return replace(override, key=(override.key or "").removeprefix(prefix))
    return override


def plain(value: Any) -> Any:
    """A value without `_target_` wrappers: a name is read, never imported or called."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    target = value.get("_target_")
    if isinstance(target, str):
        if "_args_" in value:
            name = value.get("_name_")
            return name if isinstance(name, str) else _enum_name(target, value["_args_"])
        if value.get("_call_") is False:
            owner, _, member = target.rpartition(".")
            return member if owner.rpartition(".")[2] in _GRAPH_SCOPES else target
    return {
        # A userbuffers class's name is kept, since it fills in the class's defaults.
        k: _plain_userbuffers(v) if k == "tp_comm_overlap_cfg" else plain(v)
        for k, v in value.items()
        if k not in ("_target_", "_call_", "_args_", "_builder_")
    }


def plain_override(override: Override) -> Override:
    # What is kept of a wrapper depends on its key.
    key = (override.key or override.section).rpartition(".")[2]
    return replace(override, value=plain({key: override.value})[key])


def _plain_userbuffers(value: Any) -> Any:
    if not isinstance(value, dict) or value.get("_call_") is False or "_args_" in value:
        return plain(value)
    return {k: _plain_userbuffers(v) for k, v in value.items()}


def _enum_name(target: str, args: Any) -> Any:
    """For a CUDA-graph scope the member's name, which rules read; otherwise the enum's value."""
    value = args[0] if isinstance(args, list) and len(args) == 1 else args
    numbers = _GRAPH_SCOPES.get(target.rpartition(".")[2])
    if numbers is not None and isinstance(value, int):
        return next((scope for scope, number in numbers.items() if number == value), value)
    return value


_GRAPH_SCOPES: dict[str, dict[str, int]] = {
    "CudaGraphScope": core_table().cuda_graph_scopes,
    # megatron-core 0.18.2 and later; the same number means another scope than before.
    "CudaGraphModule": {
        "attn": 1,
        "mlp": 2,
        "moe": 3,
        "moe_router": 4,
        "moe_preprocess": 5,
        "mamba": 6,
    },
}
"""Members of the enums of CUDA-graph scopes (megatron/core/transformer/enums.py) by class."""
