"""What a linter answers about each of its files: the forms of an answer start from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron.bridge.training.decisions import Decision, Outcome
from overlapkit.config.places import Place
from overlapkit.config.text_file import exists
from overlapkit.explain.lint.order import leading
from overlapkit.explain.report import Report

Form = Literal["text", "json", "github", "sarif"]
"""How an answer is printed."""

LINT_FORMS = ("github", "sarif")
"""Forms that hold only findings and advice."""

Level = Literal["error", "warning", "note"]
"""How much a finding matters, as SARIF and GitHub name it."""

_LEVELS: dict[Outcome, Level] = {
    Outcome.WRONG_NUMBERS: "error",
    Outcome.ERROR: "error",
    Outcome.REFUSED: "warning",
}


@dataclass(frozen=True)
class Linted:
    """One file and what was found in it.

    Attributes:
        file: as the user named it; empty where there is no file, but arguments.
        report: the answer; None where the file could not be judged.
        problem: why it could not be judged, in one line; empty where it was.
        line: of the problem, from 1; None where it is not known.
        is_wrong: whether something in the file is wrong; else only a value is missing.
    """

    file: str
    report: Report | None
    problem: str = ""
    line: int | None = None
    is_wrong: bool = False


def linted(report: Report) -> Linted:
    """A report with the file that it is about."""
    name = report.source
    if exists(name):
        return Linted(name, report)
    # A launch script can be named with the line of a launch: FILE:LINE.
    file = name.rpartition(":")[0]
    return Linted(file if file and exists(file) else "", report)


@dataclass(frozen=True)
class Result:
    """One finding or one note with advice.

    Attributes:
        decision: the decision.
        name: what it is about, in the words of the configuration.
        level: how much it matters.
        message: the knob, its value, the reason and the remedy, without the place.
        file: the file that it is about; empty where there is none.
        line, column: the place in it, from 1; None where that is not known.
    """

    decision: Decision
    name: str
    level: Level
    message: str
    file: str
    line: int | None
    column: int | None


def results(of: Linted) -> list[Result]:
    """The findings in a file, the worst first, then the notes with advice."""
    from overlapkit.explain.text import message_text

    report = of.report
    if report is None:
        return []
    found = []
    for d in leading(report):
        place = report.place(d)
        # An override is no place in a file: the finding is about the file as a whole.
        in_file = place if place is not None and place.argument is None else Place(None)
        found.append(
            Result(
                d,
                report.words.short(d.knob),
                _LEVELS.get(d.outcome, "note"),
                message_text(report, d),
                in_file.file or of.file,
                in_file.line,
                in_file.column,
            )
        )
    return found
