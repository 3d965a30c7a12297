"""Writes laid-out device work as the Kineto JSON that torch.profiler exports, one step at a time.

Each device event has the other events of a real trace around it: the runtime call that launched it,
the flow arrows between the two, the operators and the Python functions.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import IO

from support import trace_names as names
from support.trace_layout import LEAD_NS, SLOT_NS, DeviceEvent, launch_slots
from support.trace_scenario import DIMENSIONS, GROUP_DESCRIPTIONS, Scenario

BASE_US = {"2025": 4_513_478_925_613, "2024": 1_733_405_842_374_000, "2022": 1_664_000_000_123_456}
_CATEGORY_2022 = {"kernel": "Kernel", "gpu_memcpy": "Memcpy", "gpu_memset": "Memset"}
_OPERATORS = ("aten::linear", "aten::mm")
_PYTHON = (
    "megatron/core/pipeline_parallel/schedules.py(623): forward_backward_no_pipelining",
    "torch/nn/modules/module.py(1784): _call_impl",
    "megatron/core/transformer/transformer_layer.py(473): forward",
    "nn.Module: TELayerNormColumnParallelLinear_0",
    "transformer_engine/pytorch/module/layernorm_linear.py(1513): forward",
    "<built-in method apply of FunctionMeta object at 0x55d0c1f7e2a0>",
)


class KinetoWriter:
    """One rank's file, open for writing; `step()` appends, `close()` ends the JSON."""

    def __init__(self, path: Path, scenario: Scenario, rank: int) -> None:
        self.path = path
        self.scenario = scenario
        self.rank = rank
        self.device = rank % 8
        self.pid = 4000 + rank
        self.correlation = 100_000
        self.host_free = 0
        self.events = 0
        self.device_events = 0
        self.annotations: list[str] = []
        self.bytes_written = 0
        self._calls: dict[int, str] = {}
        self._whole = scenario.generation == "2022"
        self._base = BASE_US[scenario.generation] * 1000
        self._file = _open(path)
        self._put(self._head())

    def _put(self, text: str) -> None:
        self._file.write(text)
        self.bytes_written += len(text)

    def _us(self, ns: int) -> str:
        return f"{ns // 1000}" if self._whole else f"{ns // 1000}.{ns % 1000:03d}"

    def _group_names(self) -> dict[str, str]:
        return {dimension: str(index + 1) for index, dimension in enumerate(DIMENSIONS)}

    def _head(self) -> str:
        s = self.scenario
        head: dict[str, object] = {
            "schemaVersion": 1,
            "deviceProperties": [
                {
                    "id": self.device,
                    "name": "NVIDIA H100 80GB HBM3",
                    "totalGlobalMem": 84_929_347_584,
                    "computeMajor": 9,
                    "computeMinor": 0,
                    "numSms": 132,
                }
            ],
            "record_shapes": 0,
            "with_stack": 1,
        }
        if s.distributed_info:
            groups = [
                {
                    "pg_name": name,
                    "pg_desc": GROUP_DESCRIPTIONS[dimension],
                    "backend_config": "cuda:nccl",
                    "pg_size": len(s.group(dimension, self.rank)),
                    "ranks": s.group(dimension, self.rank),
                }
                for dimension, name in self._group_names().items()
            ]
            head["distributedInfo"] = {
                "backend": "nccl",
                "rank": self.rank,
                "world_size": s.world_size,
                "pg_count": len(groups),
                "pg_config": groups,
                "nccl_version": "2.27.3",
            }
        if s.generation == "2025":
            head["baseTimeNanoseconds"] = 1_759_276_800_000_000_000
        text = json.dumps(head, indent=2)[:-2]
        process = (
            f'  {{\n    "ph": "M", "name": "process_name", "pid": {self.pid}, "tid": 0,'
            f' "ts": {self._us(self._base)},\n    "args": {{\n      "name": "python"\n    }}\n  }}'
        )
        return f'{text},\n  "displayTimeUnit": "ms",\n  "traceEvents": [\n{process}'

    def step(self, number: int, events: list[DeviceEvent], next_start: int) -> int | None:
        """Append the device `events` of step `number`; the next one starts at `next_start`.

        Returns:
            The end of the step's range on the host; None without one.
        """
        out: list[str] = []
        begin = min(event.start for event in events)
        host_begin, host_end = begin - LEAD_NS - 2_000, next_start - LEAD_NS - 2_000
        slots = launch_slots(events, self.host_free)
        self.host_free = slots[-1] + SLOT_NS
        if slots[0] < host_begin or self.host_free > host_end:
            raise ValueError(f"step {number}: a launch is outside the range on the host")
        for event, slot in zip(events, slots, strict=True):
            self.correlation += 1
            self._host_events(out, event, slot)
            self._device_event(out, event)
        self.device_events += len(events)
        if self.scenario.annotations in ("both", "cpu"):
            out.append(self._range(f"ProfilerStep#{number}", host_begin, host_end, 0))
            self.events += 1
        if self.scenario.annotations in ("both", "gpu"):
            self._device_ranges(number, events)
        self._put("".join(out))
        return host_end if self.scenario.annotations in ("both", "cpu") else None

    def _host_events(self, out: list[str], event: DeviceEvent, slot: int) -> None:
        tid = self.pid + 7 if event.backward else self.pid
        where = f'"pid": {self.pid}, "tid": {tid},\n    "ts": '
        at = self._base + slot
        depth = self.scenario.noise + 2
        for level in range(depth):
            inset = level * 1_000 // depth
            span = f'{self._us(at + inset)}, "dur": {self._us(SLOT_NS - 2 * inset)}'
            if level < self.scenario.noise:
                out.append(
                    ',\n  {\n    "ph": "X", "cat": "python_function", "name": "'
                    f'{_PYTHON[level % len(_PYTHON)]}", {where}{span},\n    "args": {{\n      '
                    f'"Python parent id": {level}, "Python id": {level + 1}, "Ev Idx": '
                    f"{self.events + level}\n    }}\n  }}"
                )
                continue
            inner = level - self.scenario.noise
            operator, arguments = _OPERATORS[inner], ""
            if event.call is not None:
                operator = "record_param_comms" if inner else "c10d::collective"
                known = self._call_arguments(event)
                arguments = f", {known}" if inner and known else ""
            out.append(
                f',\n  {{\n    "ph": "X", "cat": "cpu_op", "name": "{operator}", {where}{span},\n'
                f'    "args": {{\n      "External id": {self.correlation},"Record function id": 0,'
                f' "Ev Idx": {self.events + level}{arguments}\n    }}\n  }}'
            )
        launch = self._us(at + 1_500)
        call = "cudaLaunchKernelExC" if event.category == "kernel" else "cudaMemcpyAsync"
        out.append(
            f',\n  {{\n    "ph": "X", "cat": "cuda_runtime", "name": "{call}", {where}{launch}, '
            f'"dur": {self._us(1_000)},\n    "args": {{\n      "External id": {self.correlation},'
            f' "cbid": 430, "correlation": {self.correlation}\n    }}\n  }}'
            f',\n  {{\n    "ph": "s", "id": {self.correlation}, {where}{launch},\n    '
            '"cat": "ac2g", "name": "ac2g"\n  }'
        )
        self.events += depth + 2

    def _call_arguments(self, event: DeviceEvent) -> str:
        call = event.call
        if call is None or not self.scenario.metadata:
            return ""
        known = self._calls.get(id(call))
        if known is None:
            ranks = self.scenario.group(call.dimension, self.rank)
            # PyTorch shortens long lists.
            shown = str(ranks) if len(ranks) <= 30 else f"{str(ranks[:30])[:-1]}, ...]"
            known = (
                f'"Collective name": "{names.COLLECTIVES[call.operation][0]}", '
                f'"In msg nelems": {call.elements_in}, "Out msg nelems": {call.elements_out}, '
                f'"Group size": {len(ranks)}, "dtype": "{call.dtype}", "In split size": "[]", '
                f'"Out split size": "[]", '
                f'"Process Group Name": "{self._group_names()[call.dimension]}", '
                f'"Process Group Description": "{GROUP_DESCRIPTIONS[call.dimension]}", '
                f'"Process Group Ranks": "{shown}"'
            )
            self._calls = {id(call): known}
        return known

    def _device_event(self, out: list[str], event: DeviceEvent) -> None:
        category = event.category
        if self._whole:
            category = _CATEGORY_2022[category]
        where = f'"pid": {self.device}, "tid": {event.stream},\n    "ts": '
        at = self._us(self._base + event.start)
        extra = ""
        if event.category == "kernel":
            arguments = self._call_arguments(event)
            extra = (
                ',\n      "registers per thread": 168, "shared memory": 231424, '
                f'"blocks per SM": 1.0, "warps per SM": 12.0,\n      "grid": [{event.blocks}, 1, 1]'
                ', "block": [384, 1, 1],\n      "est. achieved occupancy %": 19'
            ) + (f",\n      {arguments}" if arguments else "")
        elif event.size:
            bandwidth = event.size / max(1, event.end - event.start)
            extra = f', "bytes": {event.size}, "memory bandwidth (GB/s)": {bandwidth:.6f}'
        out.append(
            f',\n  {{\n    "ph": "X", "cat": "{category}", "name": "{event.name}", {where}{at}, '
            f'"dur": {self._us(event.end - event.start)},\n    "args": {{\n      '
            f'"External id": {self.correlation},\n      "queued": 0, "device": {self.device}, '
            f'"context": 1,\n      "stream": {event.stream}, "correlation": {self.correlation}'
            f"{extra}\n    }}\n  }}"
            f',\n  {{\n    "ph": "f", "id": {self.correlation}, {where}{at},\n    '
            '"cat": "ac2g", "name": "ac2g", "bp": "e"\n  }'
        )
        self.events += 2

    def _range(self, name: str, start: int, end: int, external: int) -> str:
        return (
            f',\n  {{\n    "ph": "X", "cat": "user_annotation", "name": "{name}", '
            f'"pid": {self.pid}, "tid": {self.pid},\n    "ts": {self._us(self._base + start)}, '
            f'"dur": {self._us(end - start)},\n    "args": {{\n      "External id": {external},'
            f'"Record function id": 0, "Ev Idx": {self.events}\n    }}\n  }}'
        )

    def _device_ranges(self, number: int, events: list[DeviceEvent]) -> None:
        """Kineto draws a range for each stream that has work in it, around that work."""
        for stream in sorted({event.stream for event in events}):
            mine = [event for event in events if event.stream == stream]
            start, end = mine[0].start, max(event.end for event in mine)
            self._annotate(f"ProfilerStep#{number}", stream, start, end)
            for event in mine:
                if event.call is not None:
                    label = f"nccl:{names.COLLECTIVES[event.call.operation][0]}"
                    self._annotate(label, stream, event.start, event.end)

    def _annotate(self, name: str, stream: int, start: int, end: int) -> None:
        self.annotations.append(
            f',\n  {{\n    "ph": "X", "cat": "gpu_user_annotation", "name": "{name}", '
            f'"pid": {self.device}, "tid": {stream},\n    "ts": {self._us(self._base + start)}, '
            f'"dur": {self._us(end - start)},\n    "args": {{\n      "External id": 0\n    }}\n  }}'
        )
        self.events += 1

    def close(self) -> None:
        """Write the device ranges, which Kineto adds last, and the end of the document."""
        self._put("".join(self.annotations))
        self._put(
            ',\n  {\n    "ph": "X", "cat": "Trace", "ts": '
            f"{self._us(self._base)}, "
            f'"dur": {self._us(self.host_free)},\n    "pid": "Spans", "tid": "PyTorch Profiler", '
            '"name": "PyTorch Profiler (0)",\n    "args": {\n      "Op count": 0\n    }\n  }'
            ',\n  {\n    "name": "Record Window End", "ph": "i", "s": "g", "pid": "", "tid": "", '
            f'"ts": {self._us(self._base + self.host_free)}\n  }}\n  ],\n  "traceName": '
            f'"{self.path.name}"\n}}\n'
        )
        self.events += 1
        self._file.close()


def _open(path: Path) -> IO[str]:
    if path.suffix != ".gz":
        return path.open("w", encoding="utf-8")
    # Neither the clock nor the file's name, so that equal scenarios give equal bytes.
    raw = gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=path.open("wb"), mtime=0)
    return io.TextIOWrapper(raw, encoding="utf-8")
