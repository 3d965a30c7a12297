"""Attention among a profile's operators: its sizes, its pass and whether it is causal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from overlapkit.calibrate.products import Unread, precision_of, seconds_of
from overlapkit.trace.shapes.operators import Operator


class _Kind(NamedTuple):
    """How an operator states its attention (PyTorch's native_functions.yaml; flash-attn's
    flash_attn_interface.py).

    Attributes:
        phase: which pass.
        first: place of the queries; keys and values follow.
        causal: place of the flag.
        mask: place of an additive mask; None where there is none.
        heads: place of the heads among the sizes: 1, or 2 where tokens come before them.
    """

    phase: Literal["forward", "backward"]
    first: int
    causal: int
    mask: int | None = None
    heads: int = 1


_KINDS = {
    "aten::_scaled_dot_product_flash_attention": _Kind("forward", 0, 4),
    "aten::_scaled_dot_product_flash_attention_backward": _Kind("backward", 1, 11),
    "aten::_scaled_dot_product_efficient_attention": _Kind("forward", 0, 6, 3),
    "aten::_scaled_dot_product_efficient_attention_backward": _Kind("backward", 1, 11, 4),
    "aten::_scaled_dot_product_cudnn_attention": _Kind("forward", 0, 6, 3),
    "aten::_scaled_dot_product_cudnn_attention_backward": _Kind("backward", 1, 14, 8),
    "aten::_scaled_dot_product_flash_attention_for_cpu": _Kind("forward", 0, 4, 5),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _Kind("backward", 1, 7, 8),
    "flash_attn::_flash_attn_forward": _Kind("forward", 0, 5, None, 2),
    "flash_attn::_flash_attn_backward": _Kind("backward", 1, 11, None, 2),
}

_FUSED, _FUSED_BACKWARD = "FusedAttnFunc", "FusedAttnFuncBackward"
"""Transformer Engine's attention by cuDNN (pytorch/cpp_extensions, dot_product_attention)."""

OPERATORS = frozenset((*_KINDS, _FUSED, _FUSED_BACKWARD))
"""Names of the operators that are read."""


class Measured(NamedTuple):
    """A pass of attention, as `RatesAttention` has it, and its seconds."""

    phase: Literal["forward", "backward"]
    precision: str
    batch: int
    sequence: int
    heads: int
    qk_head: int
    v_head: int
    causal: bool
    seconds: float
    beside: bool


def attention(operators: list[Operator], *, on_device: bool) -> Iterator[Measured | Unread]:
    """The passes of attention among operators.

    Args:
        operators: of one profile.
        on_device: whether they ran on a device, whose kernels tell their time.
    """
    fused = {one.sequence: one for one in operators if one.name == _FUSED}
    for one in operators:
        if on_device and not one.kernels:
            continue
        if one.name in _KINDS:
            yield _plain(one, _KINDS[one.name])
        elif one.name == _FUSED:
            yield _of_engine(one, one, "forward")
        elif one.name == _FUSED_BACKWARD:
            forward = fused.get(one.sequence) if one.sequence is not None else None
            yield _of_engine(one, forward, "backward")


def _plain(one: Operator, kind: _Kind) -> Measured | Unread:
    dims = one.inputs.dims
    sizes = dims[kind.first : kind.first + 3]
    if len(sizes) < 3 or any(len(each) != 4 for each in sizes):
        return Unread(f"{one.name} without the sizes of its heads")
    causal = one.inputs.flag(kind.causal)
    masked = kind.mask is not None and len(dims) > kind.mask and bool(dims[kind.mask])
    if causal is None or masked:
        return Unread(f"{one.name} with a mask of its own, or whose causal flag was not recorded")
    q, k, v = sizes
    tokens = 3 - kind.heads
    if q[tokens] != k[tokens]:
        return Unread(f"{one.name} of other queries than keys")
    precision = precision_of(one.inputs, kind.first)
    if precision is None:
        return Unread(f"{one.name} of a type that has no rate")
    return Measured(
        kind.phase, precision, q[0], q[tokens], q[kind.heads], q[3], v[3], causal,
        seconds_of(one), one.beside,
    )  # fmt: skip


def _of_engine(
    one: Operator, forward: Operator | None, phase: Literal["forward", "backward"]
) -> Measured | Unread:
    """Transformer Engine's attention. Megatron-Core gives it sequence x micro-batch x heads x head.

    Whether it is causal is not recorded: that of a GPT is.
    """
    heads = [] if forward is None else [dims for dims in forward.inputs.dims if len(dims) == 4]
    if forward is None or len(heads) < 3:
        return Unread(f"{one.name} without the sizes of its heads")
    q, k, v = heads[:3]
    precision = precision_of(forward.inputs, forward.inputs.dims.index(q))
    if precision is None or q[0] != k[0]:
        return Unread(f"{one.name} of a type that has no rate, or of other queries than keys")
    return Measured(
        phase, precision, q[1], q[0], q[2], q[3], v[3], True, seconds_of(one), one.beside
    )
