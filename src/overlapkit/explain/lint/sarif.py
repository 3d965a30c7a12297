"""Findings as a log of SARIF 2.1.0, which code scanning services and editors read.

The fields are those of the OASIS standard "Static Analysis Results Interchange Format (SARIF)
Version 2.1.0", sections 3.13 (log), 3.19 (tool), 3.27 (result) and 3.29 (physical location).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from megatron.bridge.training.decisions import RULES, Rule
from overlapkit import __version__
from overlapkit.explain.document import source_of
from overlapkit.explain.lint.linted import Linted, Result, results
from overlapkit.output.console import encodable
from overlapkit.output.numbers import imperative

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
HELP = "https://docs.nvidia.com/nemo/megatron-bridge/latest/training/communication-overlap.html"
"""Where Megatron-Bridge documents the settings that the rules are about."""

_FINGERPRINT = "overlapkit/v1"


def sarif_log(linted: Sequence[Linted]) -> dict[str, Any]:
    """One run over all the files: the rules that apply, and a result for each finding and note.

    A file that could not be judged is a notification of the run; where something in it is wrong,
    the run was not successful.
    """
    found = [result for each in linted for result in results(each)]
    rules = list(dict.fromkeys(result.decision.rule for result in found))
    index = {rule: n for n, rule in enumerate(rules)}
    problems = [each for each in linted if each.problem]
    run = {
        "tool": {
            "driver": {
                "name": "overlapkit",
                "version": __version__,
                "informationUri": HELP,
                "rules": [_rule(RULES[rule]) for rule in rules],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": not any(each.is_wrong for each in problems),
                "toolExecutionNotifications": [_notification(each) for each in problems],
            }
        ],
        "results": [_result(result, index) for result in found],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


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
        "partialFingerprints": {_FINGERPRINT: _fingerprint(result)},
        "properties": {"knob": d.knob, "outcome": d.outcome.value},
    }
    if d.remedy:
        described["properties"]["remedy"] = encodable(imperative(d.remedy))
    if result.file:
        described["locations"] = [_location(result.file, result.line, result.column)]
    return described


def _fingerprint(result: Result) -> str:
    """What stays the same where other lines of the file move: rule, knob and file."""
    named = "\0".join((result.decision.rule, result.decision.knob, uri(result.file)))
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def _notification(each: Linted) -> dict[str, Any]:
    level = "error" if each.is_wrong else "note"
    found: dict[str, Any] = {"level": level, "message": {"text": encodable(each.problem)}}
    if each.file:
        found["locations"] = [_location(each.file, each.line, None)]
    return found


def _location(file: str, line: int | None, column: int | None) -> dict[str, Any]:
    region = {"startLine": line, "startColumn": column if line else None}
    physical: dict[str, Any] = {"artifactLocation": {"uri": uri(file)}}
    if line:
        physical["region"] = {key: value for key, value in region.items() if value}
    return {"physicalLocation": physical}


def uri(file: str) -> str:
    """A file as a URI: relative to the current folder where it is below it."""
    path = Path(os.path.abspath(file))  # noqa: PTH100 - a link stays as the user named it
    here = Path.cwd()
    if path.is_relative_to(here):
        return quote(os.fsencode(path.relative_to(here).as_posix()))
    return "file://" + quote(os.fsencode(path.as_posix()))
