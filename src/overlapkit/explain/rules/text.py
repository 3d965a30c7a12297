"""The rules as plain lines, and the wording that the table and the skill's page share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from megatron.bridge.training.decisions import Rule
from megatron.bridge.training.versions import Stack
from overlapkit.explain.document import source_of
from overlapkit.explain.text import TITLES
from overlapkit.output.numbers import imperative

EVERY = "every version"


def versions_text(rule: Rule) -> str:
    """The versions that a rule holds for: ``megatron-core >= 0.18.2``."""
    return " and ".join(map(str, rule.versions)) or EVERY


def title(rules: Sequence[Rule], stack: Stack | None) -> str:
    """How many rules there are, and of which versions."""
    return f"{len(rules)} rules" + (f" that hold for {stack}" if stack is not None else "")


def id_lines(rules: Sequence[Rule], stack: Stack | None) -> Iterator[str]:
    """The ids alone, a line for each dimension: what a program or an agent chooses from."""
    yield f"{title(rules, stack)}; `overlapkit rules ID` shows one whole, 'PATTERN' several"
    for dimension, group in groupby(rules, key=lambda rule: rule.dimension):
        yield f"{TITLES[dimension]}: {' '.join(rule.id for rule in group)}"


def list_lines(rules: Sequence[Rule], stack: Stack | None) -> Iterator[str]:
    """One line for each rule: its id, its versions and its claim."""
    yield title(rules, stack)
    yield from (f"{rule.id}  [{versions_text(rule)}]  {rule.claim}" for rule in rules)


def rule_lines(rule: Rule) -> Iterator[str]:
    """Everything about one rule."""
    yield f"{rule.id}  ({rule.dimension})  {':'.join(map(str, source_of(rule.id)))}"
    yield rule.claim
    if rule.remedy:
        yield f"Remedy: {imperative(rule.remedy)}."
    yield f"Holds for: {versions_text(rule)}" + (f"; fixed in {rule.fix}" if rule.fix else "")
    if rule.source:
        yield f"Source: {rule.source}"
