"""Pipeline parallelism: interleaving overlaps sends and receives; batched, it corrupts them."""

from __future__ import annotations

from typing import Any

from overlapkit.lab.full_tensors import Distance, distance
from overlapkit.lab.measurements import Measured, Seen
from overlapkit.lab.protocol import Block, Variant
from overlapkit.lab.scenario import (
    CONFIRMED,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Settings,
    Verdict,
    exposes_less,
    layered,
    variant,
)

STAGES: Settings = {
    "model": {"pipeline_model_parallel_size": 2},
    "comm_overlap": {"tp_comm_overlap": False},
    "train": {"micro_batch_size": 2, "global_batch_size": 8},
    "optimizer": {"optimizer": "sgd", "lr": 0.1, "sgd_momentum": 0.0},
}
INTERLEAVED = layered(STAGES, {"model": {"virtual_pipeline_model_parallel_size": 2}})
BATCHED = {"model.overlap_p2p_comm": False, "model.batch_p2p_comm": True}
"""What the rules refuse at PP=2 with interleaving."""

SELECTED = "Interleaving selects overlap_p2p_comm; without it p2p is batched."
SAME = (
    "Gradients and weights of the pipeline equal those of the unpartitioned model in one process."
)
EXPOSED = "Overlapped p2p exposes less communication than p2p that waits, at the same schedule."
HAZARD = "With the rule bypassed, batched p2p at PP=2 and VPP=2 computes wrong gradients."
PREVENTED = "Without the bypass the rule pp.same-peer-hazard refuses to train it."


def blocks(setting: Setting) -> tuple[Block, ...]:
    """The model whole, in two stages, in two stages of two chunks; and what the rule prevents."""
    rounds, steps = setting.turns(3, 3)

    def of(name: str, settings: Settings, **more: Any) -> Variant:
        return variant(name, setting, settings, weights=True, gradients=True, **more)

    whole = layered(STAGES, {"model": {"pipeline_model_parallel_size": 1}})
    unasked = {name: content for name, content in INTERLEAVED.items() if name != "comm_overlap"}
    by_hand = layered(
        unasked,
        {
            "model": {
                "overlap_p2p_comm": False,
                "batch_p2p_comm": True,
            }
        },
    )
    return (
        Block(name="pp-whole", ranks=1, variants=(of("whole", whole),), rounds=0, steps=3),
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
            # Slower, and the messages that interleaving adds would outweigh its shorter bubble.
            link_ratio=0.15,
        ),
        Block(
            name="pp-numbers",
            ranks=2,
            variants=(
                of("vpp1", STAGES),
                of("vpp2", INTERLEAVED),
                of("vpp2-batched", INTERLEAVED, force=BATCHED),
                variant("vpp2-batched-by-hand", setting, by_hand),
            ),
            rounds=0,
            steps=3,
        ),
    )


def judge(seen: Seen, setting: Setting) -> list[Verdict]:
    """What was selected, whether the numbers hold, what is exposed, and the hazard."""
    timed, trained = seen.variants("pp"), seen.variants("pp-numbers")
    return [
        _selected(timed["vpp1"], timed["vpp2"]),
        _same(seen),
        _exposed(timed["vpp2-batched"], timed["vpp2"], setting),
        *_hazard(seen, trained["vpp2-batched-by-hand"]),
    ]


def _selected(plain: Measured, interleaved: Measured) -> Verdict:
    knobs = ("model.overlap_p2p_comm", "model.batch_p2p_comm")
    found = [tuple(v.effective[knob] for knob in knobs) for v in (plain, interleaved)]
    return Verdict(
        SELECTED,
        CONFIRMED if found == [(False, True), (True, False)] else NOT_CONFIRMED,
        f"(overlap_p2p_comm, batch_p2p_comm) is {found[0]} at VPP=1 and {found[1]} at VPP=2",
    )


def _distances(seen: Seen, variant: str) -> tuple[Distance, Distance]:
    """How far a variant's weights and first gradients are from the whole model's."""
    weights, gradients = (
        distance(seen.tensors("pp-numbers", variant, kind), seen.tensors("pp-whole", "whole", kind))
        for kind in ("weight", "gradient")
    )
    return weights, gradients


def _same(seen: Seen) -> Verdict:
    found = [each for name in ("vpp1", "vpp2") for each in _distances(seen, name)]
    differing = sum(each.differing for each in found)
    return Verdict(
        SAME,
        CONFIRMED if differing == 0 else NOT_CONFIRMED,
        f"VPP=1 and VPP=2, {found[0].tensors} tensors: {differing} weights or gradients differ "
        "in any bit",
    )


def _exposed(batched: Measured, overlapped: Measured, setting: Setting) -> Verdict:
    if not setting.shaped:
        return Verdict(EXPOSED, NOT_TESTABLE, "the link is memory: p2p takes next to no time")
    return exposes_less([batched, overlapped], EXPOSED, "PP")


def _hazard(seen: Seen, by_hand: Measured) -> list[Verdict]:
    weights, gradients = _distances(seen, "vpp2-batched")
    shown = Verdict(
        HAZARD,
        CONFIRMED if gradients.differing else NOT_CONFIRMED,
        f"{gradients.differing} of {gradients.tensors} gradients differ, by up to "
        f"{gradients.relative:.2g} of their norm ({gradients.worst}); {weights.differing} weights "
        "after 3 steps",
    )
    caught = "batch_p2p_comm" in (by_hand.error or "")
    prevented = Verdict(
        PREVENTED,
        CONFIRMED if caught and gradients.differing else NOT_CONFIRMED,
        by_hand.error or "it was trained",
    )
    return [shown, prevented]


SCENARIO = Scenario(
    name="pp",
    title="pipeline parallelism: overlapped p2p, and the hazard of batched p2p",
    ranks=2,
    blocks=blocks,
    judge=judge,
)
