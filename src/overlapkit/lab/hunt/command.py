"""`overlapkit lab hunt`: random configurations that the rules allow, against the whole model."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from overlapkit.config.sources import read_configuration
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.lab.hunt.around import base_of, case_of
from overlapkit.lab.hunt.case import Case
from overlapkit.lab.hunt.document import HuntDocument, counts, covered, hunt_finding
from overlapkit.lab.hunt.finding import command, configuration, file_name
from overlapkit.lab.hunt.generate import Generator, Pair, allowed, grid_pairs
from overlapkit.lab.hunt.hunt import Hunt
from overlapkit.lab.hunt.judge import Fate
from overlapkit.lab.hunt.laboratory import Laboratory
from overlapkit.lab.hunt.memory import Memory, Tried, default_path, remember, remembered
from overlapkit.lab.launch.failure import LabError
from overlapkit.lab.own.shrink import RANKS, shrink
from overlapkit.lab.request import need_megatron
from overlapkit.lab.scenario import Settings
from overlapkit.output.console import console, write_json
from overlapkit.output.files import OutputFolder

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class HuntRequest:
    """The options of the command; see `overlapkit lab hunt --help`."""

    budget: str = "30m"
    seed: int | None = None
    around: str | None = None
    ranks: int | None = None
    cases: int | None = None
    memory: str | None = None
    out: str | None = None
    as_json: bool = False


def budget_s(text: str) -> float:
    """A time such as 90s, 30m or 2h, in seconds.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or float(found[1]) == 0:
        raise InputError(f"--budget {text}: give a time such as 90s, 30m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def run(request: HuntRequest) -> int:
    """The command; its exit status.

    Raises:
        InputError: bad input, a missing dependency, or ranks that fail before they train.
    """
    seconds = budget_s(request.budget)
    if request.cases is not None and request.cases < 1:
        raise InputError(f"--cases {request.cases}: give at least 1")
    if request.ranks is not None and request.ranks < 2:
        raise InputError(f"--ranks {request.ranks}: partitioning needs at least 2")
    need_megatron()
    out = None if request.out is None else OutputFolder("--out", request.out)
    if out is not None:
        out.check()
    base: Settings | None = None
    around: Case | None = None
    if request.around is not None:
        reduced = shrink(read_configuration(request.around), ranks=request.ranks or RANKS)
        base, around = base_of(reduced), case_of(reduced)
    turns = Hunt.turns if request.ranks is None else (request.ranks,)
    path = default_path() if request.memory is None else Path(request.memory)
    memory = remembered(path)
    earlier = grid_pairs() + memory.pairs()
    known = set(earlier)
    # Without --seed every hunt tries something else, and can still be repeated.
    seed = len(memory.seeds) + 1 if request.seed is None else request.seed
    memory.seeds.append(seed)

    def keep(fates: dict[Case, Fate]) -> None:
        memory.tried += [Tried(case=case, kind=fate.kind) for case, fate in fates.items()]
        remember(path, memory)

    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="overlapkit-hunt-") as scratch:
        hunt = Hunt(
            laboratory=Laboratory(Path(scratch), base=base),
            generator=Generator(seed, earlier, around=around, base=base),
            allowed=lambda case: allowed(case, base),
            budget_s=seconds,
            most=request.cases,
            turns=turns if around is None else (around.ranks,),
            tell=_tell,
            keep=keep,
        )
        ended: BaseException | None = None
        try:
            hunt.run()
        except (KeyboardInterrupt, SystemExit, LabError) as reason:
            # What was found until then took minutes.
            ended = reason
    document = _document(request, hunt, memory, known, base, path, time.monotonic() - start, out)
    if request.as_json:
        write_json(document)
    else:
        from overlapkit.lab.hunt.tables import show_hunt

        show_hunt(document, console())
    if ended is not None:
        raise ended
    return EXIT_FINDING if document.findings else 0


def _document(
    request: HuntRequest,
    hunt: Hunt,
    memory: Memory,
    known: set[Pair],
    base: Settings | None,
    path: Path,
    seconds: float,
    out: OutputFolder | None,
) -> HuntDocument:
    """What was tried and found; the reproductions are written to the folder of --out."""
    texts = {file_name(one): configuration(one.case, base) for one in hunt.findings}
    if out is not None:
        with out.filled() as aside:
            for name, text in texts.items():
                (aside / name).write_text(text, encoding="utf-8")
    findings = []
    for one in hunt.findings:
        name = file_name(one)
        file = None if out is None else str(Path(out.target) / name)
        findings.append(hunt_finding(one, texts[name], file, command(file or name, one.case)))
    pairs = covered(list(hunt.fates))
    equal = [
        fate.relative
        for case, fate in hunt.fates.items()
        if not fate.bad and case.precision == "fp32"
    ]
    return HuntDocument(
        versions=memory.versions,
        seed=memory.seeds[-1],
        around=request.around,
        seconds=round(seconds, 1),
        cases=len(hunt.fates),
        fates=counts(hunt.fates),
        once=len(hunt.once),
        largest=max(equal, default=0.0),
        pairs=len(pairs),
        new_pairs=len(pairs - known),
        memory=str(path),
        findings=findings,
    )


def _tell(what: str) -> None:
    """Say on standard error, if that is a terminal, what is done next."""
    if sys.stderr.isatty():
        print(what, file=sys.stderr)
