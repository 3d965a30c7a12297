"""What a reader of an answer must know about how the configuration was read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.training.versions import (
    KNOWN,
    MAIN,
    Package,
    Stack,
    as_version,
    nearest_known,
    spoken,
)
from overlapkit.config.reading import StackBasis
from overlapkit.config.run import Settings
from overlapkit.config.versions import index_of, is_lacking, package_of, spans

_SHORT: dict[Package, str] = {"core": "core", "bridge": "Megatron-Bridge"}

_MOST_NAMED = 4
"""Keys that one sentence names."""

LAYOUT_KEYS = frozenset(
    {
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "context_parallel_size",
        "expert_model_parallel_size",
    }
)
"""Keys that tell how a model is divided."""


def remarks(settings: Settings) -> tuple[str, ...]:
    """Sentences about the versions that were taken, and about what was not looked at."""
    return (
        *(settings.origin.remarks if settings.origin is not None else ()),
        *_about_versions(settings.basis),
        *_other_writer(settings),
        *_after_setup(settings),
        *_keys_of_other_versions(settings),
        *_not_understood(settings),
    )


def _about_versions(basis: StackBasis) -> Iterator[str]:
    if basis.overridden is not None:
        for package in _SHORT:
            found = basis.overridden.version(package)
            if found is not None:
                yield f"--{package} wins over {basis.path}, which has {found}"
    if basis.source in ("given", "path"):
        yield from _unchecked(basis.stack)


def _unchecked(stack: Stack) -> Iterator[str]:
    """That the rules were not checked against these versions, where they were not."""
    for package, name in _SHORT.items():
        version = stack.version(package)
        checked = [known.version(package) or MAIN for known in KNOWN]
        if version is None or as_version(version) in map(as_version, (*checked, MAIN)):
            continue
        asked = as_version(version)
        known = f"the rules were checked against {spoken(checked)}"
        if asked < as_version(checked[0]):
            yield f"{name} {version} is older than all that are known here: {known}"
        elif asked > max(map(as_version, checked)):
            yield f"{name} {version} is newer than all that are known here: {known}"
        else:
            near = checked[nearest_known(version, package)]
            yield f"{name} {version} is not known by itself: {known}; {near} is the nearest"


def _other_writer(settings: Settings) -> Iterator[str]:
    """That a file has the fields of another version than the one that it is judged for."""
    writers = settings.written_by
    indices = {index_of(stack) for stack in writers}
    if writers and index_of(settings.stack) not in indices:
        cores = spoken([stack.core or "" for stack in writers])
        yield f"{settings.source} has the fields of core {cores}, another version than this"


def _after_setup(settings: Settings) -> Iterator[str]:
    """That a file shows what became of the user's settings, not the settings."""
    if settings.after_setup is not None:
        yield (
            f"{settings.source} was written after setup, for a data-parallel size of "
            f"{settings.after_setup}: what comm_overlap decides in it counts as not requested"
        )


def _keys_of_other_versions(settings: Settings) -> Iterator[str]:
    """The keys that were set, and that only other versions than this run's have."""
    stack = settings.stack
    if settings.framework == "megatron-lm" or stack in settings.written_by:
        # Flags are not these keys, and have versions of their own. A file's writer has its keys.
        return
    by_reason: dict[str, list[str]] = {}
    for dotted in sorted(settings.asked):
        section, _, key = dotted.partition(".")
        value = (settings.values.get(section) or {}).get(key)
        if value is not None and is_lacking(section, key, stack):
            why = _lifetime(section, key, stack)
            by_reason.setdefault(why, []).append(_placed(settings, dotted))
    for why, keys in by_reason.items():
        yield f"{_listed(keys)} {'is' if len(keys) == 1 else 'are'} {why}"


def _lifetime(section: str, key: str, stack: Stack) -> str:
    """When a key exists that a stack lacks: ``ignored by core 0.16.1: known from core 0.17.1``."""
    package = package_of(section)
    name = _SHORT[package]
    here = index_of(stack, section)
    later = [span.since for span in spans(section, key) if span.since > here]
    if later:
        since = KNOWN[later[0]].version(package)
        return f"ignored by {name} {stack.version(package)}: known from {name} {since}"
    ends = [span.until for span in spans(section, key) if span.until is not None]
    return f"not looked at: gone since {name} {KNOWN[max(ends)].version(package)}"


def _not_understood(settings: Settings) -> Iterator[str]:
    """The sections and keys that no known version has."""
    nested, plain = [], []
    for dotted in settings.passed_over:
        section, _, key = dotted.partition(".")
        content = settings.values.get(section)
        value = content.get(key) if key and content is not None else content
        if not isinstance(value, dict):
            plain.append(_placed(settings, dotted))
            continue
        layout = sorted(LAYOUT_KEYS & _keys_inside(value))
        nested.append(_placed(settings, dotted))
        if layout:
            yield (
                f"section {nested.pop()} is not one of a known version, so its {spoken(layout)} "
                f"{'is' if len(layout) == 1 else 'are'} not looked at: the run may be another one"
            )
    for names, what in ((nested, "section"), (plain, "key")):
        if names:
            several = len(names) > 1
            yield (
                f"{what}{'s' if several else ''} {_listed(names)} {'are' if several else 'is'} of "
                "no known version: not looked at"
            )


def _keys_inside(value: Any) -> frozenset[str]:
    """Every key in a value, however deep."""
    if isinstance(value, list):
        return frozenset().union(*map(_keys_inside, value))
    if not isinstance(value, dict):
        return frozenset()
    return frozenset(value).union(*map(_keys_inside, value.values()))


def _placed(settings: Settings, dotted: str) -> str:
    place = settings.where.get(dotted)
    return dotted if place is None or place.argument is not None else f"{dotted} ({place})"


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return spoken(names if more <= 0 else [*names[:_MOST_NAMED], f"{more} more"])
