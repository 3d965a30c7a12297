"""Data and pipeline parallelism together: both overlaps, with gathers aligned across stages."""

from __future__ import annotations

from overlapkit.lab.measurements import Observations
from overlapkit.lab.protocol import Block
from overlapkit.lab.scenario import (
    CONFIRMED,
    DISTRIBUTED_OPTIMIZER,
    NO_OVERLAP,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Settings,
    Verdict,
    identical,
    variant,
)
from overlapkit.lab.timing import shorter

BLOCK_RANKS = 4

LAYOUT: Settings = {
    "model": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "train": {"micro_batch_size": 2, "global_batch_size": 16},
}
ALIGNED: Settings = {
    "comm_overlap": {
        "tp_comm_overlap": False,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "align_param_gather": True,
        "bucket_size": "auto",
    }
}
UNALIGNED: Settings = {"comm_overlap": {**ALIGNED["comm_overlap"], "align_param_gather": False}}

SHORTER = "Both overlaps with aligned gathers shorten the step."
IN_EFFECT = "Every requested overlap is in effect, including p2p."
SAME = "Neither the overlap nor the alignment changes the results."


def blocks(setting: Setting) -> tuple[Block, ...]:
    """DP=2 x PP=2, VPP=2: no overlap, both overlaps, and both with aligned gathers."""
    rounds, steps = setting.turns(3, 2)
    return (
        Block(
            name="dp-pp",
            ranks=BLOCK_RANKS,
            variants=(
                variant("off", setting, LAYOUT, DISTRIBUTED_OPTIMIZER, NO_OVERLAP),
                variant("both", setting, LAYOUT, DISTRIBUTED_OPTIMIZER, UNALIGNED),
                variant("both+align", setting, LAYOUT, DISTRIBUTED_OPTIMIZER, ALIGNED),
            ),
            rounds=rounds,
            steps=steps,
            link_of="off",
        ),
    )


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """Step time, knobs and results."""
    variants = observed.variants("dp-pp")
    off, aligned = variants["off"], variants["both+align"]
    knobs = {
        "ddp.overlap_grad_reduce": True,
        "ddp.overlap_param_gather": True,
        "ddp.align_param_gather": True,
        "model.overlap_p2p_comm": True,
    }
    wrong = [k for k, wanted in knobs.items() if aligned.effective[k] is not wanted]
    verdicts = [
        Verdict(
            IN_EFFECT,
            NOT_CONFIRMED if wrong else CONFIRMED,
            f"not in effect: {', '.join(wrong)}" if wrong else ", ".join(knobs) + " are on",
        ),
        identical(list(variants.values()), SAME),
    ]
    if not setting.shaped:
        why = "the ranks communicate through memory, which is too fast to be worth hiding"
        return [Verdict(SHORTER, NOT_TESTABLE, why), *verdicts]
    return [shorter(off, aligned, SHORTER), *verdicts]


SCENARIO = Scenario(
    name="dp-pp",
    title="data and pipeline parallelism together, with gathers aligned across stages",
    ranks=BLOCK_RANKS,
    blocks=blocks,
    judge=judge,
)
