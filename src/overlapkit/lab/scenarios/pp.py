"""Pipeline parallelism: interleaving overlaps sends and receives; batched, it corrupts them."""

from __future__ import annotations

from typing import Any

from overlapkit.lab.full_tensors import Distance, distance
from overlapkit.lab.measurements import MeasuredVariant, Observations
from overlapkit.lab.protocol import Block, Variant
from overlapkit.lab.scenario import (
    CONFIRMED,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Settings,
    Verdict,
    layered,
    variant,
)
from overlapkit.lab.timing import exposes_less

STAGES: Settings = {
    "model": {"pipeline_model_parallel_size": 2},
    "comm_overlap": {"tp_comm_overlap": False},
    "train": {"micro_batch_size": 2, "global_batch_size": 8},
    "optimizer": {"optimizer": "sgd", "lr": 0.1, "sgd_momentum": 0.0},
}
INTERLEAVED = layered(STAGES, {"model": {"virtual_pipeline_model_parallel_size": 2}})
BATCHED = {"model.overlap_p2p_comm": False, "model.batch_p2p_comm": True}
"""Refused by the rules at PP=2 with interleaving."""

SELECTED = "Interleaving selects overlap_p2p_comm; without interleaving, p2p is batched."
SAME = (
    "Gradients and weights of the pipeline equal those of the unpartitioned model in one process."
)
EXPOSED = "Overlapped p2p exposes less communication than batched p2p with the same schedule."
HAZARD = "With the rule bypassed, batched p2p at PP=2 and VPP=2 computes wrong gradients."
PREVENTED = "Without the bypass, rule pp.same-peer-hazard refuses to train that configuration."


def blocks(setting: Setting) -> tuple[Block, ...]:
    """The model unpartitioned, in two stages, in two stages of two chunks; and the hazard."""
    rounds, steps = setting.turns(3, 3)

    def of(name: str, settings: Settings, **more: Any) -> Variant:
        return variant(name, setting, settings, weights=True, gradients=True, **more)

    unpartitioned = layered(STAGES, {"model": {"pipeline_model_parallel_size": 1}})
    without_comm_overlap = {k: v for k, v in INTERLEAVED.items() if k != "comm_overlap"}
    set_explicitly = layered(
        without_comm_overlap,
        {
            "model": {
                "overlap_p2p_comm": False,
                "batch_p2p_comm": True,
            }
        },
    )
    return (
        Block(name="pp-whole", ranks=1, variants=(of("whole", unpartitioned),), rounds=0, steps=3),
        Block(
            name="pp",
            ranks=2,
            variants=(
                variant("vpp1", setting, STAGES),
                variant("vpp2-batched", setting, INTERLEAVED, force=BATCHED),
                variant("vpp2", setting, INTERLEAVED),
            ),
            rounds=rounds,
            steps=steps,
            link_of="vpp1",
            # On a slower link the messages that interleaving adds would cost more than the
            # shorter bubble gains.
            link_ratio=0.15,
        ),
        Block(
            name="pp-numbers",
            ranks=2,
            variants=(
                of("vpp1", STAGES),
                of("vpp2", INTERLEAVED),
                of("vpp2-batched", INTERLEAVED, force=BATCHED),
                variant("vpp2-batched-by-hand", setting, set_explicitly),
            ),
            rounds=0,
            steps=3,
        ),
    )


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """What was selected, whether the results are right, what is exposed, and the hazard."""
    timed, trained = observed.variants("pp"), observed.variants("pp-numbers")
    return [
        _selected(timed["vpp1"], timed["vpp2"]),
        _same(observed),
        _exposed(timed["vpp2-batched"], timed["vpp2"], setting),
        *_hazard(observed, trained["vpp2-batched-by-hand"]),
    ]


def _selected(plain: MeasuredVariant, interleaved: MeasuredVariant) -> Verdict:
    knobs = ("model.overlap_p2p_comm", "model.batch_p2p_comm")
    found = [tuple(v.effective[knob] for knob in knobs) for v in (plain, interleaved)]
    return Verdict(
        SELECTED,
        CONFIRMED if found == [(False, True), (True, False)] else NOT_CONFIRMED,
        f"(overlap_p2p_comm, batch_p2p_comm) is {found[0]} at VPP=1 and {found[1]} at VPP=2",
    )


def _distances(observed: Observations, variant: str) -> tuple[Distance, Distance]:
    """How far a variant's weights and first gradients are from the unpartitioned model's."""
    weights, gradients = (
        distance(
            observed.tensors("pp-numbers", variant, kind),
            observed.tensors("pp-whole", "whole", kind),
        )
        for kind in ("weight", "gradient")
    )
    return weights, gradients


def _same(observed: Observations) -> Verdict:
    found = [each for name in ("vpp1", "vpp2") for each in _distances(observed, name)]
    differing = sum(each.differing for each in found)
    return Verdict(
        SAME,
        CONFIRMED if differing == 0 else NOT_CONFIRMED,
        f"VPP=1 and VPP=2, {found[0].tensors} tensors each: {differing} weights or gradients "
        "differ in any bit",
    )


def _exposed(batched: MeasuredVariant, overlapped: MeasuredVariant, setting: Setting) -> Verdict:
    if not setting.shaped:
        return Verdict(
            EXPOSED,
            NOT_TESTABLE,
            "the ranks communicate through memory, where p2p takes next to no time",
        )
    return exposes_less([batched, overlapped], EXPOSED, "PP")


def _hazard(observed: Observations, explicit: MeasuredVariant) -> list[Verdict]:
    weights, gradients = _distances(observed, "vpp2-batched")
    shown = Verdict(
        HAZARD,
        CONFIRMED if gradients.differing else NOT_CONFIRMED,
        f"{gradients.differing} of {gradients.tensors} gradients differ, by up to "
        f"{gradients.relative:.2g} of their norm ({gradients.worst}); {weights.differing} weights "
        "after 3 steps",
    )
    caught = "batch_p2p_comm" in (explicit.error or "")
    prevented = Verdict(
        PREVENTED,
        CONFIRMED if caught and gradients.differing else NOT_CONFIRMED,
        explicit.error or "it was trained",
    )
    return [shown, prevented]


SCENARIO = Scenario(
    name="pp",
    title="pipeline parallelism: overlapped p2p, and the hazard of batched p2p",
    ranks=2,
    blocks=blocks,
    judge=judge,
)
