"""Files that profilers and frameworks write and that are not read: what they are, and what to do.

Facts are from the public documentation of each tool. A format is not read where what it lacks
would make the answer a guess. The Chrome trace of JAX is made for a viewer: it has no launches, no
process groups, and derived tracks beside the kernels. That of Ascend's profiler counts differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

RECORD = "record with torch.profiler and export_chrome_trace"
NSYS = "record with nsys profile --trace=cuda,nvtx, and export with nsys export --type sqlite"

_NAMED: tuple[tuple[str, str], ...] = (
    (".ncu-rep", f"a report of Nsight Compute, which has single kernels and no timeline; {NSYS}"),
    (
        ".xplane.pb",
        f"a profile of JAX or TensorFlow (XSpace); {NSYS}, which reads their kernels too",
    ),
    (".pftrace", f"a Perfetto trace, which is not read; {RECORD}, which works under ROCm too"),
    (".perfetto-trace", f"a Perfetto trace, which is not read; {RECORD}"),
    (".pickle", "a pickle, such as a snapshot of CUDA memory, and is not opened; " + RECORD),
    (".pkl", "a pickle, such as a snapshot of CUDA memory, and is not opened; " + RECORD),
    (".rpd", f"a database of rocmProfileData; {RECORD}, which works under ROCm too"),
)
"""What files are by the end of their names."""

_CONTENT: tuple[tuple[bytes, str], ...] = (
    (b"\x80", "a pickle, such as a snapshot of CUDA memory, and is not opened; " + RECORD),
    (b"PAR1", f"a Parquet table; {NSYS}"),
    (b"<", f"a page of HTML or XML; {RECORD}"),
)
"""What they are by their first bytes."""

_EVENT_FILE = "events.out.tfevents"

_DOCUMENTS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (
        re.compile(rb'"schema"\s*:\s*"overlapkit/'),
        "a document of overlapkit; documents of trace are merged with overlapkit trace --merge",
    ),
    (
        re.compile(rb'"rocprofiler-sdk-tool"'),
        f"JSON of rocprofv3, which is not read; {RECORD}, which works under ROCm too",
    ),
    (
        re.compile(rb'"schema"\s*:\s*"\d[^"]*"[\s\S]{0,400}?"nodes"\s*:\s*\['),
        "an execution trace of PyTorch, which has operators and no times of kernels; give the "
        f"trace of torch.profiler of the same step, or {RECORD}",
    ),
    (
        re.compile(rb'^\s*\{\s*"(?:Type|CudaEvent|NvtxEvent|TraceProcessEvent)"'),
        "JSON lines, perhaps of nsys export --type json; export with nsys export --type sqlite",
    ),
)
"""JSON without a list of events, by what it begins with."""

_TRACKS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (
        re.compile(rb'"name"\s*:\s*"/device:(?:GPU|TPU)'),
        f"a Chrome trace of JAX or TensorFlow, which is not read; {NSYS}, or, for TPUs, "
        "look at it in xprof",
    ),
    (
        re.compile(rb'"name"\s*:\s*"(?:Ascend Hardware|HCCL|CANN)"|"hcom_\w+__'),
        "a trace of Ascend's profiler, which is not read; look at it in MindStudio Insight",
    ),
    (
        # ext-profiler/example of NCCL.
        re.compile(rb'"cat"\s*:\s*"(?:GROUP_API|COLL_API|P2P_API|KERNEL_LAUNCH|PROXY)"'),
        f"a trace of NCCL's profiler plugin, which has no compute; {RECORD}",
    ),
)
"""Chrome traces of others, by the names of their processes and events."""

_LOOKED_AT = 8 << 20
"""Bytes in which the names of tracks are looked for."""


def name_of_kind(path: str, start: bytes) -> str | None:
    """What a file is that is not JSON, by its name and its first bytes; None where unknown."""
    name = PurePath(path).name
    if _EVENT_FILE in name:
        return (
            "an event file of TensorBoard with scalars; the profile is the *.pt.trace.json beside "
            "it"
        )
    plain = name.removesuffix(".gz").removesuffix(".zst")
    for suffix, what in _NAMED:
        if plain.endswith(suffix):
            return what
    return next((what for magic, what in _CONTENT if start.startswith(magic)), None)


def name_of_document(text: bytes) -> str | None:
    """What JSON without a list of events is, by its beginning; None where unknown."""
    begin = text[:_LOOKED_AT]
    return next((what for pattern, what in _DOCUMENTS if pattern.search(begin)), None)


def name_of_tracks(blocks: Iterable[bytes]) -> str | None:
    """Whose Chrome trace it is that has no device work of torch.profiler; None where unknown."""
    text = b""
    for block in blocks:
        text += block
        if len(text) >= _LOOKED_AT:
            break
    return next((what for pattern, what in _TRACKS if pattern.search(text)), None)
