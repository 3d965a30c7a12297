"""The hunt: draws cases, tries them, and reduces what is found to the smallest that shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Protocol

from overlapkit.lab.hunt.case import Case
from overlapkit.lab.hunt.finding import CHECKS, Finding, covers
from overlapkit.lab.hunt.generate import Generator
from overlapkit.lab.hunt.judge import Fate
from overlapkit.lab.hunt.shrink import shrunk
from overlapkit.lab.scenario import TOLERANCE

BATCH = 24
"""Cases that one start of ranks trains."""

TURNS = (2, 4, 2, 4, 8)
"""Ranks of the batches, in turn: few ranks train more cases in the same time."""


REDUCING = 0.2
"""Share of the budget that reducing one finding may take."""


NEAR = 4
"""Times the tolerance up to which a difference that most repetitions do not show is rounding.
Memory that is used too early gives larger ones, if perhaps not each time."""


class Tries(Protocol):
    """Says what becomes of cases; see `overlapkit.lab.hunt.laboratory.Laboratory`."""

    def fates(self, cases: Sequence[Case], data: int = 0) -> dict[Case, Fate]:
        """What became of each case; another number is other data."""
        ...


@dataclass
class Hunt:
    """A hunt.

    Attributes:
        laboratory: tries the cases.
        generator: draws them.
        allowed: whether a simpler case may be tried.
        budget_s: no batch starts later than this after the hunt's start, in seconds.
        most: cases at most; None: as many as the time allows.
        batch: cases of one start of ranks.
        turns: ranks of the batches, in turn.
        tell: called with what is done next, in words.
        keep: called with every case that was tried.
        fates: every case that was drawn, and what became of it.
        findings: what was found.
        once: cases that differed from the unpartitioned model with one part of the data alone, or
            by little and seldom. Two experts whose scores for a token are within rounding make such
            a difference.
    """

    laboratory: Tries
    generator: Generator
    allowed: Callable[[Case], bool]
    budget_s: float
    most: int | None = None
    batch: int = BATCH
    turns: tuple[int, ...] = TURNS
    tell: Callable[[str], None] = lambda what: None
    keep: Callable[[dict[Case, Fate]], None] = lambda fates: None
    fates: dict[Case, Fate] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    once: list[Case] = field(default_factory=list)

    def run(self) -> None:
        """Hunt until the time is over, or nothing new is found to try.

        Raises:
            LabError: ranks fail before they train anything.
        """
        self._end = time.monotonic() + self.budget_s
        empty = 0
        for ranks in cycle(self.turns):
            if self._over() or empty == len(self.turns):
                return
            cases = self._drawn(ranks)
            if not cases:
                empty += 1
                continue
            empty = 0
            self.tell(f"{len(cases)} cases on {ranks} ranks")
            found = self.laboratory.fates(cases)
            self.fates |= found
            self.keep(found)
            # Wrong numbers first: they are worth more than errors, and take less time to reduce.
            bad = [(case, fate) for case, fate in found.items() if fate.bad]
            for case, fate in sorted(bad, key=lambda one: one[1].kind != "different"):
                self._look_into(case, fate)

    def _over(self) -> bool:
        many = self.most is not None and len(self.fates) >= self.most
        return many or time.monotonic() > self._end

    def _drawn(self, ranks: int) -> list[Case]:
        left = self.batch if self.most is None else min(self.batch, self.most - len(self.fates))
        found: list[Case] = []
        for _ in range(8 * self.batch):
            if len(found) == left:
                break
            case = self.generator.draw(ranks, self.fates)
            # What is known to fail takes time, and hides what else the case would show.
            if case is not None and not any(covers(one.case, case) for one in self.findings):
                found.append(case)
        return found

    def _look_into(self, case: Case, fate: Fate) -> None:
        """Add a case to a finding, or make it one."""
        for finding in self.findings:
            if finding.is_shown_by(case, fate):
                finding.others.append(case)
                return
        if fate.kind == "different":
            again = self.laboratory.fates([case], 1)[case]
            if again.symptom != fate.symptom:
                self.once.append(case)
                return
        finding = Finding(case, fate, case)
        self.tell(f"reducing a finding: {fate.kind}")
        latest = {case: fate}
        end = min(self._end, time.monotonic() + REDUCING * self.budget_s)

        def shows(cases: Sequence[Case]) -> list[bool]:
            if time.monotonic() > end:
                return [False for _ in cases]
            tried = self.laboratory.fates(cases)
            latest.update(tried)
            return [tried[one].symptom == fate.symptom for one in cases]

        finding.case = shrunk(case, shows, self.allowed, costly=fate.kind in ("crash", "hang"))
        finding.fate = latest[finding.case]
        for known in self.findings:
            if known.case == finding.case:
                known.others.append(case)
                return
        self.findings.append(finding)
        finding.smallest = time.monotonic() <= end
        for number in range(CHECKS):
            again = self.laboratory.fates([finding.case], number + 1)[finding.case]
            finding.shown += again.symptom == fate.symptom
        near = finding.fate.relative < NEAR * TOLERANCE
        if fate.kind == "different" and near and 2 * finding.shown < CHECKS:
            self.findings.remove(finding)
            self.once += [case, *finding.others]
