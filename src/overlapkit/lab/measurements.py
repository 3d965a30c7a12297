"""Results and profiles of all ranks, combined for each variant."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from overlapkit.errors import InputError
from overlapkit.input_file import read_input
from overlapkit.lab.full_tensors import Tensors, assembled
from overlapkit.lab.protocol import (
    MOST_BYTES,
    Block,
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
class ProfiledStep:
    """A variant's profiled step, in seconds: the mean over ranks of each rank's median step.

    Attributes:
        step: length of the step; compute + exposed + other.
        compute: operators of the model.
        comm: communication, exposed or hidden.
        exposed: communication while nothing computes.
        other: neither, such as the interpreter's own time.
        by_dimension: dimension to (communication, exposed).
        step_spread: half of the range of the profiled steps' lengths, largest over the ranks.
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
        """Communication while something computes."""
        return self.comm - self.exposed

    @property
    def overlap(self) -> float | None:
        """Hidden share of the communication; None without communication."""
        return self.hidden / self.comm if self.comm else None


@dataclass(frozen=True)
class MeasuredVariant:
    """One variant over all its ranks. Times in seconds, sizes in bytes.

    Attributes:
        name: the variant's.
        ranks: each rank's own result.
        profile: its profiled step; None where it was not profiled.
        reports: for each rank the analysis of its profile by `overlapkit trace`.
    """

    name: str
    ranks: list[VariantResult]
    profile: ProfiledStep | None = None
    reports: list[RankReport] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        """Why it was refused; it has no measurements then."""
        return next((rank.error for rank in self.ranks if rank.error), None)

    @property
    def steps(self) -> list[float]:
        """Length of each timed step, on the slowest rank."""
        flat = [[step for turn in rank.turns for step in turn] for rank in self.ranks]
        return [max(lengths) for lengths in zip(*flat, strict=True)]

    @property
    def shares_cores(self) -> bool:
        """Whether there are more ranks than cores; False where the ranks are on several machines.

        On GPUs as well: a rank needs a core to launch its kernels.
        """
        one = self.ranks[0]
        on_one_machine = any(others is not None for others in one.others)
        return on_one_machine and one.cores < len(self.ranks)

    @property
    def turns(self) -> int:
        """Number of timed turns."""
        return len(self.ranks[0].turns)

    @property
    def disturbed_turns(self) -> int:
        """Turns in which other programs took cores that the ranks needed; see `disturbed`."""
        return sum(self._disturbed(number) for number in range(self.turns))

    @property
    def profile_disturbed(self) -> bool:
        """Whether other programs did so while it was profiled."""
        one = self.ranks[0]
        return disturbed(one.profile_others, one.cores, len(self.ranks))

    def _disturbed(self, turn: int) -> bool:
        one = self.ranks[0]
        others = one.others[turn] if turn < len(one.others) else None
        return disturbed(others, one.cores, len(self.ranks))

    @property
    def judged_steps(self) -> list[float]:
        """As `steps`, without disturbed turns; all of them where every turn was disturbed."""
        quiet = [turn for turn in range(self.turns) if not self._disturbed(turn)]
        chosen = quiet or range(self.turns)
        flat = [[step for turn in chosen for step in rank.turns[turn]] for rank in self.ranks]
        return [max(lengths) for lengths in zip(*flat, strict=True)]

    @property
    def step(self) -> float:
        """Median of the timed steps of quiet turns; NaN without any."""
        return statistics.median(self.judged_steps) if self.judged_steps else float("nan")

    @property
    def spread(self) -> float:
        """Half of the interquartile range of the timed steps of quiet turns; NaN without any."""
        steps = self.judged_steps
        if len(steps) < 3:
            return (max(steps) - min(steps)) / 2 if steps else float("nan")
        low, _, high = statistics.quantiles(steps, n=4, method="inclusive")
        return (high - low) / 2

    @property
    def last_turn(self) -> list[float]:
        """The timed steps directly before the profiled ones, on the slowest rank."""
        turns = [rank.turns[-1] for rank in self.ranks]
        return [max(lengths) for lengths in zip(*turns, strict=True)]

    @property
    def losses(self) -> dict[int, list[float | None]]:
        """Rank to its losses; only ranks of the last pipeline stage have any."""
        return {number: rank.losses for number, rank in enumerate(self.ranks) if rank.losses}

    @property
    def evaluations(self) -> dict[int, list[float | None]]:
        """Rank to the losses of its evaluations, as `losses`."""
        return {number: rank.evaluations for number, rank in enumerate(self.ranks) if rank.losses}

    @property
    def unrestored(self) -> list[str]:
        """Tensors that a checkpoint did not bring back, on any rank."""
        return sorted({name for rank in self.ranks for name in rank.unrestored})

    @property
    def unsaved(self) -> str:
        """Why no checkpoint was written; empty where one was, or none was to be."""
        return next((rank.unsaved for rank in self.ranks if rank.unsaved), "")

    @property
    def digests(self) -> list[str]:
        """Each rank's hash of its final weights."""
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
        """Bytes that the busiest rank's link sent per step."""
        sent = [rank.wire_bytes for rank in self.ranks if rank.wire_bytes is not None]
        return max(sent, default=None)

    @property
    def peak_bytes(self) -> int:
        """Weights, gradients, optimizer state and growth while stepping, on the largest rank."""
        return max(rank.persistent_bytes + rank.transient_bytes for rank in self.ranks)

    def decision(self, rule: str, knob: str | None = None) -> DecisionRecord | None:
        """The decision of a rule, on a knob if given; None where the rule did not fire."""
        return next((d for d in self.decisions if d.rule == rule and knob in (None, d.knob)), None)


def mean_losses(ranks: Mapping[int, Sequence[float | None]]) -> list[float | None]:
    """The losses of the global batch: the mean of each loss over the ranks that have any.

    Every replica is there equally often: tensor-parallel ranks have the same losses. None where a
    rank's loss is not finite.
    """
    return [
        None if None in losses else statistics.fmean(each for each in losses if each is not None)
        for losses in zip(*ranks.values(), strict=False)
    ]


IDLE_LOAD = 0.1
"""Cores: other programs of a quiet machine, and the lab's own that are no ranks, use less."""

CORES_PER_RANK = 1.5
"""A rank computes in one thread; another one communicates at the same time."""


def disturbed(others: float | None, cores: int, ranks: int) -> bool:
    """Whether other programs took cores that the ranks needed.

    Args:
        others: cores that other programs used, on average; None where that is not known.
        cores: that the ranks may use.
        ranks: that run on them.
    """
    if others is None or others < IDLE_LOAD:
        return False
    return cores - others < CORES_PER_RANK * ranks


@dataclass(frozen=True)
class ObservedBlock:
    """A block's measurements.

    Attributes:
        number: the block's place in its job.
        rate_mbit: rate of the link in Mbit/s; None: not limited.
        variants: by name.
        versions: of the packages that ran.
        device_name: the accelerator's, or "cpu".
        calibration: where the block requests one.
    """

    number: int
    rate_mbit: float | None
    variants: dict[str, MeasuredVariant]
    versions: dict[str, str]
    device_name: str
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Observations:
    """What was observed of a scenario's blocks.

    Attributes:
        blocks: by name.
        folders: by the same names, the folder where the ranks left their files.
    """

    blocks: dict[str, ObservedBlock]
    folders: dict[str, Path]

    def variants(self, block: str) -> dict[str, MeasuredVariant]:
        """A block's variants by name."""
        return self.blocks[block].variants

    def tensors(self, block: str, variant: str, kind: str, step: int | None = None) -> Tensors:
        """A variant's full weights or gradients.

        Args:
            block: its block.
            variant: its name.
            kind: "weight" or "gradient".
            step: after how many steps, from 1; None: the last weights and the first gradients.

        Raises:
            ValueError: two ranks have different values for the same piece of a tensor.
        """
        observed = self.blocks[block]
        ranks = range(len(observed.variants[variant].ranks))
        folder = self.folders[block]
        return assembled(
            [folder / weights_file(observed.number, variant, rank, step) for rank in ranks], kind
        )


def read_blocks(folder: Path, job: Job, ranks: int) -> list[ObservedBlock]:
    """What one set of ranks left in its folder, profiles not yet analysed.

    Raises:
        InputError: a result is missing or damaged.
    """
    return [read_block(folder, number, block, ranks) for number, block in enumerate(job.blocks)]


def read_block(folder: Path, number: int, block: Block, ranks: int) -> ObservedBlock:
    """What one set of ranks left of the block `number` of its job.

    Raises:
        InputError: a result is missing or damaged.
    """
    names = [variant.name for variant in block.variants]
    results = [_read_result(folder / result_file(number, rank), names) for rank in range(ranks)]
    return ObservedBlock(
        number=number,
        rate_mbit=results[0].rate_mbit,
        variants={
            name: MeasuredVariant(name, [result.variants[place] for result in results])
            for place, name in enumerate(names)
        },
        versions=results[0].versions,
        device_name=results[0].device_name,
        calibration=results[0].calibration,
    )


def failed_block(number: int, block: Block, error: str) -> ObservedBlock:
    """A block whose ranks failed: each of its variants has the error and no measurements."""
    variants = {
        each.name: MeasuredVariant(each.name, [VariantResult(name=each.name, error=error)])
        for each in block.variants
    }
    return ObservedBlock(number, None, variants, {}, "cpu")


def _read_result(path: Path, names: list[str]) -> BlockResult:
    """One rank's result, which must be of the variants `names`."""
    content = read_input(str(path), "result of a rank", most=MOST_BYTES)
    try:
        result = msgspec.json.decode(content, type=BlockResult)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: damaged: {error}; run the scenario again") from None
    if [variant.name for variant in result.variants] != names:
        raise InputError(
            f"{path}: damaged: its variants are not {', '.join(names)}; run the scenario again"
        )
    return result


def with_profiles(folder: Path, block: ObservedBlock) -> ObservedBlock:
    """The block with its variants' profiles analysed, several files in parallel.

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
        name: replace(variant, profile=profiled_step(reports[name]), reports=reports[name])
        if name in reports
        else variant
        for name, variant in block.variants.items()
    }
    return replace(block, variants=variants)


def profiled_step(reports: Iterable[RankReport]) -> ProfiledStep:
    """The mean over ranks of each rank's median step, by parts."""
    medians = []
    spreads = []
    for report in reports:
        ordered = sorted(report.measured, key=lambda times: times.step)
        medians.append(ordered[len(ordered) // 2])
        spreads.append((ordered[-1].step - ordered[0].step) / 2)
    dimensions = {name for times in medians for name in times.by_dimension}

    def mean_s(values_ns: Iterable[int]) -> float:
        return statistics.fmean(values_ns) / 1e9

    step = mean_s(times.step for times in medians)
    compute = mean_s(times.compute for times in medians)
    exposed = mean_s(times.exposed_comm for times in medians)
    return ProfiledStep(
        step=step,
        compute=compute,
        comm=mean_s(times.comm for times in medians),
        exposed=exposed,
        other=step - compute - exposed,
        by_dimension={
            name: (
                mean_s(t.by_dimension[name].comm if name in t.by_dimension else 0 for t in medians),
                mean_s(
                    t.by_dimension[name].exposed if name in t.by_dimension else 0 for t in medians
                ),
            )
            for name in sorted(dimensions)
        },
        step_spread=max(spreads) / 1e9,
    )
