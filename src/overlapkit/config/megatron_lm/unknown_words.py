"""Words of a job's arguments that are not known, and may be any flags."""

from __future__ import annotations

from overlapkit.config.gaps import Gap
from overlapkit.config.shell.state import ARGUMENTS
from overlapkit.config.shell.values import Unknown


def taken_as_none(unknown: Unknown, where: str) -> tuple[str, Gap]:
    """A note that words are taken as none, and what they may add all the same.

    Args:
        unknown: why they are not known.
        where: their place.
    """
    if unknown.name == ARGUMENTS:
        what = "the script's own arguments"
        text = f'{what} ("$@") are not given: taken as none'
        remedy = "give them as 1=value 2=value, and 1= where it has none"
    elif unknown.name is not None:
        name = unknown.name
        what = f"argument {name}" if name.isdecimal() else name
        text = f"{what} has no known value ({unknown.why}): taken as empty"
        remedy = f"give {name}=value, and {name}= where it is empty"
    else:
        what = "a part of the arguments"
        text = f"{what} has no known value ({unknown.why}): taken as empty"
        remedy = "write its value in its place"
    return f"{where}: {text}", Gap(where, what, remedy, frozenset(), None)
