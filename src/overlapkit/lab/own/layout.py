"""The layout of the ranks: as small as keeps every kind of parallelism of the user's run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from overlapkit.errors import InputError
from overlapkit.lab.own.reduced import Notes

MIDDLE_STAGES = 4
"""Pipeline stages from which on more add no new kind: a first, two alike in the middle, a last."""


@dataclass(frozen=True)
class Layout:
    """Sizes of a layout.

    Attributes:
        tp, pp, cp, ep, dp: of tensor, pipeline, context, expert and data parallelism.
        expert_tp: of the experts' tensor parallelism.
        instances: of the distributed optimizer.
    """

    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    dp: int = 1
    expert_tp: int = 1
    instances: int = 1

    @property
    def ranks(self) -> int:
        """Processes of the layout."""
        return self.tp * self.pp * self.cp * self.dp

    @property
    def expert_dp(self) -> int:
        """Ranks that reduce the gradients of an expert; 0 where the layout is not possible."""
        together, split = self.dp * self.cp * self.tp, self.ep * self.expert_tp
        return together // split if together % split == 0 else 0

    @property
    def replicas(self) -> int:
        """Ranks that reduce a dense gradient together."""
        return self.dp * self.cp


def layout_of(model: Any, ddp: Any, world_size: int, source: str) -> Layout:
    """The layout of a run on `world_size` GPUs.

    Raises:
        InputError: its sizes do not divide the GPUs.
    """
    tp, pp, cp, ep = (
        getattr(model, f"{name}_parallel_size", None) or 1
        for name in ("tensor_model", "pipeline_model", "context", "expert_model")
    )
    if world_size % (tp * pp * cp):
        raise InputError(
            f"{source}: TP={tp} x PP={pp} x CP={cp} does not divide {world_size} GPUs: give "
            "--world-size N with a multiple"
        )
    expert_tp = getattr(model, "expert_tensor_parallel_size", None) or tp
    instances = getattr(ddp, "num_distributed_optimizer_instances", None) or 1
    return Layout(tp, pp, cp, ep, world_size // (tp * pp * cp), expert_tp, instances)


def smaller(
    original: Layout,
    ranks: int,
    *,
    two_stages_differ: bool,
    dp_known: bool,
    cp_overlaps: bool,
    notes: Notes,
) -> Layout:
    """The smallest layout within `ranks` that loses least of the original.

    What is lost first, where not everything fits: the middle stages of a pipeline, the shards of
    the optimizer's instances, tensor parallelism (whose overlap a CPU does not have), expert
    parallelism, data parallelism, the pipeline. Context parallelism does not run on a CPU; its
    ranks reduce gradients together with those of data parallelism, and become such ranks.

    Args:
        original: the user's.
        ranks: the most processes.
        two_stages_differ: whether two stages behave unlike three, as with interleaving and batched
            point-to-point communication. Then three stages are worth more than tensor parallelism.
        dp_known: whether the data-parallel size is the user's, and not assumed.
        cp_overlaps: whether the reduction of gradients is overlapped among context-parallel ranks
            too, where there is no data parallelism: comm_overlap leaves it alone then.
        notes: where the changes are written down.

    Raises:
        InputError: `ranks` is below 2, or nothing that a CPU runs is left to communicate.
    """
    if ranks < 2:
        raise InputError(f"--ranks {ranks}: overlap needs at least 2")
    user = original
    if original.dp == 1 and not cp_overlaps:
        original = replace(original, dp=1, cp=1)
        if user.cp > 1:
            notes.unproven.append(
                "context parallelism: without data parallelism comm_overlap leaves the reduction "
                "of gradients alone, and it is not trained among context-parallel ranks"
            )
    chosen = min(
        _candidates(original, ranks),
        key=lambda one: (*_losses(original, one, two_stages_differ), one.ranks, -one.pp),
    )
    if chosen.ranks == 1:
        raise InputError(
            f"TP=PP=DP=1{f', CP={user.cp}' if user.cp > 1 else ''}: nothing that runs on a CPU "
            "communicates; give the number of GPUs of the job with --world-size N"
        )
    _note_changes(user, chosen, ranks, dp_known, notes)
    _note_losses(original, chosen, ranks, notes)
    return chosen


def _candidates(original: Layout, ranks: int) -> Iterator[Layout]:
    """Every possible layout that is nowhere larger than the original."""
    stages = [n for n in range(1, MIDDLE_STAGES + 1) if n <= original.pp]
    together = original.replicas
    for tp, pp, dp, ep in product(_sizes(original.tp), stages, (1, 2, 4, 8), _sizes(original.ep)):
        if dp > together or tp * pp * dp > ranks:
            continue
        expert_tp = _expert_tp(original, tp)
        for instances in {1, min(2, original.instances)}:
            one = Layout(tp, pp, 1, ep, dp, expert_tp, instances)
            if dp % instances == 0 and one.expert_dp % instances == 0 and one.expert_dp:
                yield one


def _sizes(original: int) -> list[int]:
    """Smaller sizes that keep a kind of parallelism alive, and 1."""
    return [1, 2] if original > 1 else [1]


def _expert_tp(original: Layout, tp: int) -> int:
    if original.expert_tp in (1, original.tp):
        return 1 if original.expert_tp == 1 else tp
    return min(2, tp)


def _losses(original: Layout, one: Layout, two_stages_differ: bool) -> tuple[bool, ...]:
    """What is lost, the worst first."""
    middle = original.pp > 2 and one.pp == 2
    return (
        middle and two_stages_differ,
        original.pp > 1 and one.pp == 1,
        original.replicas > 1 and one.replicas == 1,
        original.ep > 1 and one.ep == 1,
        original.tp > 1 and one.tp == 1,
        original.instances > 1 and one.instances == 1,
        original.pp > 2 and one.pp < 3,
        original.replicas > original.instances and one.replicas == one.instances,
        original.ep > 1 and original.expert_dp > 1 and one.expert_dp == 1,
        one.pp < min(original.pp, MIDDLE_STAGES),
    )


def _note_changes(
    original: Layout, chosen: Layout, ranks: int, dp_known: bool, notes: Notes
) -> None:
    fits = f"at most {ranks} ranks are trained here"
    for name, key in (
        ("data parallelism", "dp"),
        ("context parallelism", "cp"),
        ("expert parallelism", "ep"),
        ("tensor parallelism", "tp"),
        ("pipeline parallelism", "pp"),
        ("optimizer instances", "instances"),
    ):
        if dp_known or key != "dp":
            notes.change(name, getattr(original, key), getattr(chosen, key), fits)
    if original.ep > 1:
        size = original.expert_tp, chosen.expert_tp
        notes.change("tensor parallelism of experts", *size, fits)
    if original.cp > 1:
        notes.unproven.append(
            "context parallelism: its attention needs Transformer Engine, so that its exchange "
            "between ranks is not trained"
        )


def _note_losses(original: Layout, chosen: Layout, ranks: int, notes: Notes) -> None:
    more = _enough(original)
    larger = f"; --ranks {more} keeps it" if more > ranks else ""
    for lost, text in (
        (original.pp > 1 and chosen.pp == 1, "pipeline parallelism: its schedule is not trained"),
        (
            original.pp > 2 and chosen.pp == 2,
            f"pipeline parallelism: with 2 stages instead of {original.pp} each is the other's "
            "previous and next, and no stage is between the first and the last",
        ),
        (
            original.replicas > 1 and chosen.replicas == 1,
            "data parallelism: no gradient is reduced, so that its overlap is not trained",
        ),
        (original.ep > 1 and chosen.ep == 1, "expert parallelism: no token is sent to a rank"),
        (
            original.tp > 1 and chosen.tp == 1,
            "tensor parallelism: weights, and with sequence_parallel the sequence, are not split",
        ),
        (
            original.instances > 1 and chosen.instances == 1,
            "optimizer instances: nothing is reduced between them",
        ),
        (
            original.replicas > original.instances and chosen.replicas == chosen.instances > 1,
            "optimizer instances: each is one rank, so that nothing is sharded within it",
        ),
        (
            original.ep > 1 and original.expert_dp > 1 and chosen.expert_dp == 1,
            "expert parallelism: each expert is on one rank, so that its gradient is not reduced",
        ),
    ):
        if lost:
            notes.unproven.append(text + larger)


def _enough(original: Layout) -> int:
    """Ranks that keep every kind of parallelism alive."""
    dp = 1 if original.replicas == 1 else 2
    dp *= 2 if original.instances > 1 and original.replicas > original.instances else 1
    if original.ep > 1 and original.expert_dp > 1:
        tp, expert_tp = min(2, original.tp), _expert_tp(original, min(2, original.tp))
        while dp * tp < 2 * 2 * expert_tp:
            dp *= 2
    return min(2, original.tp) * min(3, original.pp) * dp
