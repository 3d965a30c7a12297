"""Explains the change of the median step time between two runs, exactly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from overlapkit.config.reading import StackBasis
from overlapkit.errors import InputError
from overlapkit.output.numbers import us_of_ns
from overlapkit.trace.compare.side import Side
from overlapkit.trace.compare.verdict import Judgement, judge
from overlapkit.trace.measure.step_times import PARTS, Part

TOP = 5
"""Movers that are listed for each part."""

DecisionKind = Literal["knob", "env", "finding", "buckets"]

OTHER_WORK = 1.5
"""Ratio of kernels per step from which a difference is said."""

BETWEEN = 0.01
"""Share of the base step from which a change of the time between steps is said."""


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
        name: the same as text shows it: a flag, where both runs take flags.
        change: both values, as text.
        by: what caused the change unless it is the knob itself, as text names it.
        base, new: its value in each run.
        causes: the configuration keys that caused it.
        reason: why the new run has its value; None where no decision says.
        rule: the rule that decided; None where no rule did.
        explains: the changed parts that it acts on, the largest first.
    """

    kind: DecisionKind
    knob: str
    name: str
    change: str
    by: tuple[str, ...]
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
        judgement: whether the new run is slower, and what that rests on.
        decisions: what the configurations decide differently; None without configurations.
        stacks: the versions of both configurations; None without configurations.
        keys: keys that differ between the configurations, with both values.
        data_parallel: the data-parallel size of each; None without configurations.
        contradictions: what a configuration says and its profile shows otherwise.
        warnings: what to keep in mind.
    """

    base: Side
    new: Side
    movers: dict[Part, list[Mover]]
    judgement: Judgement
    decisions: list[DecisionChange] | None = None
    stacks: tuple[StackBasis, StackBasis] | None = None
    keys: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    data_parallel: tuple[int, int] | None = None
    contradictions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def change(self) -> float:
        """Change of the median step; the changes of the parts add up to it."""
        return self.new.step - self.base.step

    @property
    def has_steps(self) -> bool:
        """Whether all figures are of steps."""
        return self.base.steps_from is not None and self.new.steps_from is not None

    def part_change(self, part: Part) -> float:
        """Change of one exclusive part."""
        return self.new.parts[part] - self.base.parts[part]


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
        counted = base.counted if base.counted == new.counted else "ranks or GPUs"
        reasons.append(f"different numbers of profiled {counted} ({base.ranks} and {new.ranks})")
    if (base.steps_from is None) != (new.steps_from is None):
        marked = base if base.steps_from else new
        reasons.append(f"only {marked.name} has {marked.unit}s")
    few, many = sorted((base.kernels, new.kernels))
    if many >= 10 * few and base.steps_from and new.steps_from:
        reasons.append(
            f"numbers of kernels per {base.unit} differ by an order of magnitude "
            f"({base.kernels:,.0f} and {new.kernels:,.0f})"
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
    if abs(new.between - base.between) > max(new.noise, BETWEEN * base.step):
        warnings.append(
            f"the time between {base.unit}s, which belongs to none, changed from "
            f"{us_of_ns(base.between):,.0f} to {us_of_ns(new.between):,.0f} us: "
            "check the host (data loading, logging)"
        )
    few, many = sorted((base.kernels, new.kernels))
    if many > OTHER_WORK * few and base.steps_from and new.steps_from:
        warnings.append(
            f"numbers of kernels per {base.unit} differ ({base.kernels:,.0f} and "
            f"{new.kernels:,.0f}): make sure that both {base.unit}s do the same work"
        )
    movers = {part: _movers(base.owners[part], new.owners[part]) for part in PARTS}
    return Comparison(base, new, movers, judge(base, new), warnings=warnings)


def _movers(base: Mapping[str, float], new: Mapping[str, float]) -> list[Mover]:
    movers = [Mover(name, base.get(name, 0.0), new.get(name, 0.0)) for name in {**base, **new}]
    return sorted(movers, key=lambda m: (-abs(m.change), m.name))[:TOP]
