"""The JSON document of `overlapkit lab hunt`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from overlapkit.lab.hunt.case import Case
from overlapkit.lab.hunt.finding import CHECKS, Finding, FindingKind, proposed_rule
from overlapkit.lab.hunt.generate import Pair, pairs
from overlapkit.lab.hunt.judge import Fate


class HuntFinding(Struct, frozen=True, kw_only=True):
    """Something that the rules allow and that does not train like the unpartitioned model."""

    kind: Annotated[
        FindingKind,
        Meta(
            description="`wrong numbers`, `crash`, `hang`, or `refused with a reason`: "
            "Megatron-Core raises an error on purpose and no rule says so"
        ),
    ]
    what: Annotated[
        str, Meta(description="tensors that differ and how far, or the error that was raised")
    ]
    features: Annotated[
        dict[str, bool | int | str],
        Meta(description="features of the smallest case that are not the simplest"),
    ]
    ranks: Annotated[int, Meta(description="processes")]
    steps: Annotated[int, Meta(description="optimizer steps after which it shows")]
    shown: Annotated[
        int,
        Meta(
            description=f"how many of {CHECKS} repetitions of the smallest case, each with other "
            "data, showed it"
        ),
    ]
    smallest: Annotated[
        bool,
        Meta(description="no case that is simpler in one feature shows it; `false`: not all tried"),
    ]
    first: Annotated[
        dict[str, bool | int | str],
        Meta(description="features of the case that showed it first"),
    ]
    cases: Annotated[int, Meta(description="cases of the hunt that showed it")]
    proposed_rule: Annotated[
        str | None,
        Meta(description="what a rule would say; `null` where Megatron-Core explains nothing"),
    ]
    configuration: Annotated[str, Meta(description="the smallest case as a YAML configuration")]
    file: Annotated[
        str | None, Meta(description="file with that configuration; `null` without `--out`")
    ]
    command: Annotated[str, Meta(description="trains that configuration as it is written")]


class HuntDocument(Struct, frozen=True, kw_only=True):
    """What a hunt tried and found."""

    schema: Annotated[
        Literal["overlapkit/lab-hunt/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/lab-hunt/v1"
    versions: Annotated[dict[str, str], Meta(description="versions of the packages that ran")]
    seed: Annotated[int, Meta(description="of the random numbers, `--seed`")]
    around: Annotated[
        str | None, Meta(description="the configuration of `--from`; `null` without it")
    ]
    seconds: Annotated[float, Meta(description="duration of the hunt")]
    cases: Annotated[int, Meta(description="cases that were drawn and tried")]
    fates: Annotated[
        dict[str, int],
        Meta(
            description="what became of them, and how many: `equal`, `different`, `refused` (an "
            "error while the model was built), `crash`, `hang`"
        ),
    ]
    once: Annotated[
        int,
        Meta(
            description="cases that differed with one part of the data alone, which is no finding: "
            "two experts whose scores for a token are within rounding make such a difference"
        ),
    ] = 0
    largest: Annotated[
        float,
        Meta(
            description="the largest distance of a tensor from the unpartitioned model's, of the "
            "cases in fp32 that are equal to it, as a share of the tensor's norm"
        ),
    ]
    pairs: Annotated[
        int, Meta(description="pairs of features, with their values, that the cases have")
    ]
    new_pairs: Annotated[
        int, Meta(description="of these, those that no earlier hunt and no `grid` tried")
    ]
    memory: Annotated[str, Meta(description="the file that remembers what was tried")]
    findings: Annotated[list[HuntFinding], Meta(description="in the order in which they showed")]


def hunt_finding(
    finding: Finding, configuration: str, file: str | None, command: str
) -> HuntFinding:
    """A finding with its reproduction."""
    return HuntFinding(
        kind=finding.kind,
        what=finding.fate.what,
        features=finding.case.features,
        ranks=finding.case.ranks,
        steps=finding.case.steps,
        shown=finding.shown,
        smallest=finding.smallest,
        first=finding.first.features,
        cases=1 + len(finding.others),
        proposed_rule=proposed_rule(finding),
        configuration=configuration,
        file=file,
        command=command,
    )


def covered(cases: Sequence[Case]) -> set[Pair]:
    """Every pair of features, with their values, that a case has."""
    return {pair for case in cases for pair in pairs(case)}


def counts(fates: dict[Case, Fate]) -> dict[str, int]:
    """How many cases had which fate."""
    return dict(Counter(fate.kind for fate in fates.values()))
