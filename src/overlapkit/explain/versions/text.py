"""The answers for several versions as plain lines, which the terminal has too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron.bridge.training.versions import NAMES, Package
from overlapkit.config.megatron_lm.doubt import not_known
from overlapkit.explain.lint.order import faults
from overlapkit.explain.report import Report
from overlapkit.explain.text import LABELS, header, label, layout_text, message_text
from overlapkit.explain.versions.matrix import Matrix, Row, Version
from overlapkit.output.numbers import setting_text

NOTHING_DIFFERS = "Nothing differs: the answer is the same with each of them."
DIFFERS = "What differs:"
COMMON = "With every version:"


def matrix_lines(matrix: Matrix) -> Iterator[str]:
    """A line for each version, then what differs among them, then what all of them have."""
    report = matrix.any_report
    yield header(report)
    yield layout_text(report)
    if unknown := not_known(report.gaps):
        yield f"{unknown[0].upper()}{unknown[1:]}."
    yield ""
    yield from (version_line(matrix, version) for version in matrix.versions)
    yield ""
    if matrix.differs:
        yield DIFFERS
        yield from (row_line(matrix, row) for row in matrix.differs)
    else:
        yield NOTHING_DIFFERS
    if matrix.common:
        yield from ("", COMMON)
        yield from (f"{_label(row)} {_message(row)}" for row in matrix.common)


def version_line(matrix: Matrix, version: Version) -> str:
    """Whether a version accepts the configuration, and how many findings it has."""
    return f"{_name(matrix, version)}: {state_text(version)}"


def state_text(version: Version) -> str:
    """The answer for a version, without its name."""
    report = version.report
    if report is None:
        return f"refused: {version.problem}"
    findings = version.findings
    state = "accepted" if version.starts else "refused"
    named = [f"{LABELS[d.outcome]} {report.words.short(d.knob)} [{d.rule}]" for d in findings]
    named += [f"known fault {report.words.short(d.knob)} [{d.rule}]" for d in faults(report)]
    count = f"{len(findings)} finding{'s' if len(findings) != 1 else ''}"
    unsure = [f"{len(report.not_certain)} not certain"] if report.not_certain else []
    unsure += ["not all was read"] if report.not_read else []
    said = ", ".join([state, count, *unsure])
    return f"{said}{': ' if named else ''}{', '.join(named)}"


def row_line(matrix: Matrix, row: Row) -> str:
    """One outcome, and the versions that have it."""
    if row.kind == "note":
        return f"with {_spans(matrix, [bool(v) for v in row.values])}: {row.knob}"
    if row.rule is not None:
        had = _spans(matrix, [v is not None for v in row.values])
        return f"{_label(row)} with {had}: {_message(row)}"
    by_value: dict[str, list[int]] = {}
    for number, value in enumerate(row.values):
        if matrix.versions[number].report is not None:
            by_value.setdefault(_value(matrix, row, value), []).append(number)
    parts = [
        f"{text} with {_spans(matrix, [n in numbers for n in range(len(row.values))])}"
        for text, numbers in by_value.items()
    ]
    names = {"buckets": "buckets", "bucket-size": "parameters that close a bucket"}
    name = names.get(row.kind) or matrix.any_report.words.name(row.knob)
    return f"{name}: {'; '.join(parts)}"


def version_names(matrix: Matrix) -> list[str]:
    """The version that was asked for of each answer, such as ``0.18.2``."""
    return [v.stack.version(matrix.package) or "" for v in matrix.versions]


def _name(matrix: Matrix, version: Version) -> str:
    other: Package = "bridge" if matrix.package == "core" else "core"
    name = f"{NAMES[matrix.package]} {version.stack.version(matrix.package)}"
    if matrix.any_report.framework == "megatron-lm" and matrix.package == "core":
        return name
    return f"{name} ({NAMES[other]} {version.stack.version(other)})"


def _label(row: Row) -> str:
    assert row.decision is not None
    return label(row.decision)


def _message(row: Row) -> str:
    report: Report | None = row.report
    assert report is not None and row.decision is not None
    return message_text(report, row.decision)


def _value(matrix: Matrix, row: Row, value: object) -> str:
    if row.kind == "buckets":
        return str(value or "not counted")
    if row.kind == "env":
        return str(value or "not needed")
    return setting_text(matrix.any_report.words.value(row.knob, value))


def _spans(matrix: Matrix, has: Sequence[bool]) -> str:
    """The versions of an outcome, those that follow each other as a range."""
    names = version_names(matrix)
    spans: list[list[int]] = []
    for number, yes in enumerate(has):
        if yes and spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        elif yes:
            spans.append([number, number])
    texts = [names[a] if a == b else f"{names[a]} to {names[b]}" for a, b in spans]
    return ", ".join(texts)
