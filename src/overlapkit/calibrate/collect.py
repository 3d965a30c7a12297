"""From profiles to a file of rates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, TypeVar

from overlapkit.calibrate import attention, products
from overlapkit.calibrate.attention import Measured
from overlapkit.calibrate.messages import Sent, sent
from overlapkit.calibrate.products import Product, Unread
from overlapkit.errors import InputError
from overlapkit.hardware import find_gpu, gpus
from overlapkit.plan.rates.document import (
    RatesAttention,
    RatesCollective,
    RatesDocument,
    RatesGemm,
)
from overlapkit.trace.read.files.folders import find_traces
from overlapkit.trace.shapes.operators import Profile, read_profiles

NO_SHAPES = (
    "operators without the shapes of their inputs: record with "
    "torch.profiler.profile(..., record_shapes=True)"
)
CPU = "cpu"
CPU_DOMAIN = 2**31
"""Ranks of a job on processors count as one node's."""

_T = TypeVar("_T", Product, Measured)


def rates_in(files: Sequence[str], gpu: str | None = None) -> RatesDocument:
    """The rates that the profiles of a training run contain.

    Args:
        files: traces of torch.profiler, or folders or archives of them.
        gpu: what they were recorded on; None takes the device that they name.

    Raises:
        InputError: a file cannot be read, the profiles are of several kinds of GPU, or nothing
            could be read of them; the message says how to record what is missing.
    """
    paths = find_traces(files).paths
    wanted = products.OPERATORS | attention.OPERATORS
    profiles = [(path, one) for path in paths for one in read_profiles(path, wanted)]
    name = _gpu_of(profiles, gpu)
    domain = CPU_DOMAIN if name == CPU else gpus()[name].nvlink_domain or 8
    unread: Counter[str] = Counter()
    gemms: list[Product] = []
    passes: list[Measured] = []
    messages: list[Sent] = []
    for _, profile in profiles:
        unread.update(profile.unread)
        if not profile.has_shapes:
            unread[NO_SHAPES] += 1
        on_device = profile.on_device
        gemms += _kept(products.products(profile.operators, on_device=on_device), unread)
        passes += _kept(attention.attention(profile.operators, on_device=on_device), unread)
        messages += _kept((sent(one, profile, domain) for one in profile.messages), unread)
    found = RatesDocument(
        gpu=name,
        measured="training",
        source=f"overlapkit plan calibrate: {len(profiles)} profiles, {', '.join(files)}",
        gemms=[_gemm(rows) for rows in _alike(gemms)],
        attention=[_attention(rows) for rows in _alike(passes)],
        collectives=_collectives(messages),
        unread=dict(unread.most_common()),
    )
    if not (found.gemms or found.attention or found.collectives):
        why = "; ".join(found.unread) or "no matrix products, attention or collectives"
        raise InputError(f"{', '.join(files)}: nothing can be read: {why}")
    return found


def _kept(found: Iterable[Any], unread: Counter[str]) -> list[Any]:
    """What could be read; the rest is counted."""
    kept = []
    for one in found:
        if isinstance(one, Unread):
            unread[one.why] += 1
        else:
            kept.append(one)
    return kept


def _gpu_of(profiles: Sequence[tuple[str, Profile]], gpu: str | None) -> str:
    if gpu is not None:
        return CPU if gpu == CPU else find_gpu(gpu)[0]
    names: dict[str, str] = {}
    for path, profile in profiles:
        if not profile.on_device:
            names.setdefault(CPU, path)
        elif profile.gpu is None:
            raise InputError(f"{path}: does not name its GPU; give --gpu NAME")
        else:
            names.setdefault(find_gpu(profile.gpu)[0], path)
    if len(names) != 1:
        each = ", ".join(f"{path} on {name}" for name, path in names.items())
        raise InputError(f"profiles of several kinds of machine ({each}); calibrate one at a time")
    return next(iter(names))


def _alike(rows: Sequence[_T]) -> list[list[_T]]:
    """Measurements of equal sizes; of those that ran beside communication only where none ran
    alone, since an estimate counts by itself how much that slows them."""
    found: dict[tuple[Any, ...], list[_T]] = defaultdict(list)
    for row in rows:
        found[tuple(row._replace(seconds=0.0, beside=False))].append(row)
    return [[one for one in each if not one.beside] or each for each in found.values()]


def _gemm(rows: list[Product]) -> RatesGemm:
    one = rows[0]
    return RatesGemm(
        precision=one.precision, m=one.m, n=one.n, k=one.k, batch=one.batch, which=one.which,
        seconds=median(row.seconds for row in rows), count=len(rows),
    )  # fmt: skip


def _attention(rows: list[Measured]) -> RatesAttention:
    one = rows[0]
    return RatesAttention(
        phase=one.phase, precision=one.precision, batch=one.batch, sequence=one.sequence,
        heads=one.heads, qk_head=one.qk_head, v_head=one.v_head, causal=one.causal,
        seconds=median(row.seconds for row in rows), count=len(rows),
    )  # fmt: skip


def _collectives(messages: list[Sent]) -> list[RatesCollective]:
    """One for each size. Waiting for a late rank only adds time, so the shortest counts."""
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for one in messages:
        found[one.kind, one.link, one.ranks, one.bytes].append(one.seconds)
    return [
        RatesCollective(
            kind=kind, link=link, ranks=ranks, bytes=size, seconds=min(each), count=len(each)
        )
        for (kind, link, ranks, size), each in found.items()
    ]
