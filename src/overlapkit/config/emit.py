"""A run's settings, ready to paste: Bridge Python, YAML, Hydra overrides, Megatron-LM flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from overlapkit.config.emit_scope import Emitted as Emitted
from overlapkit.config.emit_scope import LeftOut as LeftOut
from overlapkit.config.emit_scope import sections_of
from overlapkit.config.emit_yaml import emit_hydra, emit_yaml
from overlapkit.config.run import Settings

Form = Literal["yaml", "hydra"]
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
        settings: as read by `read_settings`, or a mapping of section to its keys and values.
        form: one of `FORMS`.
        world_size: GPUs of the job, on which some defaults depend; None where it is not known.
        environment: variables that the job's processes must start with.
    """
    sections = sections_of(settings)
    variables = dict(environment or {})
    if form == "yaml":
        return emit_yaml(sections, variables)
    return emit_hydra(sections, variables)
