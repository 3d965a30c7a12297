"""Arguments that make each of Megatron-LM's own rules speak."""

from __future__ import annotations

SIZES = "--num-layers 16 --hidden-size 256 --num-attention-heads 8 --seq-length 128 --bf16 "
SIZES += "--vocab-size 1024 --micro-batch-size 1 --global-batch-size 64"
INTERLEAVED = "--pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 2"
TWO_STAGES = "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2"

FINDINGS: dict[str, tuple[str, str]] = {
    "lm.sequence-parallel-off": ("--sequence-parallel", "--tensor-model-parallel-size 2"),
    "lm.tp-overlap-needs": (
        "--tensor-model-parallel-size 2 --tp-comm-overlap",
        "--sequence-parallel",
    ),
    "lm.one-chunk-no-interleaving": (
        "--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 4",
        "--num-layers-per-virtual-pipeline-stage 2",
    ),
    "lm.interleaving-needs-stages": (
        f"{TWO_STAGES} --no-overlap-p2p-communication",
        "--pipeline-model-parallel-size 4",
    ),
    "lm.param-gather-needs": (
        "--overlap-param-gather",
        "--use-distributed-optimizer --overlap-grad-reduce",
    ),
    "lm.param-gather-with-optimizer-step-needs": (
        "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather "
        f"{INTERLEAVED} --overlap-param-gather-with-optimizer-step",
        "--ckpt-format torch",
    ),
    "lm.fp8-param-gather-needs": (
        "--fp8-format hybrid --fp8-param-gather",
        "--use-distributed-optimizer",
    ),
    "lm.bucket-number": (
        "--use-distributed-optimizer --overlap-grad-reduce --ddp-bucket-size 1000000 "
        "--ddp-num-buckets 4",
        "",
    ),
}
"""Each rule that finds something: arguments that it finds it in, and what mends it behind them."""

CHOICES: dict[str, str] = {
    "lm.p2p-overlap": INTERLEAVED,
    "lm.align-param-gather": INTERLEAVED,
    "lm.grads-in-fp32": "",
    "lm.as-flags-say": "",
}
"""Each rule that only chooses, with arguments that it speaks of."""

FLAGS_OF_VERSIONS = frozenset({"lm.flag-versions"})
"""Fire only where the version is given: see config/megatron_lm/test_flag_versions.py."""
ENVIRONMENT = frozenset({"lm.env-connections"})
"""Spoken by another function, of the environment."""


def every_rule() -> set[str]:
    """The ids of all rules that are made to speak here."""
    return set(FINDINGS) | set(CHOICES) | ENVIRONMENT | FLAGS_OF_VERSIONS


def arguments(text: str) -> list[str]:
    """A model's sizes and these arguments."""
    return f"{SIZES} {text}".split()


def without(flag: str, given: list[str]) -> list[str]:
    """Arguments without one flag, which has no value."""
    return [word for word in given if word != flag]
