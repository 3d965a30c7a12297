"""The words for settings: dotted keys, or for a Megatron-LM job its flags and exports."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from megatron.bridge.training.decisions import Decision
from megatron.bridge.training.edits import ENV, Edit, in_words, listed
from overlapkit.config.megatron_lm.flag_edits import (
    FlagEdit,
    also_set_by,
    flag_edit,
    flag_edits,
    in_flags,
    setting_flag,
)
from overlapkit.config.megatron_lm.flag_versions import versions_of
from overlapkit.config.megatron_lm.flags import FLAGS, LM
from overlapkit.config.run import Settings

_OF_MODELS = ("model", "ddp", "optimizer", "train", "comm_overlap", "mixed_precision")
_SECTIONS = "|".join(_OF_MODELS)
_BY_NAME = ("dist", "ddp", LM)
"""Sections with knobs that flags of Megatron-LM alone stand for, by their names."""
_KEY = re.compile(
    rf"(?P<verb>\bset )?\b(?P<key>(?:{_SECTIONS})\.\w+)" r"(?:=(?P<value>[^\s,;:()]+))?"
)
_FACT = re.compile(
    rf"(?<![\w./'-])(?P<key>(?:(?:{_SECTIONS})\.)?[a-z]\w*)(?![\w/(]|\.\w)"
    r"(?:(?P<is>=| is )(?P<value>on|off|[Tt]rue|[Ff]alse)\b|(?P<has>=)(?=\S))?"
)
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]+")
_ENV_NAME = re.compile(r"(?<![\w.])env\.(?=[A-Z])")
_OVERLAP = "comm_overlap."
_PRECISION = "mixed_precision."
_STATE = {"on": True, "true": True, "off": False, "false": False}
_PHRASES = (
    (re.compile("set in comm_overlap, which wins"), "passed, which wins"),
    (re.compile(r", a2a_overlap=False"), ""),
    (re.compile(r"\ba2a_overlap=True"), "overlap_moe_expert_parallel_comm"),
    *((re.compile(rf"\b{name}_size="), f"{name.upper()}=") for name in ("tp", "cp", "pp", "dp")),
)
"""What rules say of a section that Megatron-LM does not have, and as Megatron-Bridge's recipes name
it."""


class KeyWords:
    """The words for the settings of a Megatron-Bridge run: the keys themselves."""

    def flag(self, knob: str) -> str | None:
        """The flag that sets a knob; None where none does, and for a run that takes no flags."""
        return None

    def beside(self, other: KeyWords) -> KeyWords:
        """The words for this run and another one: flags where both take them."""
        return self

    def name(self, knob: str) -> str:
        """A knob as it is shown, from its dotted name."""
        return knob

    def short(self, knob: str) -> str:
        """The name alone, where no value follows it."""
        return self.name(knob)

    def value(self, knob: str, value: Any) -> Any:
        """A knob's value beside its name."""
        return value

    def give(self, *flags: str) -> str:
        """That flags are to be given: those that are not given yet."""
        return f"give {listed(list(flags))}"

    def fact(self, text: str) -> str:
        """A sentence that states how settings are."""
        return text

    def advice(self, text: str) -> str:
        """A sentence that says what to set."""
        return text

    def decision(self, decision: Decision) -> Decision:
        """A decision with its reason and remedy in these words; its knob stays."""
        return decision


@dataclass(frozen=True)
class FlagWords(KeyWords):
    """The words for a Megatron-LM job: its flags, and the names of variables.

    What no flag sets keeps its key, with the remark that it has none.

    Attributes:
        version: of Megatron-Core; None for the newest known one.
        passed: the flags that the job is given, with dashes.
        underscores: whether the job's program spells flags with underscores.
    """

    version: str | None
    passed: frozenset[str]
    underscores: bool = False

    def flag(self, knob: str) -> str | None:
        """The flag that sets a knob, as the job spells it; None where none does."""
        flag = setting_flag(key_of_flag(knob), self.version, self.passed)
        section, _, name = knob.partition(".")
        own = f"--{name.replace('_', '-')}"
        if flag is None and section in _BY_NAME and (own in FLAGS or section == LM):
            flag = own
        return None if flag is None else self._spelt(flag)

    def beside(self, other: KeyWords) -> KeyWords:
        """As `KeyWords.beside`; a flag of either job counts as passed."""
        if not isinstance(other, FlagWords):
            return KEYS
        underscores = self.underscores and other.underscores
        return FlagWords(self.version, self.passed | other.passed, underscores)

    def name(self, knob: str) -> str:
        """The flag or the variable; a key where no flag has its value."""
        if knob.startswith(ENV):
            return knob.removeprefix(ENV)
        section, _, name = knob.partition(".")
        if section not in (*_OF_MODELS, *_BY_NAME) or not name:
            return knob
        flag, other = self.flag(knob), self._other(knob)
        if other is not None:
            return f"{knob} (set by {self._spelt(other)})"
        if flag is None:
            return f"{knob} (no flag)"
        return f"{knob} ({flag} turns it off)" if self._is_contrary(knob) else flag

    def short(self, knob: str) -> str:
        """As `name`; of a knob that another flag sets, that flag."""
        other = self._other(knob)
        if other is not None:
            return self._spelt(other)
        name = self.name(knob)
        return name if self.flag(knob) is None else name.partition(" ")[0]

    def value(self, knob: str, value: Any) -> Any:
        """The value of what `name` shows: a flag that turns a knob off is on where that is off."""
        shows_contrary = self._turns_off(knob) and not self._is_contrary(knob)
        return not value if shows_contrary and isinstance(value, bool) else value

    def give(self, *flags: str) -> str:
        """As `KeyWords.give`; all of them where none is missing."""
        missing = [flag for flag in flags if flag not in self.passed]
        return self._spelt(f"give {listed(missing or list(flags))}")

    def fact(self, text: str) -> str:
        """A sentence with flags in the place of keys, with a section or without."""
        for phrase, instead in _PHRASES:
            text = phrase.sub(instead, text)
        return self._spelt(_FACT.sub(self._stated, _ENV_NAME.sub("", text)))

    def advice(self, text: str) -> str:
        """A sentence whose settings are to be made, with the flags to pass and to omit."""
        text = in_words_of_flags(_ENV_NAME.sub("", text), self.version, self.passed)
        return self._spelt(text)

    def decision(self, decision: Decision) -> Decision:
        """A decision with its reason and remedy in these words; its knob stays."""
        remedy = decision.remedy
        keys = in_flags(decision.edits, self.version, self.passed)
        return replace(
            decision,
            reason=self.fact(decision.reason),
            remedy=remedy and self.advice(_in_place_of_keys(decision, keys)),
        )

    def spelt(self, change: FlagEdit) -> FlagEdit:
        """A change of flags, with their names as the job spells them."""
        add = tuple((self._spelt(words[0]), *words[1:]) for words in change.add)
        return FlagEdit(add, tuple(map(self._spelt, change.remove)), change.why_not)

    def _stated(self, found: re.Match[str]) -> str:
        key = found["key"]
        if "." not in key:
            key = _sections().get(key, "")
        flag = setting_flag(key_of_flag(key), self.version, self.passed) if key else None
        if flag is None or self._other(key) is not None:
            return found[0]
        is_switch = FLAGS[flag].kind in ("on", "off")
        if found["is"] is None or not is_switch:
            return found[0] if self._turns_off(key) else f"{flag}{' ' if found['has'] else ''}"
        state = _STATE[found["value"].lower()]
        if self._turns_off(key):
            if state is (flag in self.passed):
                return found[0]
            return f"{flag} is {'not passed' if state else 'passed'}"
        return f"{flag} is {'on' if state else 'off'}"

    def _turns_off(self, knob: str) -> bool:
        flag = setting_flag(key_of_flag(knob), self.version, self.passed)
        return flag is not None and FLAGS[flag].kind == "off"

    def _is_contrary(self, knob: str) -> bool:
        """Whether only a flag that is not passed would turn it off: it cannot stand for it."""
        flag = setting_flag(key_of_flag(knob), self.version, self.passed)
        return self._turns_off(knob) and flag not in self.passed

    def _other(self, knob: str) -> str | None:
        """Another flag that is passed and sets the knob by a value of its own."""
        own = setting_flag(key_of_flag(knob), self.version, self.passed)
        if own in self.passed:
            return None
        return next((f for f in also_set_by(key_of_flag(knob)) if f in self.passed), None)

    def _spelt(self, text: str) -> str:
        """A text whose flags of Megatron-LM are spelt as the job spells them."""
        return _FLAG.sub(lambda found: _underscored(found[0]), text) if self.underscores else text


KEYS = KeyWords()
"""The words of every run that takes no flags."""


def words_of(settings: Settings) -> KeyWords:
    """The words for the settings of a run."""
    launch = settings.launch
    if settings.framework != "megatron-lm" or launch is None:
        return KEYS
    flat = settings.flat()
    passed = (flag for flag in launch.passed if not _is_turned(flag, flat))
    return FlagWords(settings.stack.core, frozenset(passed), launch.underscores)


def _is_turned(flag: str, flat: Mapping[str, Any]) -> bool:
    """Whether a switch has the value that it has where it is not passed: ``--flag false``."""
    declared = FLAGS.get(flag)
    if declared is None or declared.kind not in ("on", "off"):
        return False
    return any(flat.get(key) is (declared.kind == "off") for key in declared.keys)


def key_of_flag(key: str) -> str:
    """The key that a flag sets, for one of a section that Megatron-LM does not have."""
    section, _, name = key.partition(".")
    if f"{section}." not in (_OVERLAP, _PRECISION):
        return key
    return _sections().get(name, key)


def flags_for(settings: Iterable[tuple[str, Any]], version: str | None = None) -> FlagEdit:
    """Keys and values as one change of flags, as far as flags can say them."""
    edits = [Edit(key_of_flag(key), value) for key, value in settings]
    return flag_edits([edit for edit in edits if not flag_edit(edit, version).why_not], version)


def in_words_of_flags(
    text: str, version: str | None = None, passed: Container[str] | None = None
) -> str:
    """A sentence with flags for the keys in it; a key that no flag sets stays.

    Args:
        text: the sentence, with keys as ``model.name`` and ``model.name=value``.
        version: of Megatron-Core; the newest known one by default.
        passed: the flags that the job is given, so that no other is to be omitted.
    """

    def flags(found: re.Match[str]) -> str:
        key, verb = key_of_flag(found["key"]), found["verb"] or ""
        if found["value"] is None:
            name = setting_flag(key, version, passed or ())
            contrary = name is not None and FLAGS[name].kind == "off"
            return found[0] if name is None or contrary else f"{verb and 'pass '}{name}"
        return in_flags([Edit(key, _value(found["value"]))], version, passed) or found[0]

    return _KEY.sub(flags, text)


def _in_place_of_keys(decision: Decision, flags: str) -> str:
    """A remedy with the flags of its changes, where it still begins with their keys."""
    remedy, keys = decision.remedy or "", in_words(decision.edits)
    # What no flag can set stays named by its key.
    return flags + remedy[len(keys) :] if keys and flags and remedy.startswith(keys) else remedy


@cache
def _sections() -> dict[str, str]:
    """Each key that a flag sets, by its name without the section; names of one word are no keys."""
    every = (key for flag in FLAGS.values() for key in flag.keys if not key.startswith(f"{LM}."))
    found: dict[str, str] = {}
    for key in every:
        name = key.partition(".")[2]
        if "_" in name:
            found.setdefault(name, key)
    return found


def _underscored(flag: str) -> str:
    known = flag in FLAGS or versions_of(flag) is not None
    return f"--{flag.removeprefix('--').replace('-', '_')}" if known else flag


def _value(text: str) -> Any:
    """A value as an override has it."""
    words = {"true": True, "false": False, "null": None}
    if text in words:
        return words[text]
    return int(text) if re.fullmatch(r"\d{1,18}", text) else text
