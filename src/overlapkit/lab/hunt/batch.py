"""Trains many cases in few starts of ranks; a crash or a hang costs only the case at fault."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from overlapkit.lab.events import FAILED, Event
from overlapkit.lab.launch.start import PRELOAD, LabError, Launch, run_ranks
from overlapkit.lab.measurements import Observations, ObservedBlock, read_block
from overlapkit.lab.protocol import JOB_FILE, Block, Job, Variant, result_file

SILENCE_S = 150.0
"""Longest time without an event of any rank: ranks import torch, or train one case, within it.

On two busy cores eight ranks import torch and Megatron-Core in less than 60 s, and one case takes
less than 10 s.
"""

LIMIT_S = 3600.0

STARTS = 2
"""Starts in a row that may fail before they train anything. One can be due to a busy machine."""

Trouble = Literal["refused", "crash", "hang"]


@dataclass(frozen=True)
class Trained:
    """What became of one variant.

    Attributes:
        variant: its name.
        trouble: "refused": an error while it was built; "crash": an error while it trained, or a
            process that was killed; "hang": no rank went on. None where it was trained.
        message: of the trouble: the exception, or where the ranks were.
        lines: of the traceback, where there is one.
        place: number of its block.
        observed: its block; None with a crash or a hang.
    """

    variant: str
    trouble: Trouble | None = None
    message: str = ""
    lines: tuple[str, ...] = ()
    place: int = 0
    observed: ObservedBlock | None = None


@dataclass
class _Places:
    """Where the ranks are, from their events."""

    ranks: int
    building: dict[int, str] = field(default_factory=dict)
    errors: list[tuple[float, int, str]] = field(default_factory=list)

    def hear(self, event: Event) -> None:
        """Remember what an event says."""
        if event.data.get("event") == "build":
            self.building[event.rank] = event.data["block"]
        elif event.data.get("event") == FAILED:
            self.errors.append((event.time, event.rank, event.data.get("error", "")))

    def culprit(self, names: Sequence[str]) -> tuple[str | None, str]:
        """The block in which the ranks stopped, and the first exception; None: before any block.

        A rank that raised first was in the block that is to blame. Without an exception it is the
        first block that some rank did not leave: the others wait for it, there or in a later one.
        """
        if self.errors:
            _, rank, error = min(self.errors)
            return self.building.get(rank), error
        if not self.building:
            return None, ""
        places = [
            names.index(self.building[rank]) if rank in self.building else 0
            for rank in range(self.ranks)
        ]
        return names[min(places)], ""


def train(
    variants: Sequence[Variant],
    ranks: int,
    use: Callable[[Trained, Observations | None], None],
    *,
    scratch: Path,
    silence_s: float = SILENCE_S,
    on_event: Callable[[Any], None] = lambda event: None,
) -> None:
    """Train every variant, whatever the others do.

    Args:
        variants: with unique names. Each is in a block of its own, so that its result is there
            even if a later one ends the ranks.
        ranks: processes for each.
        use: called with what became of each, and with its files where it was trained; they are
            removed afterwards.
        scratch: a folder that the caller removes. Compiled Python stays there for further calls.
        silence_s: longest time without an event of any rank, in seconds.
        on_event: called with each event of a rank.

    Raises:
        LabError: ranks fail `STARTS` times in a row before they train anything.
    """
    left = list(variants)
    failed = 0
    while left:
        with tempfile.TemporaryDirectory(prefix="batch-", dir=scratch) as folder:
            launch = Launch(
                ranks=ranks,
                module="overlapkit.lab.rank.__main__",
                args=(folder,),
                folder=Path(folder),
                environment={"TORCHDYNAMO_DISABLE": "1"},
                link="none",
                timeout_s=LIMIT_S,
                silence_s=silence_s,
                scratch=scratch,
                preload=PRELOAD,
            )
            try:
                done = _train_some(left, launch, use, on_event)
            except LabError:
                failed += 1
                if failed == STARTS:
                    raise
                continue
        failed = 0
        left = [one for one in left if one.name not in done]


def _train_some(
    variants: Sequence[Variant],
    launch: Launch,
    use: Callable[[Trained, Observations | None], None],
    on_event: Callable[[Any], None],
) -> set[str]:
    """Train variants up to the first that ends the ranks; those whose fate is known."""
    ranks, folder = launch.ranks, launch.folder
    blocks = tuple(
        Block(name=one.name, ranks=ranks, variants=(one,), rounds=0, warmup=0, steps=1)
        for one in variants
    )
    job = Job(blocks=blocks, rate_mbit=None)
    (folder / JOB_FILE).write_bytes(msgspec.json.encode(job))
    places = _Places(ranks)

    def hear(event: Event) -> None:
        places.hear(event)
        on_event(event)

    failure = None
    try:
        run_ranks(launch, hear)
    except LabError as error:
        failure = error
    done: set[str] = set()
    for place, block in enumerate(blocks):
        if not all((folder / result_file(place, rank)).is_file() for rank in range(ranks)):
            break
        found = read_block(folder, place, block, ranks)
        refusal = found.variants[block.name].error
        observations = Observations({block.name: found}, {block.name: folder})
        use(
            Trained(
                block.name,
                trouble="refused" if refusal else None,
                message=refusal or "",
                place=place,
                observed=found,
            ),
            observations,
        )
        done.add(block.name)
    if failure is not None:
        done.add(_blamed(failure, places, [b.name for b in blocks], done, use))
    return done


def _blamed(
    failure: LabError,
    places: _Places,
    names: Sequence[str],
    done: Iterable[str],
    use: Callable[[Trained, Observations | None], None],
) -> str:
    """The variant that ended the ranks; its fate is passed on."""
    name, error = places.culprit(names)
    if name is None or name in done:
        raise failure
    if error:
        one = Trained(name, trouble="crash", message=error, lines=tuple(failure.lines))
    elif "was killed" in failure.summary or "exit status" in failure.summary:
        one = Trained(name, trouble="crash", message=failure.summary, lines=tuple(failure.lines))
    else:
        one = Trained(name, trouble="hang", message=failure.summary)
    use(one, None)
    return name


_VALUES = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?(e-?\d+)?|\[[^]]*\]|/\S+")


def kind_of(message: str) -> str:
    """The message without its values: equal for the same error of different cases."""
    return _VALUES.sub("#", message.splitlines()[0] if message else "")[:160]
