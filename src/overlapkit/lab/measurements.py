"""What the ranks' results and profiles say of each variant, put together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from overlapkit.lab.full_tensors import Tensors, whole
from overlapkit.lab.protocol import (
    BlockResult,
    Calibration,
    DecisionRecord,
    Job,
    VariantResult,
    result_file,
    weights_file,
)
from overlapkit.trace.rank_report import Options, RankReport


@dataclass(frozen=True)
class Profile:
    """A variant's profiled steps: seconds, each the mean over the ranks of their median step.

    Attributes:
        step: length of a step; compute + exposed + other.
        compute: operators of the model.
        comm: communication, exposed or not.
        exposed: communication without compute.
        other: neither, such as the interpreter's own time.
        by_dimension: dimension to (communication, exposed).
        step_spread: half of the range of the profiled steps' lengths.
    """

    step: float
    compute: float
    comm: float
    exposed: float
    other: float
    by_dimension: Mapping[str, tuple[float, float]]
    step_spread: float

    @property
    def hidden(self) -> float:
        """Communication at once with compute."""
        return self.comm - self.exposed

    @property
    def overlap(self) -> float | None:
        """Hidden share of the communication; None where there is none."""
        return self.hidden / self.comm if self.comm else None


@dataclass(frozen=True)
class Measured:
    """One variant over all its ranks. Times in seconds, sizes in bytes.

    Attributes:
        name: the variant's.
        error: why it was refused; nothing else is filled in then.
        steps: length of each counted step, the slowest rank's.
        profile: its profiled steps; None where it was not profiled.
        reports: per rank what `overlapkit trace` says of its profile.
        losses: rank to its losses; only ranks of the last pipeline stage have any.
        digests: rank to the hash of its weights.
        ranks: each rank's own result.
    """

    name: str
    ranks: list[VariantResult]
    profile: Profile | None = None
    reports: list[RankReport] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        return next((rank.error for rank in self.ranks if rank.error), None)

    @property
    def steps(self) -> list[float]:
        flat = [[step for turn in rank.turns for step in turn] for rank in self.ranks]
        return [max(lengths) for lengths in zip(*flat, strict=True)]

    @property
    def step(self) -> float:
        """Median step."""
        return statistics.median(self.steps) if self.steps else float("nan")

    @property
    def spread(self) -> float:
        """Half of the interquartile range of the steps: half of them lie within it."""
        if len(self.steps) < 3:
            return (max(self.steps) - min(self.steps)) / 2 if self.steps else float("nan")
        low, _, high = statistics.quantiles(self.steps, n=4, method="inclusive")
        return (high - low) / 2

    @property
    def last_turn(self) -> list[float]:
        """The counted steps right before the profiled ones, the slowest rank's."""
        turns = [rank.turns[-1] for rank in self.ranks]
        return [max(lengths) for lengths in zip(*turns, strict=True)]

    @property
    def losses(self) -> dict[int, list[float | None]]:
        return {number: rank.losses for number, rank in enumerate(self.ranks) if rank.losses}

    @property
    def digests(self) -> list[str]:
        return [rank.digest for rank in self.ranks]

    @property
    def decisions(self) -> list[DecisionRecord]:
        """As rank 0 took them."""
        return self.ranks[0].decisions

    @property
    def effective(self) -> dict[str, object]:
        """Overlap knobs as rank 0 trained with them."""
        return self.ranks[0].effective

    @property
    def wire_bytes(self) -> float | None:
        """Bytes that a rank's link sent per step, the busiest rank's."""
        sent = [rank.wire_bytes for rank in self.ranks if rank.wire_bytes is not None]
        return max(sent, default=None)

    @property
    def peak_bytes(self) -> int:
        """Weights, gradients, optimizer state and growth while stepping; the largest rank's."""
        return max(rank.persistent_bytes + rank.transient_bytes for rank in self.ranks)

    def decision(self, rule: str, knob: str | None = None) -> DecisionRecord | None:
        """The decision of a rule, on a knob where given; None where it did not speak."""
        return next((d for d in self.decisions if d.rule == rule and knob in (None, d.knob)), None)


@dataclass(frozen=True)
class SeenBlock:
    """A block's variants by name, and its link's rate in Mbit/s."""

    number: int
    rate_mbit: float | None
    variants: dict[str, Measured]
    versions: dict[str, str]
    device_name: str
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Seen:
    """What was seen of a scenario's blocks, by their names.

    Attributes:
        folders: where each block's ranks left their files.
    """

    blocks: dict[str, SeenBlock]
    folders: dict[str, Path]

    def variants(self, block: str) -> dict[str, Measured]:
        """A block's variants."""
        return self.blocks[block].variants

    def tensors(self, block: str, variant: str, kind: str) -> Tensors:
        """A variant's whole weights or first gradients; `kind` is "weight" or "gradient".

        Raises:
            ValueError: ranks that hold the same piece of a tensor disagree on it.
        """
        seen = self.blocks[block]
        ranks = range(len(seen.variants[variant].ranks))
        folder = self.folders[block]
        return whole([folder / weights_file(seen.number, variant, rank) for rank in ranks], kind)


def read_blocks(folder: Path, job: Job, ranks: int) -> list[SeenBlock]:
    """What one set of ranks left in its folder, profiles not yet analysed."""
    found = []
    for number, block in enumerate(job.blocks):
        results = [
            msgspec.json.decode((folder / result_file(number, rank)).read_bytes(), type=BlockResult)
            for rank in range(ranks)
        ]
        variants = {
            variant.name: Measured(variant.name, [result.variants[place] for result in results])
            for place, variant in enumerate(block.variants)
        }
        found.append(
            SeenBlock(
                number,
                results[0].rate_mbit,
                variants,
                results[0].versions,
                results[0].device_name,
                results[0].calibration,
            )
        )
    return found


def with_profiles(folder: Path, block: SeenBlock) -> SeenBlock:
    """The block with its variants' profiles analysed, several files in processes.

    Raises:
        InputError: a profile cannot be read.
    """
    from overlapkit.trace.analyse import analyse_each

    wanted = [
        (name, rank.trace)
        for name, variant in block.variants.items()
        for rank in variant.ranks
        if rank.trace is not None
    ]
    if not wanted:
        return block
    paths = [str(folder / trace) for _, trace in wanted]
    # The same step of every rank, so that their timelines belong together.
    analysed = analyse_each(paths, Options(timeline=True, pictured=-1))
    reports: dict[str, list[RankReport]] = {}
    for (name, _), found in zip(wanted, analysed, strict=True):
        reports.setdefault(name, []).extend(found)
    variants = {
        name: Measured(name, variant.ranks, profile_of(reports[name]), reports[name])
        if name in reports
        else variant
        for name, variant in block.variants.items()
    }
    return replace(block, variants=variants)


def profile_of(reports: Iterable[RankReport]) -> Profile:
    """The mean over ranks of each one's median step, by parts."""
    medians = []
    spreads = []
    for report in reports:
        ordered = sorted(report.measured, key=lambda times: times.step)
        medians.append(ordered[len(ordered) // 2])
        spreads.append((ordered[-1].step - ordered[0].step) / 2)
    dimensions = {name for times in medians for name in times.by_dimension}

    def mean(values: Iterable[int]) -> float:
        return statistics.fmean(values) / 1e9

    step = mean(times.step for times in medians)
    compute = mean(times.compute for times in medians)
    exposed = mean(times.exposed_comm for times in medians)
    return Profile(
        step=step,
        compute=compute,
        comm=mean(times.comm for times in medians),
        exposed=exposed,
        other=step - compute - exposed,
        by_dimension={
            name: (
                mean(t.by_dimension[name].comm if name in t.by_dimension else 0 for t in medians),
                mean(
                    t.by_dimension[name].exposed if name in t.by_dimension else 0 for t in medians
                ),
            )
            for name in sorted(dimensions)
        },
        step_spread=max(spreads) / 1e9,
    )
