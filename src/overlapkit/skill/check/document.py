"""The JSON document of `overlapkit skill check`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from overlapkit.output.console import encodable
from overlapkit.skill.check.check import Checked, CheckedPage
from overlapkit.skill.check.finding import Finding, Kind, Place, State


class CheckPlace(Struct, frozen=True, kw_only=True):
    """Lines of a file of the checkout."""

    path: Annotated[str, Meta(description="relative to the checkout")]
    start: Annotated[int, Meta(description="the first line, from 1")]
    end: Annotated[int, Meta(description="the last line")]


class CheckFinding(Struct, frozen=True, kw_only=True):
    """One anchor, link, field of the frontmatter, or promised number."""

    line: Annotated[int, Meta(description="of the page, from 1")]
    kind: Annotated[
        Kind,
        Meta(
            description="`anchor`: lines of a file; `link`: a relative link; `frontmatter`: of a "
            "SKILL.md; `count`: a promised number of passing tests"
        ),
    ]
    state: Annotated[
        State,
        Meta(
            description="`right`; `moved`: the lines stand elsewhere; `changed`: they were edited, "
            "or pytest collects another number; `gone`: the file, the lines, or what a link leads "
            "to is not there; `wrong`: the specification does not allow it; `note`: a field that "
            "the specification does not have; `unknown`: it could not be examined"
        ),
    ]
    text: Annotated[str, Meta(description="as the page has it")]
    message: Annotated[str, Meta(description="the answer in words; empty where all is right")]
    place: Annotated[
        CheckPlace | None,
        Meta(
            description="for an anchor that moved, where the lines stand; for one that changed, "
            "the nearest lines; else `null`"
        ),
    ]
    similarity: Annotated[
        float | None,
        Meta(description="of the nearest lines with the quoted ones, 0 to 1; else `null`"),
    ]
    replacement: Annotated[
        str | None,
        Meta(description="what --fix writes, or wrote, instead of `text`; `null` for nothing"),
    ]


class CheckFile(Struct, frozen=True, kw_only=True):
    """One page."""

    file: Annotated[str, Meta(description="as it was found")]
    findings: Annotated[list[CheckFinding], Meta(description="in order of their lines")]
    fixed: Annotated[int, Meta(description="how many of them --fix put right")]


class CheckDocument(Struct, frozen=True, kw_only=True):
    """Pages of Markdown against a checkout."""

    schema: Annotated[
        Literal["overlapkit/skill-check/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/skill-check/v1"
    root: Annotated[str, Meta(description="the checkout")]
    files: Annotated[
        list[CheckFile],
        Meta(description="the pages that have something to check, in order of their names"),
    ]
    drift: Annotated[int, Meta(description="how many findings are moved, changed, gone or wrong")]


def check_document(checked: Checked) -> CheckDocument:
    """The answer as the document `overlapkit/skill-check/v1`."""
    return CheckDocument(
        root=encodable(checked.root),
        files=[_file(page) for page in checked.pages],
        drift=sum(f.is_drift for page in checked.pages for f in page.findings),
    )


def _file(page: CheckedPage) -> CheckFile:
    findings = [_finding(each) for each in page.findings]
    return CheckFile(file=encodable(page.file), findings=findings, fixed=page.fixed)


def _finding(finding: Finding) -> CheckFinding:
    return CheckFinding(
        line=finding.line,
        kind=finding.kind,
        state=finding.state,
        text=encodable(finding.text),
        message=encodable(finding.message),
        place=None if finding.place is None else _place(finding.place),
        similarity=None if finding.similarity is None else round(finding.similarity, 3),
        replacement=None if finding.edit is None else encodable(finding.edit.new),
    )


def _place(place: Place) -> CheckPlace:
    return CheckPlace(path=encodable(place.path), start=place.span.start, end=place.span.end)
