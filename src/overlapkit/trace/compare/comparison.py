"""Explains the change of the median step time between two runs, exactly."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from overlapkit.config.reading import StackBasis
from overlapkit.errors import InputError
from overlapkit.output.numbers import us_of_ns
from overlapkit.trace.measure.step_times import PARTS, Part
from overlapkit.trace.rank_report import RankReport, middle_of
from overlapkit.trace.read.device_work import Source

TOP = 5
"""Movers that are listed for each part."""

Verdict = Literal["slower", "faster", "same"]
DecisionKind = Literal["knob", "env", "finding", "buckets"]

UNKNOWN_SPREAD = 0.01
"""Assumed spread, as a share of the step, of fewer than three steps."""


@dataclass(frozen=True)
class Side:
    """One run, averaged over its ranks. Times are in nanoseconds.

    Attributes:
        name: the file or folder, as the user named it.
        ranks: number of ranks that were read.
        gpu, world_size, source: as in `Work`.
        steps: the length of each step.
        step: the length of the median step.
        parts: its exclusive parts, which add up to `step`.
        owners: part to label to time; the labels of a part add up to it.
        exposed: exposed communication by dimension in that step.
        spread: range of the middle half of the steps; None for fewer than three.
        kernels: number of device events per rank and step.
        between: mean time from the end of a step to the start of the next, which is in no step.
        warnings: what to keep in mind.
    """

    name: str
    ranks: int
    gpu: str | None
    world_size: int | None
    source: Source
    steps: list[float]
    step: float
    parts: dict[Part, float]
    owners: dict[Part, dict[str, float]]
    exposed: dict[str, float]
    spread: float | None
    kernels: float
    between: float
    warnings: list[str]


@dataclass(frozen=True)
class Mover:
    """A kernel or a kind of communication inside a part: its time in each median step, in ns."""

    name: str
    base: float
    new: float

    @property
    def change(self) -> float:
        """What it adds to the step, in nanoseconds."""
        return self.new - self.base


@dataclass(frozen=True)
class Explanation:
    """A part that changed and on which a decision acts.

    Attributes:
        part: the exclusive part.
        dimension: the dimension of communication; None where the entire part is meant.
        operations: its operations; empty where all of them are meant.
        change: of that time, in nanoseconds.
    """

    part: Part
    dimension: str | None
    operations: tuple[str, ...]
    change: float


@dataclass(frozen=True)
class DecisionChange:
    """Something that the two configurations decide differently.

    Attributes:
        kind: what is decided.
        knob: its name, dotted.
        base, new: its value in each run.
        causes: the configuration keys that caused it.
        reason: why the new run has its value; None where no decision says.
        rule: the rule that decided; None where no rule did.
        explains: the changed parts that it acts on, the largest first.
    """

    kind: DecisionKind
    knob: str
    base: Any
    new: Any
    causes: tuple[str, ...]
    reason: str | None
    rule: str | None
    explains: tuple[Explanation, ...]


@dataclass
class Comparison:
    """Two runs compared. Times are in nanoseconds.

    Attributes:
        base, new: the runs.
        movers: what changed most inside each part.
        spread: the spread of the new run, assumed where it has fewer than three steps.
        decisions: what the configurations decide differently; None without configurations.
        stacks: the versions of both configurations; None without configurations.
        keys: keys that differ between the configurations, with both values.
        warnings: what to keep in mind.
    """

    base: Side
    new: Side
    movers: dict[Part, list[Mover]]
    spread: float
    decisions: list[DecisionChange] | None = None
    stacks: tuple[StackBasis, StackBasis] | None = None
    keys: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def change(self) -> float:
        """Change of the median step; the changes of the parts add up to it."""
        return self.new.step - self.base.step

    @property
    def verdict(self) -> Verdict:
        """Whether the change is larger than the spread, and in which direction."""
        if abs(self.change) <= self.spread:
            return "same"
        return "slower" if self.change > 0 else "faster"

    def part_change(self, part: Part) -> float:
        """Change of one exclusive part."""
        return self.new.parts[part] - self.base.parts[part]


def side_of(name: str, reports: Sequence[RankReport]) -> Side:
    """The median step of one run, averaged over its ranks step by step.

    Averages of parts add up to the average of the step. Medians of parts would not.
    """
    count = min(len(r.measured) for r in reports)
    ranks = len(reports)
    steps = [sum(r.measured[i].step for r in reports) / ranks for i in range(count)]
    parts, owners, exposed = _mean_of_steps(reports, middle_of(range(count), key=steps.__getitem__))
    spread = None
    if count >= 3:
        low, _, high = statistics.quantiles(steps, n=4, method="inclusive")
        spread = high - low
    warnings = []
    if len({len(r.measured) for r in reports}) > 1:
        warnings.append(
            f"{name}: ranks have different numbers of steps; only the first {count} are used"
        )
    return Side(
        name=name,
        ranks=ranks,
        gpu=next((r.gpu for r in reports if r.gpu), None),
        world_size=next((r.world_size for r in reports if r.world_size), None),
        source=reports[0].source,
        steps=steps,
        step=sum(parts.values()),
        parts=parts,
        owners=owners,
        exposed=exposed,
        spread=spread,
        kernels=sum(r.kernels for r in reports)
        / ranks
        / max(1, max(len(r.steps) for r in reports)),
        between=sum(_between(r) for r in reports) / ranks,
        warnings=warnings,
    )


def _mean_of_steps(
    reports: Sequence[RankReport], chosen: Sequence[int]
) -> tuple[dict[Part, float], dict[Part, dict[str, float]], dict[str, float]]:
    """The mean over all ranks and the chosen steps: parts, their owners, exposed by dimension."""
    weight = 1.0 / (len(reports) * len(chosen))
    parts = dict.fromkeys(PARTS, 0.0)
    owners: dict[Part, dict[str, float]] = {part: {} for part in PARTS}
    exposed: dict[str, float] = {}
    for report in reports:
        for i in chosen:
            for part, value in report.measured[i].parts.items():
                parts[part] += value * weight
            for dimension, times in report.measured[i].by_dimension.items():
                exposed[dimension] = exposed.get(dimension, 0.0) + times.exposed * weight
            for part, rows in report.owners.items():
                for label, row in rows.items():
                    if row[i]:
                        owners[part][label] = owners[part].get(label, 0.0) + row[i] * weight
    return parts, owners, exposed


def _between(report: RankReport) -> float:
    windows = [t.window for t in report.measured]
    gaps = [max(0, b.start - a.end) for a, b in itertools.pairwise(windows)]
    return sum(gaps) / len(gaps) if gaps else 0.0


def why_not_comparable(base: Side, new: Side) -> list[str]:
    """Why comparing the two would be misleading; empty where it would not."""
    reasons = []
    if base.gpu and new.gpu and _plain(base.gpu) != _plain(new.gpu):
        reasons.append(f"different GPUs ({base.gpu} and {new.gpu})")
    if base.world_size and new.world_size and base.world_size != new.world_size:
        reasons.append(f"different world sizes ({base.world_size} and {new.world_size})")
    if (base.source == "cpu") != (new.source == "cpu"):
        reasons.append("one is a CPU trace, the other a GPU trace")
    if base.ranks != new.ranks:
        reasons.append(f"different numbers of profiled ranks ({base.ranks} and {new.ranks})")
    few, many = sorted((base.kernels, new.kernels))
    if many >= 10 * few:
        reasons.append(
            f"numbers of kernels per step differ by an order of magnitude ({base.kernels:,.0f} "
            f"and {new.kernels:,.0f})"
        )
    return reasons


def _plain(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]", "", gpu.lower().removeprefix("nvidia"))


def compare(base: Side, new: Side, *, force: bool = False) -> Comparison:
    """Compare two runs.

    Raises:
        InputError: a comparison would be misleading, and `force` is not given.
    """
    reasons = why_not_comparable(base, new)
    if reasons and not force:
        raise InputError(
            f"{base.name} and {new.name} are not comparable: {'; '.join(reasons)}; "
            "--force compares them anyway"
        )
    warnings = [*base.warnings, *new.warnings, *(f"not comparable: {r}" for r in reasons)]
    spread = new.spread
    if spread is None:
        spread = UNKNOWN_SPREAD * base.step
        warnings.append(
            f"{new.name} has {len(new.steps)} step{'s' if len(new.steps) > 1 else ''}: its spread "
            f"is unknown, and {100 * UNKNOWN_SPREAD:g} % is assumed"
        )
    if abs(new.between - base.between) > max(spread, UNKNOWN_SPREAD * base.step):
        warnings.append(
            "the time between steps, which belongs to no step, changed from "
            f"{us_of_ns(base.between):,.0f} to {us_of_ns(new.between):,.0f} us per step: "
            "check the host (data loading, logging)"
        )
    movers = {part: _movers(base.owners[part], new.owners[part]) for part in PARTS}
    return Comparison(base, new, movers, spread, warnings=warnings)


def _movers(base: Mapping[str, float], new: Mapping[str, float]) -> list[Mover]:
    movers = [Mover(name, base.get(name, 0.0), new.get(name, 0.0)) for name in {**base, **new}]
    return sorted(movers, key=lambda m: (-abs(m.change), m.name))[:TOP]
