"""Which parallel dimension a communication belongs to, and how certain that is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from overlapkit.errors import InputError
from overlapkit.trace.measure.evidence import NOTHING, POINT_TO_POINT, Evidence
from overlapkit.trace.measure.group_evidence import NO_GROUPS, Groups
from overlapkit.trace.measure.group_names import described, undescribed
from overlapkit.trace.read.device_work import DIMENSIONS
from overlapkit.trace.read.host.marks import TRAINING
from overlapkit.trace.read.kernel_names import EventClass, operation
from overlapkit.trace.read.recorded import Call, Group
from overlapkit.trace.read.stated import NOTHING_STATED, Stated

Confidence = Literal["certain", "likely", "guess", "unknown"]
"""How certain a dimension is.

It is known from a description or a library with a single use; from group sizes, ranks or the code
that launched it; from the operation where nothing else uses it; or not at all.
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
    """What is known about the communication in a file, apart from each single one.

    Attributes:
        groups: the process groups that the file lists.
        layout: the parallel sizes; None without a configuration.
        rank: the rank of the file.
        world_size: the number of ranks; None where it is not recorded.
        frameworks: what the names in the file speak of; see `Framework`.
        libraries: the communication libraries whose kernels run.
        groups_told: what launches say of groups.
        stated: what the user says of kernels and process groups.
    """

    groups: tuple[Group, ...] = ()
    layout: Layout | None = None
    rank: int | None = None
    world_size: int | None = None
    frameworks: Collection[str] = field(default=frozenset())
    libraries: Collection[str] = field(default=frozenset())
    groups_told: Groups = NO_GROUPS
    stated: Stated = NOTHING_STATED

    def named(self, name: str | None) -> Group | None:
        """The listed group with this name."""
        return next((g for g in self.groups if name is not None and g.name == name), None)

    def description(self, call: Call | None) -> str | None:
        """The description of a call's group, from the call or from the list."""
        if call is None:
            return None
        group = self.named(call.group)
        if undescribed(call.description) and group is not None and group.description:
            return group.description
        return call.description

    def sizes(self) -> dict[str, set[int]]:
        """Group sizes by dimension, for groups with more than one rank."""
        if self.layout is not None:
            return self.layout.sizes()
        sizes: dict[str, set[int]] = {}
        for group in self.groups:
            dimension = self.stated.dimension_of_group(
                group.description, group.name, size=group.size
            ) or described(group.description)
            if dimension is not None and dimension != "other" and group.size > 1:
                sizes.setdefault(dimension, set()).add(group.size)
        return sizes

    @property
    def serves_inference(self) -> bool:
        """Whether an inference engine runs, and nothing that trains."""
        return bool(_ENGINES & set(self.frameworks)) and not _TRAINS & set(self.frameworks)


_ENGINES = frozenset({"vllm", "sglang", "tensorrt_llm"})
_TRAINS = frozenset(
    {"megatron", "deepspeed", "torchtitan", "fsdp1", "fsdp2", "ddp", "data-parallel", TRAINING}
)


def dimension_of(
    event: EventClass, call: Call | None, known: Known, launch: Evidence = NOTHING
) -> tuple[str, Confidence]:
    """The dimension of a communication, and how certain it is."""
    description = known.description(call)
    stated = known.stated.dimension_of(call, description) or event.dimension
    if stated is not None:
        return stated, "certain"
    if call is not None:
        for text in (description, call.group):
            dimension = described(text)
            if dimension is not None:
                return dimension, "certain"
    group = (call.group if call is not None else None) or ""
    if launch.dimension is not None and not (launch.general and group in known.groups_told.mixed):
        return launch.dimension, "likely"
    if event.likely_dimension is not None:
        return event.likely_dimension, "likely"
    what = operation_of(event, call, launch)
    of_group = known.groups_told.dimension.get(group)
    if of_group is not None and what != "barrier":
        return of_group, "likely"
    if event.library == "peer copy" and what == "peer copy":
        # The ring exchange of userbuffers moves its chunks with copy engines; NCCL uses kernels.
        # Other programs copy between devices too.
        ring = "userbuffers" in known.libraries or "TP" in known.sizes()
        if ring:
            return "TP", "likely"
        return _by_framework(what, call, known, launch) or ("other", "unknown")
    # Gloo's all-to-all has a range of its own, so its sends and receives are no part of one.
    proven = launch.point_to_point or event.library == "gloo"
    by_size = _by_size(what, call, known, proven=proven)
    return by_size or _by_framework(what, call, known, launch) or ("other", "unknown")


def operation_of(event: EventClass, call: Call | None, launch: Evidence = NOTHING) -> str:
    """The operation: what was called, or else what the kernel's name says.

    NCCL has no all-to-all. PyTorch's is a group of sends and receives, as are those of a pipeline.
    """
    if call is not None and call.name:
        recorded = operation(call.name)
        if recorded == "send_recv":
            # "send" or "recv", which the kernel's name does not say.
            return call.name.lower()
        if recorded != "other":
            return recorded
    return launch.operation or event.operation


_DIMENSIONS_OF = {
    "send_recv": ("PP", "CP"),
    "exchange": ("PP", "EP", "CP"),
    "all_to_all": ("EP", "CP"),
    "barrier": (),
}
_COLLECTIVE = ("TP", "DP", "CP", "EP", "embedding")


def _by_size(
    what: str, call: Call | None, known: Known, *, proven: bool
) -> tuple[str, Confidence] | None:
    """The dimension by the ranks or the size of the group; None where several are possible.

    Args:
        what: the operation.
        call: what was recorded about it.
        known: the sizes of all groups.
        proven: whether a send_recv is known to be no all-to-all.
    """
    if what == "send_recv" and not proven:
        what = "exchange"
    elif what in POINT_TO_POINT or what in ("isend", "irecv"):
        what = "send_recv"
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
    return (candidates[0], "likely") if len(candidates) == 1 else None


_REDUCTIONS = ("all_reduce", "reduce_scatter", "all_gather")
_OF_DATA_PARALLEL: dict[str, tuple[str, ...]] = {
    "ddp": ("all_reduce",),
    "fsdp1": _REDUCTIONS,
    "fsdp2": _REDUCTIONS,
    "deepspeed": _REDUCTIONS,
}
"""What these do in the group of all ranks when nothing else splits the model."""

# torch/nn/parallel: replicate.py broadcasts, comm.py adds gradients, scatter_gather.py copies.
_OF_REPLICAS = ("broadcast", "reduce", "peer copy")
"""What DataParallel does between the GPUs of its process."""


def _by_framework(
    what: str, call: Call | None, known: Known, launch: Evidence
) -> tuple[str, Confidence] | None:
    """The dimension by what the framework uses an operation for; None where that is open."""
    if known.serves_inference:
        # Data-parallel replicas of an engine reduce nothing.
        return ("TP", "likely") if what == "all_reduce" else None
    if call is None and not known.groups and what == "all_reduce" and _only(known, "ddp"):
        # Old versions record neither the group nor what launched a collective.
        return None if launch.functional else ("DP", "guess")
    if what in _OF_REPLICAS and _only(known, "data-parallel"):
        return "DP", "likely"
    if what not in _REDUCTIONS or not _among_all(call, known):
        return None
    for framework, operations in _OF_DATA_PARALLEL.items():
        if framework in known.frameworks:
            return ("DP", "likely") if what in operations else None
    # Libraries that split a model make groups for it, except for a mesh of one dimension, on which
    # DTensor calls functional collectives.
    alone = all(g.description.strip().lower() != "undefined" for g in known.groups)
    undecided = launch == NOTHING or launch.functional or not alone
    undecided = undecided or "megatron" in known.frameworks
    return None if undecided else ("DP", "guess")


def _only(known: Known, framework: str) -> bool:
    return set(known.frameworks) & (_ENGINES | _TRAINS) - {TRAINING} == {framework}


def _among_all(call: Call | None, known: Known) -> bool:
    """Whether a communication is among all ranks, in a file that lists no smaller group."""
    if not known.groups:
        # Without a list, only the call can say that it uses the default group.
        return call is not None and (call.description or "").lower() == "default_pg"
    if not all(undescribed(g.description) for g in known.groups):
        return False
    world = known.world_size or max(g.size for g in known.groups)
    size = call.group_size if call is not None else None
    return size in (None, world) and all(g.size in (1, world) for g in known.groups)


def _preferred(dimensions: Iterable[str]) -> str:
    return min(dimensions, key=DIMENSIONS.index)
