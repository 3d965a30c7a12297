"""Keys that no version knows: a misspelt knob is refused, any other is passed over with a note."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.bridge.training.near_names import typo_of
from overlapkit.config.overrides import BY_NAME
from overlapkit.config.schema import (
    DECIDING_KEYS,
    KNOB_SECTIONS,
    OVERLAP_KNOBS,
    known_keys,
    section_fields,
    sections,
)
from overlapkit.errors import DoesNotStart

READ_SECTIONS = (*KNOB_SECTIONS, "train", "dist")
"""The sections whose keys rules read: an unknown key of another one changes no answer."""

_WAY_ON = "; --allow-unknown passes over it"


def check_unknown_key(section: str, key: str, where: str) -> None:
    """Refuse an unknown key of a file that is certainly a misspelt or misplaced knob.

    Other unknown keys are passed over: Megatron-Bridge has hundreds, and its releases differ.

    Raises:
        DoesNotStart: with the place and the key that was probably meant.
    """
    if section not in READ_SECTIONS:
        return
    homes = [s for s in READ_SECTIONS if key in section_fields(s)]
    if key in OVERLAP_KNOBS and homes:
        raise DoesNotStart(
            f"{where}: {section}.{key} has no effect there; did you mean {homes[0]}.{key}?{_WAY_ON}"
        )
    meant = _misspelt(key, DECIDING_KEYS & known_keys(section))
    if meant is not None:
        raise DoesNotStart(
            f"{where}: unknown key {section}.{key}; did you mean {section}.{meant}?{_WAY_ON}"
        )


def check_unknown_section(section: str, present: Mapping[str, Any], where: str) -> None:
    """Refuse an unknown section of a file that is certainly a misspelt one, or a knob.

    Args:
        section: its name.
        present: every section of the file.
        where: its place.

    Raises:
        DoesNotStart: with the place and what was probably meant.
    """
    homes = [s for s in READ_SECTIONS if section in DECIDING_KEYS & frozenset(section_fields(s))]
    if homes:
        raise DoesNotStart(
            f"{where}: {section} is at the top level; did you mean {homes[0]}.{section}?{_WAY_ON}"
        )
    meant = _misspelt(section, [each for each in READ_SECTIONS if each not in present])
    if meant is not None:
        raise DoesNotStart(f"{where}: unknown section {section!r}; did you mean {meant}?{_WAY_ON}")


def _misspelt(name: str, known: Any) -> str | None:
    """The known name that one was certainly meant to be."""
    spelt = name.replace("-", "_").lower()
    return spelt if spelt in known else typo_of(spelt, known)


def is_unknown(section: str, key: str) -> bool:
    """Whether no known version has a key in a section that rules read."""
    return section in READ_SECTIONS and key != BY_NAME and key not in known_keys(section)


def unknown_sections(data: Mapping[str, Any]) -> list[str]:
    """The names at the top level of a file that no known version has."""
    return [section for section in data if section not in sections()]
