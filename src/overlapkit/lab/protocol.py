"""What the ranks are given to do, and what they report. Plain data: no torch here."""

from __future__ import annotations

from typing import Any

import msgspec

JOB_FILE = "job.json"
"""In the work folder: the `Job`, written before the ranks start."""

MOST_BYTES = 64 << 20
"""Largest of the lab's own JSON files that is read back."""


STEP, EVALUATE, CHECKPOINT = "step", "evaluate", "checkpoint"
ACTIONS = (STEP, EVALUATE, CHECKPOINT)
"""What a variant can do: an optimizer step over one global batch; a forward pass over one global
batch, as an evaluation; a distributed checkpoint of model and optimizer written, everything built
anew, and the checkpoint read back."""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train the same model on the same data.

    Attributes:
        name: unique in its scenario.
        settings: section to keys and values, as in a YAML configuration.
        force: dotted keys that are set after the rules were applied. A run must never do this; it
            shows what the rule prevents.
        bypass: train it although a rule refuses it, for the same purpose.
        weights: save the final weights, so that they can be compared across layouts.
        gradients: also save the gradients of the first step, as the optimizer gets them: reduced
            over the data-parallel ranks and over all microbatches.
        collectives: run one more step at the end, and count what it communicates.
        actions: what is done, in order, each one of `ACTIONS`; empty: `warmup` + `steps` times
            "step". Only in a block without turns (`rounds` of 0).
        every_step: save weights (and gradients, where `gradients` is set) after every step, not
            only the last weights and the first gradients; see `weights_file`.
        data: another number is other data.
    """

    name: str
    settings: dict[str, dict[str, Any]]
    force: dict[str, Any] = {}
    bypass: bool = False
    weights: bool = False
    gradients: bool = False
    collectives: bool = False
    actions: tuple[str, ...] = ()
    every_step: bool = False
    data: int = 0


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Variants that are measured together.

    Attributes:
        name: the scenario's, or that of a part of it.
        ranks: how many processes it needs.
        variants: all have the same layout, except for virtual stages, where they take turns.
        rounds: how many turns each variant gets. With 0 the variants train one after the other,
            `warmup` + `steps` steps each, and nothing is timed.
        warmup: steps at the start of each turn that are not timed.
        steps: timed steps of a turn.
        profiled: steps recorded with torch.profiler at the end, without their warm-up; 0 for none.
        link_of: the variant whose compute and bytes determine the rate of the link; None leaves
            the rate as it is.
        link_ratio: target for the rate: communication alone over compute alone.
        calibrate: measure the machine first, with the model of `link_of`; see `Calibration`.
        alone: names a set of processes that run such blocks and nothing else; where they fail, that
            is a result and not an error. Empty: they run with others.
    """

    name: str
    ranks: int
    variants: tuple[Variant, ...]
    rounds: int = 3
    warmup: int = 1
    steps: int = 3
    profiled: int = 2
    link_of: str | None = None
    link_ratio: float = 0.75
    calibrate: bool = False
    alone: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one set of ranks does.

    Attributes:
        blocks: in order.
        device: "cpu" or "cuda".
        corpus: a text file to train on; None: the synthetic one.
        rate_mbit: rate of the link in Mbit/s; None: not limited; "auto": chosen for each block.
    """

    blocks: tuple[Block, ...]
    device: str = "cpu"
    corpus: str | None = None
    rate_mbit: float | str | None = "auto"


class DecisionRecord(msgspec.Struct, frozen=True):
    """A decision as a rank took it; see `megatron.bridge.training.decisions.Decision`."""

    rule: str
    knob: str
    requested: Any
    effective: Any
    outcome: str
    reason: str


class VariantResult(msgspec.Struct, kw_only=True):
    """What one rank measured of one variant.

    Attributes:
        name: the variant's.
        layout: sizes by their short names: tp, pp, vpp, dp.
        decisions: what the rules decided.
        effective: dotted overlap knobs and their values in the configurations that trained.
        buckets: gradient buckets of each model chunk, in parameters.
        parameters: of this rank.
        turns: for each turn the seconds of each timed step.
        others: for each turn, cores that other programs used on average; None where that is not
            known. The same on every rank of a machine, but for the instant when each reads it.
        profile_others: the same while the variant was profiled.
        cores: that the ranks may use.
        losses: mean loss of each step over the rank's microbatches, None where it is not finite;
            empty except on the last stage.
        evaluations: mean loss of each evaluation, as `losses`.
        unrestored: tensors of model and optimizer that were not the same in every bit after a
            checkpoint was read back, each once.
        unsaved: why no checkpoint was written: Megatron-Core refused it on some rank.
        digest: of this rank's final weights.
        wire_bytes: bytes that this rank's link sent per timed step; None where the rank does
            not have a link of its own.
        collectives: operator of torch.distributed to calls and bytes of a step, where counted.
        persistent_bytes: weights, gradient buffers and optimizer state.
        transient_bytes: growth of the resident memory during a turn.
        trace: file name of the profile in the work folder.
        error: why the variant could not be built or run, where that is a finding and not a
            failure: a rule or Megatron-Core refused it.
    """

    name: str
    layout: dict[str, int] = {}
    decisions: list[DecisionRecord] = []
    effective: dict[str, Any] = {}
    buckets: list[list[int]] = []
    parameters: int = 0
    turns: list[list[float]] = []
    others: list[float | None] = []
    profile_others: float | None = None
    cores: int = 0
    losses: list[float | None] = []
    evaluations: list[float | None] = []
    unrestored: list[str] = []
    unsaved: str = ""
    digest: str = ""
    wire_bytes: float | None = None
    collectives: dict[str, tuple[int, int]] = {}
    persistent_bytes: int = 0
    transient_bytes: int = 0
    trace: str | None = None
    error: str | None = None


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of this machine, measured apart from the steps to be predicted. Seconds.

    Attributes:
        compute: a step of the model without communication: on an unlimited link, minus the time
            of its collectives there.
        payload_bytes: of the collectives that were timed.
        pair: a reduce-scatter and an all-gather of that payload, over the link at its rate.
        small: the same with one element per rank: the latency.
        slowed: by how much longer compute takes while a collective runs, as a share.
        others: cores that other programs used on average meanwhile; None where not known.
    """

    compute: float
    payload_bytes: int
    pair: float
    small: float
    slowed: float
    others: float | None = None


class BlockResult(msgspec.Struct, kw_only=True):
    """What one rank measured of one block.

    Attributes:
        name, rank: the block's and the rank's.
        rate_mbit: rate of the link; None: not limited.
        variants: in the block's order.
        versions: of the packages that ran.
        device_name: the accelerator's, or "cpu".
        calibration: where the block requests one; the same on every rank.
    """

    name: str
    rank: int
    rate_mbit: float | None
    variants: list[VariantResult]
    versions: dict[str, str] = {}
    device_name: str = "cpu"
    calibration: Calibration | None = None


def result_file(block: int, rank: int) -> str:
    """Name of a block's result of one rank, in the work folder."""
    return f"block{block}.rank{rank}.json"


def weights_file(block: int, variant: str, rank: int, step: int | None = None) -> str:
    """Name of the file with one rank's weights of a variant, in the work folder.

    Args:
        block: the block's place in its job.
        variant: its name.
        rank: whose.
        step: how many steps were made, from 1; None: at the end. Saved where the variant's
            `every_step` is set.
    """
    after = "" if step is None else f".step{step}"
    return f"block{block}.{variant}{after}.rank{rank}.npz"


def trace_file(block: str, variant: str, rank: int) -> str:
    """Name of one rank's profile of a variant; `overlapkit trace` reads the rank from it."""
    return f"{block}.{variant}.rank{rank}.json.gz"
