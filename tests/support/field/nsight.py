"""What a `Machine` recorded, as `nsys export --type sqlite` writes it.

Ranges on the host are NVTX ranges. NCCL's own ranges carry a payload: the communicator's id and the
size of the message, in the layout that the tables NVTX_PAYLOAD_SCHEMAS and _ENTRIES describe.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.field.machine import Machine

_TABLES = """
CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT);
CREATE TABLE TARGET_INFO_GPU (id INTEGER, name TEXT);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, end INTEGER, deviceId INTEGER,
  streamId INTEGER, correlationId INTEGER, globalPid INTEGER, demangledName INTEGER,
  shortName INTEGER, gridX INTEGER, gridY INTEGER, gridZ INTEGER, blockX INTEGER, blockY INTEGER,
  blockZ INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER, end INTEGER, deviceId INTEGER,
  streamId INTEGER, correlationId INTEGER, globalPid INTEGER, copyKind INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER, end INTEGER, globalTid INTEGER,
  correlationId INTEGER, nameId INTEGER);
CREATE TABLE NVTX_EVENTS (start INTEGER, end INTEGER, eventType INTEGER, text TEXT,
  globalTid INTEGER, textId INTEGER, domainId INTEGER, binaryData BLOB);
CREATE TABLE NVTX_PAYLOAD_SCHEMAS (domainId INTEGER, schemaId INTEGER, name TEXT, type INTEGER,
  flags INTEGER, numEntries INTEGER, payloadSize INTEGER, alignTo INTEGER);
CREATE TABLE NVTX_PAYLOAD_SCHEMA_ENTRIES (domainId INTEGER, schemaId INTEGER, idx INTEGER,
  flags INTEGER, type INTEGER, name TEXT, description TEXT, arrayOrUnionDetail INTEGER,
  offset INTEGER);
"""
_COPIES = {"HtoD": 1, "DtoH": 2, "DtoD": 8, "PtoP": 10}
NCCL_DOMAIN, _INIT, _COLLECTIVE = 7, 101, 102
# Types of payload entries: uint32, uint64 and a size in bytes.
_UINT32, _UINT64, _SIZE = 5, 18, 22


@dataclass(frozen=True)
class Communicator:
    """A communicator of NCCL, as its initialization states it."""

    id: int
    ranks: int
    rank: int = 0


def payload(schema: int, body: bytes) -> bytes:
    """A payload with its header."""
    return struct.pack("<IIIIQQ", NCCL_DOMAIN, 0, schema, 0, len(body), 32 + len(body)) + body


def write(
    m: Machine, path: Path, communicators: Sequence[Communicator] = (), *, python: bool = False
) -> str:
    """Write the export; returns its path.

    Args:
        m: what ran.
        path: the file.
        communicators: those whose initialization is in the recording.
        python: whether functions of Python are recorded, which need nsys's own sampling.
    """
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path)
    db.executescript(_TABLES)
    process, base = 4000 << 24, m.dialect.origin_us
    strings: dict[str, int] = {}

    def text(name: str) -> int:
        return strings.setdefault(name, len(strings) + 1)

    def insert(table: str, *row: Any) -> None:
        db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)

    for c in communicators:
        body = struct.pack("<QIIII", c.id, c.ranks, c.rank, 0, 0)
        insert(
            "NVTX_EVENTS", 10, 900, 59, None, process + 4001, text("ncclCommInitRankConfig"),
            NCCL_DOMAIN, payload(_INIT, body),
        )  # fmt: skip
    for event in m.events:
        start = round((event["ts"] - base) * 1000) + 1_000_000
        end = start + round(event["dur"] * 1000)
        args = event.get("args", {})
        thread = process + int(event["tid"])
        place = (start, end, 0, args.get("stream"), args.get("correlation"), process)
        name = event["name"]
        if event["cat"] == m.dialect.kernel:
            full = text(name)
            short = text(name.split("(")[0].split("<")[0].split("::")[-1].removeprefix("void "))
            insert("CUPTI_ACTIVITY_KIND_KERNEL", *place, full, short, 132, 1, 1, 384, 1, 1)
        elif event["cat"] == m.dialect.copy:
            kind = next(number for word, number in _COPIES.items() if word in name)
            insert("CUPTI_ACTIVITY_KIND_MEMCPY", *place, kind)
        elif event["cat"] == m.dialect.runtime:
            insert(
                "CUPTI_ACTIVITY_KIND_RUNTIME", start, end, thread, args["correlation"], text(name)
            )
        elif event["cat"] in (m.dialect.operator, m.dialect.annotation) or (
            python and event["cat"] == "python_function"
        ):
            blob = None
            if "comm" in args:
                body = struct.pack("<QQII", args["comm"], args["bytes"], 0, 0)
                blob = payload(_COLLECTIVE, body)
            domain = NCCL_DOMAIN if name.startswith("nccl") and name[4:5].isupper() else 0
            insert("NVTX_EVENTS", start, end, 59, name, thread, None, domain, blob)
    for schema, size, entries in (
        (_INIT, 24, ((_UINT64, "NCCL communicator ID", None), (_UINT32, "No. of ranks", 8),
                     (_UINT32, "Rank", 12), (_UINT32, "CUDA device", 16))),
        (_COLLECTIVE, 24, ((_UINT64, "NCCL communicator ID", None),
                           (_SIZE, "Message size [bytes]", 8))),
    ):  # fmt: skip
        insert("NVTX_PAYLOAD_SCHEMAS", NCCL_DOMAIN, schema, None, 1, None, len(entries), size, None)
        for index, (kind, label, offset) in enumerate(entries):
            row = (NCCL_DOMAIN, schema, index, None, kind, label, None, None, offset)
            insert("NVTX_PAYLOAD_SCHEMA_ENTRIES", *row)
    insert("TARGET_INFO_GPU", 0, m.gpu)
    for value, number in strings.items():
        insert("StringIds", number, value)
    db.commit()
    db.close()
    return str(path)
