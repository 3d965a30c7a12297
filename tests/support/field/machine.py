"""A host that launches work on the streams of one GPU, and the profile of that in Kineto's JSON.

Times follow from the program: a kernel begins when it has been launched, its stream is free and
what it waits for has ended. So the gaps, the late kernels and the exposed communication of a
profile are those that its program makes, and no test writes a time by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAUNCH_US = 6.0
LATENCY_US = 4.0
DEFAULT_STREAM = 7


@dataclass(frozen=True)
class Dialect:
    """How a version of the profiler writes events.

    Attributes:
        kernel, copy, memset, operator, annotation, runtime: the categories of events.
        device_annotation: that of ranges on the device; None where there are none.
        integers: whether times are whole microseconds.
        launch: the name of the call that launches a kernel.
        collectives: whether kernels carry the arguments of their collective.
        origin_us: the time at which the host starts.
    """

    kernel: str = "kernel"
    copy: str = "gpu_memcpy"
    memset: str = "gpu_memset"
    operator: str = "cpu_op"
    annotation: str = "user_annotation"
    runtime: str = "cuda_runtime"
    device_annotation: str | None = "gpu_user_annotation"
    integers: bool = False
    launch: str = "cudaLaunchKernel"
    collectives: bool = True
    origin_us: float = 5_123_456_789.125


TORCH_2_6 = Dialect()
TORCH_2_1 = Dialect(collectives=False, integers=True, origin_us=1_699_876_543_210_000)
TORCH_1_13 = Dialect(collectives=False, integers=True, origin_us=1_668_876_543_210_000)
TORCH_1_8 = Dialect(
    kernel="Kernel",
    copy="Memcpy",
    memset="Memset",
    operator="Operator",
    annotation="Operator",
    runtime="Runtime",
    device_annotation=None,
    integers=True,
    collectives=False,
    origin_us=1_615_876_543_210_000,
)
ROCM_6 = Dialect(launch="hipExtModuleLaunchKernel", integers=True, collectives=False)


@dataclass
class Machine:
    """One rank. Times are in microseconds.

    Attributes:
        dialect: how events are written.
        rank, world: of the job; without a world, the profile states neither.
        groups: process groups as (name, description, ranks).
        gpu: what the device is called.
        now: the host's clock.
        events: what the profiler has recorded.
    """

    dialect: Dialect = TORCH_2_6
    rank: int = 0
    world: int | None = None
    groups: list[tuple[str, str, list[int]]] = field(default_factory=list)
    gpu: str = "NVIDIA H100 80GB HBM3"
    backend: str = "nccl"
    now: float = 0.0
    thread: int = 4001
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = self.dialect.origin_us
        self._free: dict[int, float] = {}
        self._correlation = 100 * (self.rank + 1)
        self._open: list[tuple[str, dict[int, list[float]]]] = []
        self._in_graph = False

    # The host.

    def spend(self, us: float) -> None:
        """Let the host compute."""
        self.now += us

    def wait(self, until: float) -> None:
        """Let the host wait for work on the device, as .item() does."""
        self.now = max(self.now, until + 2.0)

    @contextmanager
    def range(
        self, name: str, kind: str = "operator", args: dict[str, Any] | None = None
    ) -> Iterator[None]:
        """A range on the host; of an annotation, the device gets one on each stream it used."""
        start = self.now
        self.now += 1.0
        streams: dict[int, list[float]] = {}
        if kind == "annotation":
            self._open.append((name, streams))
        yield
        self.now += 1.0
        category = {
            "operator": self.dialect.operator,
            "annotation": self.dialect.annotation,
            "python": "python_function",
        }[kind]
        self._write(name, category, start, self.now - start, 4000, self.thread, args or {})
        if kind == "annotation":
            self._open.remove((name, streams))
            if self.dialect.device_annotation is not None:
                for stream, (first, last) in streams.items():
                    self._write(
                        name, self.dialect.device_annotation, first, last - first, 0, stream, {}
                    )

    @contextmanager
    def frames(self, *names: str) -> Iterator[None]:
        """Python functions inside each other, the outermost first."""
        if not names:
            yield
            return
        with self.range(names[0], "python"), self.frames(*names[1:]):
            yield

    @contextmanager
    def on(self, thread: int) -> Iterator[None]:
        """What another thread does, while this one waits for it."""
        before, self.thread = self.thread, thread
        yield
        self.thread = before

    # The device.

    def free(self, stream: int = DEFAULT_STREAM) -> float:
        """When a stream has no work left."""
        return self._free.get(stream, 0.0)

    def kernel(
        self,
        name: str,
        us: float,
        stream: int = DEFAULT_STREAM,
        after: Iterable[float] = (),
        **args: Any,
    ) -> float:
        """Launch a kernel; returns when it ends."""
        return self._work(name, self.dialect.kernel, self.dialect.launch, us, stream, after, args)

    def start_graph(self) -> None:
        """Launch a CUDA graph: what follows, up to its end, is of this launch."""
        self._launch("cudaGraphLaunch")
        self._in_graph = True

    def end_graph(self) -> None:
        """What follows is launched by itself."""
        self._in_graph = False

    def copy(
        self, name: str, us: float, stream: int = DEFAULT_STREAM, after: Iterable[float] = ()
    ) -> float:
        """Launch a copy."""
        call = "hipMemcpyAsync" if self.dialect.launch.startswith("hip") else "cudaMemcpyAsync"
        return self._work(name, self.dialect.copy, call, us, stream, after, {})

    def collective(
        self,
        kernel: str,
        us: float,
        stream: int,
        called: str,
        *,
        group: tuple[str, str, list[int]] | None = None,
        nbytes: int = 1 << 22,
        after: Iterable[float] = (),
        label: str | None = None,
    ) -> float:
        """A collective of NCCL as PyTorch launches it: its operator, its label and its kernel.

        Args:
            kernel: the name of the kernel.
            us: how long it runs.
            stream: its stream.
            called: the name in the operator's arguments, as "allreduce".
            group: name, description and ranks of the group.
            nbytes: the size of the message.
            after: what it waits for.
            label: the annotation around the launch, as "nccl:all_reduce".
        """
        args: dict[str, Any] = {}
        if group is not None and self.dialect.collectives:
            name, description, ranks = group
            args = {
                "Collective name": called,
                "dtype": "BFloat16",
                "In msg nelems": nbytes // 2,
                "Out msg nelems": nbytes // 2,
                "Group size": len(ranks),
                "Process Group Name": name,
                "Process Group Description": description,
                "Process Group Ranks": str(ranks),
            }
        with self.range("record_param_comms", args=args):
            if label is None:
                return self.kernel(kernel, us, stream, after, **args)
            with self.range(label, "annotation"):
                return self.kernel(kernel, us, stream, after, **args)

    def _work(
        self,
        name: str,
        category: str,
        call: str,
        us: float,
        stream: int,
        after: Iterable[float],
        args: dict[str, Any],
    ) -> float:
        if not self._in_graph:
            self._launch(call)
        start = max(self.now + LATENCY_US, self._free.get(stream, 0.0), *after, 0.0)
        self._free[stream] = start + us
        for _, streams in self._open:
            span = streams.setdefault(stream, [start, start + us])
            span[1] = start + us
        place = {"device": 0, "stream": stream, "correlation": self._correlation}
        self._write(name, category, start, us, 0, stream, {**place, "grid": [132, 1, 1], **args})
        return start + us

    def _launch(self, call: str) -> None:
        self._correlation += 1
        args = {"correlation": self._correlation}
        self._write(call, self.dialect.runtime, self.now, LAUNCH_US, 4000, self.thread, args)
        self.now += LAUNCH_US

    def _write(
        self, name: str, cat: str, ts: float, dur: float, pid: int, tid: int, args: dict[str, Any]
    ) -> None:
        if self.dialect.integers:
            end = int(ts + dur)
            ts, dur = int(ts), end - int(ts)
        else:
            ts, dur = round(ts, 3), round(dur, 3)
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur}
            | ({"args": args} if args else {})
        )

    # The file.

    def document(self) -> dict[str, Any]:
        """The profile."""
        head: dict[str, Any] = {"schemaVersion": 1}
        if self.dialect.kernel == "kernel":
            head["deviceProperties"] = [{"id": 0, "name": self.gpu}]
        if self.world is not None:
            head["distributedInfo"] = {
                "backend": self.backend,
                "rank": self.rank,
                "world_size": self.world,
                "pg_count": len(self.groups),
                "pg_config": [
                    {"pg_name": n, "pg_desc": d, "pg_size": len(r), "ranks": r}
                    for n, d, r in self.groups
                ],
            }
        return {**head, "traceEvents": self.events}

    def write(self, path: Path) -> str:
        """Write the profile; returns its path."""
        path.write_text(json.dumps(self.document()), encoding="utf-8")
        return str(path)
