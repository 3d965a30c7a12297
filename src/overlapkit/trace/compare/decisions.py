"""Which decisions differ between two configurations, and which changes of the step they explain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from overlapkit.errors import InputError
from overlapkit.hardware import gpus
from overlapkit.output.numbers import setting_text
from overlapkit.trace.compare.comparison import (
    Comparison,
    DecisionChange,
    DecisionKind,
    Explanation,
)
from overlapkit.trace.diagnose.contradictions import contradictions
from overlapkit.trace.diagnose.expected import expected_of
from overlapkit.trace.measure.step_times import Part
from overlapkit.trace.rank_report import RankReport

if TYPE_CHECKING:
    from overlapkit.config.installation import Installation
    from overlapkit.config.reading import Reading
    from overlapkit.config.run import Settings
    from overlapkit.explain.difference import Change, Difference

NOTABLE = 0.005
"""Share of the base step from which a change of a part is attributed to decisions."""

_OPERATIONS = {"reduce": ("reduce_scatter", "all_reduce"), "gather": ("all_gather",)}
# Patterns of knobs, and the parts of the step that they act on, with the dimension of communication
# (and the operations). The first pattern that matches applies.
_ACTS_ON: tuple[tuple[re.Pattern[str], tuple[tuple[Part, str | None], ...]], ...] = (
    (
        re.compile(r"LAYERNORM_SM_MARGIN"),
        (("exposed_comm", "DP"), ("compute", None), ("idle", None)),
    ),
    (re.compile(r"NCCL_P2P"), (("exposed_comm", "PP"),)),
    (
        re.compile(r"^env\."),
        (("exposed_comm", None), ("compute", None), ("idle", None)),
    ),
    (
        re.compile(r"defer_embedding|wgrad_deferral"),
        (("exposed_comm", "embedding"), ("exposed_comm", "PP"), ("idle", None)),
    ),
    (
        re.compile(r"moe|expert|delay_wgrad"),
        (("exposed_comm", "EP"), ("compute", None), ("idle", None)),
    ),
    (
        re.compile(r"p2p|pipeline"),
        (("exposed_comm", "PP"), ("idle", None), ("compute", None)),
    ),
    (re.compile(r"context_parallel"), (("exposed_comm", "CP"), ("compute", None))),
    (re.compile(r"tp_comm|tensor|sequence_parallel"), (("exposed_comm", "TP"), ("compute", None))),
    (re.compile(r"grad_reduce"), (("exposed_comm", "DP reduce"), ("exposed_comm", "other"))),
    (re.compile(r"param_gather"), (("exposed_comm", "DP gather"), ("exposed_comm", "other"))),
    (
        re.compile(r"^(?:ddp|optimizer)\.|^buckets|bucket|grad_reduce|param_gather|fp8"),
        (("exposed_comm", "DP"), ("exposed_comm", "other"), ("exposed_memory", None)),
    ),
)


@dataclass(frozen=True)
class Installed:
    """The Transformer Engine of a job: as --te gives it, or as --stack has it."""

    te: str | None = None
    installation: Installation | None = None


def add_decisions(
    comparison: Comparison, settings: Sequence[Settings], software: Installed
) -> None:
    """Add what the settings of the base and the new run decide differently.

    Raises:
        InputError: as `overlapkit explain`.
    """
    from overlapkit.explain.assumptions import assume
    from overlapkit.explain.difference import find_difference
    from overlapkit.explain.difference_text import remarks_of
    from overlapkit.output.numbers import plain

    sizes = [
        side.world_size or (each.launch.world_size if each.launch is not None else None)
        for side, each in zip((comparison.base, comparison.new), settings, strict=True)
    ]
    sizes = [size or next((s for s in sizes if s), None) for size in sizes]
    if None in sizes:
        ranks = comparison.base.ranks, comparison.new.ranks
        comparison.warnings.append(
            "neither a trace nor a configuration states the world size: the decisions are those "
            "for as many GPUs as there are profiled ranks"
        )
        sizes = list(ranks)
    gpu = known_gpu(comparison.new.gpu or comparison.base.gpu)
    assumptions = assume(gpu, software.te, None, installation=software.installation)
    difference = find_difference(settings, [size or 1 for size in sizes], assumptions)
    rules = {d.knob: d.rule for d in difference.before.decisions}
    rules |= {d.knob: d.rule for d in difference.after.decisions}
    rules |= {v.name: v.rule for v in difference.after.launch_env}
    comparison.data_parallel = (
        difference.before.data_parallel_size,
        difference.after.data_parallel_size,
    )
    comparison.stacks = (difference.before.basis, difference.after.basis)
    comparison.warnings += remarks_of(difference)
    comparison.decisions = [
        DecisionChange(
            kind=change.of.kind,
            knob=change.of.knob,
            name=name,
            change=values,
            by=by,
            base=plain(change.before),
            new=plain(change.after),
            causes=change.causes,
            reason=change.reason,
            rule="core.bucket-count"
            if change.of.kind == "buckets"
            else change.of.rule or rules.get(change.of.knob),
            explains=_explains(comparison, change.of.kind, change.of.knob),
        )
        for change in difference.changes
        for name, values, by in [_named(difference, change)]
    ]
    order = get_args(DecisionKind)
    comparison.decisions.sort(
        key=lambda d: (
            order.index(d.kind),
            -max((abs(e.change) for e in d.explains), default=0.0),
        )
    )
    comparison.keys = {k: (plain(a), plain(b)) for k, (a, b) in difference.keys.items()}


def add_contradictions(
    comparison: Comparison, settings: Sequence[Settings], reports: Sequence[Sequence[RankReport]]
) -> None:
    """Add where a profile shows other communication than the configuration of its run makes."""
    for name, each, part in zip(("Base", "New"), settings, reports, strict=True):
        world_size = next((r.world_size for r in part if r.world_size), None)
        expected, why = expected_of(each, world_size)
        if expected is None:
            comparison.warnings.append(f"{name.lower()}: {why}")
            continue
        comparison.contradictions += [f"{name}: {c}" for c in contradictions(expected, part)]


def _named(difference: Difference, change: Change) -> tuple[str, str, tuple[str, ...]]:
    """As text shows them: the knob, both values, and the causes unless they are the knob itself."""
    words, knob = difference.words, change.of.knob
    before, after = (words.value(knob, value) for value in (change.before, change.after))
    values = f"{setting_text(before)} -> {setting_text(after)}"
    causes = () if change.causes == (knob,) else change.causes
    return words.name(knob), values, tuple(dict.fromkeys(words.short(each) for each in causes))


def known_gpu(name: str | None) -> str | None:
    """The name in the hardware table of a GPU such as "NVIDIA H100 80GB HBM3"; None without one."""
    words = re.findall(r"[a-z0-9]+", (name or "").lower())
    found = [gpu for gpu in gpus() if gpu in words]
    return max(found, key=len) if found else None


def _of_operations(c: Comparison, dimension: str, operations: tuple[str, ...]) -> float:
    """Change of the exposed time of these operations of a dimension, in nanoseconds."""
    starts = tuple(f"{dimension} {operation} " for operation in operations)
    new, base = (
        sum(ns for label, ns in side.owners["exposed_comm"].items() if label.startswith(starts))
        for side in (c.new, c.base)
    )
    return new - base


def _explains(c: Comparison, kind: str, name: str) -> tuple[Explanation, ...]:
    """The changed parts that this knob acts on, the largest change first."""
    knob = f"env.{name}" if kind == "env" else name
    targets = next((parts for pattern, parts in _ACTS_ON if pattern.search(knob)), ())
    moved = []
    for part, target in targets:
        dimension, _, operations = (target or "").partition(" ")
        if operations:
            change = _of_operations(c, dimension, _OPERATIONS[operations])
        elif not dimension:
            change = c.part_change(part)
        else:
            change = c.new.exposed.get(dimension, 0.0) - c.base.exposed.get(dimension, 0.0)
        if abs(change) > max(NOTABLE * c.base.step, 0.05 * abs(c.change)):
            moved.append(
                Explanation(part, dimension or None, _OPERATIONS.get(operations, ()), change)
            )
    return tuple(sorted(moved, key=lambda e: -abs(e.change)))


def read_configurations(
    config_base: str | Settings | None,
    config_new: str | Settings | None,
    reading: Reading | None = None,
) -> list[Settings]:
    """The settings of the base's and the new run's configuration; empty where neither is given.

    Args:
        config_base, config_new: a file, or settings that were read already.
        reading: for which versions and how strictly they are read.

    Raises:
        InputError: one of the two is given without the other, one cannot be read, or they are for
            different frameworks.
    """
    if config_base is None and config_new is None:
        return []
    if config_base is None or config_new is None:
        missing = "--config-new" if config_new is None else "--config-base"
        raise InputError(f"{missing} is missing: decisions are compared between two configurations")
    # Imported here: most comparisons name no configuration.
    from overlapkit.config.sources import read_configuration

    settings = [
        read_configuration(given, reading) if isinstance(given, str) else given
        for given in (config_base, config_new)
    ]
    if settings[0].framework != settings[1].framework:
        raise InputError(
            f"--config-new {settings[1].source}: is for {settings[1].framework}, and --config-base "
            f"{settings[0].source} for {settings[0].framework}; give two configurations of one "
            "framework"
        )
    return settings
