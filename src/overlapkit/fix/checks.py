"""Whether a change of a configuration did what it was to do, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from megatron.bridge.training.edits import ENV, Edit, Removed
from megatron.bridge.training.job_environment import ENV_VARS
from overlapkit.config.run import Settings, build_run
from overlapkit.config.schema import known_keys
from overlapkit.fix.splice import CannotEdit
from overlapkit.fix.yaml_edit import same

PRECISION = "mixed_precision"
DTYPES = frozenset({"bfloat16", "float16", "float32"})
"""The names of the dtypes in mixed precision."""
_TWINS = frozenset({"fp8_param", "fp8_param_gather"})
"""Two names of one field."""


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that a configuration hands to its job."""
    launched = settings.launch.environment if settings.launch is not None else {}
    declared = settings.values.get(ENV_VARS) or {}
    return {**{str(n): str(v) for n, v in declared.items()}, **launched}


def plain_value(value: Any) -> Any:
    """A value as YAML has it."""
    return list(value) if isinstance(value, tuple) else value


def refuse_overridden(settings: Settings, key: str) -> None:
    """Raise CannotEdit for a key that the command line sets, whatever the file says."""
    names = key.split(".")
    above = {".".join(names[: n + 1]) for n in range(len(names))}
    for each in above & settings.overridden:
        place = settings.where.get(each)
        raise CannotEdit(
            f"{place.argument if place is not None else each} on the command line sets it: change "
            "that"
        )


def refuse_elsewhere(settings: Settings, key: str, file: str) -> None:
    """Raise CannotEdit for a key that another file sets."""
    place = settings.where.get(key)
    if place is not None and place.file is not None and file and place.file != file:
        raise CannotEdit(f"it is set in {place.in_messages}: another file is not changed")


def check_made(
    before: Settings, after: Settings, edits: Sequence[Edit], allowed: frozenset[str]
) -> None:
    """Raise CannotEdit unless the settings have the edits, and no other changed."""
    flat, environment = after.flat(), environment_of(after)
    for edit in edits:
        gone = isinstance(edit.value, Removed)
        if edit.key.startswith(ENV):
            name = edit.key.removeprefix(ENV)
            right = environment.get(name) == (None if gone else str(edit.value))
        else:
            with suppress(TypeError):
                flat = _with_nested(flat, edit.key)
            value = plain_value(edit.value)
            # Where no flag says a value, its default may.
            right = edit.key not in flat if gone else same(flat.get(edit.key), value)
            right = right or (after.launch is not None and edit.key not in after.asked)
        if not right:
            raise CannotEdit(f"{edit} would not be read back from it")
    what = difference(before, after, allowed, [edit.key for edit in edits])
    if not what and f"{PRECISION}.bf16" in allowed:
        what = _precision_differs(before, after, edits)
    if what:
        raise CannotEdit(f"{what} would change with it")


def _precision_differs(before: Settings, after: Settings, edits: Sequence[Edit]) -> str:
    """A field of mixed precision that has another value without having been changed."""
    one, other = build_run(before).mixed_precision, build_run(after).mixed_precision
    changed = {edit.key.partition(".")[2] for edit in edits}
    if changed & _TWINS:
        changed |= _TWINS
    for name in known_keys(PRECISION) - changed:
        if _name_of(getattr(one, name, None)) != _name_of(getattr(other, name, None)):
            return f"{PRECISION}.{name}"
    return ""


def _name_of(value: Any) -> Any:
    """A value, with a dtype by its short name."""
    return value.removeprefix("torch.") if isinstance(value, str) else value


def _with_nested(flat: dict[str, Any], key: str) -> dict[str, Any]:
    """Flat settings with a key of more than two parts beside them."""
    section, *names = key.split(".")
    if len(names) < 2:
        return flat
    value = flat.get(f"{section}.{names[0]}")
    for name in names[1:]:
        if not isinstance(value, dict) or name not in value:
            return flat
        value = value[name]
    return {**flat, key: value}


def difference(
    before: Settings, after: Settings, allowed: frozenset[str], keys: Sequence[str]
) -> str:
    """What differs besides the keys that may; empty where nothing does."""
    free = {".".join(key.split(".")[:2]) for key in (*allowed, *keys)}
    free |= {f"{ENV_VARS}.{key.removeprefix(ENV)}" for key in free if key.startswith(ENV)}
    one, other = before.flat(), after.flat()
    for key in one.keys() | other.keys():
        if key in free or key in (k.partition(".")[0] for k in free):
            continue
        # What follows from other flags is no setting of the script's.
        follows = before.launch is not None and key not in before.asked | after.asked
        if not follows and not (key in one and key in other and same(one[key], other[key])):
            return key
    changed = {k.removeprefix(ENV) for k in (*allowed, *keys) if k.startswith(ENV)}
    was, now = environment_of(before), environment_of(after)
    for name in was.keys() | now.keys():
        if name not in changed and was.get(name) != now.get(name):
            return name
    if before.launch is not None and after.launch is not None:
        if before.launch.world_size != after.launch.world_size:
            return "the number of GPUs"
        if before.launch.unread != after.launch.unread:
            return "a flag that is not read"
    return ""
