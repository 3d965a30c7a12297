"""A remedy's changes of settings as changes of Megatron-LM's flags.

The reverse of `flags`: from a dotted key and its value to the flags that set it, as far as the
version of Megatron-LM has them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.training.edits import ENV, Edit, Removed, listed
from megatron.bridge.training.versions import MAIN
from overlapkit.config.megatron_lm.flag_versions import versions_of
from overlapkit.config.megatron_lm.flags import (
    CHUNK_LAYERS,
    CHUNKS,
    DEFAULTS,
    FLAGS,
    LM,
    SWITCHED,
    known_flag,
)
from overlapkit.config.schema import section_fields

_VPP = "model.virtual_pipeline_model_parallel_size"
_ALSO_SET_BY = {
    _VPP: (CHUNK_LAYERS,),
    "model.recompute_granularity": ("--recompute-activations",),
    "model.cuda_graph_impl": ("--enable-cuda-graph", "--external-cuda-graph"),
    "model.position_embedding_type": ("--use-rotary-position-embeddings",),
    "ddp.grad_reduce_in_fp32": ("--grad-reduce-in-bf16",),
}
"""By a key: flags of other keys, or of none, that set it too."""
_OPPOSITE = {"ddp.grad_reduce_in_fp32": "--grad-reduce-in-bf16"}
"""By a key that a flag turns on: the flag that turns it off, where its default may be on."""
_CONTRARY = {"model.batch_p2p_comm": "model.overlap_p2p_comm"}
"""By a switch without a flag: the one that Megatron-LM makes it the contrary of."""
_EXCLUDE = {"--bf16": "--fp16", "--fp16": "--bf16", CHUNK_LAYERS: CHUNKS}
_TOGETHER = {"model.num_query_groups": ("--group-query-attention",)}
"""By a key: what is to be passed with the flag, which has no effect without it."""


@dataclass(frozen=True)
class FlagEdit:
    """What to change on a command line.

    Attributes:
        add: each flag to pass with the words after it. Where the flag is given already, these are
            its new words.
        remove: the flags to omit wherever they are given, with their words.
        why_not: why no flag says this; empty where the change can be made.
    """

    add: tuple[tuple[str, ...], ...] = ()
    remove: tuple[str, ...] = ()
    why_not: str = ""

    def __str__(self) -> str:
        """As a remedy says it: "pass --a and --b 2, and omit --c"."""
        parts = [
            f"{verb} {listed(names)}"
            for verb, names in (
                ("pass", [" ".join(words) for words in self.add]),
                ("omit", list(self.remove)),
            )
            if names
        ]
        return ", and ".join(parts)


def setting_flag(key: str, version: str | None = None, passed: Container[str] = ()) -> str | None:
    """The flag that sets a key: one that is passed, else one that the version has, else any.

    Returns:
        The flag; None where none sets the key.
    """
    setting = [flag for flag, declared in FLAGS.items() if key in declared.keys]
    given = [flag for flag in setting if flag in passed]
    has = [flag for flag in setting if _has(version or MAIN, flag)]
    return next(iter((*given, *has, *setting)), None)


def also_set_by(key: str) -> tuple[str, ...]:
    """Flags of other keys, or of none, that set a key too."""
    return _ALSO_SET_BY.get(key, ())


def flag_edit(edit: Edit, version: str | None = None) -> FlagEdit:
    """One change of a setting as flags.

    Args:
        edit: with the key of a configuration, or ``megatron_lm.NAME`` of any flag's name.
        version: of Megatron-Core; the newest known one by default. Flags that it lacks are removed,
            never added.
    """
    version = version or MAIN
    if edit.key in _CONTRARY and isinstance(edit.value, bool):
        edit = Edit(_CONTRARY[edit.key], not edit.value)
    section, _, name = edit.key.partition(".")
    if edit.key.startswith(ENV):
        return FlagEdit(why_not=f"{name} is a variable of the job's environment, not a flag")
    setting = [flag for flag, declared in FLAGS.items() if edit.key in declared.keys]
    if not setting:
        return _by_name(edit, name, version) if section == LM else _no_flag(edit, "any version")
    every = tuple(dict.fromkeys((*setting, *_ALSO_SET_BY.get(edit.key, ()))))
    has = [flag for flag in setting if _has(version, flag)]
    opposite = _OPPOSITE.get(edit.key)
    if edit.value is False and opposite is not None:
        return _passed(opposite, (), every)
    if _leaves_default(edit):
        return FlagEdit(remove=every)
    for flag in has:
        words = _words(flag, edit.value)
        if words is not None:
            together = ((each,) for each in _TOGETHER.get(edit.key, ()))
            return _passed(flag, words, every, together)
    if not has:
        return _no_flag(edit, f"Megatron-LM {version}")
    return FlagEdit(why_not=f"{' and '.join(has)} cannot set {edit.key} to {edit.value!r}")


def flag_edits(edits: Iterable[Edit], version: str | None = None) -> FlagEdit:
    """The changes of several settings as one change of flags.

    Where two exclude each other, the later one stays. What cannot be expressed is in `why_not`;
    nothing is to be changed then, since a part of a remedy is none.
    """
    changes = [flag_edit(edit, version) for edit in edits]
    why_not = "; ".join(dict.fromkeys(c.why_not for c in changes if c.why_not))
    if why_not:
        return FlagEdit(why_not=why_not)
    add: dict[str, tuple[str, ...]] = {}
    remove: dict[str, None] = {}
    for change in changes:
        for flag in change.remove:
            add.pop(flag, None)
            remove[flag] = None
        for words in change.add:
            remove.pop(words[0], None)
            add[words[0]] = words
    return FlagEdit(tuple(add.values()), tuple(remove))


def make(change: FlagEdit, arguments: Sequence[str]) -> list[str]:
    """A command line's arguments with a change of flags; the rest stays, in its order.

    Args:
        change: one that can be made.
        arguments: the flags with their words, with or without a launch line before them.
    """
    new = {words[0]: words for words in change.add}
    made: list[str] = []
    used = set()
    for flag, words in _grouped(arguments):
        name = dashed(flag)
        if name not in new and name not in change.remove:
            made += [flag, *words]
            continue
        own = words_of(flag, words)
        if name in new and name not in used:
            used.add(name)
            made += _spelt_as(flag, new[name])
        made += words[own:]
    return made + [word for name, words in new.items() if name not in used for word in words]


def dashed(argument: str) -> str:
    """The name of a flag as Megatron-LM has it, from ``--flag``, ``--flag=value`` or
    ``--fl_ag``."""
    name = argument.partition("=")[0]
    return known_flag(name) or (name.replace("_", "-") if versions_of(name) else name)


def words_of(flag: str, following: Sequence[str]) -> int:
    """How many of the words that follow a flag are its own.

    Args:
        flag: as it is given, with ``=value`` where the value follows so.
        following: the words up to the next flag.
    """
    name, inline, _ = flag.partition("=")
    if inline or not following:
        return 0
    known = versions_of(name)
    declared = FLAGS.get(dashed(flag))
    switch = declared.kind in ("on", "off") if declared is not None else None
    if switch or (switch is None and known is not None and known.is_switch):
        # Some forks spell flags with underscores, and switches take true or false there.
        return int(name != dashed(name) and following[0].lower() in SWITCHED)
    if declared is not None and declared.kind != "names":
        return 1
    most = int(known.words) if known is not None and known.words.isdecimal() else len(following)
    return min(most, len(following))


def in_flags(
    edits: Iterable[Edit], version: str | None = None, passed: Container[str] | None = None
) -> str:
    """Changes as a remedy for a Megatron-LM job says them; variables are exported.

    Args:
        edits: the changes.
        version: as for `flag_edit`.
        passed: the flags that the job is given, so that no other is to be omitted, and no switch
            is to be passed again; by default every flag is said.

    Returns:
        One clause; empty where a change cannot be expressed.
    """
    edits = list(edits)
    variables = [edit for edit in edits if edit.key.startswith(ENV)]
    flags = flag_edits([edit for edit in edits if edit not in variables], version)
    if flags.why_not:
        return ""
    if passed is not None:
        flags = replace(
            flags,
            add=tuple(each for each in flags.add if len(each) > 1 or each[0] not in passed),
            remove=tuple(flag for flag in flags.remove if flag in passed),
        )
    exported = [str(e).removeprefix(ENV) for e in variables if not isinstance(e.value, Removed)]
    unset = [e.key.removeprefix(ENV) for e in variables if isinstance(e.value, Removed)]
    clauses = [str(flags)]
    clauses += [f"{verb} {listed(n)}" for verb, n in (("export", exported), ("unset", unset)) if n]
    return ", and ".join(filter(None, clauses))


def _leaves_default(edit: Edit) -> bool:
    """Whether no flag at all gives this value."""
    if isinstance(edit.value, Removed):
        return True
    default = _default(edit.key)
    if isinstance(edit.value, bool):
        return edit.value is bool(default)
    return edit.value in (None, []) and not default


def _default(key: str) -> Any:
    """Megatron-LM's value of a key without any flag."""
    section, _, name = key.partition(".")
    if key in DEFAULTS:
        return DEFAULTS[key]
    known = section_fields(section).get(name)
    return known.default if known is not None else None


def _words(flag: str, value: Any) -> tuple[str, ...] | None:
    """The words after a flag that sets a value; None where it cannot."""
    kind = FLAGS[flag].kind
    if kind in ("on", "off"):
        return () if value is (kind == "on") else None
    if kind == "given" or value is None or isinstance(value, bool):
        return None
    if kind == "names":
        words = tuple(map(str, value)) if isinstance(value, (list, tuple)) else (str(value),)
        return words or None
    if kind == "freq" and isinstance(value, (list, tuple)):
        return (f"[{','.join(map(str, value))}]",)
    if kind == "str" and isinstance(value, (dict, list, tuple)):
        return None
    return (str(value),)


def _passed(
    flag: str,
    words: tuple[str, ...],
    every: Iterable[str],
    together: Iterable[tuple[str, ...]] = (),
) -> FlagEdit:
    others = [name for name in (*every, *filter(None, [_EXCLUDE.get(flag)])) if name != flag]
    return FlagEdit(((flag, *words), *together), tuple(others))


def _by_name(edit: Edit, name: str, version: str) -> FlagEdit:
    """A flag that no setting is read from, by its own name."""
    flag = f"--{name.replace('_', '-')}"
    known = versions_of(flag)
    if isinstance(edit.value, Removed) or edit.value is False:
        return FlagEdit(remove=(flag,))
    if known is None or not known.versions.contains(version):
        return _no_flag(edit, "any version" if known is None else f"Megatron-LM {version}")
    if edit.value is True and known.is_switch:
        return _passed(flag, (), ())
    if known.is_switch or edit.value in (None, True):
        return FlagEdit(why_not=f"{flag} cannot have the value {edit.value!r}")
    words = edit.value if isinstance(edit.value, (list, tuple)) else [edit.value]
    return _passed(flag, tuple(map(str, words)), ())


def _no_flag(edit: Edit, where: str) -> FlagEdit:
    return FlagEdit(why_not=f"no flag of {where} sets {edit.key}")


def _has(version: str, flag: str) -> bool:
    known = versions_of(flag)
    return known is None or known.versions.contains(version)


def _spelt_as(given: str, words: Sequence[str]) -> list[str]:
    """New words in the form in which the flag was given."""
    name, inline, _ = given.partition("=")
    if inline and len(words) == 2:
        return [f"{name}={words[1]}"]
    return [name, *words[1:]]


def _grouped(arguments: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the words up to the next one; first the words before any flag."""
    flag, following = "", list[str]()
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            yield from [(flag, following)] if flag else []
            if not flag and following:
                yield following[0], following[1:]
            flag, following = word, []
        else:
            following.append(word)
    if flag:
        yield flag, following
    elif following:
        yield following[0], following[1:]
