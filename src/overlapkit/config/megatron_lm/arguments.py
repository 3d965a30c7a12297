"""From the arguments of a Megatron-LM job to the settings that they mean."""

from __future__ import annotations

import re
import shlex
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from megatron.bridge.training.megatron_lm_rules import PassedFlag
from overlapkit.config.gaps import Gap
from overlapkit.config.launchers.forks import FORMER
from overlapkit.config.megatron_lm.dependent_flags import settle
from overlapkit.config.megatron_lm.dialect import MEGATRON_LM, Dialect
from overlapkit.config.megatron_lm.flag_versions import versions_of, versions_of_value
from overlapkit.config.megatron_lm.flags import (
    FLAGS,
    LM,
    MATTERS_LITTLE,
    SWITCHED,
    flag_value,
    known_flag,
)
from overlapkit.config.megatron_lm.unknown_flags import (
    note_on,
    refuse_file,
    refuse_misspelt,
    similar,
)
from overlapkit.config.megatron_lm.unknown_words import taken_as_none
from overlapkit.config.places import Place, word_place
from overlapkit.config.shell.values import Field, Unknown
from overlapkit.errors import InputError

MOST_FLAGS = 2000
"""Megatron-LM has some nine hundred."""
_MOST_CHOICES = 8
_LIST = re.compile(r"(?i)(?:args?|arguments|opts?|options|flags|params)$")
"""Names of variables that hold arguments."""


@dataclass
class Arguments:
    """What a job's arguments set.

    Attributes:
        values: dotted key to requested value.
        defaults: dotted key to a value that is Megatron-LM's default or follows from other flags.
        where: dotted key to the place of the flag that set it.
        flags: every known flag that is given, to its value.
        places: every flag of Megatron-LM that is given, to its place.
        versions: the flags, and words after them, that some versions of Megatron-LM lack.
        unknown: the flags that no known version has, each with what it resembles, if anything.
        underscored: the flags that are spelt with underscores, to those that they are.
        dashes: by how many more names of several words are spelt with dashes than with underscores.
        own: the flags of the program that passes the others on to Megatron-LM.
        former: the flags that only Megatron-LM 1 takes.
        others: the flags that no setting holds, each with its words as a shell reads them.
        notes: further remarks for the user.
        dialect: whose flags they are.
        gaps: what may add flags to these.
        allow_unknown: whether what is not known is passed over with a note.
        whole: whether the job has no other arguments; not so of a file that another one reads.
    """

    values: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    where: dict[str, Place] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    versions: list[PassedFlag] = field(default_factory=list)
    unknown: dict[str, str | None] = field(default_factory=dict)
    dashes: int = 0
    own: list[str] = field(default_factory=list)
    underscored: dict[str, str] = field(default_factory=dict)
    former: list[str] = field(default_factory=list)
    others: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dialect: Dialect = MEGATRON_LM
    gaps: list[Gap] = field(default_factory=list)
    allow_unknown: bool = False
    whole: bool = True


class UnknownValue(InputError):
    """A value that matters is not known from the script alone.

    Attributes:
        fact: what is not known, where, and why.
        variable: the variable that it comes from; None where it comes from none.
    """

    def __init__(self, fact: str, variable: str | None, choices: Sequence[str] = ()) -> None:
        self.fact = fact
        self.variable = variable
        value = values_of(choices)
        remedy = "write the value in its place, or set a variable from it and give that as"
        super().__init__(
            f"{fact}; {remedy} NAME=value"
            if variable is None
            else f"{fact}; give it as {variable}={value}"
        )

    def among(self, choices: Sequence[str]) -> UnknownValue:
        """The same with the values that the script knows of its variable."""
        return UnknownValue(self.fact, self.variable, choices) if choices else self


def values_of(choices: Sequence[str]) -> str:
    """What to give: the values that are known, as "7B, 13B or 70B"; "value" without any."""
    shown = [shlex.quote(each[:40]) for each in choices[:_MOST_CHOICES]]
    more = len(choices) - len(shown)
    if more:
        shown.append(f"{more} more that it names")
    return " or ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:]))) or "value"


def ask_for(unknown: Unknown, what: str, where: str) -> UnknownValue:
    """The error that asks for a value that a script does not state."""
    if unknown.name is None:
        return UnknownValue(f"{where}: {what} has no known value: {unknown.why}", None)
    return UnknownValue(
        f"{where}: {what} takes its value from {unknown.name}, which is not known: {unknown.why}",
        unknown.name,
    )


def read_arguments(
    fields: Sequence[Field],
    path: str,
    lines: Sequence[str] | None = None,
    *,
    allow_unknown: bool = False,
    whole: bool = True,
    dialect: Dialect = MEGATRON_LM,
) -> Arguments:
    """The settings in a job's arguments. Of a flag that is given twice, the last one is used.

    Args:
        fields: the arguments after the name of the training script.
        path: the file that they are in, for messages; line numbers come from the fields.
        lines: its lines; None for arguments that are in no file.
        allow_unknown: whether a flag that looks like a misspelt one is passed over.
        whole: whether the job has no other arguments.
        dialect: whose flags they are.

    Raises:
        InputError: a flag is misspelt, has no value, one of the wrong kind or one that is not
            known, or flags exclude each other.
    """
    result = Arguments(allow_unknown=allow_unknown, whole=whole, dialect=dialect)
    grouped = list(_grouped(fields))
    beside = {known_flag(each.text) or "" for each, _ in grouped}
    if len(grouped) > MOST_FLAGS:
        raise InputError(
            f"{path}: starts a program with more than {MOST_FLAGS} flags; is it Megatron-LM?"
        )
    first = next((n for n, each in enumerate(fields) if _is_flag(each)), len(fields))
    _note_strays("the script", [each for each in fields[:first] if each.unknown], path, result)
    for flag_field, following in grouped:
        where = place(path, flag_field)
        text = flag_field.text
        if text.partition("=")[0] == "--yaml-cfg":
            raise InputError(
                f"{where}: --yaml-cfg: Megatron-LM then takes its settings from that YAML file, "
                "which is not read here; give the settings as flags"
            )
        name = text.partition("=")[0].removeprefix("--")
        result.dashes += ("-" in name) - ("_" in name)
        former = FORMER.get(text.partition("=")[0].replace("_", "-"))
        flag = known_flag(text) if former is None else former
        if former is not None:
            _note_former(text.partition("=")[0], former, where, result)
        if flag is not None:
            if former is None:
                if text.partition("=")[0] != flag and not dialect.either_spelling:
                    result.underscored.setdefault(text.partition("=")[0], flag)
                _note_versions(flag, where, result)
            at = _flag_place(flag_field, path, lines)
            _read_flag(flag, flag_field, following, at, path, result)
        elif (known := versions_of(text.partition("=")[0])) is not None:
            dashed = text.partition("=")[0].replace("_", "-")
            _note_versions(dashed, where, result)
            result.places[dashed] = _flag_place(flag_field, path, lines)
            most = int(known.words) if known.words.isdecimal() else len(following)
            _note_strays(
                text.partition("=")[0], following[0 if "=" in text else most :], path, result
            )
            taken = [] if "=" in text else following[:most]
            result.others.append(_as_written([flag_field, *taken]))
        else:
            _pass_over(text, following, beside, where, result)
            # How many words such a flag takes is not known.
            _note_strays(text, [each for each in following if _is_list(each)], path, result)
            result.others.append(_as_written([flag_field, *following]))
    result.versions = [
        replace(each, value=result.flags.get(each.text.split()[0])) for each in result.versions
    ]
    _note_spelling(path, result)
    note = note_on(result.unknown, path)
    result.notes += [note] if note is not None else []
    settle(result)
    return result


def _as_written(words: Sequence[Field]) -> tuple[str, ...]:
    """Words as a shell reads them; one with no known value is the variable that it comes from."""
    return tuple(
        f'"${{{unknown.name or "VALUE"}:?}}"'
        if (unknown := word.unknown) is not None
        else shlex.quote(word.text)
        for word in words
    )


def _note_spelling(path: str, result: Arguments) -> None:
    """One note on all flags with underscores: forks that spell them so have the same flags."""
    if not result.underscored:
        return
    name, flag = next(iter(result.underscored.items()))
    more = len(result.underscored) - 1
    others = f", and so {'are' if more > 1 else 'is'} {more} more" if more else ""
    result.notes.append(
        f"{path}: {name} is read as {flag}{others}: some forks spell flags with underscores, and "
        "Megatron-LM itself does not know them so"
    )


def _note_versions(flag: str, where: str, result: Arguments) -> None:
    """Keep a flag that some versions lack, for the rule about that."""
    known = versions_of(flag)
    if known is not None and (known.versions.since or known.versions.until):
        result.versions.append(PassedFlag(flag, _knob(flag), known.versions, where))


def _knob(flag: str) -> str:
    """The dotted key that stands for a flag in decisions."""
    declared = FLAGS.get(flag)
    if declared is not None and declared.keys:
        return declared.keys[0]
    return f"{LM}.{flag.removeprefix('--').replace('-', '_')}"


def _note_former(name: str, flag: str, where: str, result: Arguments) -> None:
    """Megatron-LM 1 has other names for two flags."""
    result.former.append(name)
    result.notes.append(
        f"{where}: {name} is read as {flag}: Megatron-LM 1 calls it so, and later versions stop "
        "at it"
    )


def _pass_over(
    text: str, following: Sequence[Field], beside: Container[str], where: str, result: Arguments
) -> None:
    """A flag that no known version has: a fork's, or misspelt. `beside` are the known flags.

    Raises:
        InputError: it is certainly a misspelt flag that decides on overlap, or it names a file of
            more arguments, and that is not allowed.
    """
    name = text.partition("=")[0]
    if result.dialect.own(name):
        result.own.append(name)
        return
    if not result.allow_unknown:
        refuse_misspelt(name, beside, where)
        refuse_file(text, following, where)
    result.unknown[name] = similar(name)


def place(path: str, at: Field, line: int = 0) -> str:
    """``file:line`` of a word."""
    path = at.file or path
    return f"{path}:{at.line or line}" if at.line or line else path


def _flag_place(flag: Field, path: str, lines: Sequence[str] | None) -> Place:
    name = flag.text.partition("=")[0]
    if lines is None:
        return Place(None, argument=name)
    if flag.file:
        return Place(flag.file, flag.line)
    return word_place(path, lines, flag.line, name)


def _is_flag(word: Field) -> bool:
    return word.text.startswith("--") and len(word.text) > 2


def _grouped(fields: Sequence[Field]) -> Iterator[tuple[Field, list[Field]]]:
    """Each flag with the words after it, up to the next flag."""
    flag: Field | None = None
    following: list[Field] = []
    for each in fields:
        if _is_flag(each):
            if flag is not None:
                yield flag, following
            flag, following = each, []
        else:
            following.append(each)
    if flag is not None:
        yield flag, following


def _read_flag(
    flag: str, at: Field, following: list[Field], its: Place, path: str, result: Arguments
) -> None:
    declared = FLAGS[flag]
    where = place(path, at)
    name, is_set, inline = at.text.partition("=")
    is_switch = declared.kind in ("on", "off")
    if is_set and not is_switch:
        taken, rest, words = [Field(tuple(at.pieces))], following, [inline]
    else:
        most = 0 if is_switch else len(following) if declared.kind in ("names", "given") else 1
        taken, rest = following[:most], following[most:]
        words = [f.text for f in taken]
    if is_switch and (name != flag or result.dialect.either_spelling):
        value, rest = _switch_of_fork(declared.kind, inline if is_set else None, following)
    elif not _are_known(taken, flag, where, result):
        return
    else:
        if is_switch:
            words = ["true"] if is_set else [f.text for f in following[:1]]
        value = flag_value(flag, words, where)
    _note_strays(flag, rest, path, result)
    if isinstance(value, str) and (accepted := versions_of_value(flag, value)) is not None:
        result.versions.append(PassedFlag(f"{flag} {value}", _knob(flag), accepted, where))
    if flag in result.flags and result.flags[flag] != value:
        result.notes.append(f"{where}: {flag} is given again; this last one is used")
    result.flags[flag] = value
    result.places[flag] = its
    for key in declared.keys:
        result.values[key] = value
        result.where[key] = its


def _are_known(taken: Sequence[Field], flag: str, where: str, result: Arguments) -> bool:
    """Whether the words of a flag are known; if not, a note where that matters little.

    Raises:
        UnknownValue: it matters.
    """
    unknown = next((each.unknown for each in taken if each.unknown is not None), None)
    if unknown is None or FLAGS[flag].kind == "given":
        return True
    if flag not in MATTERS_LITTLE:
        raise ask_for(unknown, flag, where)
    result.notes.append(f"{where}: {flag} has no known value ({unknown.why}): taken as not given")
    return False


def _switch_of_fork(
    kind: str, inline: str | None, following: list[Field]
) -> tuple[bool, list[Field]]:
    """What a fork's switch sets, which true or false may follow, and the words after that."""
    word = following[0].text if inline is None and following else inline or ""
    switched = SWITCHED.get(word.lower())
    rest = following[1:] if inline is None and switched is not None else following
    return (kind == "on") == (switched is not False), rest


def _note_strays(flag: str, rest: Sequence[Field], path: str, result: Arguments) -> None:
    """Words after a flag that it does not take.

    Raises:
        UnknownValue: one of them is not known, and may be flags.
    """
    for stray in rest:
        unknown = stray.unknown
        if unknown is not None and _may_be_flags(stray) and not result.allow_unknown:
            # It may bring any flag, so that no flag is certainly absent.
            raise ask_for(unknown, "a part of the arguments", place(path, stray))
        if unknown is not None and not stray.text:
            note, gap = taken_as_none(unknown, place(path, stray))
            result.notes.append(note)
            result.gaps.append(gap)
        elif stray.text:
            text = f"{stray.text[:40]!r} after {flag} is not an argument of Megatron-LM"
            result.notes.append(f"{place(path, stray)}: {text}")


def _may_be_flags(word: Field) -> bool:
    """Whether a word's unknown part may be flags: it begins with that."""
    unknown = word.first.unknown if word.first is not None else None
    return unknown is not None and not unknown.unset


def _is_list(word: Field) -> bool:
    """Whether a word's unknown part is a list of arguments, and no value of one."""
    unknown = word.first.unknown if word.first is not None else None
    if unknown is None:
        return False
    return unknown.several or _LIST.search(unknown.name or "") is not None
