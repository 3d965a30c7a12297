"""Random cases that the rules allow, weighted to pairs of features that were not tried."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import msgspec

from overlapkit.lab.hunt.case import (
    CHOICES,
    EXPERTS,
    LAYOUT,
    Case,
    layers,
    settings,
    unpartitioned,
)
from overlapkit.lab.scenario import Settings
from overlapkit.lab.scenarios import grid

MOST_LAYERS = 12
"""A case with more takes too long."""

SHARES = (0.1, 0.3, 0.6)
"""With how many of its features changed from the simplest a case is drawn."""

DRAWN = 12
"""Cases that are drawn for each that is chosen."""

RANKS = (2, 4, 8)
"""Numbers of ranks of the hunt; partitioning needs at least two."""

Pair = tuple[tuple[str, Any], tuple[str, Any]]
Pairs = Counter[Pair]


def normal(case: Case) -> Case:
    """The case without the features that have no effect on it: two equal runs are equal cases."""
    unused: set[str] = set()
    if case.tp == 1:
        unused |= {"sp", "distribute"}
    if case.pp == 1:
        unused |= {"vpp", "stages", "p2p", "deallocate", "variable", "group"}
    if case.pp == 1 or case.vpp == 1:
        unused.add("group")
    if case.experts == "none":
        unused |= {"ep", "etp", "topk", "mixed", "shared", "balance", "z_loss", "sigmoid"}
        if case.recompute in ("moe_act", "moe", "shared_experts"):
            unused.add("recompute")
    if not case.shared and case.recompute == "shared_experts":
        unused.add("recompute")
    if case.etp == case.tp:
        unused.add("etp")
    if not case.recompute.startswith(("uniform", "block", "full")):
        unused.add("distribute")
    if case.dp == 1:
        unused |= {"average", "instances", "padded"}
    if not case.distributed:
        unused |= {"instances", "padded"}
    if case.overlap == "off":
        unused.add("bucket")
    if case.precision == "fp32":
        unused.add("residual")
    if case.stages == "layout":
        unused.add("group")
    return msgspec.structs.replace(case, **{name: CHOICES[name][0] for name in unused})


def possible(case: Case) -> bool:
    """Whether its sizes fit together; whether the rules allow it is another question."""
    chunks = case.pp * case.vpp
    if case.depth > 1 and case.stages in ("embedding", "loss", "both") and case.vpp > 1:
        return False
    uneven = case.stages in ("first", "last") and case.pp < 2
    if uneven or not 0 < layers(case) <= MOST_LAYERS or (case.stages == "layout" and chunks < 2):
        return False
    if case.experts != "none":
        expert_tp = case.etp or case.tp
        if EXPERTS % case.ep or (case.tp * case.dp) % (case.ep * expert_tp):
            return False
    if case.dp % case.instances or case.microbatches * case.dp * case.micro_batch > 32:
        return False
    return not (case.group and case.group < case.pp)


UNLIKE_GPUS: Mapping[str, Callable[[Case], bool]] = {
    # Its layers are built with torch's norm, which refuses sequence parallelism; over stages the
    # place of its embedding in the full tensors is not known.
    "multi-token prediction is not trained over stages or with sequence parallelism": lambda case: (
        case.mtp > 0 and (case.pp > 1 or case.sp)
    ),
    # Megatron-Core creates their process groups with a package that is not one of its own needs.
    "several optimizer instances need einops": lambda case: (
        case.instances > 1 and importlib.util.find_spec("einops") is None
    ),
    # torch's norm has an output of the input's type, those of Transformer Engine and Apex one of
    # the weight's.
    "a residual in fp32 needs a norm of Transformer Engine or Apex": lambda case: case.residual,
    "gloo sends from memory that is freed (rule core.sent-then-freed)": lambda case: (
        case.deallocate and case.pp > 1 and case.vpp > 1 and case.p2p in ("overlapped", "flush")
    ),
}
"""What fails on these ranks and says nothing of GPUs."""


def allowed(case: Case, base: Settings | None = None) -> bool:
    """Whether its sizes fit together, and the rules grant all that it and the unpartitioned model
    request."""
    if not possible(case) or any(fails(case) for fails in UNLIKE_GPUS.values()):
        return False
    whole = unpartitioned(case)
    return grid.granted(case.name, settings(case, base), case.ranks) and grid.granted(
        whole.name, settings(whole, base), whole.ranks
    )


def pairs(case: Case) -> Iterator[Pair]:
    """Every two features of the case with their values, in the order of the features."""
    values = msgspec.structs.asdict(case)
    return combinations(values.items(), 2)


class Generator:
    """Draws cases, the same ones for the same seed and the same `tried`.

    Args:
        seed: of the random numbers.
        tried: how often each pair of features was tried; `drawn` cases are added to it.
        around: a case that every other one differs from in a few features; None: any case.
        base: settings of `around`.
    """

    def __init__(
        self,
        seed: int,
        tried: Pairs,
        *,
        around: Case | None = None,
        base: Settings | None = None,
    ) -> None:
        self._random = random.Random(seed)
        self.tried = tried
        self._around, self._base = around, base
        self._seen: set[Case] = set()

    def draw(self, ranks: int, known: Iterable[Case] = ()) -> Case | None:
        """A case on `ranks` ranks; None where none was found that is new."""
        seen = self._seen.union(known)
        candidates = {self._any(ranks): None for _ in range(DRAWN)}
        ranked = sorted(
            (one for one in candidates if one is not None and one not in seen),
            key=lambda one: -self._news(one),
        )
        for one in ranked:
            if allowed(one, self._base):
                self._seen.add(one)
                self.tried.update(pairs(one))
                return one
        return None

    def _news(self, case: Case) -> float:
        """How new a case is: each pair counts the less, the more often it was tried."""
        return sum(1 / (1 + 4 * self.tried[pair]) for pair in pairs(case))

    def _any(self, ranks: int) -> Case | None:
        chosen: dict[str, Any] = {}
        if self._around is None:
            chosen = self._layout(ranks)
            share = self._random.choice(SHARES)
            for name, values in CHOICES.items():
                if name not in LAYOUT and self._random.random() < share:
                    chosen[name] = self._random.choice(values[1:])
            if chosen.get("experts") is None:
                chosen.pop("ep", None)
            chosen["steps"] = self._random.choice((2, 3))
            chosen["microbatches"] = self._microbatches(chosen)
            case = normal(Case(**chosen))
        else:
            case = self._near(self._around)
        return case if case.ranks == ranks and possible(case) else None

    def _layout(self, ranks: int) -> dict[str, Any]:
        pick = self._random.choice
        tp = pick([size for size in CHOICES["tp"] if ranks % size == 0])
        pp = pick([size for size in CHOICES["pp"] if (ranks // tp) % size == 0])
        return {
            "tp": tp,
            "sp": pick((False, True)),
            "pp": pp,
            "vpp": pick(CHOICES["vpp"]),
            "dp": ranks // tp // pp,
            "ep": pick(CHOICES["ep"]),
            "etp": pick((0, 0, *CHOICES["etp"])),
        }

    def _microbatches(self, chosen: Mapping[str, Any]) -> int:
        """Often a multiple of the stages: interleaving needs that without a group size."""
        stages = chosen["pp"]
        if chosen["vpp"] > 1 and not chosen.get("group"):
            return int(stages * self._random.choice((1, 2, 3)))
        return int(self._random.choice(CHOICES["microbatches"]))

    def _near(self, case: Case) -> Case:
        changed: dict[str, Any] = {}
        for name in self._random.sample(list(CHOICES), self._random.choice((1, 2, 3, 4))):
            changed[name] = self._random.choice(CHOICES[name])
        return normal(msgspec.structs.replace(case, **changed))


def grid_pairs() -> Pairs:
    """The pairs of features that the scenario `grid` tries."""
    found: Pairs = Counter()
    for ranks in grid.RANKS:
        for one in grid.candidates(ranks):
            chunks = one.pp * one.vpp
            found.update(
                pairs(
                    normal(
                        Case(
                            tp=one.tp,
                            sp=one.sp,
                            pp=one.pp,
                            vpp=one.vpp,
                            dp=one.dp,
                            depth=min(2, one.layers // chunks),
                            microbatches=8 // one.dp,
                            p2p=one.p2p or "waiting",
                            distributed=one.distributed,
                            overlap=one.overlap,
                            bucket=one.bucket or "default",
                            tied=one.tied,
                            steps=grid.STEPS,
                        )
                    )
                )
            )
    return found
