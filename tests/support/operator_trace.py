"""Writes small profiles of operators with input shapes, whose times are known exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BF16 = "c10::BFloat16"


class OperatorTrace:
    """A profile of one GPU: operators one after the other, each with the kernels that it launched.

    Args:
        gpu: the device's name.
        rank, world_size: of the process.
        shapes: whether the inputs of operators are recorded.
    """

    def __init__(
        self,
        gpu: str = "NVIDIA H100 80GB HBM3",
        *,
        rank: int = 0,
        world_size: int = 16,
        shapes: bool = True,
    ) -> None:
        self.gpu, self.rank, self.world_size, self.shapes = gpu, rank, world_size, shapes
        self.events: list[dict[str, Any]] = []
        self.now = 1e9
        self.device = 1e9
        self.correlation = 0

    def operator(
        self,
        name: str,
        dims: Sequence[Any] = (),
        kernels: Sequence[tuple[str, float]] = (),
        *,
        types: Sequence[str] | None = None,
        strides: Sequence[Any] | None = None,
        concrete: Sequence[str] = (),
        sequence: int | None = None,
        tid: int = 1,
    ) -> OperatorTrace:
        """An operator that launches kernels, given with their microseconds."""
        start = self.now
        self.now += 1
        for kernel, length in kernels:
            self.kernel(kernel, length, tid=tid)
        args: dict[str, Any] = {}
        if self.shapes:
            args = {
                "Input Dims": [list(each) for each in dims],
                "Input type": list(types if types is not None else [BF16] * len(dims)),
                "Concrete Inputs": list(concrete or [""] * len(dims)),
            }
            if strides is not None:
                args["Input Strides"] = [list(each) for each in strides]
        if sequence is not None:
            args["Sequence number"] = sequence
        self.events.append(self._range("cpu_op", name, start, self.now - start, tid, args))
        self.now += 1
        return self

    def kernel(
        self, name: str, length: float, *, tid: int = 1, at: float | None = None, **args: Any
    ) -> None:
        """A kernel that is launched now; `at` starts it at the same time as others."""
        self.correlation += 1
        launch = {"correlation": self.correlation}
        self.events.append(
            self._range("cuda_runtime", "cudaLaunchKernel", self.now, 0.5, tid, launch)
        )
        self.now += 1
        start = self.device if at is None else at
        self.device = max(self.device, start + length) + (1 if at is None else 0)
        extra = {"device": 0, "stream": 7, "correlation": self.correlation} | args
        self.events.append(self._range("kernel", name, start, length, 7, extra, pid=0))

    def collective(
        self,
        name: str,
        length: float,
        *,
        elements: int,
        ranks: Sequence[int],
        out: int | None = None,
        at: float | None = None,
        group: str = "1",
    ) -> OperatorTrace:
        """A kernel of NCCL with what is recorded about it."""
        self.kernel(
            f"ncclDevKernel_{name}(ncclDevKernelArgsStorage<4096ul>)",
            length,
            at=at,
            **{
                "Collective name": name,
                "In msg nelems": elements,
                "Out msg nelems": elements if out is None else out,
                "dtype": "BFloat16",
                "Group size": len(ranks),
                "Process Group Name": group,
                "Process Group Ranks": str(list(ranks)),
                "stream": 20,
            },
        )
        return self

    def write(self, path: Path) -> str:
        """The file."""
        document = {
            "schemaVersion": 1,
            "deviceProperties": [{"id": 0, "name": self.gpu}],
            "distributedInfo": {
                "backend": "nccl",
                "rank": self.rank,
                "world_size": self.world_size,
                "pg_config": [],
            },
            "traceEvents": self.events,
        }
        path.write_text(json.dumps(document), encoding="utf-8")
        return str(path)

    @staticmethod
    def _range(
        category: str,
        name: str,
        start: float,
        length: float,
        tid: int,
        args: dict[str, Any],
        pid: int = 100,
    ) -> dict[str, Any]:
        return {
            "ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid,
            "ts": start, "dur": length, "args": args,
        }  # fmt: skip
