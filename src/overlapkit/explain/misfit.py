"""Which size of a layout is at fault where their product does not divide the GPUs of a job."""

from __future__ import annotations

from overlapkit.config.run import Settings

_SIZES = tuple(f"{name}_parallel_size" for name in ("tensor_model", "pipeline_model", "context"))
_HEADS = ("num_attention_heads", "num_query_groups")
"""What a tensor-parallel size divides as well."""


def misfit(settings: Settings, world_size: int) -> str:
    """The size at fault, as the end of a message; empty where none follows from the settings.

    Args:
        settings: of a run whose TP x PP x CP does not divide its GPUs.
        world_size: these GPUs.
    """
    model = settings.values.get("model") or {}
    wrong = [
        name
        for name in _SIZES
        if isinstance(model.get(name), int) and model[name] > 0 and world_size % model[name]
    ]
    if len(wrong) != 1:
        return ""
    (name,) = wrong
    text = f"; of these sizes only {name}={model[name]} does not divide {world_size}"
    if name == _SIZES[0]:
        heads = [f"{key}={model[key]}" for key in _HEADS if _is_not_divided(model, key, name)]
        text += f", nor {' nor '.join(heads)}" if heads else ""
    return text


def _is_not_divided(model: dict[str, object], key: str, name: str) -> bool:
    count, size = model.get(key), model[name]
    return isinstance(count, int) and isinstance(size, int) and bool(count % size)
