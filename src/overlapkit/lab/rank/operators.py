"""Times operators on a device: matrix products, attention, memory-bound kernels and collectives.

What runs in every rank of `overlapkit lab calibrate`: ``python -m overlapkit.lab.rank.operators
FOLDER``, under torchrun. Reads the job in FOLDER; rank 0 leaves the result there.
"""

from __future__ import annotations

from overlapkit.lab.link import rank_side as network

if __name__ == "__main__":
    # Before torch is imported: existing threads would stay in the old network namespace.
    network.join()

import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from overlapkit.lab.calibrate.job import JOB_FILE, RESULT_FILE, Job, Result
from overlapkit.lab.events import emit
from overlapkit.plan.rates.document import (
    RatesAttention,
    RatesCollective,
    RatesGemm,
    RatesMemory,
)

TURNS = 5
"""Times that each operator is timed, while there is time; the median counts."""
TURN_S = 0.01
"""Seconds of a turn at least: an operator is repeated until it takes as long."""
OVER_BUDGET = "shapes that the time of --budget did not suffice for"

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


_FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
Row = TypeVar("Row", RatesGemm, RatesAttention, RatesCollective)


class NotMeasured(Exception):
    """An operator that this device or this PyTorch cannot run; the message says why."""


class Clock:
    """Times what a device does.

    Args:
        device: "cpu" or "cuda".
        deadline: of time.monotonic(); an operator that runs then gets no further turns.
    """

    def __init__(self, device: str, deadline: float) -> None:
        self.cuda, self.deadline = device == "cuda", deadline

    def seconds(self, operator: Callable[[], Any]) -> float:
        """Median seconds of one run, of several turns of some runs each."""
        # The first run compiles and allocates.
        operator()
        once = self.turn(operator, 1)
        runs = runs_of_turn(once)
        # A run that is a turn by itself counts: it can take a minute on a CPU.
        turns = [once] if runs == 1 else [self.turn(operator, runs)]
        while len(turns) < TURNS and time.monotonic() < self.deadline:
            emit({"event": "measuring"})
            turns.append(self.turn(operator, runs))
        return statistics.median(turns)

    def turn(self, operator: Callable[[], Any], runs: int) -> float:
        """Seconds of one run, of several in a row."""
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(runs):
                operator()
            return (time.perf_counter() - start) / runs
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(runs):
            operator()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3 / runs


def runs_of_turn(once: float) -> int:
    """Runs in a row of an operator that takes `once` seconds."""
    return max(1, round(TURN_S / max(once, 1e-7)))


class Bench:
    """Measures the rows of a job on one device.

    Args:
        job: what to measure.
        device: of this rank.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.device = job, device
        self.unread: Counter[str] = Counter()
        self.deadline = time.monotonic() + job.budget_s
        self.clock = Clock(device.type, self.deadline)

    def all_of(self, rows: list[Row], measure: Callable[[Row], float]) -> list[Row]:
        """The rows with their seconds, those that could be measured within the budget."""
        found = []
        for row in rows:
            if not agreed(time.monotonic() < self.deadline):
                self.unread[OVER_BUDGET] += 1
                continue
            emit({"event": "measuring"})
            try:
                seconds = measure(row)
            except NotMeasured as error:
                self.unread[str(error)] += 1
            except RuntimeError as error:
                self._failed(error)
            else:
                found.append(msgspec.structs.replace(row, seconds=seconds))
        return found

    def _failed(self, error: RuntimeError) -> None:
        """Count an operator that this device has no kernel for, or no memory."""
        first = next(iter(str(error).splitlines()), type(error).__name__)
        self.unread[f"operators that fail: {first[:120]}"] += 1

    def gemm(self, row: RatesGemm) -> float:
        """Seconds of a product, whose operands lie as in its pass."""
        if row.batch > 1:
            return self._grouped(row)
        if row.precision == "fp8":
            return self._scaled(row)
        left, right = self._operands(row, self._type(row.precision))
        return self.clock.seconds(lambda: left @ right)

    def _type(self, precision: str) -> torch.dtype:
        if precision not in _TYPES:
            raise NotMeasured(f"matrix products in {precision}: PyTorch's own operators have none")
        return _TYPES[precision]

    def _operands(self, row: RatesGemm, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """A weight lies as outputs x inputs, and activations as tokens x width."""
        left, right = self._random(row.m, row.k, kind), self._random(row.k, row.n, kind)
        if row.which in ("fprop", None):
            right = self._random(row.n, row.k, kind).t()
        elif row.which == "wgrad":
            left = self._random(row.k, row.m, kind).t()
        return left, right

    def _scaled(self, row: RatesGemm) -> float:
        if self.device.type != "cuda" or row.n % 16 or row.k % 16:
            raise NotMeasured("matrix products in fp8: on a GPU, of sizes that 16 divides")
        kind = torch.float8_e4m3fn
        left = self._random(row.m, row.k, torch.bfloat16).to(kind)
        right = self._random(row.n, row.k, torch.bfloat16).to(kind).t()
        one = torch.ones((), device=self.device)
        return self.clock.seconds(
            lambda: torch._scaled_mm(
                left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        )

    def _grouped(self, row: RatesGemm) -> float:
        """The products of a rank's experts, by one kernel where PyTorch has it, else in turn."""
        kind = self._type(row.precision)
        if row.which == "wgrad" or self.device.type == "cpu" or not hasattr(torch, "_grouped_mm"):
            single = msgspec.structs.replace(row, batch=1)
            pairs = [self._operands(single, kind) for _ in range(row.batch)]

            def in_turn() -> None:
                for left, right in pairs:
                    torch.mm(left, right)

            return self.clock.seconds(in_turn)
        tokens = self._random(row.batch * row.m, row.k, kind)
        weight = self._random(row.batch * row.n, row.k, kind).view(row.batch, row.n, row.k)
        ends = torch.arange(1, row.batch + 1, device=self.device, dtype=torch.int32) * row.m
        turned = weight.transpose(-2, -1)
        if row.which == "dgrad":
            turned = turned.contiguous()
        return self.clock.seconds(lambda: torch._grouped_mm(tokens, turned, offs=ends))

    def _random(self, rows: int, columns: int, kind: torch.dtype) -> torch.Tensor:
        # Zeros would need less power than real numbers, and run at higher clocks.
        return torch.randn(rows, columns, device=self.device, dtype=kind)

    def attention(self, row: RatesAttention) -> float:
        """Seconds of a pass of PyTorch's attention."""
        kind = self._type(row.precision)
        size = row.batch, row.heads, row.sequence
        backward = row.phase == "backward"

        def heads(width: int) -> torch.Tensor:
            made = torch.randn(*size, width, device=self.device, dtype=kind)
            return made.requires_grad_(backward)

        q, k, v = heads(row.qk_head), heads(row.qk_head), heads(row.v_head)

        # Training uses fused kernels; a GPU without one for these sizes would take separate
        # products instead, whose time says nothing of it.
        backends = _FUSED if self.device.type == "cuda" else [*_FUSED, SDPBackend.MATH]

        def forward() -> torch.Tensor:
            with sdpa_kernel(backends):
                return F.scaled_dot_product_attention(q, k, v, is_causal=row.causal)

        if not backward:
            with torch.no_grad():
                return self.clock.seconds(forward)
        result = forward()
        gradient = torch.randn_like(result)
        return self.clock.seconds(
            lambda: torch.autograd.grad(result, (q, k, v), gradient, retain_graph=True)
        )

    def stream(self) -> list[RatesMemory]:
        """What a streaming kernel sustains, and what it takes beside its bytes: from two sizes."""
        try:
            (small, less), (large, more) = (self._added(size) for size in self.job.stream_bytes)
        except RuntimeError as error:
            self._failed(error)
            return []
        if more <= less:
            self.unread["memory: a larger kernel was not slower than a smaller one"] += 1
            return []
        rate = (large - small) / (more - less)
        kernel = max(0.0, less - small / rate)
        return [RatesMemory(kind="stream", gb_s=rate / 1e9, kernel_us=kernel * 1e6)]

    def _added(self, size: int) -> tuple[int, float]:
        """Bytes and seconds of a sum of two tensors, which reads two and writes one."""
        count = size // 12
        one, other, total = (torch.ones(count, device=self.device) for _ in range(3))
        return 12 * count, self.clock.seconds(lambda: torch.add(one, other, out=total))

    def message(self, row: RatesCollective) -> float:
        """Seconds of a collective over all ranks, on the slowest."""
        ranks = dist.get_world_size()
        assert row.bytes is not None
        count = max(1, row.bytes // 4 // ranks)
        # Zeros, since repeated sums of other numbers would become infinite.
        whole = torch.zeros(count * ranks, device=self.device)
        part = torch.zeros(count, device=self.device)
        other = torch.zeros_like(whole)
        run: dict[str, Callable[[], Any]] = {
            "all-gather": lambda: dist.all_gather_into_tensor(whole, part),
            "reduce-scatter": lambda: dist.reduce_scatter_tensor(part, whole),
            "all-reduce": lambda: dist.all_reduce(whole),
            "all-to-all": lambda: dist.all_to_all_single(other, whole),
        }
        if row.kind not in run:
            raise NotMeasured(f"collectives of the kind {row.kind}")
        operator = run[row.kind]

        def turn(runs: int) -> float:
            dist.barrier()
            return over_ranks(self.clock.turn(operator, runs), self.device)

        # The first run connects the ranks.
        operator()
        # The slowest rank's time is the same on all: they repeat it equally often.
        runs = runs_of_turn(turn(1))
        return statistics.median(turn(runs) for _ in range(TURNS))


def agreed(here: bool) -> bool:
    """Whether something holds on every rank; all of them go on alike."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return here
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return over_ranks(0.0 if here else 1.0, torch.device(device)) == 0.0


def over_ranks(value: float, device: torch.device) -> float:
    """The largest of a value over all ranks."""
    worst = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst.item())


def run(folder: Path) -> None:
    """Measure the job in `folder`."""
    job = msgspec.json.decode((folder / JOB_FILE).read_bytes(), type=Job)
    emit({"event": "importing"})
    rank = int(os.environ["RANK"])
    if job.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        device, name = torch.device("cuda"), torch.cuda.get_device_name()
    else:
        device, name = torch.device("cpu"), "cpu"
    dist.init_process_group("nccl" if job.device == "cuda" else "gloo")
    bench = Bench(job, device)
    # Rank by rank the same, since a machine's ranks compute at the same time in training too.
    collectives = bench.all_of(job.collectives, bench.message)
    result = Result(
        name=name,
        torch=str(torch.__version__),
        collectives=collectives,
        gemms=bench.all_of(job.gemms, bench.gemm),
        attention=bench.all_of(job.attention, bench.attention),
        memory=bench.stream(),
        unread=dict(bench.unread),
    )
    if rank == 0:
        (folder / RESULT_FILE).write_bytes(msgspec.json.encode(result))
    emit({"event": "done"})
    dist.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
