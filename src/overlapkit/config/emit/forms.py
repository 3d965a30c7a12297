"""A run's settings, ready to paste: Bridge Python, YAML, Hydra overrides, Megatron-LM flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from overlapkit.config.emit.bridge_python import emit_bridge
from overlapkit.config.emit.megatron_lm_flags import emit_megatron_lm
from overlapkit.config.emit.scope import Emitted as Emitted
from overlapkit.config.emit.scope import LeftOut as LeftOut
from overlapkit.config.emit.scope import for_bridge, sections_of
from overlapkit.config.emit.yaml_text import emit_hydra, emit_yaml
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.yaml_file import Document

Form = Literal["bridge", "yaml", "hydra", "megatron-lm"]
FORMS: tuple[Form, ...] = get_args(Form)


def emit(
    settings: Settings | Mapping[str, Any],
    form: Form,
    *,
    world_size: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Emitted:
    """A run's settings in one form, and what that form cannot express.

    Args:
        settings: as read, of either framework, or a mapping of section to its keys and values for
            Megatron-Bridge.
        form: "bridge" (Python), "yaml" (a run configuration), "hydra" (overrides) or "megatron-lm"
            (flags, and the userbuffers file that they refer to).
        world_size: GPUs of the job, on which Megatron-Bridge's defaults depend; None takes a
            data-parallel size above 1.
        environment: variables that the job's processes must start with.

    Raises:
        InputError: a mapping is not a run configuration, or its layout does not divide
            `world_size`.
    """
    if not isinstance(settings, Settings):
        settings = read_settings(Document("the settings", dict(settings)))
    variables = dict(environment or {})
    if form == "megatron-lm":
        return emit_megatron_lm(settings, variables, world_size)
    left_out: list[LeftOut] = []
    if settings.framework == "megatron-lm":
        sections, left_out = for_bridge(settings)
    else:
        sections = sections_of(settings)
    writers = {"bridge": emit_bridge, "yaml": emit_yaml, "hydra": emit_hydra}
    text, more = writers[form](sections, variables)
    return Emitted(text, left_out + more)
