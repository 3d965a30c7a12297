"""Settings that do not matter to overlap, by the name that both frameworks have for them.

Megatron-LM's ``--adam-beta1`` is Megatron-Bridge's ``optimizer.adam_beta1``: the flags of one are
made from the same fields that the other's sections have.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from overlapkit.config.emit.scope import LeftOut, Sections, is_name_of_object
from overlapkit.config.megatron_lm.flag_versions import versions_of
from overlapkit.config.megatron_lm.flags import FLAGS, LM
from overlapkit.config.run import Settings
from overlapkit.config.schema import bridge_keys, section_fields
from overlapkit.config.yaml_file import YamlProblem, load_yaml
from overlapkit.translate.defaults import FUSED, OTHER_NAMES

HOLDERS = (
    "model",
    "optimizer",
    "scheduler",
    "train",
    "validation",
    "checkpoint",
    "logger",
    "rng",
    "profiling",
)
"""Sections whose keys may be flags too, in the order of search."""

_ANOTHER_MEANING = frozenset({"exit_signal", "local_rank"})
"""Keys that Megatron-Bridge writes with a value that the flag of this name does not take."""
_OTHER_KEYS = {flag: key for key, flag in OTHER_NAMES.items()} | {
    f"bias_{activation}_fusion": "bias_activation_fusion" for activation in ("swiglu", "gelu")
}
"""Flags that are keys of another name."""


def flags_named_alike(
    settings: Settings, version: str
) -> tuple[list[tuple[str, ...]], frozenset[str]]:
    """Flags for the keys of a Megatron-Bridge run that the table of flags does not have.

    Args:
        settings: of the run.
        version: of Megatron-LM.

    Returns:
        Each flag with its words, quoted for a shell, and the dotted keys that they express.
    """
    covered = {key for flag in FLAGS.values() for key in flag.keys if not key.startswith(LM)}
    flags: dict[str, tuple[str, ...]] = {}
    carried = set()
    for section in HOLDERS:
        fields = section_fields(section)
        for key, value in (settings.values.get(section) or {}).items():
            dotted = f"{section}.{key}"
            known = fields.get(key)
            if dotted in covered or dotted not in settings.asked:
                continue
            if dotted == FUSED:
                # It depends on the activation: see `defaults.flags_against_defaults`.
                carried.add(dotted)
                continue
            if value is None or key in _ANOTHER_MEANING or is_name_of_object(section, key, value):
                continue
            words = _words(OTHER_NAMES.get(key, key), value, version)
            if words is None:
                continue
            carried.add(dotted)
            if words and (known is None or known.default != value):
                flags.setdefault(words[0], words)
    return list(flags.values()), frozenset(carried)


def _words(name: str, value: Any, version: str) -> tuple[str, ...] | None:
    """A flag with its words; empty where its absence means the value, None where none does."""
    flag = f"--{name.replace('_', '-')}"
    off = f"--no-{name.replace('_', '-')}"
    known, known_off = (_of_version(each, version) for each in (flag, off))
    if isinstance(value, bool):
        if known == "0":
            return (flag,) if value else ()
        if known_off == "0":
            return () if value else (off,)
        return None
    if known is None or known == "0":
        return None
    each = value if isinstance(value, list) else [value]
    if not each or not all(isinstance(word, (str, int, float)) for word in each):
        return None
    if known == "1" and len(each) != 1:
        return None
    words = [str(word) for word in each]
    if any(not word or word.startswith("--") for word in words):
        return None
    return (flag, *map(shlex.quote, words))


def _of_version(flag: str, version: str) -> str | None:
    """How many words follow a flag; None where that version has none of this name."""
    known = versions_of(flag)
    own = FLAGS.get(flag)
    if own is not None and any(not key.startswith(LM) for key in own.keys):
        return None
    return known.words if known is not None and known.versions.contains(version) else None


def keys_named_alike(others: Iterable[tuple[str, ...]]) -> tuple[Sections, list[LeftOut]]:
    """Keys for the flags of a Megatron-LM run that no setting holds, and those without a key.

    Args:
        others: each flag with its words, as a shell reads them.
    """
    found: Sections = {}
    left_out = []
    for flag, *words in others:
        name, has_value, inline = flag.removeprefix("--").partition("=")
        given = [inline] if has_value else words
        key = name.replace("-", "_")
        section, key, switch = _home(key, bool(given))
        value = switch if switch is not None else _value(given)
        if section is None or value is None:
            left_out.append(LeftOut(f"--{name}", "no key of Megatron-Bridge is known for it"))
        else:
            content = found.setdefault(section, {})
            assert content is not None
            content[key] = value
    return found, left_out


def _home(key: str, has_words: bool) -> tuple[str | None, str, bool | None]:
    """The section and the key of a flag, and the value of a switch; None for a flag with words."""
    meant = _OTHER_KEYS.get(key, key)
    names = [(meant, True)]
    if key.startswith("no_"):
        off = key.removeprefix("no_")
        names.append((_OTHER_KEYS.get(off, off), False))
    for name, on in names:
        for section in HOLDERS:
            known = section_fields(section).get(name)
            if known is None and name not in bridge_keys().sections.get(section, ()):
                continue
            is_switch = known is None or known.kind.startswith("bool")
            if has_words or is_switch:
                return section, name, None if has_words else on
    return None, key, None


def _value(words: list[str]) -> Any:
    """The value of a flag's words; None where it is not known."""
    values = []
    for word in words:
        if word.startswith('"${'):
            return None
        (text,) = shlex.split(word) or [""]
        try:
            value, _ = load_yaml(text)
        except YamlProblem:
            value = text
        # YAML 1.1 reads 1e-5 as text.
        values.append(_number(value) if isinstance(value, str) else value)
    return values[0] if len(values) == 1 else values


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
