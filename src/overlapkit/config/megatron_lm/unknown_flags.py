"""Flags that no known version of Megatron-LM has: forks' own, misspelt ones, files of more."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence

from megatron.bridge.training.near_names import nearest, typo_of
from overlapkit.config.launchers.forks import is_of_a_fork
from overlapkit.config.megatron_lm.flag_versions import versions_of
from overlapkit.config.megatron_lm.flags import FLAGS, known_flag
from overlapkit.config.shell.values import Field
from overlapkit.errors import DoesNotStart, InputError

_DECIDES = re.compile(
    r"overlap|parallel|tp-comm|p2p|wgrad|bucket|distributed|gather|reduce|batch-size"
)
"""What is in the name of a flag that decides on overlap, or on the ranks that it is between."""

_MAY_MATTER = re.compile(
    _DECIDES.pattern + r"|comm|async|pipe|stage|stream|fsdp|zero|shard|ddp|expert|moe|schedul|"
    r"recompute|activation|offload|swap|fp8|bf16|fp16|mesh|ring|ulysses|nccl|hccl|"
    r"\b(tp|pp|cp|ep|dp|sp|vpp)\b|num-layers|hidden-size|heads|graph"
)
"""What is in the name of a flag that may have to do with overlap, layout or the model's size."""

_FILE_FLAG = re.compile(
    r"--(?:(?:train|training|megatron|experiment|exp|run|job|launch)[-_])?(?:yaml[-_])?"
    r"(?:config|cfg|conf|args|arguments)(?:[-_](?:file|path|yaml))?"
)
_FILE = re.compile(r".*\.(?:ya?ml|json|toml|txt|args|cfg|conf|ini|flags)")
_SIMILAR = 0.86
_SHORTEST_BEGINNING = 10
_MOST_NAMED = 8


def misspelt(argument: str) -> str | None:
    """The flag that decides on overlap and that an unknown flag was certainly meant to be."""
    name = argument.partition("=")[0]
    if known_flag(name) is not None or versions_of(name) is not None or is_of_a_fork(name):
        return None
    return typo_of(name.replace("_", "-"), [flag for flag in FLAGS if _DECIDES.search(flag)])


def abbreviated(argument: str) -> str | None:
    """The flag that decides on overlap and that an unknown flag is the beginning of.

    A beginning that ends with a whole word may be a fork's own flag, unless only "size" is missing.
    """
    name = argument.partition("=")[0].replace("_", "-")
    if len(name) < _SHORTEST_BEGINNING or is_of_a_fork(name):
        return None
    begun = [flag for flag in FLAGS if _DECIDES.search(flag) and flag.startswith(name)]
    if begun and all(flag[len(name) : len(name) + 1] not in ("-", "") for flag in begun):
        return min(begun, key=len)
    size = f"{name}-size"
    return size if size in begun else None


def similar(argument: str) -> str | None:
    """The flag of the table that an unknown flag resembles; it may be another one all the same."""
    return nearest(argument.partition("=")[0], FLAGS, cutoff=_SIMILAR, shortest_prefix=9)


def _may_matter(name: str) -> bool:
    """Whether an unknown flag may have to do with overlap, or with what decides on it."""
    return _MAY_MATTER.search(name.replace("_", "-")) is not None


def refuse_misspelt(name: str, beside: Container[str], where: str) -> None:
    """Refuse a flag that is certainly meant to be one that decides on overlap.

    Args:
        name: the flag.
        beside: the known flags of the same arguments. A flag that is near one of them is another
            flag, as forks have: its right spelling is there too.
        where: its place.

    Raises:
        InputError: with the flag that was meant, and the way on.
    """
    meant = misspelt(name)
    if meant is not None and meant not in beside:
        raise DoesNotStart(
            f"{where}: {name}: unknown flag; did you mean {_spelt(meant, name)}? If it is right, "
            "as a fork's flag may be, add --allow-unknown"
        )
    whole = abbreviated(name)
    if whole is not None:
        raise DoesNotStart(
            f"{where}: {name}: Megatron-LM's parser takes no abbreviated flags; write "
            f"{_spelt(whole, name)}. If it is right, as a fork's flag may be, add --allow-unknown"
        )


def _spelt(flag: str, like: str) -> str:
    """A flag with underscores where the user's flag has them."""
    return "--" + flag[2:].replace("-", "_") if "_" in like else flag


def refuse_file(argument: str, following: Sequence[Field], where: str) -> None:
    """Refuse a file that brings more arguments: no flag is certainly absent beside it.

    Args:
        argument: an unknown flag, as ``--flag`` or ``--flag=value``.
        following: the words after it.
        where: its place.

    Raises:
        InputError: it names such a file.
    """
    name, is_set, value = argument.partition("=")
    first = value if is_set else following[0].text if following else ""
    given = [first] if _FILE_FLAG.fullmatch(name) else []
    files = [text for text in given if _FILE.fullmatch(text)]
    files += [
        word.text for word in following if word.text[:1] == "@" and _FILE.fullmatch(word.text)
    ]
    if files:
        shown = files[0] if files[0].startswith("@") else f"{name} {files[0]}"
        raise InputError(
            f"{where}: {shown[:80]}: the program takes more arguments from that file, which is not "
            "read; give those that decide on overlap as flags, and add --allow-unknown to be "
            "answered for the flags alone"
        )


def note_on(unknown: Mapping[str, str | None], path: str) -> str | None:
    """A note on flags that no known version has; None where there are none.

    Those whose names speak of overlap come first: only a few are listed.

    Args:
        unknown: the flags, each with what it resembles, if anything.
        path: the script.
    """
    if not unknown:
        return None
    named = [
        f"{name[:60]} (not read as {near})" if near else name[:60]
        for name, near in sorted(unknown.items(), key=lambda item: not _may_matter(item[0]))[
            :_MOST_NAMED
        ]
    ]
    more = len(unknown) - len(named)
    return (
        f"{path}: not looked at, because Megatron-LM has no such flags in any version that is "
        f"known here: {', '.join(named)}{f' and {more} more' if more else ''}"
    )
