"""Tasks with a figure for an answer: bytes of buckets, profiles, predictions."""

from __future__ import annotations

from pathlib import Path

import overlapkit
from overlapkit.skill.evals.answer import Number, Text
from overlapkit.skill.evals.ask import milliseconds
from overlapkit.skill.evals.tasks import Answers, Task
from overlapkit.trace.document import TraceDocument
from overlapkit.trace.rank_document import TraceRank

_ESTIMATE = 0.01
"""How far a figure of `plan` may be rounded."""

_OFF = ("no-overlap.rank0.json.gz", "no-overlap.rank1.json.gz")
_ON = ("overlap.rank0.json.gz", "overlap.rank1.json.gz")
_PIPELINE = ("pipeline.rank0.json.gz", "pipeline.rank1.json.gz")
_DDP = ("ddp.rank0.json.gz", "ddp.rank1.json.gz")


def _bytes(folder: Path) -> Answers:
    document = overlapkit.explain(folder / "interleaved_8b.yaml", world_size=16, gpu="h100")
    first = (document.buckets.chunks or [])[0]
    return {
        "buckets": Number(len(first.buckets)),
        "largest_mb": Number(max(b.reduced_bytes for b in first.buckets) / 1e6, 0.005),
        "exposed_mb": Number(first.exposed_bytes / 1e6, 0.005),
    }


def _auto(folder: Path) -> Answers:
    document = overlapkit.explain(
        folder / "merged_new.yaml",
        overrides=["comm_overlap.bucket_size=auto"],
        world_size=16,
        gpu="h100",
    )
    return {
        "bucket_size": Number(document.effective["ddp.bucket_size"]),
        "buckets": Number(len((document.buckets.chunks or [])[0].buckets)),
    }


def _profile(folder: Path, files: tuple[str, ...]) -> TraceDocument:
    return overlapkit.trace([folder / name for name in files])


def _rank(document: TraceDocument, rank: int) -> TraceRank:
    (found,) = [each for each in document.ranks if each.rank == rank]
    return found


def _exposed(folder: Path) -> Answers:
    document = _profile(folder, _OFF)
    assert document.across_ranks is not None
    slowest = document.across_ranks.slowest_rank
    median = _rank(document, slowest).median
    return {
        "rank": Number(slowest),
        "step_ms": milliseconds(median.step_us),
        "exposed_ms": milliseconds(median.exposed_comm_us),
    }


def _hidden(folder: Path) -> Answers:
    median = _rank(_profile(folder, _ON), 0).median
    return {"hidden_ms": milliseconds(median.hidden_comm_us)}


def _stages(folder: Path) -> Answers:
    rank = _rank(_profile(folder, _PIPELINE), 1)
    dimension, times = max(rank.median.by_dimension.items(), key=lambda d: d[1].exposed_comm_us)
    return {"dimension": Text(dimension), "exposed_ms": milliseconds(times.exposed_comm_us)}


def _not_megatron(folder: Path) -> Answers:
    document = _profile(folder, _DDP)
    return {
        "framework": Text(document.framework.name or "none"),
        "idle_ms": milliseconds(_rank(document, 0).median.idle_us),
    }


def _compared(folder: Path) -> Answers:
    document = overlapkit.compare(folder / _OFF[0], folder / _ON[0])
    (part,) = [p for p in document.parts if p.part == "exposed_comm"]
    return {
        "verdict": Text(document.verdict),
        "exposed_change_ms": milliseconds(part.change_us),
    }


def _chosen(folder: Path) -> Answers:
    layout = overlapkit.plan(model="llama3_70b", gpu="h100", world_size=64).layout
    parts = {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vp or 1, "cp": layout.cp}
    return {name: Number(size) for name, size in parts.items()}


def _predicted(folder: Path) -> Answers:
    document = overlapkit.plan(folder / "merged_base.yaml", gpu="h100", world_size=16)
    assert document.estimate is not None
    assert document.memory_gb is not None
    return {
        "without_ms": Number(document.estimate.step_ms.without, _ESTIMATE),
        "with_ms": Number(document.estimate.step_ms.with_, _ESTIMATE),
        "memory_gb": Number(document.memory_gb.needed, _ESTIMATE),
    }


def _gain(folder: Path) -> Answers:
    document = overlapkit.plan(folder / "merged_base.yaml", gpu="h100", world_size=16)
    best = max(document.dimensions, key=lambda d: d.gain_ms or 0)
    return {"dimension": Text(best.dimension), "gain_ms": Number(best.gain_ms or 0, 0.02)}


FIGURES = (
    Task(
        "bucket-bytes",
        "In how many buckets are the gradients of the first pipeline stage's first model chunk "
        "reduced in interleaved_8b.yaml on 16 H100 (`buckets`), how many MB (10^6 bytes) has the "
        "largest (`largest_mb`), and how many MB of them can nothing hide (`exposed_mb`)?",
        ("interleaved_8b.yaml",),
        _bytes,
        in_source=False,
    ),
    Task(
        "what-if-auto",
        "merged_new.yaml (16 H100) is run with overlapkit's CommOverlapConfig and "
        'comm_overlap.bucket_size: "auto". Which size is that (`bucket_size`), and how many '
        "buckets are there (`buckets`)?",
        ("merged_new.yaml",),
        _auto,
        in_source=False,
    ),
    Task(
        "exposed-milliseconds",
        "The profiles are those of a run of two ranks. Which rank has the longer median step "
        "(`rank`), how long is it (`step_ms`), and how much of it is exposed communication "
        "(`exposed_ms`)?",
        _OFF,
        _exposed,
        in_source=False,
    ),
    Task(
        "hidden-milliseconds",
        "How many milliseconds of communication are hidden in the median step of rank 0 "
        "(`hidden_ms`)?",
        _ON,
        _hidden,
        in_source=False,
    ),
    Task(
        "exposed-dimension",
        "Which parallel dimension of rank 1 has the most exposed communication in the median step "
        "(`dimension`: TP, DP, PP, CP, EP or other), and how much (`exposed_ms`)?",
        _PIPELINE,
        _stages,
        in_source=False,
    ),
    Task(
        "whose-profile",
        "Which framework made these profiles (`framework`: megatron, deepspeed, torchtitan, ddp, "
        "fsdp1, fsdp2 or none), and how long "
        "is rank 0 idle in the median step (`idle_ms`)?",
        _DDP,
        _not_megatron,
        in_source=False,
    ),
    Task(
        "two-profiles",
        "Did the median step change from no-overlap to overlap, beyond what the steps vary by "
        "(`verdict`: slower, faster or same), and by how many milliseconds did exposed "
        "communication change (`exposed_change_ms`, negative for less)?",
        (_OFF[0], _ON[0]),
        _compared,
        in_source=False,
    ),
    Task(
        "fastest-layout",
        "Which layout of Llama 3 70B is the fastest on 64 H100 by overlapkit's estimate (`tp`, "
        "`pp`, `vpp`, `cp`)?",
        (),
        _chosen,
        in_source=False,
    ),
    Task(
        "predicted-step",
        "What does overlapkit expect of merged_base.yaml on 16 H100: milliseconds a step without "
        "overlap (`without_ms`) and with what it recommends (`with_ms`), and GB on the fullest "
        "GPU (`memory_gb`)?",
        ("merged_base.yaml",),
        _predicted,
        in_source=False,
    ),
    Task(
        "largest-gain",
        "Overlap of which dimension saves most in merged_base.yaml on 16 H100 (`dimension`, as "
        "overlapkit names it), and how many milliseconds a step by its estimate (`gain_ms`)?",
        ("merged_base.yaml",),
        _gain,
        in_source=False,
    ),
)
