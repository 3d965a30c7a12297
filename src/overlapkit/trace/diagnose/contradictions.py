"""Where a profile shows other communication than the configuration makes.

Only what is certain or likely counts, and an absence only where all communication is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overlapkit.trace.diagnose.expected import Expected
from overlapkit.trace.rank_report import RankReport

NOTABLE = 0.01
"""Share of the measured time from which communication counts as shown: norms and losses are
reduced in a few microseconds, whatever is set."""

_NAMES = {"TP": "tensor", "PP": "pipeline", "CP": "context", "EP": "expert"}
_LIBRARIES = ("deepep", "hybridep", "hybrid_ep", "deep_ep", "dispatch", "combine")


@dataclass(frozen=True)
class _Shown:
    """What the profile of a run shows.

    Attributes:
        time: dimension and operation to the time in nanoseconds, over all steps and ranks.
        kernels: dimension to the names of its kernels, in lower case.
        least: time from which an operation counts.
        whole: whether every step and the dimension of all communication is known.
        sizes: dimension to the sizes of its described groups.
    """

    time: dict[tuple[str, str], int]
    kernels: dict[str, set[str]]
    least: float
    whole: bool
    sizes: dict[str, set[int]]

    def operations(self, dimension: str) -> set[str]:
        """The operations of a dimension that take notable time."""
        return {op for (d, op), ns in self.time.items() if d == dimension and ns >= self.least}

    def kernel(self, dimension: str, *words: str) -> bool:
        """Whether a kernel of a dimension has one of these words in its name."""
        return any(word in name for name in self.kernels.get(dimension, ()) for word in words)


def contradictions(expected: Expected, reports: Sequence[RankReport]) -> list[str]:
    """What the configuration says and the profile shows otherwise, in sentences."""
    shown = _shown(reports)
    stated, recorded = (
        expected.stated_world_size,
        next((r.world_size for r in reports if r.world_size), None),
    )
    found = []
    if stated and recorded and stated != recorded:
        found.append(_sentence(f"starts {stated} ranks", f"is of a job of {recorded}", verb=""))
    for check in (_groups, _replicas, _gradients, _tensor, _pipeline, _context, _experts):
        found += check(expected, shown)
    return found


def _sentence(says: str, shows: str, verb: str = "shows ") -> str:
    return f"The configuration {says}, and the profile {verb}{shows}."


def _shown(reports: Sequence[RankReport]) -> _Shown:
    time: dict[tuple[str, str], int] = {}
    kernels: dict[str, set[str]] = {}
    sizes: dict[str, set[int]] = {}
    for report in reports:
        for dimension, found in report.group_sizes.items():
            sizes.setdefault(dimension, set()).update(found)
        for c in report.collectives:
            if c.traffic.confidence not in ("certain", "likely"):
                continue
            key = (c.traffic.dimension, c.traffic.operation)
            time[key] = time.get(key, 0) + c.busy_ns
            kernels.setdefault(c.traffic.dimension, set()).add(c.traffic.name.lower())
    whole = all(
        r.steps_from == "ranges"
        and r.check.steps_stand_for_trace
        and all(c.traffic.confidence in ("certain", "likely") for c in r.collectives)
        for r in reports
    )
    least = NOTABLE * sum(t.step for r in reports for t in r.measured)
    return _Shown(time, kernels, least, whole, sizes)


def _groups(expected: Expected, shown: _Shown) -> Iterator[str]:
    """Sizes of groups by their descriptions."""
    for dimension in ("TP", "PP", "CP"):
        size, found = expected.size(dimension), shown.sizes.get(dimension, set())
        if found and size not in found:
            listed = ", ".join(map(str, sorted(found)))
            yield _sentence(
                f"has {dimension} {size}",
                f"{_NAMES[dimension]}-parallel groups of {listed} ranks",
            )


def _replicas(expected: Expected, shown: _Shown) -> Iterator[str]:
    """Sizes of data-parallel groups; those of experts and of optimizer instances are smaller."""
    size = expected.data_parallel_size
    found = shown.sizes.get("DP", set())
    if found and size > 1 and not found & {size, size * expected.size("CP")}:
        listed = ", ".join(map(str, sorted(found)))
        yield _sentence(
            f"makes the data-parallel size {size}", f"data-parallel groups of {listed} ranks"
        )


def _gradients(expected: Expected, shown: _Shown) -> Iterator[str]:
    if expected.data_parallel_size * expected.size("CP") == 1 or expected.fully_sharded:
        return
    operations = shown.operations("DP")
    distributed = bool(expected.values.get("ddp.use_distributed_optimizer"))
    if distributed and "all_reduce" in operations and "reduce_scatter" not in operations:
        yield _sentence(
            "has the distributed optimizer on, which reduce-scatters gradients",
            "data-parallel all_reduce and no reduce_scatter",
        )
    if not distributed and "reduce_scatter" in operations:
        yield _sentence(
            "has the distributed optimizer off, which all-reduces gradients",
            "data-parallel reduce_scatter",
        )


def _tensor(expected: Expected, shown: _Shown) -> Iterator[str]:
    yield from _presence("TP", expected, shown)
    if expected.size("TP") == 1:
        return
    operations = shown.operations("TP")
    userbuffers = shown.kernel("TP", "userbuffers", "ptop")
    overlap = bool(expected.model("tp_comm_overlap"))
    if overlap and operations and not userbuffers:
        yield _sentence(
            "has TP overlap on", "tensor-parallel collectives of NCCL and no userbuffers kernels"
        )
    if not overlap and userbuffers:
        yield _sentence("has TP overlap off", "userbuffers kernels")
    parallel = bool(expected.model("sequence_parallel"))
    scattered = operations & {"reduce_scatter", "all_gather"}
    if parallel and "all_reduce" in operations and not scattered and not userbuffers:
        yield _sentence(
            "has sequence parallelism on, which gathers and reduce-scatters activations",
            "only tensor-parallel all_reduce",
        )
    if not parallel and "reduce_scatter" in operations:
        yield _sentence(
            "has sequence parallelism off, which all-reduces activations",
            "tensor-parallel reduce_scatter",
        )


def _absent(dimension: str, expected: Expected, shown: _Shown) -> str | None:
    """A dimension of more than one rank that communicates nothing."""
    size = expected.size(dimension)
    if size == 1 or not shown.whole or any(d == dimension for d, _ in shown.time):
        return None
    return _sentence(f"has {dimension} {size}", f"no {_NAMES[dimension]}-parallel communication")


def _unexpected(dimension: str, expected: Expected, shown: _Shown) -> str | None:
    """Communication of a dimension of one rank."""
    if expected.size(dimension) > 1 or not shown.operations(dimension):
        return None
    return _sentence(f"has {dimension} 1", f"{_NAMES[dimension]}-parallel communication")


def _presence(dimension: str, expected: Expected, shown: _Shown) -> Iterator[str]:
    for check in (_absent, _unexpected):
        sentence = check(dimension, expected, shown)
        if sentence is not None:
            yield sentence


def _pipeline(expected: Expected, shown: _Shown) -> Iterator[str]:
    yield from _presence("PP", expected, shown)


def _context(expected: Expected, shown: _Shown) -> Iterator[str]:
    yield from _presence("CP", expected, shown)
    kind = expected.model("cp_comm_type") or "p2p"
    operations = shown.operations("CP")
    if expected.size("CP") == 1 or not isinstance(kind, str):
        return
    if kind == "p2p" and "all_to_all" in operations:
        yield _sentence("has cp_comm_type p2p", "a context-parallel all_to_all")
    if kind == "a2a" and operations and "all_to_all" not in operations:
        listed = " and ".join(sorted(operations))
        yield _sentence("has cp_comm_type a2a", f"context-parallel {listed} and no all_to_all")


def _experts(expected: Expected, shown: _Shown) -> Iterator[str]:
    yield from _presence("EP", expected, shown)
    if expected.size("EP") == 1:
        return
    dispatcher = expected.model("moe_token_dispatcher_type")
    own = shown.kernel("EP", *_LIBRARIES)
    exchanged = "all_to_all" in shown.operations("EP")
    if dispatcher == "flex" and exchanged and not own:
        backend = expected.model("moe_flex_dispatcher_backend") or "deepep"
        yield _sentence(
            f"has the flex dispatcher with {backend}",
            "an all_to_all of NCCL between experts and no kernels of that library",
        )
    if dispatcher in ("alltoall", "allgather") and own:
        yield _sentence(
            f"has the {dispatcher} dispatcher", "kernels of another library between experts"
        )
