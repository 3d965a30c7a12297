"""Writes laid-out device work as Nsight Systems exports it with `nsys export --type sqlite`.

Tables and columns follow the exporter of Nsight Systems 2024; times are integer nanoseconds.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from support import trace_names as names
from support.trace_layout import LEAD_NS, SLOT_NS, DeviceEvent, launch_slots
from support.trace_scenario import Scenario

_PUSH_POP_RANGE = 59
_COPY_KIND = {
    names.HOST_TO_DEVICE: 1,
    names.DEVICE_TO_HOST: 2,
    names.DEVICE_TO_DEVICE: 8,
    names.PEER_TO_PEER: 10,
}
_SCHEMA = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE META_DATA_EXPORT (name TEXT, value TEXT);
CREATE TABLE TARGET_INFO_SESSION_START_TIME (utcEpochNs INTEGER, utcTime TEXT, localTime TEXT);
CREATE TABLE TARGET_INFO_GPU (id INTEGER, name TEXT, smCount INTEGER, totalMemory INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL,
  deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL,
  correlationId INTEGER, globalPid INTEGER, demangledName INTEGER NOT NULL,
  shortName INTEGER NOT NULL, mangledName INTEGER, registersPerThread INTEGER NOT NULL,
  gridX INTEGER NOT NULL, gridY INTEGER NOT NULL, gridZ INTEGER NOT NULL,
  blockX INTEGER NOT NULL, blockY INTEGER NOT NULL, blockZ INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, end INTEGER NOT NULL,
  deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL,
  correlationId INTEGER, globalPid INTEGER, bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL,
  srcKind INTEGER, dstKind INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER NOT NULL, end INTEGER NOT NULL,
  deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL,
  correlationId INTEGER, globalPid INTEGER, value INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL,
  eventClass INTEGER NOT NULL, globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL,
  returnValue INTEGER NOT NULL);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL,
  rangeId INTEGER, category INTEGER, color INTEGER, text TEXT, globalTid INTEGER,
  endGlobalTid INTEGER, textId INTEGER, domainId INTEGER);
"""


class NsysWriter:
    """One rank's database; `step()` appends, `close()` commits.

    A step is an NVTX range on the host, as created by `torch.cuda.nvtx.range_push`. Its work on the
    device follows from the correlation ids of the launches.
    """

    def __init__(self, path: Path, scenario: Scenario, rank: int) -> None:
        self.path = path
        self.scenario = scenario
        self.device = rank % 8
        self.global_pid = (4000 + rank) << 24
        self.correlation = 0
        self.host_free = 0
        self.events = 0
        self.device_events = 0
        self._strings: dict[str, int] = {}
        path.unlink(missing_ok=True)
        self._db = sqlite3.connect(path)
        self._db.executescript(_SCHEMA)
        self._insert("META_DATA_EXPORT", [("EXPORT_SCHEMA_VERSION", "3.11.0")])
        self._insert(
            "TARGET_INFO_SESSION_START_TIME",
            [(1_733_405_842_374_000_000, "2024-12-05T13:37:22", "2024-12-05T13:37:22")],
        )
        self._insert(
            "TARGET_INFO_GPU", [(self.device, "NVIDIA H100 80GB HBM3", 132, 84_929_347_584)]
        )

    def _insert(self, table: str, rows: list[tuple[object, ...]]) -> None:
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            self._db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings) + 1)

    def step(self, number: int, events: list[DeviceEvent], next_start: int) -> int | None:
        """Append the device `events` of step `number`; the next one starts at `next_start`.

        Returns:
            The end of the step's range on the host; None without one.
        """
        end: int | None = None
        rows: dict[str, list[tuple[object, ...]]] = {"KERNEL": [], "MEMCPY": [], "MEMSET": []}
        launches: list[tuple[object, ...]] = []
        nvtx: list[tuple[object, ...]] = []
        thread = self.global_pid + 1
        slots = launch_slots(events, self.host_free)
        self.host_free = slots[-1] + SLOT_NS
        for event, slot in zip(events, slots, strict=True):
            self.correlation += 1
            api = "cudaLaunchKernelExC" if event.category == "kernel" else "cudaMemcpyAsync"
            launches.append(
                (slot + 1_500, slot + 2_500, 0, thread, self.correlation, self._string(api), 0)
            )
            common = (event.start, event.end, self.device, 1, event.stream, self.correlation)
            if event.category == "kernel":
                full = self._string(event.name)
                short = self._string(event.name.split("(")[0].split("<")[0].split("::")[-1])
                size = (168, event.blocks, 1, 1, 384, 1, 1)
                rows["KERNEL"].append((*common, self.global_pid, full, short, full, *size))
            elif event.category == "gpu_memcpy":
                kind = _COPY_KIND[event.name]
                rows["MEMCPY"].append((*common, self.global_pid, event.size, kind, 2, 2))
            else:
                rows["MEMSET"].append((*common, self.global_pid, 0, event.size))
            if event.call is not None:
                nvtx.append(self._nvtx(slot + 1_200, slot + 2_800, None, "ncclLaunch", thread))
        if self.scenario.annotations != "none":
            first = min(event.start for event in events)
            start, end = first - LEAD_NS - 2_000, next_start - LEAD_NS - 2_000
            nvtx.append(self._nvtx(start, end, f"ProfilerStep#{number}", None, thread))
        for table, values in rows.items():
            self._insert(f"CUPTI_ACTIVITY_KIND_{table}", values)
        self._insert("CUPTI_ACTIVITY_KIND_RUNTIME", launches)
        self._insert("NVTX_EVENTS", nvtx)
        self.device_events += len(events)
        self.events += 2 * len(events) + len(nvtx)
        return end

    def _nvtx(
        self, start: int, end: int, text: str | None, registered: str | None, thread: int
    ) -> tuple[object, ...]:
        """A range whose text is in the row, or in the string table."""
        text_id = self._string(registered) if registered else None
        return (start, end, _PUSH_POP_RANGE, None, None, None, text, thread, None, text_id, 0)

    @property
    def bytes_written(self) -> int:
        """Size of the database so far."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Write the string table and commit."""
        self._insert("StringIds", [(number, text) for text, number in self._strings.items()])
        self._db.commit()
        self._db.close()
