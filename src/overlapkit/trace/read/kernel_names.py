"""What a device event is, according to its name, and a shorter name for people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from overlapkit.trace.read.comm_libraries import is_fused, library_of
from overlapkit.trace.read.device_work import COMMUNICATION, COMPUTE, MEMORY

_MEMORY = re.compile(r"mem(?:cpy|set)\b|copy(?:host|device)to(?:host|device)", re.IGNORECASE)
_PEER_COPY = re.compile(r"memcpy\s*(?:PtoP|P2P|peer)", re.IGNORECASE)

_OPERATIONS = (
    ("all_reduce", re.compile(r"all_?reduce|cross_device_reduce", re.IGNORECASE)),
    ("reduce_scatter", re.compile(r"reduce_?scatter|(?:^|_)rs(?:_|$)", re.IGNORECASE)),
    ("all_gather", re.compile(r"all_?gather|(?:^|_)ag(?:_|$)", re.IGNORECASE)),
    ("all_to_all", re.compile(r"all_?(?:to|2)_?all", re.IGNORECASE)),
    ("dispatch", re.compile(r"dispatch", re.IGNORECASE)),
    ("combine", re.compile(r"combine", re.IGNORECASE)),
    ("all_to_all", re.compile(r"a2a", re.IGNORECASE)),
    ("send_recv", re.compile(r"send_?recv|pushsend|pullrecv|pushrecv|send|recv", re.IGNORECASE)),
    ("broadcast", re.compile(r"broadcast", re.IGNORECASE)),
    ("barrier", re.compile(r"barrier", re.IGNORECASE)),
    ("reduce", re.compile(r"reduce", re.IGNORECASE)),
    ("gather", re.compile(r"gather", re.IGNORECASE)),
    ("scatter", re.compile(r"scatter", re.IGNORECASE)),
)


OPERATIONS = tuple(dict.fromkeys((*(name for name, _ in _OPERATIONS), "send", "recv")))
"""The operations that names tell."""


@dataclass(frozen=True)
class EventClass:
    """What a device event is.

    Attributes:
        kind: COMPUTE, COMMUNICATION or MEMORY.
        library: what communicates: the name of a `Library`, "peer copy", "gloo" or "stated"; ""
            for other kinds of work.
        operation: such as "all_reduce" or "reduce_scatter"; "other" where the name does not say,
            "" for other kinds of work.
        dimension: the parallel dimension that the library serves; None where it serves several.
        likely_dimension: the one that it serves in most programs.
    """

    kind: int
    library: str = ""
    operation: str = ""
    dimension: str | None = None
    likely_dimension: str | None = None


def classify(name: str, *, copy: bool = False) -> EventClass:
    """What a device event is.

    Args:
        name: its name.
        copy: whether the profiler lists it among the copies.
    """
    if name.startswith("gloo:"):
        return EventClass(COMMUNICATION, "gloo", operation(name))
    if _PEER_COPY.search(name):
        return EventClass(COMMUNICATION, "peer copy", "peer copy")
    # Copies and memsets have these names, whatever category a profiler lists them under.
    if copy or (_MEMORY.match(name) and "(" in name) or name in ("Memset", "Memcpy"):
        return EventClass(MEMORY)
    function = function_of(name)
    library = library_of(function)
    if library is None or is_fused(function):
        return EventClass(COMPUTE)
    found = operation(function)
    return EventClass(
        COMMUNICATION,
        library.name,
        library.operation if found == "other" else found,
        library.dimension,
        library.likely,
    )


@cache
def operation(name: str) -> str:
    """The operation in the name of a kernel or collective; "other" without one."""
    plain = name.partition("(")[0]
    for result, pattern in _OPERATIONS:
        if pattern.search(plain):
            return result
    return "other"


_TEMPLATE = re.compile(r"<[^<>]*>")
_CALL = re.compile(r"\([^()]*\)")
_PART = re.compile(r"[1-9]\d{0,3}")


@cache
def function_of(name: str) -> str:
    """A kernel's function with its namespaces: no return type, template arguments, parameters."""
    text = name[:4000].replace("(anonymous namespace)::", "").replace("->", "")
    if text.startswith("_Z"):
        text = _demangled(text) or text
    for pattern in (_TEMPLATE, _CALL):
        for _ in range(40):
            shorter = pattern.sub("", text)
            if shorter == text:
                break
            text = shorter
    # The rest of a truncated name, then the return type.
    text = re.split(r"[<(]", text)[0].strip()
    return text.rpartition(" ")[2] if text.startswith(("void ", "static ")) else text


def _demangled(name: str) -> str:
    """The namespaces and the function in a mangled name; "" where it is none.

    Profilers print mangled names where a symbol was not demangled. In the Itanium ABI each part of
    a nested name is its length and its text.
    """
    nested = name.startswith("_ZN")
    parts: list[str] = []
    place = 3 if nested else 2
    while (nested or not parts) and (match := _PART.match(name, place)) is not None:
        place = match.end() + int(match.group())
        parts.append(name[match.end() : place])
    return "::".join(p for p in parts if not p.startswith("_GLOBAL__N_"))


@cache
def short(name: str, limit: int = 60) -> str:
    """A kernel's name without return type, template arguments and parameters."""
    if name.startswith(("Memcpy", "Memset")):
        return name[:limit]
    text = function_of(name)
    functor = _functor(name)
    parts = text.split("::")
    text = "::".join(parts[-2:]) if len(parts) > 1 else text
    text = f"{text}<{functor}>" if functor and functor not in text else text
    return (text or name.strip() or "(no name)")[:limit]


_FUNCTOR = re.compile(
    r"(?:native|cuda)::(?:\w+::)*(\w*(?:[Ff]unctor|Ops?|_impl)\w*)|(\w+Functor\w*)"
)


def _functor(name: str) -> str:
    """The functor of an elementwise kernel of PyTorch, which differ only in that argument."""
    if "elementwise" not in name and "multi_tensor" not in name:
        return ""
    for match in _FUNCTOR.finditer(name, name.find("<") + 1):
        found = match.group(1) or match.group(2)
        if not found.startswith(("gpu_kernel_impl", "multi_tensor")):
            return str(found)
    return ""
