"""A run's settings as a YAML for Megatron-Bridge, and as Hydra overrides."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from overlapkit.config.emit.scope import (
    Emitted,
    Sections,
    environment_lines,
    is_name_of_object,
    objects_left_out,
    recipe_in_full,
)
from overlapkit.config.overrides import BY_NAME

_INTRO = "The job's environment, set before its processes start, or (since 0.6.0) in env_vars:"
_PLAIN_TEXT = re.compile(r"[A-Za-z_][\w./-]*")


def emit_yaml(sections: Sections, environment: Mapping[str, str]) -> Emitted:
    """One YAML document, sections as in a run_config.yaml."""
    sections, left_out = objects_left_out(sections)
    document: dict[str, Any] = {}
    for section, content in sections.items():
        if content is not None and content.keys() == {BY_NAME}:
            document[section] = content[BY_NAME]
        elif content is not None:
            document[section] = {
                key: _written(section, key, value) for key, value in recipe_in_full(content).items()
            }
        else:
            document[section] = None
    text = yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)
    return Emitted("\n".join([*environment_lines(environment, _INTRO), text]), left_out)


def emit_hydra(sections: Sections, environment: Mapping[str, str]) -> Emitted:
    """One override per line, quoted for a shell, as continued lines of a command."""
    sections, left_out = objects_left_out(sections)
    overrides = []
    for section, content in sections.items():
        if content is None:
            overrides.append(f"{section}=null")
            continue
        if BY_NAME in content:
            overrides.append(f"{section}={flow(content[BY_NAME])}")
        overrides += [
            f"{section}.{key}={flow(_written(section, key, value))}"
            for key, value in content.items()
            if key != BY_NAME
        ]
    text = " \\\n".join(map(shlex.quote, overrides)) + "\n"
    return Emitted("\n".join([*environment_lines(environment, _INTRO), text]), left_out)


def _written(section: str, key: str, value: Any) -> Any:
    if is_name_of_object(section, key, value):
        # This is how Megatron-Bridge writes a function or dtype that must not be called.
        return {"_target_": value, "_call_": False}
    return value


def flow(value: Any) -> str:
    """A value in the common subset of YAML's flow style and Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str) and not (
        _PLAIN_TEXT.fullmatch(value) and isinstance(yaml.safe_load(value), str) and value != "None"
    ):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return value
    return str(yaml.safe_dump(value, default_flow_style=True)).splitlines()[0]
