"""Documents of single ranks or nodes, put together into the document of the run.

A rank in a document carries its report, compressed. What a document says of all ranks is computed
from these reports by the same code as in one call on all traces.
"""

from __future__ import annotations

import binascii
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from overlapkit import __version__
from overlapkit.errors import InputError
from overlapkit.explain.stack_document import JobStack
from overlapkit.input_file import read_input
from overlapkit.output.files import real_path
from overlapkit.trace.diagnose.expected import Expected
from overlapkit.trace.document import TraceDocument, document_of
from overlapkit.trace.rank_document import TOP
from overlapkit.trace.rank_report import RankReport
from overlapkit.trace.ranks import by_rank, settle_ranks

MAX_DOCUMENT = 1 << 30
"""Bytes of the largest document that is read."""

_MAX_REPORT = 1 << 28
"""Bytes of the largest report that a document carries."""

_SCHEMA = "overlapkit/trace/v1"
_NAMED = 3
"""Documents that a note names; of the others it says how many there are."""


class _Rank(msgspec.Struct):
    report: str | None = None


class _Given(msgspec.Struct):
    """What is read of a document."""

    schema: str = ""
    version: str = ""
    stack: JobStack | None = None
    expected: Expected | None = None
    notes: list[str] = []
    ranks: list[_Rank] = []


def pack(report: RankReport) -> str:
    """A report as text, before its rank is settled: what a document needs of it, compressed."""
    kept = replace(
        report, collectives=report.collectives[:TOP], owners={}, timeline=None, packed=None
    )
    return b64encode(zlib.compress(msgspec.msgpack.encode(kept))).decode()


def _unpack(text: str) -> RankReport:
    # No more than that is expanded, whatever the text is.
    raw = zlib.decompressobj().decompress(b64decode(text), _MAX_REPORT)
    report = msgspec.msgpack.decode(raw, type=RankReport)
    report.packed = text
    return report


def check_options(steps: tuple[str, str], given: Mapping[str, object]) -> None:
    """Refuse options that concern traces, not documents.

    Args:
        steps: the option that chooses steps, and its value.
        given: other such options and their values.

    Raises:
        InputError: one of them is set.
    """
    name, chosen = steps
    for option, value in {name: chosen if chosen != "all" else None, **given}.items():
        if value:
            raise InputError(
                f"{option}: needs the traces, not documents; give it where these are written"
            )


def merge(files: Sequence[str], rank_from: str | None) -> TraceDocument:
    """The document of all ranks of several documents.

    Args:
        files: documents of `overlapkit trace --json`, and folders of them.
        rank_from: as in `settle_ranks`.

    Raises:
        InputError: one is no such document, or of a version that cannot be merged, or a rank is in
            two of them.
    """
    paths = _documents(files)
    given = [_read(path) for path in paths]
    reports = []
    where: dict[str, list[str]] = {}
    for path, document in zip(paths, given, strict=True):
        for report in _reports(path, document):
            where.setdefault(report.path, []).append(path)
            reports.append(report)
    if not reports:
        raise InputError(f"{paths[0]}: contains no rank")
    settled = settle_ranks(reports, rank_from)
    for same in by_rank(settled).values():
        places = list(dict.fromkeys(place for r in same for place in where[r.path]))
        if len(same) > 1 and same[0].cycle is None and len(places) > 1:
            raise InputError(
                f"rank {same[0].rank} is in {places[0]} and in {places[1]}, for the same time; "
                "leave one of them out"
            )
    stacks = [document.stack for document in given]
    notes = list(dict.fromkeys(note for document in given for note in document.notes))
    notes += _differences(paths, given)
    expected = [document.expected for document in given]
    return document_of(
        settled,
        stacks[0] if _equal(stacks) else None,
        expected[0] if _equal(expected) else None,
        notes,
    )


def _documents(files: Sequence[str]) -> list[str]:
    paths: list[str] = []
    for name in files:
        if os.path.isdir(name):  # noqa: PTH112 - Path.is_dir raises for a name too long
            inside = sorted(str(path) for path in Path(name).glob("*.json"))
            if not inside:
                raise InputError(f"{name}: contains no document (.json)")
            paths += inside
        else:
            paths.append(name)
    seen = set()
    for path in paths:
        if (place := real_path(path)) in seen:
            raise InputError(f"{path}: is given twice")
        seen.add(place)
    return paths


def _read(path: str) -> _Given:
    text = read_input(path, "document of overlapkit trace --json", most=MAX_DOCUMENT)
    try:
        document = msgspec.json.decode(text, type=_Given)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = _Given()
    if document.schema != _SCHEMA:
        is_trace = b'"traceEvents"' in text[: 1 << 20]
        raise InputError(
            f"{path}: is a trace; run overlapkit trace {path} --json, and merge what it prints"
            if is_trace
            else f"{path}: is no document of overlapkit trace --json"
        )
    return document


def _reports(path: str, document: _Given) -> Iterable[RankReport]:
    remedy = "run overlapkit trace --json again with this version"
    for rank in document.ranks:
        if rank.report is None:
            raise InputError(f"{path}: lacks what merging needs; {remedy}")
        try:
            yield _unpack(rank.report)
        except (binascii.Error, zlib.error, ValueError, msgspec.MsgspecError):
            version = f"written by overlapkit {document.version}, " if document.version else ""
            raise InputError(
                f"{path}: {version}cannot be merged by {__version__}; {remedy}"
            ) from None


def _differences(paths: Sequence[str], given: Sequence[_Given]) -> list[str]:
    """What should be equal in all documents, and is not."""
    found = []
    versions = [document.version for document in given]
    if not _equal([*versions, __version__]):
        found.append(f"different versions of overlapkit: {_groups(paths, versions)}")
    stacks = [document.stack for document in given]
    if not _equal(stacks):
        names = ["none" if s is None else f"core {s.core}, bridge {s.bridge}" for s in stacks]
        found.append(f"configurations of different versions: {_groups(paths, names)}")
    return found


def _equal(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def _groups(paths: Sequence[str], values: Sequence[str]) -> str:
    """Each value, with the documents that have it."""
    where: dict[str, list[str]] = {}
    for path, value in zip(paths, values, strict=True):
        where.setdefault(value, []).append(path)
    texts = []
    for value, places in where.items():
        more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        texts.append(f"{value} in {', '.join(places[:_NAMED])}{more}")
    return "; ".join(texts)
