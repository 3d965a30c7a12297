"""What a user says of communication that the names in a profile do not tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from overlapkit.errors import InputError
from overlapkit.trace.read.device_work import COMMUNICATION, DIMENSIONS
from overlapkit.trace.read.kernel_names import OPERATIONS, EventClass, classify, operation
from overlapkit.trace.read.recorded import Call

COMMUNICATOR = "communicator "
"""What stands before the id in the name of a communicator of NCCL, which has no other name."""

_SIZE = re.compile(r"size:(\d{1,9})", re.IGNORECASE)
_KERNELS = re.compile(r"(?P<regex>.+)=(?P<operation>[A-Za-z_]+)(?::(?P<dimension>\w+))?")


@dataclass(frozen=True)
class Kernels:
    """Kernels that are communication.

    Attributes:
        text: as the user wrote it.
        regex: what is found in their names.
        operation: what they do; None where their names say.
        dimension: the dimension that they belong to; None where it is not stated.
    """

    text: str
    regex: re.Pattern[str]
    operation: str | None = None
    dimension: str | None = None

    def event(self, name: str) -> EventClass:
        """What a kernel of this name is."""
        found = self.operation or operation(name)
        return EventClass(COMMUNICATION, "stated", found, self.dimension)


@dataclass(frozen=True)
class NamedGroup:
    """Process groups that belong to a dimension.

    Attributes:
        text: as the user wrote it.
        name: their description or name, in lower case; "" where they are told by their size. The
            name of a communicator of NCCL can be its id alone.
        size: their number of ranks; None where they are told by their name.
        dimension: one of `DIMENSIONS`.
    """

    text: str
    name: str
    size: int | None
    dimension: str

    def matches(self, *names: str | None, size: int | None) -> bool:
        """Whether a group with these names and this size is one of them."""
        if self.size is not None:
            return size == self.size
        plain = [name.strip().lower() for name in names if name is not None]
        ids = [name.removeprefix(COMMUNICATOR) for name in plain if name.startswith(COMMUNICATOR)]
        return self.name in plain or self.name.removeprefix("0x") in ids


@dataclass(frozen=True)
class Stated:
    """What a user says; nothing by default."""

    kernels: tuple[Kernels, ...] = ()
    groups: tuple[NamedGroup, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The options, as the user wrote them."""
        return [f"--comm {k.text}" for k in self.kernels] + [
            f"--group {g.text}" for g in self.groups
        ]

    def classify(self, name: str, *, copy: bool = False) -> EventClass:
        """What a device event is: what the user says, or else what its name says."""
        for kernels in self.kernels:
            if kernels.regex.search(name):
                return kernels.event(name)
        return classify(name, copy=copy)

    def dimension_of(self, call: Call | None, description: str | None) -> str | None:
        """The dimension of a call's group; None where nothing is said of it."""
        if call is None:
            return None
        return self.dimension_of_group(description, call.group, size=call.group_size)

    def dimension_of_group(self, *names: str | None, size: int | None) -> str | None:
        """The dimension of a group with these names; None where nothing is said of it."""
        for group in self.groups:
            if group.matches(*names, size=size):
                return group.dimension
        return None


NOTHING_STATED = Stated()


def read_stated(comm: Sequence[str], group: Sequence[str]) -> Stated:
    """What the options say.

    Args:
        comm: "REGEX", "REGEX=OPERATION" or "REGEX=OPERATION:DIMENSION" of kernels.
        group: "NAME=DIMENSION" or "size:N=DIMENSION" of process groups.

    Raises:
        InputError: one of them is not of this form.
    """
    return Stated(tuple(_kernels(text) for text in comm), tuple(_group(text) for text in group))


def _kernels(text: str) -> Kernels:
    match = _KERNELS.fullmatch(text)
    regex, what, dimension = (text, None, None) if match is None else match.groups()
    if what is not None and what.lower() not in OPERATIONS:
        raise InputError(
            f"--comm {text}: {what} is no operation; give one of {', '.join(OPERATIONS)}"
        )
    if not regex.strip():
        raise InputError("--comm: the regular expression is empty; name a part of a kernel's name")
    try:
        compiled = re.compile(regex)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"--comm {text}: {regex} is no regular expression ({error}); write \\( for a bracket"
        ) from None
    stated = None if dimension is None else _dimension(f"--comm {text}", dimension)
    return Kernels(text, compiled, what and what.lower(), stated)


def _group(text: str) -> NamedGroup:
    name, separator, dimension = text.rpartition("=")
    if not separator or not name.strip():
        raise InputError(
            f"--group {text}: give NAME=DIMENSION or size:N=DIMENSION, such as size:8=TP"
        )
    size = _SIZE.fullmatch(name.strip())
    stated = _dimension(f"--group {text}", dimension)
    if size is not None:
        return NamedGroup(text, "", int(size.group(1)), stated)
    return NamedGroup(text, name.strip().lower(), None, stated)


def _dimension(option: str, text: str) -> str:
    known: dict[str, str] = {dimension.lower(): dimension for dimension in DIMENSIONS}
    if text.strip().lower() in known:
        return known[text.strip().lower()]
    raise InputError(f"{option}: {text} is no dimension; give one of {', '.join(DIMENSIONS)}")
