"""Which parallel dimension a communication belongs to, and how certain that is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from overlapkit.errors import InputError
from overlapkit.trace.read.device_work import DIMENSIONS
from overlapkit.trace.read.kernel_names import EventClass, operation
from overlapkit.trace.read.recorded import Call, Group

Confidence = Literal["certain", "likely", "guess", "unknown"]
"""How certain a dimension is.

It is known from a description or a library with a single use; from group sizes or ranks; from the
operation alone; or not at all.
"""

CONFIDENCE: tuple[Confidence, ...] = get_args(Confidence)
"""The levels, the highest first."""


@dataclass(frozen=True)
class Layout:
    """Parallel sizes of a run, from its configuration; `dp` is None where it is unknown."""

    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    dp: int | None = None
    vpp: int | None = None

    def on(self, world_size: int | None, path: str) -> Layout:
        """The same with the data-parallel size that follows from the number of ranks.

        Args:
            world_size: the number of ranks; None where it is unknown.
            path: the trace, for messages.

        Raises:
            InputError: the product of the sizes does not divide the number of ranks.
        """
        if world_size is None:
            return self
        if world_size % (self.tp * self.pp * self.cp):
            raise InputError(
                f"the configuration: TP {self.tp} x PP {self.pp} x CP {self.cp} does not divide "
                f"the {world_size} ranks of {path}; is it this run's configuration?"
            )
        return replace(self, dp=world_size // (self.tp * self.pp * self.cp))

    def sizes(self) -> dict[str, set[int]]:
        """Group sizes by dimension, for those with more than one rank."""
        sizes = {"TP": {self.tp}, "PP": {self.pp}, "CP": {self.cp}, "EP": {self.ep}}
        if self.dp is not None:
            sizes["DP"] = {self.dp, self.dp * self.cp, self.dp * self.cp // self.ep} - {0, 1}
            if self.dp * self.cp == 1:
                sizes["DP"] = set()
        return {
            d: {s for s in found if s > 1} for d, found in sizes.items() if max(found or {0}) > 1
        }

    def ranks(self, dimension: str, rank: int) -> set[tuple[int, ...]]:
        """The groups of a dimension that contain a rank, in Megatron-Core's order tp-cp-dp-pp."""
        if self.dp is None:
            return set()
        tp, cp, dp, pp = self.tp, self.cp, self.dp, self.pp
        t, c = rank % tp, rank // tp % cp
        d, p = rank // (tp * cp) % dp, rank // (tp * cp * dp) % pp

        def at(t: int = t, c: int = c, d: int = d, p: int = p) -> int:
            return t + tp * (c + cp * (d + dp * p))

        first = d - d % self.ep
        groups = {
            "TP": [[at(t=i) for i in range(tp)]],
            "CP": [[at(c=i) for i in range(cp)]],
            "PP": [[at(p=i) for i in range(pp)]],
            "DP": [
                [at(d=i) for i in range(dp)],
                [at(c=j, d=i) for i in range(dp) for j in range(cp)],
            ],
            "EP": [[at(d=i) for i in range(first, first + self.ep)]],
        }
        return {tuple(sorted(g)) for g in groups.get(dimension, []) if len(g) > 1}


@dataclass(frozen=True)
class Known:
    """What is known about the communication in a file, apart from the arguments of each kernel."""

    groups: tuple[Group, ...] = ()
    layout: Layout | None = None
    rank: int | None = None

    def named(self, name: str | None) -> Group | None:
        """The listed group with this name."""
        return next((g for g in self.groups if name is not None and g.name == name), None)

    def sizes(self) -> dict[str, set[int]]:
        """Group sizes by dimension, for groups with more than one rank."""
        if self.layout is not None:
            return self.layout.sizes()
        sizes: dict[str, set[int]] = {}
        for group in self.groups:
            dimension = described(group.description)
            if dimension is not None and dimension != "other" and group.size > 1:
                sizes.setdefault(dimension, set()).add(group.size)
        return sizes


# Words in descriptions by Megatron-Core (parallel_state.py, `group_desc`); the first match counts.
_MEGATRON = (
    ("embedding", re.compile(r"EMBEDDING")),
    ("other", re.compile(r"TENSOR_AND_(?:DATA|CONTEXT)|TENSOR_MODEL_PIPELINE|^MODEL_PARALLEL")),
    ("DP", re.compile(r"DATA_PARALLEL|DISTRIBUTED_OPTIMIZER_INSTANCE|DP_CP|FSDP|FULLY_SHARD")),
    ("PP", re.compile(r"PIPELINE")),
    ("CP", re.compile(r"CONTEXT|SEQUENCE_PARALLEL")),
    ("EP", re.compile(r"EXPERT_(?:TENSOR_AND_)?MODEL|EXPERT_PARALLEL")),
    ("TP", re.compile(r"TENSOR")),
)
# Words in the names of device mesh dimensions, as in torchtitan and others ("mesh_dp_shard").
_MESH = {
    "TP": {"tp"},
    "DP": {"dp", "ddp", "fsdp", "hsdp", "shard", "replicate", "data"},
    "PP": {"pp"},
    "CP": {"cp", "sp"},
    "EP": {"ep"},
}
_UNDESCRIBED = frozenset({"", "default_pg", "undefined", "default", "world"})


def described(description: str | None) -> str | None:
    """The dimension in the description of a process group; None without one."""
    if description is None or description.strip().lower() in _UNDESCRIBED:
        return None
    text = description.upper()
    for dimension, pattern in _MEGATRON:
        if pattern.search(text):
            return dimension
    words = set(re.split(r"[^a-z]+", description.lower()))
    found = [dimension for dimension, known in _MESH.items() if words & known]
    if len(found) == 2 and "DP" in found and "CP" in found:
        return "DP"
    return found[0] if len(found) == 1 else None


def dimension_of(event: EventClass, call: Call | None, known: Known) -> tuple[str, Confidence]:
    """The dimension of a communication, and how certain it is."""
    if event.library == "userbuffers":
        return "TP", "certain"
    if event.library == "deep_ep":
        return "EP", "certain"
    if call is not None:
        group = known.named(call.group)
        for description in (call.description, group.description if group else None):
            dimension = described(description)
            if dimension is not None:
                return dimension, "certain"
    if event.library == "nvshmem":
        return "EP", "likely"
    if event.library == "peer copy":
        # The ring exchange of userbuffers moves its chunks with copy engines; NCCL uses kernels.
        return "TP", "likely" if known.sizes().get("TP") else "guess"
    recorded = operation(call.name) if call is not None and call.name else "other"
    if recorded == "other" and event.library == "nccl" and event.operation == "send_recv":
        # NCCL has no all-to-all operation. PyTorch's is a group of sends and receives.
        return _inferred("exchange", call, known)
    return _inferred(event.operation if recorded == "other" else recorded, call, known)


_DIMENSIONS_OF = {
    "send_recv": ("PP", "CP"),
    "exchange": ("PP", "EP", "CP"),
    "all_to_all": ("EP", "CP"),
    "barrier": (),
}
_COLLECTIVE = ("TP", "DP", "CP", "EP", "embedding")


def _inferred(what: str, call: Call | None, known: Known) -> tuple[str, Confidence]:
    sizes = known.sizes()
    possible = _DIMENSIONS_OF.get(what, _COLLECTIVE)
    candidates = [d for d in possible if d in sizes]
    size = call.group_size if call is not None else None
    if call is not None and call.ranks and known.layout is not None and known.layout.dp:
        mine = known.rank if known.rank in call.ranks else call.ranks[0]
        ranks = tuple(sorted(call.ranks))
        exact = [d for d in candidates if ranks in known.layout.ranks(d, mine or 0)]
        if exact:
            return (exact[0], "likely") if len(exact) == 1 else (_preferred(exact), "guess")
    if size is not None and sizes and what not in ("send_recv", "exchange"):
        # NCCL runs the point-to-point communication of a pipeline in communicators of two ranks.
        candidates = [d for d in candidates if size in sizes[d]]
    if len(candidates) == 1:
        return candidates[0], "likely"
    if what in ("send_recv", "exchange"):
        return ("PP" if "PP" in candidates or not candidates else candidates[0]), "guess"
    if what == "all_to_all":
        return (candidates[0] if candidates else "EP"), "guess"
    if not sizes and known.groups and _only_default(known.groups) and possible:
        return "DP", "guess"
    return "other", "unknown"


def _preferred(dimensions: Iterable[str]) -> str:
    return min(dimensions, key=DIMENSIONS.index)


def _only_default(groups: Iterable[Group]) -> bool:
    """Whether only the default group exists, as with data parallelism alone."""
    return all(g.description.strip().lower() in _UNDESCRIBED for g in groups)
