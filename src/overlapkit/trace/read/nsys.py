"""Reads SQLite exports of Nsight Systems.

Tables and columns differ between versions, so each is looked up before it is read. Only tables are
read, because a view can contain any computation.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from overlapkit.errors import InputError
from overlapkit.output.printable import printable
from overlapkit.trace.read.clean_columns import Recording, finish_columns
from overlapkit.trace.read.device_work import Launches, Work, sorted_launches
from overlapkit.trace.read.files.foreign import RECORD
from overlapkit.trace.read.host.engines import batch_of
from overlapkit.trace.read.host.launched import add_origins, finish_marks
from overlapkit.trace.read.host.marks import Names
from overlapkit.trace.read.host.steps import iterations_on, project
from overlapkit.trace.read.nccl_payloads import NcclRange, Payloads, calls_of
from overlapkit.trace.read.recorded import Call, MarkColumns, StepRanges, WorkColumns
from overlapkit.trace.read.stated import NOTHING_STATED, Stated

_PREFIX = "CUPTI_ACTIVITY_KIND_"
# cudaMemcpyKind as CUPTI numbers it (cupti_activity.h, CUpti_ActivityMemcpyKind).
_COPY_KINDS = {
    0: "Unknown",
    1: "HtoD",
    2: "DtoH",
    3: "HtoA",
    4: "AtoH",
    5: "AtoA",
    6: "AtoD",
    7: "DtoA",
    8: "DtoD",
    9: "HtoH",
    10: "PtoP",
}
_STEP = re.compile(
    r"(?:ProfilerStep\s*#?|(?:global[ _]|train(?:ing)?[ _])?(?:step|iter(?:ation)?)[ _#:=\[]*)"
    r"\s*(\d+)\]?\s*$",
    re.IGNORECASE,
)
_PLAIN_STEP = re.compile(
    r"(?:train(?:ing)?[ _]?)?(?:step|iteration|train_batch|run_training_batch)$", re.IGNORECASE
)
_OF_PYTORCH = re.compile(r", (?:seq|op_id|sizes|input_op_ids) = [\d\[].*")
"""What torch.autograd.profiler.emit_nvtx adds to an operator's name: getNvtxStr in
torch/csrc/profiler/util.cpp."""

_ROWS = 50_000

FoundT = TypeVar("FoundT")


def read_nsys(path: str, stated: Stated = NOTHING_STATED) -> list[Work]:
    """The device work in an export, one `Work` for each process and device.

    Raises:
        InputError: it is not such an export, is damaged, or contains no device work.
    """
    uri = Path(path).absolute().as_uri() + "?mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(uri, uri=True)
        try:
            return _Export(path, connection, stated).read()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise InputError(
            f"{path}: cannot be read as SQLite ({error}); export again with "
            "nsys export --type sqlite"
        ) from None


class _Export:
    def __init__(self, path: str, connection: sqlite3.Connection, stated: Stated) -> None:
        self.path, self.connection, self.stated = path, connection, stated
        # Invalid UTF-8 in a name is no reason to refuse the file.
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        self.tables: dict[str, dict[str, str]] = {}
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
        for name, sql in rows.fetchall():
            if not re.fullmatch(r"\w+", str(name)) or "VIRTUAL" in str(sql).upper()[:40]:
                continue
            columns = connection.execute(f'PRAGMA table_info("{name}")').fetchall()
            self.tables[name] = {str(c[1]).lower(): str(c[1]) for c in columns}
        self.problems: Counter[str] = Counter()
        self.names: dict[str, int] = {}
        self.devices: dict[tuple[int, int], WorkColumns] = {}
        self.grids: dict[Any, int] = {}
        self.threads: dict[Any, int] = {}
        self.marks = MarkColumns(nanoseconds=True)
        self.calls: dict[Call, int] = {}
        self.nccl: list[tuple[int, NcclRange]] = []
        self.engine_ranges: dict[int, list[tuple[str, int, int]]] = {}

    def read(self) -> list[Work]:
        if any(name.startswith("rocpd_") for name in self.tables):
            raise InputError(
                f"{self.path}: is a database of rocprofv3 (rocpd), which is not read; {RECORD}, "
                "which works under ROCm too"
            )
        if not any(name.startswith(_PREFIX) for name in self.tables):
            raise InputError(
                f"{self.path}: is SQLite without CUPTI_ACTIVITY_KIND_ tables; give an export of "
                "Nsight Systems (nsys export --type sqlite), recorded with --trace=cuda"
            )
        strings = dict(self._rows("StringIds", ("id", "value")))
        self._kernels(strings)
        self._copies()
        if not self.devices:
            raise InputError(f"{self.path}: contains no device work; record with --trace=cuda")
        launches, steps = self._launches(), self._steps(strings)
        gpus = self._gpus()
        recording = Recording(
            self.path, "nsys", list(self.names), list(self.calls), self.problems, self.stated
        )
        marks = finish_marks(self.marks, recording.names)
        works = []
        for (process, device), columns in sorted(self.devices.items()):
            work = finish_columns(columns, device, recording)
            if work is None:
                continue
            work.launches = _of_process(launches, process)
            work.process = process or None
            ranges = _of_process(steps, process) or StepRanges()
            work.steps, notes = project(work, None, ranges, work.launches)
            work.gpu = gpus.get(device) or next(iter(gpus.values()), None)
            work.warnings += notes
            work.host_steps = ranges.windows()
            batches = _of_process(self.engine_ranges, process) or []
            work.iterations = iterations_on(work, batches, work.launches)
            work.frameworks = self.marks.frameworks
            add_origins(work, marks)
            works.append(work)
        if not works:
            raise InputError(f"{self.path}: none of its device events has a usable time")
        for work in works:
            work.warnings += [f"{count} x {what}" for what, count in self.problems.items()]
        return works

    def _rows(self, table: str, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        """The rows of a table; None for a column that it lacks."""
        known = self.tables.get(table)
        if known is None or not any(c.lower() in known for c in columns):
            return
        names = [f'"{known[c.lower()]}"' if c.lower() in known else "NULL" for c in columns]
        cursor = self.connection.execute(f'SELECT {", ".join(names)} FROM "{table}"')
        while rows := cursor.fetchmany(_ROWS):
            yield from rows

    def _add(
        self,
        row: tuple[Any, ...],
        name: str,
        *,
        copy: bool = False,
        grid: tuple[Any, ...] | None = None,
    ) -> None:
        start, end, device, stream, process, correlation = row
        if not isinstance(start, int) or not isinstance(end, int):
            self.problems["device event without a usable time or duration, omitted"] += 1
            return
        key = (_integer(process, 0) >> 24, _integer(device, 0))
        columns = self.devices.get(key)
        if columns is None:
            columns = self.devices[key] = WorkColumns(nanoseconds=True)
        columns.ts.append(start)
        columns.dur.append(end - start)
        columns.name.append(self.names.setdefault(name, len(self.names)) * 2 + copy)
        columns.stream.append(_integer(stream, -1))
        columns.correlation.append(_integer(correlation, -1))
        columns.grid.append(-1 if grid is None else self.grids.setdefault(grid, len(self.grids)))
        columns.call.append(-1)

    def _kernels(self, strings: dict[Any, Any]) -> None:
        place = ("start", "end", "deviceId", "streamId", "globalPid", "correlationId")
        shape = ("gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ")
        for table in ("KERNEL", "CONCURRENT_KERNEL"):
            columns = (*place, "demangledName", "shortName", *shape)
            for row in self._rows(_PREFIX + table, columns):
                name = strings.get(row[6]) or strings.get(row[7])
                if name is None:
                    # Some versions record the name instead of its id.
                    name = next((v for v in row[6:8] if isinstance(v, str)), "")
                self._add(row[:6], str(name), grid=row[8:] if row[8] is not None else None)
        graphs = 0
        for row in self._rows(_PREFIX + "GRAPH_TRACE", place):
            self._add(row, "CUDA graph")
            graphs += 1
        if graphs:
            self.problems[
                "CUDA graph recorded as one event, counted as compute: record with "
                "--cuda-graph-trace=node"
            ] += graphs

    def _copies(self) -> None:
        place = ("start", "end", "deviceId", "streamId", "globalPid", "correlationId")
        for row in self._rows(_PREFIX + "MEMCPY", (*place, "copyKind")):
            kind = _COPY_KINDS.get(row[6], "Unknown")
            self._add(row[:6], f"Memcpy {kind}", copy=True)
        for row in self._rows(_PREFIX + "MEMSET", place):
            self._add(row, "Memset", copy=True)

    def _launches(self) -> dict[int, Launches]:
        """The launches of each process; of process 0 where the table does not distinguish them."""
        found: dict[int, tuple[list[int], list[int], list[int]]] = {}
        threads = self.threads
        for table in ("RUNTIME", "DRIVER"):
            for start, thread, correlation in self._rows(
                _PREFIX + table, ("start", "globalTid", "correlationId")
            ):
                if isinstance(start, int) and isinstance(correlation, int):
                    row = found.setdefault(_integer(thread, 0) >> 24, ([], [], []))
                    row[0].append(correlation)
                    row[1].append(start)
                    row[2].append(threads.setdefault(thread, len(threads)))
        return {
            process: sorted_launches(
                np.asarray(ids, dtype=np.int64),
                np.asarray(times, dtype=np.int64),
                np.asarray(places, dtype=np.int32),
            )
            for process, (ids, times, places) in found.items()
        }

    def _steps(self, strings: dict[Any, Any]) -> dict[int, StepRanges]:
        """The NVTX ranges that mark steps, by process; of process 0 where no thread is recorded.

        Those that say what launched a kernel are noted on the way.
        """
        numbered: dict[int, StepRanges] = {}
        plain: dict[tuple[int, str], list[tuple[int, int]]] = {}
        profiler: dict[int, StepRanges] = {}
        names = Names()
        payloads = self._payloads()
        for start, end, text, text_id, thread, data in self._rows(
            "NVTX_EVENTS", ("start", "end", "text", "textId", "globalTid", "binaryData")
        ):
            name = text if isinstance(text, str) else strings.get(text_id)
            if not isinstance(name, str) or not isinstance(start, int) or not isinstance(end, int):
                continue
            process = _integer(thread, 0) >> 24
            name = _OF_PYTORCH.sub("", name)
            if names[name]:
                if name.startswith("nccl"):
                    found = NcclRange(name, thread, start, payloads.read(data))
                    self.nccl.append((len(self.marks.name), found))
                self._mark(name, thread, start, end)
            if name.startswith("ProfilerStep"):
                profiler.setdefault(process, StepRanges()).add(name, start, end)
            elif batch_of(name) is not None:
                self.engine_ranges.setdefault(process, []).append((printable(name), start, end))
            elif _STEP.fullmatch(name.strip()):
                numbered.setdefault(process, StepRanges()).add(name.strip(" ]"), start, end)
            elif _PLAIN_STEP.fullmatch(name.strip()):
                plain.setdefault((process, name.strip()), []).append((start, end))
        self.marks.frameworks = names.frameworks
        for (place, _), call in zip(self.nccl, calls_of([r for _, r in self.nccl]), strict=True):
            if call is not None:
                self.marks.call[place] = self.calls.setdefault(call, len(self.calls))
        if profiler or numbered:
            return profiler or numbered
        result: dict[int, StepRanges] = {}
        for (process, name), ranges in plain.items():
            if len(ranges) > 1 and process not in result:
                result[process] = StepRanges()
                for number, (start, end) in enumerate(sorted(ranges)):
                    result[process].add(f"{name} {number}", start, end)
        return result

    def _payloads(self) -> Payloads:
        """The layouts of what ranges carry."""
        found = Payloads()
        columns = ("domainId", "schemaId", "type", "name", "offset")
        for row in self._rows("NVTX_PAYLOAD_SCHEMA_ENTRIES", columns):
            found.add(*row)
        return found

    def _mark(self, name: str, thread: Any, start: int, end: int) -> None:
        marks = self.marks
        marks.name.append(self.names.setdefault(name, len(self.names)))
        marks.thread.append(self.threads.setdefault(thread, len(self.threads)))
        marks.ts.append(start)
        marks.dur.append(end - start)
        marks.call.append(-1)

    def _gpus(self) -> dict[int, str]:
        rows = self._rows("TARGET_INFO_GPU", ("id", "name"))
        return {row[0]: str(row[1]) for row in rows if isinstance(row[0], int) and row[1]}


def _of_process(found: Mapping[int, FoundT], process: int) -> FoundT | None:
    """What belongs to a process; where tables do not distinguish processes, all belongs to 0."""
    if process in found:
        return found[process]
    if 0 in found:
        return found[0]
    return next(iter(found.values())) if process == 0 and len(found) == 1 else None


def _integer(value: Any, default: int) -> int:
    """The value if it is an integer in range; exports also contain NULL and text."""
    return value if isinstance(value, int) and abs(value) < 1 << 62 else default
