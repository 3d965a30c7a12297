"""Matrix products among a profile's operators: their sizes, their pass and their precision.

An operator of PyTorch states its operands. The linear layers of Transformer Engine, and those of
Megatron-Core that add weight gradients in fp32, are autograd functions: they state their input and
weight, and their backward is known by the number that it shares with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

from overlapkit.plan.rates.document import Pass
from overlapkit.trace.shapes.operators import Inputs, Operator

_OPERANDS = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::_scaled_mm": (0, 1)}
"""Which inputs are multiplied."""

_GROUPED = ("aten::_grouped_mm", "aten::_scaled_grouped_mm")

_FUNCTIONS = (
    "_Linear",
    "_LayerNormLinear",
    "LinearWithGradAccumulationAndAsyncCommunication",
)
"""Autograd functions of a linear layer: of Transformer Engine (pytorch/module) and of Megatron-Core
(core/tensor_parallel/layers.py)."""
_BACKWARD = "Backward"

OPERATORS = frozenset(
    (*_OPERANDS, *_GROUPED, *_FUNCTIONS, *(name + _BACKWARD for name in _FUNCTIONS))
)
"""Names of the operators that are read."""

_TYPES = {
    "bfloat16": "bf16",
    "half": "bf16",
    "float": "fp32",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "float4_e2m1fn_x2": "nvfp4",
}
"""Rates of a precision by the type of the operands. FP16 has the rate of BF16."""
_SCALES = "float8_e8m0fnu"
"""The type of the scales of MXFP8's blocks."""

_PRODUCT = re.compile(r"gemm|nvjet|cutlass|xmma|Cijk_", re.IGNORECASE)
_SPLIT = re.compile(r"splitk.*reduce|reduce.*splitk", re.IGNORECASE)
_FP8 = re.compile(r"e4m3|e5m2|fp8", re.IGNORECASE)


class Product(NamedTuple):
    """A matrix product that was measured, as `RatesGemm` has it, and its seconds."""

    precision: str
    m: int
    n: int
    k: int
    batch: int
    which: Pass | None
    seconds: float
    beside: bool


class Unread(NamedTuple):
    """Why an operator could not be read."""

    why: str


def products(operators: list[Operator], *, on_device: bool) -> Iterator[Product | Unread]:
    """The matrix products among operators.

    Args:
        operators: of one profile.
        on_device: whether they ran on a device, whose kernels tell their time.
    """
    forwards = {(one.name, one.sequence): one for one in operators if one.name in _FUNCTIONS}
    for one in operators:
        if on_device and not one.kernels:
            continue
        if one.name in _OPERANDS:
            yield _plain(one)
        elif one.name in _GROUPED:
            yield _grouped(one)
        elif one.name in _FUNCTIONS:
            yield from _forward(one)
        elif one.name.removesuffix(_BACKWARD) in _FUNCTIONS:
            yield from _backward(one, forwards)


def seconds_of(one: Operator) -> float:
    """What an operator took: its kernels, or on a CPU itself."""
    if one.kernels:
        return sum(ns for _, ns in one.kernels) * 1e-9
    return (one.end - one.start) * 1e-9


def _plain(one: Operator) -> Product | Unread:
    first, second = _OPERANDS[one.name]
    dims = one.inputs.dims
    if len(dims) <= second or len(dims[first]) != 2 or len(dims[second]) != 2:
        return Unread(f"{one.name} without the sizes of its operands")
    (m, k), (_, n) = dims[first], dims[second]
    precision = precision_of(one.inputs, first)
    if precision is None:
        return Unread(f"{one.name} of a type that has no rate")
    if precision == "nvfp4":
        # Two elements in each byte.
        k *= 2
    which = _pass_of(one.inputs, first, second)
    return Product(precision, m, n, k, 1, which, seconds_of(one), one.beside)


def precision_of(inputs: Inputs, place: int) -> str | None:
    """The rate of a precision, from the type of an input; None for another type."""
    kinds = [kind.rpartition("::")[2].lower() for kind in inputs.types]
    found = _TYPES.get(kinds[place]) if place < len(kinds) else None
    return "mxfp8" if found == "fp8" and _SCALES in kinds else found


def _pass_of(inputs: Inputs, first: int, second: int) -> Pass | None:
    """The pass, from how the operands lie in memory.

    A weight lies as outputs x inputs, and activations as tokens x width. So the forward reads the
    second operand transposed, the weight's gradient the first one, and the input's gradient none.
    """
    if len(inputs.strides) <= second:
        return None
    turned = []
    for place in (first, second):
        strides, dims = inputs.strides[place], inputs.dims[place]
        if len(strides) != 2 or 1 in dims or (strides[0] != 1 and strides[1] != 1):
            return None
        turned.append(strides[0] == 1)
    passes: dict[tuple[bool, ...], Pass] = {
        (False, True): "fprop",
        (False, False): "dgrad",
        (True, False): "wgrad",
    }
    return passes.get(tuple(turned))


def _grouped(one: Operator) -> Product | Unread:
    """Tokens that are sorted by expert, and a weight of each; or, of a weight's gradient, both."""
    dims = one.inputs.dims
    precision = precision_of(one.inputs, 0)
    if precision is None or len(dims) < 2:
        return Unread(f"{one.name} of a type that has no rate")
    left, right = dims[0], dims[1]
    if len(left) == 2 and len(right) == 3:
        batch, (tokens, k), n = right[0], left, right[2]
        which: Pass = "fprop" if _turned(one.inputs, 1) else "dgrad"
        sizes = (max(tokens // batch, 1), n, k)
    elif len(left) == 2 and len(right) == 2:
        ends = next((each for each in dims[2:] if len(each) == 1), (0,))
        batch, which = ends[0], "wgrad"
        sizes = (left[0], right[1], max(left[1] // max(batch, 1), 1))
    else:
        return Unread(f"{one.name} without the sizes of its operands")
    if batch < 1:
        return Unread(f"{one.name} without the number of its groups")
    return Product(precision, *sizes, batch, which, seconds_of(one), one.beside)


def _turned(inputs: Inputs, place: int) -> bool:
    """Whether the matrices of a batch lie transposed."""
    strides = inputs.strides[place] if place < len(inputs.strides) else ()
    return len(strides) == 3 and strides[1] == 1


class _Linear(NamedTuple):
    """A linear layer as an autograd function states it."""

    tokens: int
    inputs: int
    outputs: int
    precision: str


def _linear_of(one: Operator) -> _Linear | None:
    """The layer: a weight of outputs x inputs, and an input of sequence x micro-batch x inputs.

    An input that is gathered from the ranks of a group first has as many times its tokens.
    """
    weights = [dims for dims in one.inputs.dims if len(dims) == 2]
    for place, entering in enumerate(one.inputs.dims):
        fitting = [dims for dims in weights if len(entering) > 2 and dims[1] == entering[-1]]
        precision = precision_of(one.inputs, place)
        if fitting and precision is not None:
            outputs, inputs = fitting[0]
            tokens = prod(entering[:-1]) * max(one.gathers, default=1)
            return _Linear(tokens, inputs, outputs, precision)
    return None


def _gemms_of(one: Operator) -> list[tuple[str, float]]:
    """The products among the kernels of a function; what adds up a split one belongs to it."""
    found: list[tuple[str, float]] = []
    for name, ns in one.kernels:
        if _SPLIT.search(name) and found:
            found[-1] = (found[-1][0], found[-1][1] + ns * 1e-9)
        elif _PRODUCT.search(name):
            found.append((name, ns * 1e-9))
    return found


def _forward(one: Operator) -> Iterator[Product | Unread]:
    linear, gemms = _linear_of(one), _gemms_of(one)
    if not gemms:
        # Its product is an operator of PyTorch, which is read itself.
        return
    if linear is None or len(gemms) != 1:
        yield Unread(f"{one.name} whose product is not one")
        return
    yield _product(linear, "fprop", gemms[0], one)


def _backward(
    one: Operator, forwards: Mapping[tuple[str, int | None], Operator]
) -> Iterator[Product | Unread]:
    gemms = _gemms_of(one)
    if not gemms:
        return
    forward = None
    if one.sequence is not None:
        forward = forwards.get((one.name.removesuffix(_BACKWARD), one.sequence))
    linear = None if forward is None else _linear_of(forward)
    passes: tuple[Pass, ...] = ("dgrad", "wgrad")
    if len(gemms) == 1 and one.name.startswith("LinearWith"):
        # The input's gradient is an operator of PyTorch; the weight's is not.
        passes = ("wgrad",)
    if linear is None or len(gemms) != len(passes):
        yield Unread(f"{one.name} whose products are not one for each gradient")
        return
    for which, gemm in zip(passes, gemms, strict=True):
        yield _product(linear, which, gemm, one)


def _product(linear: _Linear, which: Pass, gemm: tuple[str, float], one: Operator) -> Product:
    tokens, inputs, outputs, precision = linear
    name, seconds = gemm
    if _FP8.search(name):
        precision = "fp8"
    m, n, k = {
        "fprop": (tokens, outputs, inputs),
        "dgrad": (tokens, inputs, outputs),
        "wgrad": (outputs, inputs, tokens),
    }[which]
    return Product(precision, m, n, k, 1, which, seconds, one.beside)
