"""Conformance: every combination that the rules allow, compared with the unpartitioned model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from megatron.bridge.training.decisions import STOPS, Outcome, OverlapConfigError
from megatron.bridge.training.software import AssumedSoftware, installed_stack
from overlapkit.config.effective import make_effective
from overlapkit.config.run import read_settings
from overlapkit.config.yaml_file import Document
from overlapkit.lab.full_tensors import Distance, distance
from overlapkit.lab.measurements import MeasuredVariant, Observations
from overlapkit.lab.protocol import Block, Variant
from overlapkit.lab.scenario import (
    CONFIRMED,
    DESCENT,
    DISTRIBUTED_OPTIMIZER,
    NOT_CONFIRMED,
    TINY,
    TOLERANCE,
    Scenario,
    Setting,
    Settings,
    Verdict,
    layered,
)

RANKS = (1, 2, 4)
STEPS = 3
LEAST_LAYERS, MOST_LAYERS = 4, 8
VIRTUAL = (1, 2, 4)
ONE, SEVERAL, EACH = 10**9, 20_000, 1
"""bucket_size in parameters: one bucket for all gradients, several, and one for each tensor."""

OVERLAPS: Mapping[str, dict[str, bool]] = {
    "off": {"overlap_grad_reduce": False, "overlap_param_gather": False},
    "reduce": {"overlap_grad_reduce": True, "overlap_param_gather": False},
    "gather": {
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "align_param_gather": False,
    },
    "align": {
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "align_param_gather": True,
    },
    "step": {
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "align_param_gather": False,
        "overlap_param_gather_with_optimizer_step": True,
    },
    "align+step": {
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "align_param_gather": True,
        "overlap_param_gather_with_optimizer_step": True,
    },
}
BUCKETS = {"one": ONE, "several": SEVERAL, "each": EACH}
P2P = {
    "overlapped": {"overlap_p2p_comm": True, "batch_p2p_comm": False},
    "batched": {"overlap_p2p_comm": False, "batch_p2p_comm": True},
    "waiting": {"overlap_p2p_comm": False, "batch_p2p_comm": False},
}

ALLOWED = "Megatron-Core trains every combination that the rules allow."
ALIKE = "Combinations of one layout that add in the same order end in the same bits."
EQUAL = "Where no sum is reordered, the weights equal the unpartitioned model's, bit for bit."
CLOSE = "Where sums are reordered, the weights equal the unpartitioned model's within rounding."

WHOLE = "grid-whole"
SHOWN = 5
"""Combinations that a verdict lists."""


@dataclass(frozen=True)
class Combination:
    """One way to partition the model, and to overlap the communication that follows from it.

    Attributes:
        tp, sp, pp, vpp, dp: sizes of the layout; sp: sequence parallelism.
        distributed: the distributed optimizer; otherwise every rank has the full optimizer.
        overlap: a key of `OVERLAPS`.
        bucket: a key of `BUCKETS`; None where there are no buckets.
        p2p: a key of `P2P`; None without a pipeline.
        tied: whether the output layer shares the embedding's weights.
        layers: of the model.
    """

    tp: int = 1
    sp: bool = False
    pp: int = 1
    vpp: int = 1
    dp: int = 1
    distributed: bool = True
    overlap: str = "off"
    bucket: str | None = None
    p2p: str | None = None
    tied: bool = False
    layers: int = LEAST_LAYERS

    @property
    def ranks(self) -> int:
        """Processes that it needs."""
        return self.tp * self.pp * self.dp

    @property
    def layout(self) -> str:
        """Name of its layout, such as ``tp2-dp2-sp``."""
        sizes = {"tp": self.tp, "pp": self.pp, "vpp": self.vpp, "dp": self.dp}
        parts = [f"{name}{size}" for name, size in sizes.items() if size > 1]
        return "-".join(parts) + ("-sp" if self.sp else "") or "whole"

    @property
    def name(self) -> str:
        """Unique in the grid; also part of a file's name."""
        parts = (
            self.layout,
            "dist" if self.distributed else "plain",
            self.overlap,
            self.bucket,
            self.p2p,
            "tied" if self.tied else None,
        )
        return ".".join(part for part in parts if part is not None)

    @property
    def reference(self) -> str:
        """Name of the unpartitioned model that it is compared with."""
        return f"whole-{self.layers}" + ("-tied" if self.tied else "")

    @property
    def reorders(self) -> bool:
        """Whether it adds numbers in another order than the unpartitioned model does."""
        two_gradients = self.tied and self.pp > 1
        return self.tp > 1 or self.dp > 1 or two_gradients

    @property
    def order(self) -> tuple[Any, ...]:
        """Equal for combinations that add the same numbers in the same order.

        The sum of two numbers does not depend on their order. With more than two replicas, the
        order depends on the place of a number in its bucket, and so on the buckets.
        """
        buckets = () if self.dp <= 2 else (self.distributed, self.bucket or "one")
        return (self.layout, self.tied, *buckets)

    def settings(self) -> Settings:
        """As in a configuration's YAML."""
        layout = {
            "tensor_model_parallel_size": self.tp,
            "sequence_parallel": self.sp,
            "pipeline_model_parallel_size": self.pp,
            "virtual_pipeline_model_parallel_size": self.vpp if self.vpp > 1 else None,
            "num_layers": self.layers,
            "share_embeddings_and_output_weights": self.tied,
        }
        knobs: dict[str, Any] = dict(OVERLAPS[self.overlap])
        if self.bucket is not None:
            knobs["bucket_size"] = BUCKETS[self.bucket]
        p2p = P2P[self.p2p] if self.p2p else {}
        partitioned = layered(TINY, DESCENT, {"model": layout})
        if self.distributed:
            overlap = {"tp_comm_overlap": False, **knobs, **p2p}
            return layered(partitioned, DISTRIBUTED_OPTIMIZER, {"comm_overlap": overlap})
        # Without the distributed optimizer comm_overlap does not apply to data parallelism: knobs
        # are set where they take effect.
        late = {name: knobs.pop(name) for name in list(knobs) if name.endswith("optimizer_step")}
        overlap = {"tp_comm_overlap": False, **p2p}
        return layered(partitioned, {"ddp": knobs, "optimizer": late, "comm_overlap": overlap})

    def variant(self) -> Variant:
        """The variant that trains it."""
        return Variant(name=self.name, settings=self.settings(), weights=True)

    def unpartitioned(self) -> Variant:
        """The unpartitioned model that it is compared with."""
        one = replace(Combination(distributed=False, tied=self.tied), layers=self.layers)
        return Variant(name=self.reference, settings=one.settings(), weights=True)


def allowed(one: Combination) -> bool:
    """Whether the rules grant everything that a combination requests, and let it start."""
    return granted(one.name, one.settings(), one.ranks)


def granted(name: str, requested_settings: Settings, ranks: int) -> bool:
    """Whether the rules grant everything that settings request, and let them start.

    Args:
        name: for messages.
        requested_settings: as in a configuration's YAML.
        ranks: processes that train them.
    """
    settings = read_settings(Document(name, requested_settings))
    # The ranks train with what is installed, not with the newest known.
    settings = replace(settings, stacks=(installed_stack(),))
    try:
        _, update = make_effective(settings, ranks, AssumedSoftware(te=None))
    except OverlapConfigError:
        return False
    requested = {key for content in settings.values.values() for key in content or ()}
    return not any(
        decision.outcome in STOPS
        or (decision.outcome is Outcome.REFUSED and decision.knob.rpartition(".")[2] in requested)
        for decision in update.decisions
    )


def combinations(ranks: int) -> list[Combination]:
    """All that the rules allow on `ranks` ranks."""
    return [one for one in candidates(ranks) if allowed(one)]


def candidates(ranks: int) -> Iterator[Combination]:
    """All on `ranks` ranks, whether or not the rules allow them."""
    for layout in _layouts(ranks):
        modes: Sequence[str | None] = tuple(P2P) if layout.pp > 1 else (None,)
        # Without a second replica nothing is reduced, whatever the buckets.
        buckets = tuple(BUCKETS) if layout.dp > 1 else ("several",)
        for distributed, overlap, p2p in product((True, False), OVERLAPS, modes):
            for bucket in (None,) if overlap == "off" else buckets:
                yield replace(
                    layout, distributed=distributed, overlap=overlap, bucket=bucket, p2p=p2p
                )
        for overlap, p2p in product(OVERLAPS, modes):
            bucket = None if overlap == "off" else "several"
            yield replace(layout, overlap=overlap, bucket=bucket, p2p=p2p, tied=True)


def _layouts(ranks: int) -> Iterator[Combination]:
    for tp, pp in product(range(1, ranks + 1), repeat=2):
        if ranks % (tp * pp):
            continue
        for sp, vpp in product((False, True) if tp > 1 else (False,), VIRTUAL if pp > 1 else (1,)):
            if pp * vpp <= MOST_LAYERS:
                dp, layers = ranks // (tp * pp), max(LEAST_LAYERS, pp * vpp)
                yield Combination(tp=tp, sp=sp, pp=pp, vpp=vpp, dp=dp, layers=layers)


def blocks_of(found: Iterable[Combination], steps: int) -> tuple[Block, ...]:
    """A block for the unpartitioned models, then one for each number of ranks."""
    found = list(found)
    whole = {one.reference: one.unpartitioned() for one in found}
    blocks = [
        Block(name=WHOLE, ranks=1, variants=tuple(whole.values()), rounds=0, warmup=0, steps=steps)
    ]
    for ranks in sorted({one.ranks for one in found}):
        variants = tuple(one.variant() for one in found if one.ranks == ranks)
        blocks.append(
            Block(
                name=f"grid-{ranks}",
                ranks=ranks,
                variants=variants,
                rounds=0,
                warmup=0,
                steps=steps,
            )
        )
    return tuple(blocks)


def blocks(setting: Setting) -> tuple[Block, ...]:
    """All combinations, and the unpartitioned models that they are compared with."""
    found = [one for ranks in RANKS for one in combinations(ranks)]
    return blocks_of(found, setting.steps or STEPS)


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """Each combination compared with the others of its order, and with the unpartitioned model."""
    return judge_of([one for ranks in RANKS for one in combinations(ranks)], observed)


def judge_of(found: Iterable[Combination], observed: Observations) -> list[Verdict]:
    """As `judge`, for the combinations `found`."""
    orders: dict[tuple[Any, ...], list[Combination]] = {}
    failed: list[str] = []
    for one in found:
        if error := _measured(observed, one).error:
            failed.append(f"{one.name}: {error}")
        else:
            orders.setdefault(one.order, []).append(one)
    same_order = list(orders.values())
    odd = [
        one
        for order in same_order
        for one in order
        if _bits(observed, one) != _bits(observed, order[0])
    ]
    # The first of each order represents all that have the same bits.
    compared = [(one, _apart(observed, one)) for one in ([order[0] for order in same_order] + odd)]
    described = {one.name: _described(one, apart) for one, apart in compared}
    exact = [(one, apart) for one, apart in compared if not one.reorders]
    close = [(one, apart) for one, apart in compared if one.reorders]
    trained = sum(map(len, same_order))
    largest = max((apart.relative for _, apart in close if isinstance(apart, Distance)), default=0)
    return [
        _verdict(ALLOWED, failed, f"{trained} combinations, {len(same_order)} orders of addition"),
        _verdict(
            ALIKE,
            [described[one.name] for one in odd],
            f"{trained} combinations, {len(same_order)} sets of weights and losses",
        ),
        _verdict(
            EQUAL,
            [described[one.name] for one, apart in exact if not _within(apart, 0.0)],
            f"{sum(not one.reorders for order in same_order for one in order)} combinations: no "
            "bit differs",
        ),
        _verdict(
            CLOSE,
            [described[one.name] for one, apart in close if not _within(apart, TOLERANCE)],
            f"{sum(one.reorders for order in same_order for one in order)} combinations: a "
            f"difference of at most {largest:.1e} of a tensor's norm; {TOLERANCE:.0e} is allowed",
        ),
    ]


def _verdict(claim: str, against: Sequence[str], evidence: str) -> Verdict:
    if not against:
        return Verdict(claim, CONFIRMED, evidence)
    rest = f"; and {len(against) - SHOWN} more" if len(against) > SHOWN else ""
    return Verdict(claim, NOT_CONFIRMED, "; ".join(against[:SHOWN]) + rest)


def _measured(observed: Observations, one: Combination) -> MeasuredVariant:
    return observed.variants(f"grid-{one.ranks}")[one.name]


def _bits(observed: Observations, one: Combination) -> tuple[object, ...]:
    measured = _measured(observed, one)
    return measured.digests, measured.losses


def _apart(observed: Observations, one: Combination) -> Distance | str:
    """How far its weights are from the unpartitioned model's; or why that is unknown."""
    try:
        return distance(
            observed.tensors(f"grid-{one.ranks}", one.name, "weight"),
            observed.tensors(WHOLE, one.reference, "weight"),
        )
    except ValueError as error:
        return str(error)


def _within(apart: Distance | str, tolerance: float) -> bool:
    return isinstance(apart, Distance) and apart.relative <= tolerance


def _described(one: Combination, apart: Distance | str) -> str:
    if isinstance(apart, str):
        return f"{one.name}: {apart}"
    return (
        f"{one.name}: {apart.differing} of {apart.tensors} tensors differ, at most by "
        f"{apart.relative:.1e} of the norm ({apart.worst})"
    )


SCENARIO = Scenario(
    name="grid",
    title="conformance: all combinations that the rules allow equal the unpartitioned model",
    ranks=max(RANKS),
    blocks=blocks,
    judge=judge,
)
