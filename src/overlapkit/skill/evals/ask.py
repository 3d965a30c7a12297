"""The tool's answers that the tasks are about, each asked as the command line would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from overlapkit.config.overrides import parse_override
from overlapkit.config.run import read_settings
from overlapkit.config.yaml_file import read_yaml
from overlapkit.explain.assumptions import assume
from overlapkit.explain.difference import Difference, find_difference
from overlapkit.explain.document import ExplainDecision, ExplainDocument
from overlapkit.explain.rules.list import select
from overlapkit.skill.evals.answer import Names, Number, Text, names

MILLISECONDS = 1e-3
"""Of a microsecond."""

_FINDINGS = ("refused", "error", "wrong-numbers")


def findings(document: ExplainDocument) -> list[ExplainDecision]:
    """What is not as requested."""
    return [d for d in document.decisions if d.outcome.value in _FINDINGS]


def finding_rules(document: ExplainDocument) -> Names:
    """The rules of the findings."""
    return names([d.rule for d in findings(document)])


def finding_rule(document: ExplainDocument) -> Text:
    """The rule of the one finding.

    Raises:
        ValueError: there are several, or none.
    """
    (rule,) = {d.rule for d in findings(document)}
    return Text(rule)


def fixed_in(rule_id: str) -> Text:
    """The version of Megatron-Core that a fault is mended in, as the rule says."""
    (rule,) = select([rule_id], None)
    return Text(str(rule.fix).rpartition(" ")[2])


def difference(
    base: Path, new: Path, world_size: int, gpu: str, overrides: Sequence[str] = ()
) -> Difference:
    """`overlapkit explain BASE NEW`."""
    old, changed = read_yaml(base), read_yaml(new)
    runs = [
        read_settings(old),
        read_settings(changed, [parse_override(o, changed.data) for o in overrides]),
    ]
    return find_difference(runs, [world_size] * 2, assume(gpu, "assume", None, {}, None))


def causes(found: Difference, knob: str) -> Names:
    """The keys that caused a knob's change."""
    return names([key for c in found.changes if c.knob == knob for key in c.causes])


def milliseconds(microseconds: float) -> Number:
    """A time of a profile; one per cent is how far it may be rounded."""
    return Number(round(microseconds * MILLISECONDS, 3), 0.01)
