"""Which shapes to measure: those of a run, or a grid that others lie between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal, get_args

from megatron.bridge.training.decisions import OverlapConfigError
from overlapkit.config.effective import make_effective
from overlapkit.config.reading import Reading
from overlapkit.errors import InputError
from overlapkit.explain.assumptions import assume
from overlapkit.plan.inputs import read_inputs
from overlapkit.plan.rates.document import (
    CollectiveKind,
    Pass,
    RatesAttention,
    RatesCollective,
    RatesGemm,
)
from overlapkit.plan.workload.gemms import Gemm
from overlapkit.plan.workload.step import Workload, workload

COLLECTIVES: tuple[CollectiveKind, ...] = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
)
PASSES: tuple[Pass, ...] = get_args(Pass)
PHASES: tuple[Literal["forward", "backward"], ...] = ("forward", "backward")

_GRID: dict[str, dict[str, Any]] = {
    "cuda": {
        "precision": "bf16",
        "tokens": (4096,),
        "widths": (1024, 2048, 4096, 8192, 16384),
        "experts": (8, 512, (2048, 4096)),
        "sequences": (4096, 16384),
        "heads": (8, 32),
        "messages": (1 << 16, 1 << 20, 1 << 24, 1 << 26, 1 << 28),
        "stream": (1 << 22, 1 << 28),
    },
    "cpu": {
        "precision": "fp32",
        "tokens": (256,),
        "widths": (256, 512, 1024),
        "experts": (4, 64, (256,)),
        "sequences": (256,),
        "heads": (4,),
        "messages": (1 << 12, 1 << 16, 1 << 20),
        "stream": (1 << 18, 1 << 24),
    },
}
"""What is measured where no run is given, by device. A rank's part of a layer lies between."""

HEAD = 128


def grid(device: str) -> tuple[list[RatesGemm], list[RatesAttention]]:
    """Shapes for a device where no run is given."""
    sizes = _GRID[device]
    precision = sizes["precision"]
    gemms = [
        RatesGemm(precision=precision, which=which, **_turned(tokens, outputs, inputs, which))
        for tokens, outputs, inputs in product(sizes["tokens"], sizes["widths"], sizes["widths"])
        for which in PASSES
    ]
    experts, tokens, widths = sizes["experts"]
    gemms += [
        RatesGemm(
            precision=precision, which=which, batch=experts, **_turned(tokens, wide, wide, which)
        )
        for wide in widths
        for which in PASSES
    ]
    attention = [
        RatesAttention(
            phase=phase, precision=precision, batch=1, sequence=sequence, heads=heads,
            qk_head=HEAD, v_head=HEAD,
        )
        for sequence, heads in product(sizes["sequences"], sizes["heads"])
        for phase in PHASES
    ]  # fmt: skip
    return gemms, attention


def _turned(tokens: int, outputs: int, inputs: int, which: Pass) -> dict[str, int]:
    """The sizes of a layer's pass."""
    m, n, k = {
        "fprop": (tokens, outputs, inputs),
        "dgrad": (tokens, inputs, outputs),
        "wgrad": (outputs, inputs, tokens),
    }[which]
    return {"m": m, "n": n, "k": k}


def messages(device: str, ranks: int) -> list[RatesCollective]:
    """Collectives of several sizes over all ranks of this machine; none of a single rank."""
    if ranks == 1:
        return []
    # Whole fp32 elements of each rank.
    unit = 4 * ranks
    return [
        RatesCollective(kind=kind, link="node", ranks=ranks, bytes=size // unit * unit)
        for size, kind in product(_GRID[device]["messages"], COLLECTIVES)
    ]


def stream(device: str) -> tuple[int, int]:
    """Bytes that two streaming kernels read and write."""
    small, large = _GRID[device]["stream"]
    return small, large


def of_run(
    arguments: Sequence[str],
    *,
    model: str | None,
    world_size: int | None,
    from_megatron_lm: bool,
    reading: Reading,
) -> tuple[list[RatesGemm], list[RatesAttention]]:
    """The shapes that one rank of a run computes, those of most operations first.

    Args:
        arguments, model, world_size, from_megatron_lm, reading: as of `overlapkit plan`.

    Raises:
        InputError: the run cannot be read, or its work cannot be counted.
    """
    inputs = read_inputs(
        arguments,
        model=model,
        world_size=world_size,
        from_megatron_lm=from_megatron_lm,
        reading=reading,
    )
    software = assume(None, None, None, installation=reading.installation).software
    try:
        run, _ = make_effective(inputs.settings, inputs.world_size, software)
    except OverlapConfigError as error:
        raise InputError(f"{inputs.settings.source}: {error}") from None
    work = workload(run, inputs.world_size)
    gemms = dict.fromkeys(_rows(work))
    attention = [_attention(work, phase) for phase in PHASES]
    return sorted(gemms, key=lambda row: -row.m * row.n * row.k * row.batch), attention


def _rows(work: Workload) -> Iterator[RatesGemm]:
    for layer in (*work.layers, work.vocabulary):
        for gemm in layer.gemms:
            yield _row(gemm)


def _row(gemm: Gemm) -> RatesGemm:
    which = next((each for each in PASSES if each == gemm.which), None)
    return RatesGemm(
        precision=gemm.precision.rate, m=gemm.m, n=gemm.n, k=gemm.k, batch=gemm.batch, which=which
    )


def _attention(work: Workload, phase: Literal["forward", "backward"]) -> RatesAttention:
    """One layer's attention on a rank; with CP each rank has its part of the heads."""
    shape, layout = work.shape, work.layout
    head = v_head = shape.head_dim
    if shape.latent:
        head = shape.latent.qk_head_dim + shape.latent.qk_position_dim
        v_head = shape.latent.v_head_dim
    return RatesAttention(
        phase=phase,
        precision=work.base.rate,
        batch=layout.micro_batch,
        sequence=layout.sequence,
        heads=max(1, shape.heads // (shape.tp * layout.cp)),
        qk_head=head,
        v_head=v_head,
    )
