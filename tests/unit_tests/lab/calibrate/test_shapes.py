"""Which shapes are measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from overlapkit.config.reading import Reading
from overlapkit.errors import InputError
from overlapkit.lab.calibrate.command import CalibrateRequest, measure
from overlapkit.lab.calibrate.shapes import grid, messages, of_run, stream
from overlapkit.plan.rates.document import RatesAttention, RatesGemm


def shapes(*arguments: str, world_size: int = 8) -> tuple[list[RatesGemm], list[RatesAttention]]:
    return of_run(
        arguments,
        model="llama3_8b",
        world_size=world_size,
        from_megatron_lm=False,
        reading=Reading(),
    )


def test_a_runs_shapes_are_those_of_one_rank() -> None:
    gemms, attention = shapes("tp=2", "cp=2", "mbs=1", "seq=8192")
    tokens = 8192 // 2
    fc1 = [g for g in gemms if g.which == "fprop" and (g.n, g.k) == (2 * 14336 // 2, 4096)]
    assert [g.m for g in fc1] == [tokens]
    assert Counter(g.which for g in gemms) == {"fprop": 5, "dgrad": 5, "wgrad": 5}
    flops = [g.m * g.n * g.k * g.batch for g in gemms]
    assert flops == sorted(flops, reverse=True)
    for row in attention:
        assert (row.batch, row.sequence, row.heads) == (1, 8192, 32 // 2 // 2)
        assert (row.qk_head, row.v_head, row.causal) == (128, 128, True)
    assert [row.phase for row in attention] == ["forward", "backward"]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        # The output layer is not quantized.
        ("fp8-delayed", {"fp8": 12, "bf16": 3}),
        # This recipe keeps the first layer and the last one in BF16.
        ("fp8-current", {"fp8": 12, "bf16": 12 + 3}),
        ("mxfp8", {"mxfp8": 12, "bf16": 3}),
    ],
)
def test_a_run_in_low_precision_has_its_shapes_in_that(
    recipe: str, expected: dict[str, int]
) -> None:
    gemms, attention = shapes("tp=2", f"precision={recipe}")
    assert Counter(g.precision for g in gemms) == expected
    assert {row.precision for row in attention} == {"bf16"}


def test_a_mixtures_experts_are_grouped() -> None:
    gemms, _ = of_run(
        ["ep=4", "mbs=1"],
        model="mixtral_8x7b",
        world_size=8,
        from_megatron_lm=False,
        reading=Reading(),
    )
    assert {g.batch for g in gemms if g.batch > 1} == {8 // 4}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_grid_has_every_pass_of_every_shape(device: str) -> None:
    gemms, attention = grid(device)
    assert len(set(gemms)) == len(gemms)
    assert len(set(Counter(g.which for g in gemms).values())) == 1
    assert any(g.batch > 1 for g in gemms)
    assert {row.phase for row in attention} == {"forward", "backward"}
    small, large = stream(device)
    assert large > 10 * small
    assert messages(device, 1) == []
    for ranks in (3, 4):
        assert {row.ranks for row in messages(device, ranks)} == {ranks}
        assert all(row.bytes and row.bytes % (4 * ranks) == 0 for row in messages(device, ranks))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ranks": 0}, "--ranks 0: give 1 to"),
        ({"budget": "soon"}, "--budget soon: give a time"),
        ({"arguments": ("none.yaml",)}, "none.yaml"),
        ({"model": "llama9", "world_size": 8}, "llama9"),
        ({"world_size": 8}, "--world-size 8: is of a run"),
        ({"from_megatron_lm": True}, "launch script"),
        ({"model": "llama3_8b", "world_size": 8, "arguments": ("tp=3",)}, "is not divisible by"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        measure(CalibrateRequest(**options))


def test_help_is_that_of_the_command(overlapkit: Callable[..., Any]) -> None:
    done = overlapkit("lab", "calibrate", "--help")
    assert done.status == 0
    assert "Measure rates of this machine" in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines())
