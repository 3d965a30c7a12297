"""A small real run of the lab, kept in tests/data/lab: recorded here, and read by tests.

    uv run python tests/support/lab_run.py tests/data/lab

trains it on two CPU ranks over a shaped link (as root on Linux) and replaces the recorded files.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from overlapkit.lab.document import LabDocument, LabLink, lab_document, lab_link
from overlapkit.lab.measurements import Observations, read_blocks, with_profiles
from overlapkit.lab.protocol import JOB_FILE, Block, Job, Variant
from overlapkit.lab.scenario import (
    DISTRIBUTED_OPTIMIZER,
    NO_OVERLAP,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    JudgedScenario,
    Scenario,
    Setting,
    Settings,
    Verdict,
    identical,
    layered,
    variant,
)

FOLDER = Path(__file__).parents[1] / "data" / "lab"
RANKS = 2
LINK_FILE = "link.json"
SECONDS = 12.3

SMALL: Settings = {
    "model": {
        "num_layers": 1,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "seq_length": 64,
        "share_embeddings_and_output_weights": False,
    },
    "optimizer": {"optimizer": "adam", "lr": 1e-3, "clip_grad": 0.0},
    "train": {"micro_batch_size": 4, "global_batch_size": 8},
}
STAGES: Settings = {
    "model": {"num_layers": 4, "pipeline_model_parallel_size": 2},
    "comm_overlap": {"tp_comm_overlap": False},
    "train": {"micro_batch_size": 2, "global_batch_size": 4},
}
INTERLEAVED: Settings = {"model": {"virtual_pipeline_model_parallel_size": 2}}
BOTH: Settings = {
    "comm_overlap": {
        "tp_comm_overlap": True,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "bucket_size": 50_000,
    }
}
BATCHED: Settings = {"model": {"overlap_p2p_comm": False, "batch_p2p_comm": True}}


def blocks(setting: Setting) -> tuple[Block, ...]:
    """Data parallelism without and with overlap, pipeline stages, and variants without timing."""

    def of(name: str, *layers: Settings, **more: Any) -> Variant:
        return variant(name, setting, SMALL, *layers, **more)

    by_hand = layered(STAGES, INTERLEAVED, BATCHED)
    del by_hand["comm_overlap"]
    return (
        Block(
            name="dp",
            ranks=RANKS,
            variants=(
                of("off", DISTRIBUTED_OPTIMIZER, NO_OVERLAP),
                of("both", DISTRIBUTED_OPTIMIZER, BOTH),
            ),
            rounds=2,
            steps=3,
            profiled=1,
            link_of="off",
        ),
        Block(
            name="pp",
            ranks=RANKS,
            variants=(
                of("vpp2", STAGES, INTERLEAVED),
                of("<by hand> & refused", by_hand),
            ),
            rounds=2,
            steps=3,
            profiled=1,
            link_of="vpp2",
        ),
        Block(
            name="numbers",
            ranks=RANKS,
            variants=(of("vpp1", STAGES), of("refused", by_hand)),
            rounds=0,
            steps=2,
        ),
    )


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """One verdict of each outcome."""
    refused = observed.variants("pp")["<by hand> & refused"]
    return [
        identical(list(observed.variants("dp").values()), "No number changes."),
        Verdict("<b>It</b> is trained.", NOT_CONFIRMED, refused.error or "it was"),
        Verdict("It runs on GPUs.", NOT_TESTABLE, "this ran on CPUs"),
    ]


SCENARIO = Scenario(
    name="small", title="a recorded run, <small> & real", ranks=RANKS, blocks=blocks, judge=judge
)


def job() -> Job:
    """What the ranks did."""
    return Job(blocks=SCENARIO.blocks(Setting()))


@cache
def judged() -> tuple[JudgedScenario, ...]:
    """The recorded run, profiles analysed and judged."""
    found = read_blocks(FOLDER, job(), RANKS)
    names = [block.name for block in job().blocks]
    observed = Observations(
        {name: with_profiles(FOLDER, block) for name, block in zip(names, found, strict=True)},
        dict.fromkeys(names, FOLDER),
    )
    return (JudgedScenario(SCENARIO, job().blocks, observed, SCENARIO.judge(observed, Setting())),)


def link() -> LabLink:
    """The link of the recorded run."""
    return msgspec.json.decode((FOLDER / LINK_FILE).read_bytes(), type=LabLink)


def document() -> LabDocument:
    """The document of the recorded run."""
    return lab_document(judged(), link=link(), device="cpu", seconds=SECONDS)


def plain() -> dict[str, Any]:
    """The same as a program reads it."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document()))
    return found


def record(target: Path) -> None:
    """Train it, and keep results, profiles and link in `target`."""
    from overlapkit.lab.launch.start import Launch, run_ranks

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / JOB_FILE).write_bytes(msgspec.json.encode(job()))
        used = run_ranks(
            Launch(
                ranks=RANKS,
                module="overlapkit.lab.rank.__main__",
                args=(str(folder),),
                folder=folder,
                environment={},
                link="shaped",
                timeout_s=300,
                silence_s=120,
            ),
            lambda event: None,
        )
        kept = [*folder.glob("block*.json"), *folder.glob("*.json.gz")]
        target.mkdir(exist_ok=True)
        for old in target.glob("*.json*"):
            old.unlink()
        for file in kept:
            content = file.read_bytes()
            if file.suffix == ".gz":
                content = gzip.compress(gzip.decompress(content), 9, mtime=0)
            (target / file.name).write_bytes(content)
        (target / LINK_FILE).write_bytes(msgspec.json.encode(lab_link(used)))


if __name__ == "__main__":
    record(Path(sys.argv[1]))
