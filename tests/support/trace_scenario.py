"""What a generated GPU profile shows: the parallel layout, what overlaps, and the trace's age."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

DIMENSIONS = ("TP", "DP", "PP", "CP", "EP", "embedding", "other")
"""The dimensions that a communication can belong to, in the order of reports."""

# Descriptions that Megatron-Core 0.16 gives its process groups (parallel_state.py, `group_desc`).
GROUP_DESCRIPTIONS = {
    "TP": "TENSOR_MODEL_PARALLEL_GROUP",
    "DP": "DATA_PARALLEL_GROUP_WITH_CP",
    "PP": "PIPELINE_MODEL_PARALLEL_GROUP",
    "CP": "CONTEXT_PARALLEL_GROUP",
    "EP": "EXPERT_MODEL_PARALLEL_GROUP",
    "embedding": "EMBEDDING_GROUP",
    "other": "MODEL_PARALLEL_GROUP",
}


@dataclass(frozen=True)
class Scenario:
    """One training run as its profile would show it. Two equal scenarios give equal bytes.

    Attributes:
        seed: of every random choice.
        ranks: how many ranks to write, the first ones of the job, all of one pipeline stage.
        steps: profiled steps; the first is ``ProfilerStep#first_step``.
        tp, dp, pp, cp, ep: parallel sizes; the world is tp x dp x pp x cp, ep divides dp.
        layers, microbatches: transformer layers of the stage, microbatches of a step.
        dp_overlap: gradient reduce-scatters run beside the backward, parameter all-gathers beside
            the forward; otherwise nothing runs beside them.
        buckets: gradient buckets; with one, no compute is left to hide the reduce-scatter.
        gather_ns, reduce_ns: time of a step's parameter gathers and gradient reductions together.
        reduce_skew: how many times as long the first gradient bucket (of the output embedding)
            takes as each of the others.
        tp_comm: "nccl" (each collective exposed), "userbuffers" (kernels beside the GEMMs),
            "copies" (userbuffers through copy engines: peer copies beside the GEMMs).
        pp_overlap: send/recv run beside compute (interleaved schedule); otherwise exposed.
        ep_comm: "nccl" (all-to-all), "deepep" or "nvshmem" kernels.
        ep_overlap: the expert exchange runs beside compute.
        single_queue: CUDA_DEVICE_MAX_CONNECTIONS=1: a collective that waits for another one delays
            every kernel launched after it.
        layernorm_waits: persistent LayerNorm kernels wait for a running collective (no SM margin).
        slowdown: factor on the duration of a compute kernel that starts while communication runs.
        gemm_factor: factor on every GEMM.
        idle_ns: how long compute is idle before the backward of each microbatch.
        late_rank, late_ns: a rank, and how long it stalls at the start of each step; others wait.
        gap_ns: time between the last device work of one step and the first of the next.
        noise: python_function events per device event; the writer adds five more of other kinds.
        metadata: NCCL kernels carry PyTorch's process-group arguments.
        distributed_info: the file states its rank and its groups.
        annotations: "both", "gpu", "cpu" or "none": where ProfilerStep ranges appear.
        generation: "2025" (float microseconds, relative to baseTimeNanoseconds), "2024" (float,
            absolute, about 1.7e15, beyond nanosecond resolution of a double), "2022" (integer
            microseconds, `Kernel`/`Memcpy`/`Memset` categories, ncclKernel_ names).
        grid_ns: every device timestamp is a multiple of this; 1000 where `generation` is "2022".
    """

    seed: int = 0
    ranks: int = 1
    steps: int = 3
    first_step: int = 5
    tp: int = 1
    dp: int = 8
    pp: int = 1
    cp: int = 1
    ep: int = 1
    layers: int = 4
    microbatches: int = 2
    dp_overlap: bool = True
    buckets: int = 4
    gather_ns: int = 1_600_000
    reduce_ns: int = 2_400_000
    reduce_skew: float = 1.0
    tp_comm: str = "nccl"
    pp_overlap: bool = False
    ep_comm: str = "nccl"
    ep_overlap: bool = False
    single_queue: bool = False
    layernorm_waits: bool = False
    slowdown: float = 1.0
    gemm_factor: float = 1.0
    idle_ns: int = 0
    late_rank: int | None = None
    late_ns: int = 0
    gap_ns: int = 0
    noise: int = 4
    metadata: bool = True
    distributed_info: bool = True
    annotations: str = "both"
    generation: str = "2025"
    grid_ns: int = 1

    def __post_init__(self) -> None:
        choices = {
            "tp_comm": ("nccl", "userbuffers", "copies"),
            "ep_comm": ("nccl", "deepep", "nvshmem"),
            "annotations": ("both", "gpu", "cpu", "none"),
            "generation": ("2025", "2024", "2022"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r}; one of {', '.join(allowed)}")
        if self.dp % self.ep:
            raise ValueError(f"ep={self.ep} does not divide dp={self.dp}")
        if not 1 <= self.ranks <= self.tp * self.cp * self.dp:
            raise ValueError(f"ranks={self.ranks}; a stage has {self.tp * self.cp * self.dp}")
        if self.generation == "2022" and self.grid_ns % 1000:
            raise ValueError(f"grid_ns={self.grid_ns}; a trace of 2022 has whole microseconds")

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return self.tp * self.cp * self.dp * self.pp

    def but(self, **changes: Any) -> Scenario:
        """The same run, apart from `changes`."""
        return replace(self, **changes)

    def group(self, dimension: str, rank: int) -> list[int]:
        """The ranks of the `dimension` group that `rank` is in, in Megatron's tp-cp-dp-pp order.

        "DP" spans context parallelism too, as the distributed optimizer's groups do, and "other"
        is the model-parallel group.
        """
        tp_index, rest = rank % self.tp, rank // self.tp
        cp_index, rest = rest % self.cp, rest // self.cp
        dp_index, pp_index = rest % self.dp, rest // self.dp

        def at(t: int = tp_index, c: int = cp_index, d: int = dp_index, p: int = pp_index) -> int:
            return t + self.tp * (c + self.cp * (d + self.dp * p))

        if dimension == "TP":
            return [at(t=t) for t in range(self.tp)]
        if dimension == "CP":
            return [at(c=c) for c in range(self.cp)]
        if dimension == "DP":
            return [at(c=c, d=d) for d in range(self.dp) for c in range(self.cp)]
        if dimension == "PP":
            return [at(p=p) for p in range(self.pp)]
        if dimension == "EP":
            first = dp_index - dp_index % self.ep
            return [at(d=d) for d in range(first, first + self.ep)]
        if dimension == "embedding":
            return sorted({at(p=0), at(p=self.pp - 1)})
        return [at(t=t, p=p) for p in range(self.pp) for t in range(self.tp)]


SCENARIOS: dict[str, Scenario] = {
    "dp overlapped": Scenario(),
    "dp exposed": Scenario(dp_overlap=False),
    "one bucket": Scenario(buckets=1),
    "tp exposed": Scenario(tp=4, dp=2),
    "tp userbuffers": Scenario(tp=4, dp=2, tp_comm="userbuffers"),
    "tp peer copies": Scenario(tp=4, dp=2, tp_comm="copies"),
    "cp": Scenario(cp=2, dp=4),
    "pp bubbles": Scenario(pp=4, dp=2, microbatches=4),
    "pp interleaved": Scenario(pp=4, dp=2, microbatches=4, pp_overlap=True),
    "ep all-to-all": Scenario(ep=4, dp=8),
    "ep deepep": Scenario(ep=4, dp=8, ep_comm="deepep", ep_overlap=True),
    "ep nvshmem": Scenario(ep=4, dp=8, ep_comm="nvshmem"),
    "late rank": Scenario(ranks=4, late_rank=2, late_ns=3_000_000),
    "slowed compute": Scenario(slowdown=1.4),
    "single queue": Scenario(
        single_queue=True, layers=8, buckets=8, microbatches=1, reduce_ns=9_000_000, reduce_skew=8
    ),
    "layernorm waits": Scenario(
        layernorm_waits=True, layers=8, buckets=8, microbatches=1, reduce_ns=10_000_000
    ),
    "everything": Scenario(
        tp=2, cp=2, dp=4, pp=2, ep=2, ranks=2, tp_comm="userbuffers", slowdown=1.2
    ),
    "gap between steps": Scenario(gap_ns=700_000),
    "no metadata": Scenario(tp=4, dp=2, metadata=False),
    "no rank": Scenario(distributed_info=False),
    "steps on the cpu": Scenario(annotations="cpu"),
    "no steps": Scenario(annotations="none"),
    "2024": Scenario(generation="2024"),
    "2022": Scenario(generation="2022", grid_ns=1000, metadata=False, distributed_info=False),
}
"""Named runs, each showing one thing; tests are parametrized over them."""

CHANGES: dict[str, tuple[Scenario, Scenario, str]] = {
    "overlap lost": (Scenario(), Scenario(dp_overlap=False), "exposed_comm"),
    "slower gemm": (Scenario(), Scenario(gemm_factor=1.3), "compute"),
    "host stall": (Scenario(), Scenario(idle_ns=1_500_000), "idle"),
    "tp overlap lost": (
        Scenario(tp=4, dp=2, tp_comm="userbuffers"),
        Scenario(tp=4, dp=2),
        "exposed_comm",
    ),
    "nothing": (Scenario(seed=1), Scenario(seed=2), ""),
}
"""Pairs of runs (base, new) and the part of the step that the change moved; "" where none did."""
