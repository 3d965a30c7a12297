"""Tries cases: trains them and the unpartitioned models that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from overlapkit.lab.hunt.batch import SILENCE_S, Trained, train
from overlapkit.lab.hunt.case import Case, actions, settings, unpartitioned
from overlapkit.lab.hunt.judge import BF16, FULL, Fate, Reference, compared, reference_of, troubled
from overlapkit.lab.measurements import Observations
from overlapkit.lab.protocol import Variant
from overlapkit.lab.scenario import Settings


class Laboratory:
    """Trains cases and says what became of them; unpartitioned models are trained once.

    Args:
        scratch: a folder that the caller removes.
        base: settings that the features of each case are written over; None: the tiny model's.
        force: dotted keys that are set on every case past the rules, to show what a rule prevents.
        silence_s: longest time without an event of any rank, in seconds.
        on_event: called with each event of a rank.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        base: Settings | None = None,
        force: Mapping[str, Any] | None = None,
        silence_s: float = SILENCE_S,
        on_event: Callable[[Any], None] = lambda event: None,
    ) -> None:
        self._scratch = scratch
        self._base, self._force = base, dict(force or {})
        self._silence_s, self._on_event = silence_s, on_event
        self._references: dict[tuple[Case, int], Reference | Fate] = {}
        self.trained = 0

    def variant(self, case: Case, *, forced: bool = True, data: int = 0) -> Variant:
        """The variant that trains a case."""
        return Variant(
            name=case.name,
            settings=settings(case, self._base),
            force=self._force if forced else {},
            weights=True,
            actions=actions(case),
            data=data,
        )

    def fates(self, cases: Iterable[Case], data: int = 0) -> dict[Case, Fate]:
        """What became of each case.

        Args:
            cases: to train.
            data: another number is other data.

        Raises:
            LabError: ranks fail before they train anything.
        """
        wanted = list(dict.fromkeys(cases))
        self._train_references(wanted, data)
        found: dict[Case, Fate] = {}
        for ranks in sorted({case.ranks for case in wanted}):
            alike = {case.name: case for case in wanted if case.ranks == ranks}
            self._train(alike, ranks, found, data)
        return found

    def _run(
        self,
        variants: Sequence[Variant],
        ranks: int,
        use: Callable[[Trained, Observations | None], None],
    ) -> None:
        train(
            variants,
            ranks,
            use,
            scratch=self._scratch,
            silence_s=self._silence_s,
            on_event=self._on_event,
        )

    def _train(
        self, cases: Mapping[str, Case], ranks: int, found: dict[Case, Fate], data: int
    ) -> None:
        def use(one: Trained, observed: Observations | None) -> None:
            case = cases[one.variant]
            found[case] = self._judged(case, one, observed, data)

        variants = [self.variant(case, data=data) for case in cases.values()]
        self._run(variants, ranks, use)
        self.trained += len(variants)

    def _judged(self, case: Case, one: Trained, observed: Observations | None, data: int) -> Fate:
        if observed is None or one.observed is None or one.trouble is not None:
            return troubled(one)
        needed = references_of(case)
        references: dict[str, Reference] = {}
        for precision, of in needed.items():
            reference = self._references[of, data]
            if isinstance(reference, Fate):
                return Fate(reference.kind, f"unpartitioned: {reference.what}", 0, reference.lines)
            references[precision] = reference
        try:
            weights = observed.tensors(one.variant, one.variant, "weight")
        except ValueError as error:
            return Fate("different", str(error), float("inf"))
        return compared(case, one.observed.variants[one.variant], weights, references)

    def _train_references(self, cases: Sequence[Case], data: int) -> None:
        new = {
            of.name: of
            for case in cases
            for of in references_of(case).values()
            if (of, data) not in self._references
        }

        def use(one: Trained, observed: Observations | None) -> None:
            of = new[one.variant]
            if observed is None or one.observed is None or one.trouble is not None:
                self._references[of, data] = troubled(one)
                return
            weights = observed.tensors(one.variant, one.variant, "weight")
            measured = one.observed.variants[one.variant]
            self._references[of, data] = reference_of(measured, weights)

        if new:
            variants = [self.variant(of, forced=False, data=data) for of in new.values()]
            self._run(variants, 1, use)


def references_of(case: Case) -> dict[str, Case]:
    """The unpartitioned models that a case is compared with, by precision."""
    same = unpartitioned(case)
    if case.precision == "fp32":
        return {FULL: same}
    full = msgspec.structs.replace(same, precision="fp32", residual=False)
    return {BF16: same, FULL: full}
