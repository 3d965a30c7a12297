"""Scenarios silent and grid in a small form: real ranks, a handful of cases, nothing timed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from overlapkit.lab.launch.start import Launch, run_ranks
from overlapkit.lab.measurements import Observations, read_blocks
from overlapkit.lab.protocol import JOB_FILE, Block, Job, Variant
from overlapkit.lab.scenario import CONFIRMED, NOT_CONFIRMED, NOT_TESTABLE, Setting
from overlapkit.lab.scenarios import grid, silent
from overlapkit.lab.scenarios.grid import Combination
from overlapkit.lab.scenarios.pp import BATCHED
from support.late import needs

pytestmark = [pytest.mark.functional, needs("torch", "megatron.core")]

LIMIT_S = 420.0


def trained(blocks: Iterable[Block], folder: Path) -> Observations:
    """What ranks saw of blocks, untimed."""
    together: dict[int, list[Block]] = {}
    for block in blocks:
        together.setdefault(block.ranks, []).append(msgspec.structs.replace(block, rounds=0))
    observed = Observations({}, {})
    for ranks, alike in together.items():
        place = folder / str(ranks)
        place.mkdir()
        job = Job(blocks=tuple(alike), rate_mbit=None)
        (place / JOB_FILE).write_bytes(msgspec.json.encode(job))
        run_ranks(
            Launch(
                ranks=ranks,
                module="overlapkit.lab.rank.__main__",
                args=(str(place),),
                folder=place,
                # What `overlapkit lab` sets on a CPU: importing the compiler takes a second.
                environment={"TORCHDYNAMO_DISABLE": "1"},
                link="none",
                timeout_s=LIMIT_S,
                silence_s=LIMIT_S,
            ),
            lambda event: None,
        )
        for block, found in zip(alike, read_blocks(place, job, ranks), strict=True):
            observed.blocks[block.name] = found
            observed.folders[block.name] = place
    return observed


GRANTED = silent.Case(
    "dp.bucket-size",
    silent.REPLICAS,
    "comm_overlap",
    "bucket_size",
    20_000,
    knob="ddp.bucket_size",
    why="in-the-right-place",
)
SHOWN = (
    "tp.needs-sequence-parallel",
    "dp.bucket-size",
    "dp.needs-distributed-optimizer",
    "pp.interleaved",
    "core.param-gather-needs.no-grad-reduce",
    "core.param-gather-with-optimizer-step-needs",
)


COUNTED = Block(
    name="counted",
    ranks=2,
    variants=(
        Variant(
            name="plain",
            settings=next(
                case for case in silent.CASES if case.rule == "dp.needs-distributed-optimizer"
            ).settings(requested=False),
            collectives=True,
        ),
    ),
    steps=1,
)


@pytest.fixture(scope="module")
def shown() -> Iterator[None]:
    """The scenario with a few of its cases."""
    cases = (*(case for case in silent.CASES if case.name in SHOWN), GRANTED)
    assert len(cases) == len(SHOWN) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(silent, "CASES", cases)
        yield


@pytest.fixture(scope="module")
def observed(shown: None, tmp_path_factory: pytest.TempPathFactory) -> Observations:
    """Both tests' blocks from one start of the ranks, which takes most of the time."""
    return trained([*silent.blocks(Setting()), COUNTED], tmp_path_factory.mktemp("silent"))


def test_a_silent_refusal_leaves_the_step_as_it_was(observed: Observations) -> None:
    verdicts = [v for v in silent.judge(observed, Setting()) if v.outcome != NOT_TESTABLE]
    *refused, granted = sorted(verdicts, key=lambda v: "in the right place" in v.claim)
    assert [(v.claim, v.evidence) for v in refused if v.outcome != CONFIRMED] == []
    # What is granted is told from what is refused: by the decision, and by what is sent.
    assert granted.outcome == NOT_CONFIRMED
    variants = observed.variants("silent-dp")
    asks, twin = (variants[name].ranks[0] for name in (GRANTED.name, GRANTED.twin))
    calls = [sum(count for count, _ in rank.collectives.values()) for rank in (asks, twin)]
    assert calls[0] > calls[1]
    assert asks.digest == twin.digest, "buckets change when, not what"


def test_counted_bytes_are_those_of_the_gradients(observed: Observations) -> None:
    for rank in observed.variants("counted")["plain"].ranks:
        assert rank.collectives["allreduce_coalesced_"] == (1, 4 * rank.parameters)


COMBINATIONS = [
    Combination(),
    Combination(pp=2, p2p="batched"),
    Combination(pp=2, p2p="waiting", distributed=False),
    Combination(pp=2, vpp=2, p2p="overlapped"),
    Combination(pp=2, vpp=2, p2p="overlapped", overlap="step", bucket="several"),
    Combination(dp=2),
    Combination(dp=2, distributed=False, overlap="reduce", bucket="each"),
    Combination(dp=2, overlap="gather", bucket="several"),
    Combination(tp=2, sp=True, overlap="align", bucket="several"),
]


@pytest.mark.whole_lab
def test_a_few_combinations_train_as_the_unpartitioned_model(tmp_path: Path) -> None:
    assert all(map(grid.allowed, COMBINATIONS))
    observed = trained(grid.blocks_of(COMBINATIONS, 2), tmp_path)
    verdicts = grid.judge_of(COMBINATIONS, observed)
    assert [(v.claim, v.evidence) for v in verdicts if v.outcome != CONFIRMED] == []
    for block in observed.blocks.values():
        for variant in block.variants.values():
            losses = next(iter(variant.losses.values()))
            assert len(losses) == 2
            assert losses[0] != losses[1], "it trains"


@pytest.mark.whole_lab
def test_the_hazard_does_not_get_past_the_grid(tmp_path: Path) -> None:
    right = Combination(pp=2, vpp=2, p2p="waiting")
    wrong = replace(right, p2p="batched")
    assert not grid.allowed(wrong)
    *rest, ranks2 = grid.blocks_of([right, wrong], 1)
    forced = [
        # Built as what is allowed, and then forced past the rules.
        msgspec.structs.replace(v, settings=right.settings(), force=BATCHED)
        if v.name == wrong.name
        else v
        for v in ranks2.variants
    ]
    ranks2 = msgspec.structs.replace(ranks2, variants=tuple(forced))
    verdicts = grid.judge_of([right, wrong], trained([*rest, ranks2], tmp_path))
    found = {v.claim: v for v in verdicts if v.outcome == NOT_CONFIRMED}
    assert set(found) == {grid.ALIKE, grid.EQUAL}
    assert all(wrong.name in v.evidence for v in found.values())
