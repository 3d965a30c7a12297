"""Rules and decisions: how a requested knob becomes an effective one, and why.

A *rule* is declared once, next to the code that applies it. Applying it yields a `Decision`.
`CommOverlapConfig.setup()` applies decisions, `overlapkit explain` prints them, and the skill's
tables are rendered from the declared rules, so they cannot disagree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from megatron.bridge.errors import OverlapConfigError as OverlapConfigError
from megatron.bridge.training.edits import Edit, either, in_words
from megatron.bridge.training.versions import NAMES, Range, Stack, holds

# Source paths are relative to the folder that contains the `megatron` namespace package.
_SOURCE_ROOT = Path(__file__).resolve().parents[3]


class Dimension(str, Enum):
    """What a knob or a communication belongs to: a kind of parallelism, or one of the rest.

    The order is the one in which decisions are shown.
    """

    TP = "TP"
    """Tensor parallelism."""
    DP = "DP"
    """Data parallelism."""
    PP = "PP"
    """Pipeline parallelism."""
    CP = "CP"
    """Context parallelism: no switch decides about its overlap, the kind of exchange does."""
    EP = "EP"
    """Expert parallelism."""
    PRECISION = "precision"
    """The mixed-precision settings."""
    LAUNCH = "launch"
    """The environment that a job starts with."""
    ANY = "any"
    """Everything else."""

    def __str__(self) -> str:
        # Python's own answer differs from version to version.
        return self.value

    def __format__(self, format_spec: str) -> str:
        return format(self.value, format_spec)


PARALLEL_DIMENSIONS = tuple(
    d.value for d in (Dimension.TP, Dimension.DP, Dimension.PP, Dimension.CP, Dimension.EP)
)
"""The kinds of parallelism, by their names."""


class Outcome(str, Enum):
    """How a decision compares with the request."""

    GRANTED = "granted"
    """Requested, and in effect."""
    DEFAULT = "default"
    """Not requested; a default was chosen."""
    REFUSED = "refused"
    """Requested, and not in effect: the run continues without it, silently unless reported."""
    WRONG_NUMBERS = "wrong-numbers"
    """The run trains, on wrong numbers, and nothing reports it."""
    ERROR = "error"
    """The run must not start like this."""
    NOTE = "note"
    """A fact about what follows from the settings; nothing is refused."""


STOPS = frozenset({Outcome.WRONG_NUMBERS, Outcome.ERROR})
"""The outcomes with which a run must not start."""

FINDINGS = STOPS | {Outcome.REFUSED}
"""The outcomes that make `overlapkit explain` exit with 1."""


@dataclass(frozen=True)
class Decision:
    """The outcome of one knob.

    Attributes:
        knob: dotted name, section first: ``model.tp_comm_overlap``.
        requested: the requested value; None where none was requested.
        effective: the value that the run uses.
        reason: why, in one sentence with the values that it depends on.
        rule: id of the rule that decided; a key of `RULES`.
        outcome: how `effective` compares with `requested`.
        dimension: what the knob belongs to.
        remedy: how to get the other outcome; None where there is nothing to fix.
        edits: the first alternative of the remedy as changes of settings; empty where settings
            alone do not bring the other outcome about.
        certain: whether it holds whatever the parts of the input are that are not known.
    """

    knob: str
    requested: Any
    effective: Any
    reason: str
    rule: str
    outcome: Outcome
    dimension: Dimension
    remedy: str | None = None
    edits: tuple[Edit, ...] = ()
    certain: bool = True

    @property
    def is_finding(self) -> bool:
        """Whether something requested is not in effect, or the run must not start."""
        return self.outcome in FINDINGS


@dataclass(frozen=True)
class Rule:
    """One gate, default, override or consequence, declared by `rule()`.

    Attributes:
        id: ``<group>.<name>``, stable: tools, tests and the skill refer to it.
        dimension: what the knobs that it decides about belong to.
        claim: what the rule does, as it holds for every configuration.
        remedy: how to get the other outcome; empty where there is none.
        path: source file, relative to the folder that contains the `megatron` package.
        line: line of the declaration, from 1.
        opt_in: whether its default leaves a knob off unless requested. It is then of interest only
            to those who request it.
        versions: the versions that it holds for, all of them together; empty means every version.
        source: where the fact is from, such as a commit; empty where it is our own measurement.
        is_bug: whether it describes a bug, so that the end of its range of versions fixed it.
        edits: the first alternative of `remedy` as changes of settings, where they are the same for
            every run.
        rests_on: dotted settings whose default alone can make it apply. Where a file does not set
            one of them, and a recipe or a script may, its findings are not certain.
    """

    id: str
    dimension: Dimension
    claim: str
    remedy: str
    path: str
    line: int
    opt_in: bool = False
    versions: tuple[Range, ...] = ()
    source: str = ""
    is_bug: bool = False
    edits: tuple[Edit, ...] = ()
    rests_on: tuple[str, ...] = ()

    def holds(self, stack: Stack) -> bool:
        """Whether it holds for the versions of a stack."""
        return holds(self.versions, stack)

    @property
    def fix(self) -> str | None:
        """The version that fixed it, such as "megatron-core 0.18.0"; None where there is none."""
        for each in self.versions if self.is_bug else ():
            if each.until is not None:
                return f"{NAMES[each.package]} {each.until}"
        return None

    def decide(
        self,
        knob: str,
        *,
        requested: Any,
        effective: Any,
        reason: str,
        outcome: Outcome,
        remedy: str | None = None,
        dimension: Dimension | None = None,
        edits: tuple[Edit, ...] | None = None,
    ) -> Decision:
        """A decision by this rule.

        A finding's remedy, its edits and the dimension are the rule's own unless they are given;
        with edits alone, the remedy is to make them. Where a newer version fixed what the rule
        describes, to use that version is one more remedy.
        """
        if remedy is None and edits:
            remedy = in_words(edits)
        if remedy is None and outcome in FINDINGS:
            remedy = self.remedy or None
            edits = self.edits if edits is None else edits
        if self.fix is not None:
            upgrade = f"use {self.fix} or newer"
            remedy = f"{remedy}, or {upgrade}" if remedy else upgrade
        return Decision(
            knob,
            requested,
            effective,
            reason,
            self.id,
            outcome,
            dimension or self.dimension,
            remedy,
            edits or (),
        )

    def error(
        self,
        knob: str,
        value: Any,
        reason: str,
        remedy: str | None = None,
        edits: tuple[Edit, ...] | None = None,
    ) -> Decision:
        """The decision that the run must not start with this value of the knob."""
        return self.decide(
            knob,
            requested=value,
            effective=value,
            reason=reason,
            outcome=Outcome.ERROR,
            remedy=remedy,
            edits=edits,
        )


@cache
def _source_path(filename: str) -> str:
    file = Path(filename).resolve()
    inside = file.is_relative_to(_SOURCE_ROOT)
    return file.relative_to(_SOURCE_ROOT).as_posix() if inside else file.name


RULES: dict[str, Rule] = {}
"""Every declared rule by id, in order of declaration."""


def rule(
    id: str,
    dimension: Dimension,
    *,
    claim: str,
    remedy: str = "",
    opt_in: bool = False,
    versions: tuple[Range, ...] = (),
    source: str = "",
    is_bug: bool = False,
    edits: tuple[Edit, ...] = (),
    rests_on: tuple[str, ...] = (),
    depth: int = 1,
) -> Rule:
    """Declare a rule; its source position is that of the calling statement.

    Args:
        versions, source, is_bug, edits, rests_on: as in `Rule`.
        depth: 2 for a helper that declares on behalf of its own caller.

    Raises:
        ValueError: a rule at another place has this id.
    """
    caller = sys._getframe(depth)
    path = _source_path(caller.f_code.co_filename)
    declared = Rule(
        id,
        dimension,
        claim,
        remedy or in_words(edits),
        path,
        caller.f_lineno,
        opt_in,
        versions,
        source,
        is_bug,
        edits,
        rests_on,
    )
    known = RULES.get(id)
    if known is not None and (known.path, known.line) != (declared.path, declared.line):
        raise ValueError(f"rule {id!r} is declared twice: {known.path}:{known.line}")
    RULES[id] = declared
    return declared


class OnAStack(Protocol):
    """What a need is tested on: it knows the versions of Megatron-Bridge and Megatron-Core."""

    @property
    def stack(self) -> Stack:
        """The versions."""


ContextT = TypeVar("ContextT", bound=OnAStack)


@dataclass(frozen=True)
class Need(Generic[ContextT]):
    """A rule with its own test. While it is not met, the knob is refused or the run is stopped.

    Attributes:
        rule: the rule that applies when the need is not met.
        met: whether the context satisfies the need.
        found: what was found instead, as the start of a reason: "sequence_parallel is off".
        edits: the remedy as changes of settings, with values and keys that depend on the run; None
            where the rule's own do.
        otherwise: another remedy in words, after `edits`.
    """

    rule: Rule
    met: Callable[[ContextT], bool]
    found: Callable[[ContextT], str]
    edits: Callable[[ContextT], tuple[Edit, ...]] | None = None
    otherwise: str = ""


@dataclass(frozen=True)
class Unmet:
    """A need that a run does not meet.

    Attributes:
        rule: the need's rule.
        found: what was found, as the start of a reason.
        edits, remedy: how to meet it; None where the rule's own do.
    """

    rule: Rule
    found: str
    edits: tuple[Edit, ...] | None = None
    remedy: str | None = None

    def decide(
        self, knob: str, *, requested: Any, effective: Any, outcome: Outcome, suffix: str = ""
    ) -> Decision:
        """The decision about the knob that has the need; `suffix` ends its reason."""
        return self.rule.decide(
            knob,
            requested=requested,
            effective=effective,
            reason=self.found + suffix,
            outcome=outcome,
            remedy=self.remedy,
            edits=self.edits,
        )


def unmet(needs: Iterable[Need[ContextT]], context: ContextT) -> Iterator[Unmet]:
    """Each need of its stack that `context` does not meet."""
    for need in needs:
        if need.rule.holds(context.stack) and not need.met(context):
            edits = need.edits(context) if need.edits is not None else None
            remedy = either(edits, need.otherwise) if edits else None
            yield Unmet(need.rule, need.found(context), edits or None, remedy)


def in_force(decisions: Iterable[Decision], stack: Stack) -> Iterable[Decision]:
    """The decisions whose rules hold for a stack: those that report, and change nothing."""
    return (d for d in decisions if RULES[d.rule].holds(stack))


def raise_errors(decisions: Iterable[Decision]) -> None:
    """Stop the run if any decision is an error, or says that it would train on wrong numbers.

    Raises:
        OverlapConfigError: with every erroneous knob, its reason and its remedy.
    """
    errors = [d for d in decisions if d.outcome in STOPS]
    if errors:
        lines = [
            f"{d.knob}: {d.reason}" + (f" Remedy: {d.remedy}" if d.remedy else "") for d in errors
        ]
        raise OverlapConfigError("\n".join(lines))
