"""What a hunt tried and found, in plain lines."""

from __future__ import annotations

from collections.abc import Iterator

from overlapkit.lab.hunt.document import HuntDocument, HuntFinding
from overlapkit.lab.hunt.finding import CHECKS

_FATES = {
    "equal": "equal the unpartitioned model",
    "different": "differ from it",
    "refused": "were refused while the model was built",
    "crash": "ended in an error while training",
    "hang": "did not go on",
}


def tried(document: HuntDocument) -> Iterator[str]:
    """What was tried."""
    versions = ", ".join(f"{name} {version}" for name, version in document.versions.items())
    yield f"{versions}; seed {document.seed}; {document.seconds:,.0f} s"
    fates = [f"{count:,} {_FATES[kind]}" for kind, count in document.fates.items()]
    yield f"{document.cases:,} cases: {', '.join(fates) or 'none was tried'}"
    if document.once:
        yield (
            f"{document.once:,} of those that differ did so with one part of the data alone, as "
            "where two experts' scores for a token are within rounding: no findings"
        )
    yield (
        f"{document.pairs:,} pairs of features, {document.new_pairs:,} of them new; remembered in "
        f"{document.memory}"
    )
    if document.largest:
        yield f"largest distance of an equal one in fp32: {document.largest:.1e} of a tensor's norm"


def described(finding: HuntFinding) -> Iterator[str]:
    """What a finding is."""
    steps = f"{finding.steps} step" + ("" if finding.steps == 1 else "s")
    yield finding.what
    yield "with: " + ", ".join(f"{name}={value}" for name, value in finding.features.items())
    more = "" if finding.smallest else "; the time ended before every simpler case was tried"
    yield (
        f"on {finding.ranks} ranks, after {steps}; shown by {finding.cases} of the cases, and by "
        f"{finding.shown} of {CHECKS} repetitions of the smallest{more}"
    )
    if finding.proposed_rule:
        yield f"proposed rule: {finding.proposed_rule}"
