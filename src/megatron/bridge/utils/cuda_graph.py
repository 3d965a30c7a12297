"""What a configuration captures in CUDA graphs, under the names of every Megatron-Core.

Until 0.17 the parts of a layer are members of `CudaGraphScope` in `cuda_graph_scope`, and a graph
of the full iteration is one of them. From 0.18 they are members of `CudaGraphModule` in
`cuda_graph_modules`, `cuda_graph_scope` is a deprecated alias, and the full iteration is a
`cuda_graph_impl`. The numbers of the two enums differ, so everything here goes by name. Recipes set
either field, so both are read and their union counts (Megatron-Bridge 56e56d708).

Importing this module loads no torch; the functions that write members of the enums do.
"""

from __future__ import annotations

from enum import Enum
from importlib import import_module
from typing import Any

from megatron.bridge.errors import OverlapConfigError

FIELDS = ("cuda_graph_modules", "cuda_graph_scope")
"""The fields that name the captured parts."""
FULL_ITERATION = "full_iteration"
"""A graph of forward and backward of all microbatches; a scope, or from core 0.18 an impl."""
WHOLE = frozenset({FULL_ITERATION, "full_iteration_inference"})
"""The scopes that are no part of a layer."""


def part_names(value: Any) -> list[str]:
    """Names in a field's value, in order, each once.

    Args:
        value: None, a string of names separated by commas, a member of either enum, or a list of
            strings and members. "full" means the entire layer, and names no part.
    """
    items = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
    names: list[str] = []
    for item in items:
        if isinstance(item, str) and not isinstance(item, Enum):
            names += [part.strip().rpartition(".")[2] for part in item.split(",")]
        elif item is not None:
            name = getattr(item, "name", None)
            names.append(name if isinstance(name, str) else str(item).rpartition(".")[2])
    return [name for name in dict.fromkeys(names) if name not in ("", "full")]


def captured_names(config: Any) -> list[str]:
    """Names in both fields of a model configuration, each once; full_iteration too."""
    values = [getattr(config, field, None) for field in FIELDS]
    return list(dict.fromkeys(name for value in values for name in part_names(value)))


def cuda_graph_module_names(config: Any) -> list[str]:
    """The parts of a layer that are captured, such as ["attn", "moe_router"].

    Empty with the entire layer, with a full-iteration graph, and without graphs.
    """
    return [name for name in captured_names(config) if name not in WHOLE]


def has_cuda_graph_module(config: Any, module: Any) -> bool:
    """Whether a part, given by name or as a member of either enum, is captured by itself."""
    return set(part_names(module)) <= set(captured_names(config)) and bool(part_names(module))


def is_full_iteration_cuda_graph(config: Any) -> bool:
    """Whether one graph covers the full iteration, in the old spelling or the new one."""
    implementation = getattr(config, "cuda_graph_impl", None)
    if implementation == FULL_ITERATION:
        return True
    return implementation == "local" and FULL_ITERATION in captured_names(config)


def uses_local_cuda_graph_manager(config: Any) -> bool:
    """Whether Megatron-Core's own graphs of single layers are asked for."""
    implementation = getattr(config, "cuda_graph_impl", None)
    return implementation == "local" and not is_full_iteration_cuda_graph(config)


def set_cuda_graph_modules(config: Any, modules: Any) -> None:
    """Capture these parts of a layer, written as the installed Megatron-Core expects.

    Args:
        config: a model configuration.
        modules: as for `part_names`.

    Raises:
        OverlapConfigError: the installed Megatron-Core has no part of that name.
    """
    field = _field_of(config)
    members = [_member(_ENUMS[field], name) for name in part_names(modules)]
    setattr(config, field, members)
    if field == "cuda_graph_modules" and hasattr(config, "cuda_graph_scope"):
        # Core 0.18 and newer refuse both.
        config.cuda_graph_scope = None


def clear_cuda_graph_modules(config: Any) -> None:
    """Capture no part of a layer."""
    for field in FIELDS:
        if hasattr(config, field):
            setattr(config, field, [])


def set_full_iteration_cuda_graph(config: Any) -> None:
    """Capture the full iteration in one graph, written as the installed Megatron-Core expects."""
    if _field_of(config) == "cuda_graph_modules":
        config.cuda_graph_impl = FULL_ITERATION
        set_cuda_graph_modules(config, [])
    else:
        config.cuda_graph_impl = "local"
        config.cuda_graph_scope = [_member("CudaGraphScope", FULL_ITERATION)]


def validate_cuda_graph_configuration(config: Any, *, config_name: str = "model") -> None:
    """Clear the parts of a model without graphs; refuse local graphs of single layers.

    As Megatron-Bridge does since 0.4.2 (960a718cb) and 0.6.0 (7e8662c66).

    Args:
        config: a model configuration.
        config_name: its section, for the message.

    Raises:
        OverlapConfigError: cuda_graph_impl is "local" with parts of a layer, or the entire layer.
    """
    if (getattr(config, "cuda_graph_impl", None) or "none") == "none":
        clear_cuda_graph_modules(config)
    elif uses_local_cuda_graph_manager(config) and "full_iteration_inference" not in captured_names(
        config
    ):
        parts = ", ".join(cuda_graph_module_names(config)) or "the entire layer"
        raise OverlapConfigError(
            f'{config_name}.cuda_graph_impl="local" with {parts}: local graphs are only for '
            f"full-iteration CUDA graphs. Remedy: set {config_name}.cuda_graph_impl="
            '"transformer_engine" to capture parts of a layer, or "none"'
        )


_ENUMS = {"cuda_graph_modules": "CudaGraphModule", "cuda_graph_scope": "CudaGraphScope"}


def _field_of(config: Any) -> str:
    """The field that the installed Megatron-Core reads."""
    new = hasattr(config, "cuda_graph_modules") and _enum("CudaGraphModule") is not None
    return "cuda_graph_modules" if new else "cuda_graph_scope"


def _enum(name: str) -> Any:
    return getattr(import_module("megatron.core.transformer.enums"), name, None)


def _member(enum_name: str, name: str) -> Any:
    members = {member.name: member for member in _enum(enum_name)}
    if name not in members:
        raise OverlapConfigError(
            f"{name!r} is no part of a layer that this Megatron-Core captures in a CUDA graph. "
            f"Known: {', '.join(members)}."
        )
    return members[name]
