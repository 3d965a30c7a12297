"""Findings as a log of SARIF 2.1.0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron.bridge.training.decisions import RULES, Rule
from overlapkit.explain.document import source_of
from overlapkit.explain.lint.linted import Linted, Result, results
from overlapkit.output.console import encodable
from overlapkit.output.numbers import imperative
from overlapkit.output.sarif import fingerprints, location, log, uri

HELP = "https://docs.nvidia.com/nemo/megatron-bridge/latest/training/communication-overlap.html"
"""Where Megatron-Bridge documents the settings that the rules are about."""


def sarif_log(linted: Sequence[Linted]) -> dict[str, Any]:
    """One run over all the files: the rules that apply, and a result for each finding and note.

    A file that could not be judged is a notification of the run; where something in it is wrong,
    the run was not successful.
    """
    found = [result for each in linted for result in results(each)]
    rules = list(dict.fromkeys(result.decision.rule for result in found))
    index = {rule: n for n, rule in enumerate(rules)}
    problems = [each for each in linted if each.problem]
    return log(
        [_rule(RULES[rule]) for rule in rules],
        [_result(result, index) for result in found],
        help_uri=HELP,
        notifications=[_notification(each) for each in problems],
        successful=not any(each.is_wrong for each in problems),
    )


def _rule(rule: Rule) -> dict[str, Any]:
    file, line = source_of(rule.id)
    remedy = f" Remedy: {imperative(rule.remedy)}." if rule.remedy else ""
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.claim},
        "help": {"text": f"{rule.claim}{remedy} Declared in {file}, line {line}."},
        "helpUri": HELP,
        "properties": {"dimension": rule.dimension.value},
    }


def _result(result: Result, index: Mapping[str, int]) -> dict[str, Any]:
    d = result.decision
    described: dict[str, Any] = {
        "ruleId": d.rule,
        "ruleIndex": index[d.rule],
        "level": result.level,
        "message": {"text": encodable(result.message)},
        # Rule, knob and file stay the same where other lines of the file move.
        "partialFingerprints": fingerprints(d.rule, d.knob, uri(result.file)),
        "properties": {"knob": d.knob, "outcome": d.outcome.value},
    }
    if d.remedy:
        described["properties"]["remedy"] = encodable(imperative(d.remedy))
    if result.file:
        described["locations"] = [location(result.file, result.line, result.column)]
    return described


def _notification(each: Linted) -> dict[str, Any]:
    level = "error" if each.is_wrong else "note"
    found: dict[str, Any] = {"level": level, "message": {"text": encodable(each.problem)}}
    if each.file:
        found["locations"] = [location(each.file, each.line)]
    return found
