"""The JSON documents of `overlapkit lab`: the results of a run, and a job handed to Slurm."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from overlapkit.errors import InputError
from overlapkit.input_file import read_input
from overlapkit.lab.link.kind import LinkUsed
from overlapkit.lab.measurements import ObservedBlock
from overlapkit.lab.own.document import LabOwnRun, lab_own_run
from overlapkit.lab.protocol import MOST_BYTES, Block
from overlapkit.lab.scenario import NOT_CONFIRMED, ClaimOutcome, JudgedScenario, Setting
from overlapkit.lab.scenarios import OWN
from overlapkit.lab.scenarios.config import comparisons
from overlapkit.lab.variant_document import LabVariant, ideal, lab_variant, rounded_ms

RESULTS_FILE = "results.json"
"""In the folder of ``--out``: the `LabDocument` of the run."""


class LabMachine(Struct, frozen=True, kw_only=True):
    """The machine that ran the ranks."""

    device: Annotated[str, Meta(description="`cpu` or `cuda`")]
    device_name: Annotated[str, Meta(description="name of the GPU; `cpu` without one")]
    processor: Annotated[str, Meta(description="architecture of the CPU")]
    cores: Annotated[int, Meta(description="CPU cores that the lab may use")]
    versions: Annotated[
        dict[str, str],
        Meta(
            description="versions where the ranks ran: `python`, and those of `torch`, "
            "`megatron-core`, `transformer-engine`, `overlapkit` and `numpy` that are installed"
        ),
    ]


class LabLink(Struct, frozen=True, kw_only=True):
    """The link between the ranks."""

    kind: Annotated[
        Literal["kernel", "paced", "unshaped", "nccl", "shared-gpu"],
        Meta(
            description="`kernel` (network namespaces, limited by the kernel), `paced` (each TCP "
            "connection limited separately), `unshaped` (the machine's memory), `nccl` (one GPU "
            "for each rank) or `shared-gpu`"
        ),
    ]
    shaped: Annotated[
        bool,
        Meta(
            description="communication takes as long as on a real link, so claims about time can "
            "be judged"
        ),
    ]
    reason: Annotated[str, Meta(description="why the link is of this kind")]
    meaning: Annotated[str, Meta(description="what that means for the measurement")]
    isolation: Annotated[
        str, Meta(description="how the processes are kept together, so that none is left behind")
    ]


class LabClaim(Struct, frozen=True, kw_only=True):
    """A statement that the scenario tests, and the verdict."""

    claim: Annotated[str, Meta(description="the statement, in one sentence")]
    outcome: Annotated[
        ClaimOutcome, Meta(description="`confirmed`, `not confirmed`, or `not testable here`")
    ]
    evidence: Annotated[
        str, Meta(description="the figures that decided; for `not testable here`, why")
    ]


class LabBlock(Struct, frozen=True, kw_only=True):
    """Variants that the same processes trained together."""

    name: Annotated[str, Meta(description="unique in the document")]
    ranks: Annotated[int, Meta(description="processes")]
    link_mbit: Annotated[
        float | None, Meta(description="rate of the link; `null`: it is not limited")
    ]
    timed: Annotated[
        bool,
        Meta(
            description="variants took turns and their steps were timed; otherwise each was "
            "trained once, to compare the results"
        ),
    ]
    counted_steps: Annotated[
        int,
        Meta(description="timed steps of each variant, over all its turns; 0 without timing"),
    ]
    profiled_steps: Annotated[
        int,
        Meta(description="steps of each variant recorded with the profiler, after the timed ones"),
    ]
    ideal_ms: Annotated[
        float | None,
        Meta(
            description="the shortest step that overlap could give the first variant: the longer "
            "of its compute alone (`step_ms` - `exposed_ms`) and its communication alone "
            "(`comm_ms`). `null` without a profile, and where `comm_ms` is longer than the timed "
            "step: such a profile does not describe the timed steps"
        ),
    ]
    variants: Annotated[
        list[LabVariant], Meta(description="the others are compared with the first")
    ]


class LabScenario(Struct, frozen=True, kw_only=True):
    """A set of claims and the training that tested them."""

    name: Annotated[str, Meta(description="as on the command line")]
    title: Annotated[str, Meta(description="what it shows")]
    claims: Annotated[list[LabClaim], Meta(description="what was tested, and the verdicts")]
    blocks: Annotated[
        list[LabBlock], Meta(description="its variants, in groups that were trained together")
    ]


class LabDocument(Struct, frozen=True, kw_only=True):
    """The results of a run of the lab."""

    schema: Annotated[
        Literal["overlapkit/lab/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/lab/v1"
    machine: Annotated[LabMachine, Meta(description="the machine that ran the ranks")]
    link: Annotated[LabLink, Meta(description="the link between the ranks")]
    seconds: Annotated[
        float, Meta(description="duration of the run, including the evaluation of its results")
    ]
    scenarios: Annotated[list[LabScenario], Meta(description="in the order of the command line")]
    confirmed: Annotated[
        bool, Meta(description="no claim is `not confirmed`; `not testable here` is allowed")
    ]
    own: Annotated[
        LabOwnRun | UnsetType,
        Meta(description="the user's own run; missing where no configuration was given"),
    ] = UNSET


class LabJobDocument(Struct, frozen=True, kw_only=True):
    """A job that was written and, without ``--dry-run``, submitted to Slurm."""

    schema: Annotated[
        Literal["overlapkit/lab-job/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/lab-job/v1"
    folder: Annotated[str, Meta(description="the run's folder, from `--out`")]
    script: Annotated[str, Meta(description="path of the job's script in that folder")]
    job: Annotated[str | None, Meta(description="Slurm's id of the job; `null` with `--dry-run`")]
    ranks: Annotated[int, Meta(description="number of processes")]
    collect: Annotated[str, Meta(description="the command that shows the results")]


def lab_document(
    judged: Sequence[JudgedScenario],
    *,
    link: LabLink,
    device: str,
    seconds: float,
    setting: Setting | None = None,
) -> LabDocument:
    """The document of a run.

    Args:
        judged: the scenarios, in the order of the command line.
        link: the link between the ranks.
        device: "cpu" or "cuda".
        seconds: duration of the run.
        setting: what the scenarios were built from; None where no configuration was given.
    """
    blocks = [block for one in judged for block in one.observations.blocks.values()]
    trained = next((block for block in blocks if block.versions), None)
    return LabDocument(
        machine=LabMachine(
            device=device,
            device_name=trained.device_name if trained else "cpu",
            processor=platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            versions=trained.versions if trained else {},
        ),
        link=link,
        seconds=round(seconds, 1),
        scenarios=[_scenario(one) for one in judged],
        confirmed=not any(v.outcome == NOT_CONFIRMED for one in judged for v in one.verdicts),
        own=_own(judged, setting),
    )


def _own(judged: Sequence[JudgedScenario], setting: Setting | None) -> LabOwnRun | UnsetType:
    """The user's own run, where its scenario is among those that were judged."""
    one = next((each for each in judged if each.scenario.name == OWN), None)
    if one is None or setting is None or setting.own is None:
        return UNSET
    return lab_own_run(setting.own, comparisons(one.observations, setting))


def lab_link(used: LinkUsed) -> LabLink:
    """The link that the launcher made."""
    return LabLink(
        kind=used.kind,
        shaped=used.shaped,
        reason=used.reason,
        meaning=used.meaning,
        isolation=used.isolated,
    )


def read_results(folder: Path) -> LabDocument:
    """The document that a run with ``--out`` left in a folder.

    Raises:
        InputError: it cannot be read, or it is damaged.
    """
    path = folder / RESULTS_FILE
    content = read_input(str(path), "results of a run of the lab", most=MOST_BYTES)
    try:
        return msgspec.json.decode(content, type=LabDocument)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: damaged: {error}; run the lab again") from None


def _scenario(judged: JudgedScenario) -> LabScenario:
    return LabScenario(
        name=judged.scenario.name,
        title=judged.scenario.title,
        claims=[
            LabClaim(claim=v.claim, outcome=v.outcome, evidence=v.evidence) for v in judged.verdicts
        ],
        blocks=[_block(block, judged.observations.blocks[block.name]) for block in judged.blocks],
    )


def _block(block: Block, observed: ObservedBlock) -> LabBlock:
    variants = list(observed.variants.values())
    first = variants[0]
    best = ideal(first)
    return LabBlock(
        name=block.name,
        ranks=block.ranks,
        link_mbit=None if observed.rate_mbit is None else round(observed.rate_mbit, 1),
        timed=block.rounds > 0,
        counted_steps=block.rounds * block.steps,
        profiled_steps=block.profiled if block.rounds else 0,
        ideal_ms=None if best is None else rounded_ms(best),
        variants=[lab_variant(variant, first) for variant in variants],
    )
