"""grad_reduce_in_fp32: its cost in bytes sent, and where it has to be set."""

from __future__ import annotations

from overlapkit.lab.measurements import MeasuredVariant, Observations
from overlapkit.lab.protocol import Block
from overlapkit.lab.scenario import (
    CONFIRMED,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Settings,
    Verdict,
    layered,
    one_microbatch,
    variant,
)

ALL_REDUCED: Settings = {
    # Without the distributed optimizer, only gradients are sent.
    "ddp": {"use_distributed_optimizer": False, "overlap_grad_reduce": True},
    "comm_overlap": {"tp_comm_overlap": False},
}
FP32 = layered(
    ALL_REDUCED,
    {"mixed_precision": {"bf16": True, "params_dtype": "bfloat16", "grad_reduce_in_fp32": True}},
)
BF16 = layered(FP32, {"mixed_precision": {"grad_reduce_in_fp32": False}})
ON_DDP_ALONE = layered(FP32, {"ddp": {"grad_reduce_in_fp32": False}})

DOUBLE = "Reducing gradients in fp32 sends twice the bytes of bf16."
OVERWRITTEN = "If set only on ddp, grad_reduce_in_fp32 is overwritten by mixed precision."

TOLERANCE = 0.05
"""Of the ratio of bytes: headers and a barrier are sent as well."""


def blocks(setting: Setting) -> tuple[Block, ...]:
    """Gradients in fp32, in bf16, and bf16 requested in the wrong place."""
    rounds, steps = setting.turns(2, 3)
    ranks = setting.ranks or 2
    batch = one_microbatch(setting, ranks)
    return (
        Block(
            name="precision",
            ranks=ranks,
            variants=(
                variant("fp32", setting, FP32, batch),
                variant("bf16", setting, BF16, batch),
                variant("bf16-on-ddp-alone", setting, ON_DDP_ALONE, batch),
            ),
            rounds=rounds,
            steps=steps,
            link_of="fp32",
        ),
    )


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """The bytes sent, and the overwritten setting."""
    variants = observed.variants("precision")
    return [
        _double(variants["fp32"], variants["bf16"]),
        _overwritten(variants["fp32"], variants["bf16-on-ddp-alone"]),
    ]


def _double(fp32: MeasuredVariant, bf16: MeasuredVariant) -> Verdict:
    if not fp32.wire_bytes or not bf16.wire_bytes:
        why = "bytes cannot be counted: the ranks do not have links of their own"
        return Verdict(DOUBLE, NOT_TESTABLE, why)
    ratio = fp32.wire_bytes / bf16.wire_bytes
    return Verdict(
        DOUBLE,
        CONFIRMED if abs(ratio / 2 - 1) <= TOLERANCE else NOT_CONFIRMED,
        f"a rank sends {fp32.wire_bytes / 1e6:.2f} MB a step in fp32, "
        f"{bf16.wire_bytes / 1e6:.2f} MB in bf16: {ratio:.2f} x",
    )


def _overwritten(fp32: MeasuredVariant, alone: MeasuredVariant) -> Verdict:
    decision = alone.decision("precision.overwrites", "ddp.grad_reduce_in_fp32")
    trained = alone.effective["ddp.grad_reduce_in_fp32"] is True
    same = alone.digests == fp32.digests
    return Verdict(
        OVERWRITTEN,
        CONFIRMED if decision and trained and same else NOT_CONFIRMED,
        f"{decision.reason.rstrip('.')}. The weights are those of fp32, bit for bit."
        if decision and same
        else "the weights differ from those of fp32",
    )


SCENARIO = Scenario(
    name="precision",
    title="gradients reduced in fp32 or bf16: bytes sent, and the setting that decides",
    ranks=2,
    blocks=blocks,
    judge=judge,
    flexible=True,
)
