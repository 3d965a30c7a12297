"""The JSON document of `overlapkit rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from megatron.bridge.training.decisions import Dimension, Rule
from megatron.bridge.training.versions import Stack
from overlapkit.explain.document import source_of


class RulesStack(Struct, frozen=True, kw_only=True):
    """The versions whose rules are listed."""

    core: Annotated[str | None, Meta(description="megatron-core's")]
    bridge: Annotated[str | None, Meta(description="Megatron-Bridge's")]


class RulesPlace(Struct, frozen=True, kw_only=True):
    """Where a rule is declared."""

    file: Annotated[str, Meta(description="in a checkout relative to its root")]
    line: Annotated[int, Meta(description="from 1; it moves with the code")]


class RulesRule(Struct, frozen=True, kw_only=True):
    """One rule."""

    id: Annotated[str, Meta(description="`<group>.<name>`, stable")]
    dimension: Annotated[Dimension, Meta(description="what the knobs that it decides belong to")]
    claim: Annotated[str, Meta(description="what it does")]
    remedy: Annotated[str | None, Meta(description="how to get the other outcome")]
    versions: Annotated[
        list[str],
        Meta(description="the ranges that it holds for, all together; empty: every version"),
    ]
    fixed_in: Annotated[str | None, Meta(description="of a bug: the version that fixed it")]
    source: Annotated[str | None, Meta(description="where the fact is from; `null`: measured here")]
    opt_in: Annotated[bool, Meta(description="whether its default leaves a knob off")]
    place: Annotated[RulesPlace, Meta(description="where it is declared")]


class RulesDocument(Struct, frozen=True, kw_only=True):
    """The rules, and the versions that each one holds for."""

    schema: Annotated[
        Literal["overlapkit/rules/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/rules/v1"
    stack: Annotated[
        RulesStack | None,
        Meta(description="only rules that hold for it are listed; `null`: all rules"),
    ]
    rules: Annotated[list[RulesRule], Meta(description="by dimension, then by file and line")]


def rules_document(rules: Sequence[Rule], stack: Stack | None) -> RulesDocument:
    """The rules as the document `overlapkit/rules/v1`."""
    return RulesDocument(
        stack=None if stack is None else RulesStack(core=stack.core, bridge=stack.bridge),
        rules=[_rule(rule) for rule in rules],
    )


def _rule(rule: Rule) -> RulesRule:
    file, line = source_of(rule.id)
    return RulesRule(
        id=rule.id,
        dimension=rule.dimension,
        claim=rule.claim,
        remedy=rule.remedy or None,
        versions=[str(each) for each in rule.versions],
        fixed_in=rule.fix,
        source=rule.source or None,
        opt_in=rule.opt_in,
        place=RulesPlace(file=file, line=line),
    )
