"""A scenario: what it claims, which variants it trains, and how it judges the measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from overlapkit.lab.corpus import VOCABULARY
from overlapkit.lab.measurements import MeasuredVariant, Observations
from overlapkit.lab.own.own_run import OwnRun
from overlapkit.lab.protocol import Block, Variant

ClaimOutcome = Literal["confirmed", "not confirmed", "not testable here"]
CONFIRMED: ClaimOutcome = "confirmed"
NOT_CONFIRMED: ClaimOutcome = "not confirmed"
NOT_TESTABLE: ClaimOutcome = "not testable here"


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: the statement that was tested, in one sentence.
        outcome: whether it holds.
        evidence: the figures that decided; where it is not testable, why.
    """

    claim: str
    outcome: ClaimOutcome
    evidence: str


@dataclass(frozen=True)
class Setting:
    """What the user chose, and the machine: scenarios build their variants from it.

    Attributes:
        device: "cpu" or "cuda".
        ranks: --ranks; None: each scenario's own.
        steps: --steps, timed steps of a variant over all turns; None: each scenario's own.
        base: the part of the user's configuration to which scenarios add their own settings:
            knobs of the model that neither partition it nor give its size, and precision.
        own: the user's own run.
        shaped: whether communication takes long enough to be worth hiding: the link between ranks
            is a slow one, or the one between GPUs.
        te: whether Transformer Engine can be imported.
        compute_capability: of the GPU; None without one.
        gpus: number of GPUs.
    """

    device: str = "cpu"
    ranks: int | None = None
    steps: int | None = None
    base: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own: OwnRun | None = None
    shaped: bool = True
    te: bool = False
    compute_capability: str | None = None
    gpus: int = 0

    def turns(self, rounds: int, steps: int) -> tuple[int, int]:
        """Turns, and timed steps of each, that add up to --steps; by default the scenario's."""
        if self.steps is None:
            return rounds, steps
        rounds = min(rounds, self.steps)
        return rounds, -(-self.steps // rounds)


@dataclass(frozen=True)
class Scenario:
    """A set of claims and the training that tests them.

    Attributes:
        name: as on the command line.
        title: what it shows, in a few words.
        ranks: processes that it needs unless --ranks says otherwise.
        blocks: its variants, in blocks that are measured together.
        judge: verdicts from the observations of those blocks.
        flexible: whether --ranks may change the number of ranks.
    """

    name: str
    title: str
    ranks: int
    blocks: Callable[[Setting], tuple[Block, ...]]
    judge: Callable[[Observations, Setting], list[Verdict]]
    flexible: bool = False


@dataclass(frozen=True)
class JudgedScenario:
    """A scenario with its observations and verdicts."""

    scenario: Scenario
    blocks: tuple[Block, ...]
    observations: Observations
    verdicts: list[Verdict]


Settings = dict[str, dict[str, Any]]

MODEL: Settings = {
    "model": {
        "num_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 8,
        "seq_length": 128,
        "vocab_size": VOCABULARY,
        "share_embeddings_and_output_weights": False,
    },
    "optimizer": {"optimizer": "adam", "lr": 1e-3, "clip_grad": 0.0},
    "train": {"micro_batch_size": 4, "global_batch_size": 8},
}
"""3.3 million parameters: a step takes a few tenths of a second on one core."""

GPU_MODEL: Settings = {
    "model": {
        "num_layers": 8,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "seq_length": 2048,
        "share_embeddings_and_output_weights": False,
    },
    "mixed_precision": {
        "bf16": True,
        "params_dtype": "bfloat16",
        "pipeline_dtype": "bfloat16",
        "grad_reduce_in_fp32": True,
    },
    "optimizer": {"optimizer": "adam", "lr": 1e-4, "clip_grad": 0.0},
    "train": {"micro_batch_size": 1, "global_batch_size": 2},
}
"""0.4 billion parameters, a sequence of 2,048 tokens on each rank.

Per parameter, a step computes 6 x 2,048 operations: 3e-11 s at 400 TFLOP/s. With two ranks, each
sends 2 bytes of gradients and 1 of weights per parameter: 1e-11 s at 300 GB/s. So the communication
is worth hiding, and there is enough compute to hide it.
"""

SHARED_GPU_MODEL: Settings = {
    "model": {
        "num_layers": 4,
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "seq_length": 512,
        "share_embeddings_and_output_weights": False,
    },
    "optimizer": {"optimizer": "adam", "lr": 1e-4, "clip_grad": 0.0},
    "train": {"micro_batch_size": 64, "global_batch_size": 128},
}
"""51 million parameters in fp32, 32,768 tokens on each rank: for ranks that share a GPU.

Through gloo on the host a byte takes a hundred times as long as over NVLink, so the model computes
a hundred times as much: 6 x 32,768 operations per parameter, 8e-9 s at half of 50 TFLOP/s (fp32
without tensor cores), for 8 bytes of gradients and weights, 4e-9 s at 2 GB/s.
"""

TINY: Settings = {
    "model": {
        "num_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "seq_length": 16,
        "vocab_size": VOCABULARY,
        "share_embeddings_and_output_weights": False,
    },
    # Plain gradient descent: a wrong gradient changes the weights in proportion to its size, which
    # Adam would normalize away.
    "optimizer": {"optimizer": "sgd", "lr": 0.5, "sgd_momentum": 0.0, "clip_grad": 0.0},
    "train": {"micro_batch_size": 1, "global_batch_size": 8},
}
"""For comparing numbers only, not times."""

DESCENT: Settings = {
    "optimizer": {
        "optimizer": "adam",
        "lr": 500.0,
        "adam_beta1": 0.0,
        "adam_beta2": 0.0,
        "adam_eps": 1000.0,
        "weight_decay": 0.0,
    }
}
"""Gradient descent with a rate of 0.5, expressed as Adam.

The distributed optimizer supports only Adam, which normalizes away the size of a wrong gradient. An
eps far above every gradient turns its update into lr / eps x gradient.
"""

TOLERANCE = 5e-6
"""Of a tensor's norm, for sums in fp32 (unit roundoff 6e-8) in another order.

Observed with 826 combinations: at most 1.3e-7 with two or four replicas, and 4.3e-7 with tensor
parallelism. With swapped messages (rule pp.same-peer-hazard) it is above 1e5.
"""

NO_OVERLAP: Settings = {
    "comm_overlap": {
        "tp_comm_overlap": False,
        "overlap_grad_reduce": False,
        "overlap_param_gather": False,
    }
}

DISTRIBUTED_OPTIMIZER: Settings = {
    "ddp": {"use_distributed_optimizer": True},
    "optimizer": {"use_distributed_optimizer": True},
}


def layered(*layers: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Sections merged in order; a later value of a key replaces an earlier one."""
    result: Settings = {}
    for layer in layers:
        for section, content in layer.items():
            result[section] = {**result.get(section, {}), **content}
    return result


def variant(
    name: str, setting: Setting, *layers: Mapping[str, Mapping[str, Any]], **more: Any
) -> Variant:
    """A variant: the lab's model, then the user's base, then `layers`.

    Args:
        name: the variant's.
        setting: what the user chose.
        layers: settings, the later ones winning.
        more: further fields of `Variant`.
    """
    return Variant(name=name, settings=layered(_model(setting), setting.base, *layers), **more)


def _model(setting: Setting) -> Settings:
    if setting.device != "cuda":
        return MODEL
    return GPU_MODEL if setting.gpus >= (setting.ranks or 2) else SHARED_GPU_MODEL


def one_microbatch(setting: Setting, ranks: int) -> Settings:
    """A global batch with one microbatch for each of `ranks` data-parallel ranks."""
    size = _model(setting)["train"]["micro_batch_size"]
    return {"train": {"micro_batch_size": size, "global_batch_size": size * ranks}}


def identical(variants: list[MeasuredVariant], claim: str) -> Verdict:
    """Whether variants of one layout have the same final weights and the same losses."""
    first = variants[0]
    differ = [
        one.name
        for one in variants[1:]
        if one.digests != first.digests or one.losses != first.losses
    ]
    if differ:
        return Verdict(
            claim,
            NOT_CONFIRMED,
            f"weights or losses differ from those of {first.name}: {', '.join(differ)}",
        )
    steps = len(next(iter(first.losses.values()), []))
    return Verdict(
        claim,
        CONFIRMED,
        f"{len(variants)} variants, {steps} steps each: the weights of {len(first.digests)} ranks "
        "and all losses are the same in every bit",
    )
