"""Judges every configuration and launch script below a folder, as `overlapkit explain` would."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overlapkit.audit.find import find
from overlapkit.config.file_kind import kind_of, without_line
from overlapkit.config.megatron_lm.arguments import UnknownValue
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings
from overlapkit.config.sources import Source, check_world_size, world_size_of
from overlapkit.errors import DoesNotStart, InputError, NoConfiguration, SeveralLaunches
from overlapkit.explain.lint.linted import Linted
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.output.console import encodable

_SIZES = (1, 2, 8)
"""Times that a layout is repeated, where the number of GPUs is not known: what is found for each of
them is found for any."""


@dataclass(frozen=True)
class Audited:
    """One configuration and its answer.

    Attributes:
        file: the file, as it was found; ``FILE:LINE`` for one of several launches in a script.
        report: the answer; None where it could not be judged. Where the number of GPUs is not
            known, it has only the decisions that do not depend on it.
        world_size: GPUs of the job; None where nothing states them.
        problem: why it could not be judged, in one line without the file; empty where it was.
        line: of the problem, from 1; None where it is not known.
        does_not_start: whether the framework itself refuses the file, as it was understood.
        is_wrong: whether it could not be judged since something in it is wrong; else a value is
            missing that the file alone does not have.
    """

    file: str
    report: Report | None
    world_size: int | None = None
    problem: str = ""
    is_wrong: bool = False
    line: int | None = None
    does_not_start: bool = False

    @property
    def findings(self) -> int:
        """How many findings it has."""
        return 0 if self.report is None else len(self.report.findings)

    @property
    def fails(self) -> bool:
        """Whether the exit status says so: it has a finding, or something in it is wrong."""
        return bool(self.findings) or self.is_wrong

    @property
    def linted(self) -> Linted:
        """As the forms for other programs take it; a missing value is no fault of the file."""
        return Linted(without_line(self.file), self.report, self.problem, self.line, self.is_wrong)


@dataclass(frozen=True)
class Audit:
    """The answer on the folders.

    Attributes:
        paths: the folders and files that were named.
        audited: each configuration, in order of the files' names.
        others: how many other YAML files and scripts were passed over.
    """

    paths: tuple[str, ...]
    audited: tuple[Audited, ...]
    others: int

    @property
    def fails(self) -> bool:
        """Whether one of them has a finding, or is wrong."""
        return any(each.fails for each in self.audited)


def audit(
    paths: Sequence[str],
    world_size: int | None,
    assumptions: Assumptions,
    reading: Reading,
    *,
    pass_over: bool = False,
) -> Audit:
    """Judge everything below these paths.

    Args:
        paths: folders and files.
        world_size: GPUs of the jobs whose files do not state them.
        assumptions: what the files do not say.
        reading: for which versions and how strictly they are read.
        pass_over: whether a named file that has nothing to do with a Megatron run is passed over,
            as one below a folder is.

    Raises:
        InputError: a path does not exist, or more is below it than is looked at.
    """
    check_world_size(world_size)
    found = find(paths, pass_over=pass_over)
    audited = [Audited(name, None, None, why, True) for name, why in found.unread]
    others = found.others
    for file in found.files:
        try:
            audited += _judged(file, world_size, assumptions, reading)
        except NoConfiguration as error:
            if pass_over or file not in paths:
                others += 1
                continue
            audited.append(_not_judged(file, error))
    audited.sort(key=lambda each: each.file)
    return Audit(tuple(encodable(path) for path in paths), tuple(audited), others)


def _judged(
    file: str, world_size: int | None, assumptions: Assumptions, reading: Reading
) -> Iterator[Audited]:
    """The answer on a file; on each launch of a script with several.

    Raises:
        NoConfiguration: it is none.
    """
    try:
        settings = Source(kind_of(file, "yaml"), file).read(reading)
        size = _size_of(settings, world_size)
        if size is not None:
            report = explain(settings, size, assumptions)
        else:
            report = _whatever_the_size(settings, assumptions)
        yield Audited(encodable(file), report, size)
    except NoConfiguration:
        raise
    except SeveralLaunches as error:
        for line in dict.fromkeys(error.lines):
            yield from _judged(f"{file}:{line}", world_size, assumptions, reading)
    except InputError as error:
        yield _not_judged(file, error)


def _not_judged(file: str, error: InputError) -> Audited:
    name = encodable(file)
    told = re.fullmatch(rf"{re.escape(name)}(?::(\d+))?: (.*)", str(error))
    line = int(told[1]) if told and told[1] else None
    problem = told[2] if told else str(error)
    return Audited(
        name,
        None,
        None,
        problem,
        not isinstance(error, UnknownValue),
        line,
        isinstance(error, DoesNotStart),
    )


def _size_of(settings: Settings, given: int | None) -> int | None:
    """The number of GPUs that the file states, else the given one; None where neither does.

    Raises:
        InputError: it is not one that a job can have.
    """
    launch = settings.launch
    if launch is not None and launch.world_size is not None:
        return world_size_of(settings, None)
    if given is None and settings.after_setup is not None:
        return settings.after_setup * _layout(settings)
    return given


def _layout(settings: Settings) -> int:
    """GPUs of one replica of the model: TP x PP x CP."""
    return math.prod(
        _whole(settings, f"{name}_parallel_size")
        for name in ("tensor_model", "pipeline_model", "context")
    )


def _whole(settings: Settings, name: str) -> int:
    value = (settings.values.get("model") or {}).get(name)
    return value if isinstance(value, int) and value > 0 else 1


def _whatever_the_size(settings: Settings, assumptions: Assumptions) -> Report:
    """What is found on any number of GPUs, in a report for the largest that was tried.

    Raises:
        InputError: the layout fits none of them.
    """
    experts = _whole(settings, "expert_model_parallel_size")
    unit = math.lcm(_layout(settings), experts * _whole(settings, "pipeline_model_parallel_size"))
    reports = [explain(settings, unit * times, assumptions) for times in _SIZES]
    largest = reports[-1]
    everywhere = [{(d.rule, d.knob, d.outcome) for d in each.decisions} for each in reports]
    kept = [
        (d, place)
        for d, place in zip(largest.decisions, largest.places, strict=True)
        if all((d.rule, d.knob, d.outcome) in found for found in everywhere)
    ]
    return dataclasses.replace(
        largest, decisions=[d for d, _ in kept], places=tuple(place for _, place in kept)
    )
