"""The answer of a check in the forms that other programs read: annotations, and SARIF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from overlapkit.output.console import encodable
from overlapkit.output.sarif import fingerprints, location, log, uri
from overlapkit.output.workflow import Command, workflow_command
from overlapkit.skill.check.check import Checked, CheckedPage
from overlapkit.skill.check.finding import Finding
from overlapkit.skill.check.text import message_text

HELP = "https://agentskills.io/specification"
_RULES = {
    "skill.anchor-moved": "The lines that an anchor shows stand elsewhere.",
    "skill.anchor-changed": "The lines that an anchor shows were edited.",
    "skill.anchor-gone": "The file or the lines of an anchor are not there.",
    "skill.link-gone": "What a relative link leads to is not there.",
    "skill.frontmatter-wrong": "The frontmatter is not what the specification of skills allows.",
    "skill.count-changed": "pytest collects another number of tests than the page promises.",
}


def workflow_commands(checked: Checked) -> Iterator[str]:
    """One workflow command for each drift, and a notice for each note and unknown thing."""
    for page, finding in _said(checked):
        name: Command = "error" if finding.is_drift else "notice"
        title = f"{finding.kind} {finding.state}"
        message = encodable(message_text(finding))
        yield workflow_command(
            name, message, title=title, file=encodable(page.file), line=finding.line
        )


def sarif_log(checked: Checked) -> dict[str, Any]:
    """One run over all the pages: a result for each drift, and a notification for the rest."""
    drifts = [(page, f) for page, f in _said(checked) if f.is_drift]
    used = list(dict.fromkeys(_rule_id(f) for _, f in drifts))
    rules = [{"id": rule, "shortDescription": {"text": _RULES[rule]}} for rule in used]
    others = [_notification(page, f) for page, f in _said(checked) if not f.is_drift]
    results = [_result(page, f, used.index(_rule_id(f))) for page, f in drifts]
    return log(rules, results, help_uri=HELP, notifications=others)


def _said(checked: Checked) -> Iterator[tuple[CheckedPage, Finding]]:
    for page in checked.pages:
        yield from ((page, finding) for finding in page.findings if finding.state != "right")


def _rule_id(finding: Finding) -> str:
    return f"skill.{finding.kind}-{finding.state}"


def _result(page: CheckedPage, finding: Finding, index: int) -> dict[str, Any]:
    return {
        "ruleId": _rule_id(finding),
        "ruleIndex": index,
        "level": "error",
        "message": {"text": encodable(message_text(finding))},
        # The text stays where other lines of the page move.
        "partialFingerprints": fingerprints(
            _rule_id(finding), encodable(finding.text), uri(page.file)
        ),
        "locations": [location(page.file, finding.line)],
    }


def _notification(page: CheckedPage, finding: Finding) -> dict[str, Any]:
    return {
        "level": "note",
        "message": {"text": encodable(message_text(finding))},
        "locations": [location(page.file, finding.line)],
    }
