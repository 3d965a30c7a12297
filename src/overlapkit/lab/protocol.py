"""What the ranks are told to do, and what they tell of it. Plain data: no torch here."""

from __future__ import annotations

from typing import Any

import msgspec

JOB_FILE = "job.json"
"""In the work folder: the `Job`, written before the ranks start."""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train the same model on the same data.

    Attributes:
        name: unique in its scenario.
        settings: section to keys and values, as in a configuration's YAML.
        force: dotted keys that are set after the rules have been applied: what nobody should do,
            to show what the rule prevents.
        weights: keep the final weights, whole, to compare them between layouts.
        gradients: keep the first step's gradients as well; they are whole only without
            data parallelism.
        collectives: make one step more at the end, and count what it communicates.
    """

    name: str
    settings: dict[str, dict[str, Any]]
    force: dict[str, Any] = {}
    weights: bool = False
    gradients: bool = False
    collectives: bool = False


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Variants that are measured together.

    Attributes:
        name: the scenario, or a part of it.
        ranks: processes that it takes.
        variants: all of one layout, but for virtual stages, where they are interleaved.
        rounds: how often each variant gets its turn. With 0 the variants train one after the
            other, `warmup` + `steps` steps each, and only numbers are kept.
        warmup: steps at the start of each turn that are not counted.
        steps: counted steps of a turn.
        profiled: steps recorded with torch.profiler at the end, without their warm-up; 0 for none.
        link_of: the variant whose compute and bytes decide the link's rate; None leaves the rate
            as it is.
        link_ratio: communication alone over compute alone that the rate is chosen for.
        calibrate: measure the machine first, with the model of `link_of`; see `Calibration`.
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


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one set of ranks does.

    Attributes:
        blocks: in order.
        device: "cpu" or "cuda".
        corpus: a text file to train on; None: the synthetic one.
        rate_mbit: the link's rate in Mbit/s; None: unshaped; "auto": chosen by each block.
        trace: keep the profiles under their variants' names in the work folder.
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
    """What one rank saw of one variant.

    Attributes:
        name: the variant's.
        layout: sizes by their short names: tp, pp, vpp, dp.
        decisions: what the rules decided.
        effective: dotted overlap knobs and their values in the configurations that trained.
        buckets: gradient buckets of each model chunk, in parameters.
        parameters: of this rank.
        turns: per round the seconds of each counted step.
        losses: mean loss of each step over the rank's microbatches, None where it is not finite;
            empty but on the last stage.
        digest: of this rank's final weights.
        wire_bytes: bytes that this rank's link sent per step, in the counted steps; None where the
            link is not the rank's own.
        collectives: operator of torch.distributed to calls and bytes in a step, where counted.
        persistent_bytes: weights, gradient buffers and optimizer state.
        transient_bytes: growth of the resident memory while stepping.
        trace: the profile's file name in the work folder.
        error: why the variant could not be built or run, where that is a finding rather than a
            fault: a refusal by a rule or by Megatron-Core.
    """

    name: str
    layout: dict[str, int] = {}
    decisions: list[DecisionRecord] = []
    effective: dict[str, Any] = {}
    buckets: list[list[int]] = []
    parameters: int = 0
    turns: list[list[float]] = []
    losses: list[float | None] = []
    digest: str = ""
    wire_bytes: float | None = None
    collectives: dict[str, tuple[int, int]] = {}
    persistent_bytes: int = 0
    transient_bytes: int = 0
    trace: str | None = None
    error: str | None = None


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine does, measured apart from what is to be predicted. Seconds.

    Attributes:
        compute: a step of the model without communication: on an unlimited link, less what its
            collectives take there.
        payload_bytes: of the collectives that were timed.
        pair: a reduce-scatter and an all-gather of that payload, over the link as it is used.
        small: the same of one element per rank: latency.
        slowed: by how much more time compute takes while a collective runs beside it, as a share.
    """

    compute: float
    payload_bytes: int
    pair: float
    small: float
    slowed: float


class BlockResult(msgspec.Struct, kw_only=True):
    """What one rank saw of one block.

    Attributes:
        name, rank: the block's and the rank's.
        rate_mbit: the link's rate that was used; None: unshaped.
        variants: in the block's order.
        versions: of the packages that ran.
        device_name: the accelerator's, or "cpu".
        calibration: where the block asked for it; the same on every rank.
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


def weights_file(block: int, variant: str, rank: int) -> str:
    """Name of the file of a variant's weights of one rank, in the work folder."""
    return f"block{block}.{variant}.rank{rank}.npz"


def trace_file(block: str, variant: str, rank: int) -> str:
    """Name of a variant's profile of one rank; the rank stands where `overlapkit trace` looks."""
    return f"{block}.{variant}.rank{rank}.json.gz"
