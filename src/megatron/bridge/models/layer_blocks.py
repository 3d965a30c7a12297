"""Which blocks each layer of a model has: attention, feed-forward, experts, Mamba.

A transformer layer has attention and a feed-forward block. A layer of a hybrid model has one block,
as Megatron-Core's hybrid_override_pattern (hybrid_layer_pattern from 0.17 on) says.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, NamedTuple

MAMBA, ATTENTION, MLP, EXPERTS = "M", "*", "-", "E"
"""Megatron-Core's symbols for the blocks (core/ssm/mamba_hybrid_layer_allocation.py)."""
DENSE_LAYER, MOE_LAYER = ATTENTION + MLP, ATTENTION + EXPERTS
"""The blocks of a transformer layer."""

PATTERNS = ("hybrid_layer_pattern", "hybrid_override_pattern")
"""Attributes of a hybrid model that hold its pattern, the newer one first."""


class UncountableModel(ValueError):
    """The configuration does not determine the parameters; the message says why."""


class HybridPattern(NamedTuple):
    """What a hybrid model's pattern says.

    Attributes:
        chunks: the blocks of the layers by model chunk; one chunk where the pattern has no
            ``|``, and the layers are divided as in other models.
        prediction: the blocks of one depth of multi-token prediction; empty where not said.
        depths: of multi-token prediction, as far as the pattern itself says.
    """

    chunks: tuple[str, ...]
    prediction: str
    depths: int

    @property
    def blocks(self) -> str:
        """One symbol for each layer."""
        return "".join(self.chunks)


def hybrid_pattern(model: Any) -> HybridPattern | None:
    """The pattern of a hybrid model; None for other models.

    Raises:
        UncountableModel: the model is a hybrid without a pattern, or with a symbol whose layers are
            not known here.
    """
    name, text = next(
        ((name, getattr(model, name)) for name in PATTERNS if getattr(model, name, None)), ("", "")
    )
    if not text:
        if getattr(model, "is_hybrid_model", False):
            raise UncountableModel("a hybrid model without hybrid_override_pattern")
        return None
    main, *predicted = str(text).split("/")
    if len(set(predicted)) > 1:
        raise UncountableModel(f"{name}={text!r}: its depths of prediction differ")
    own = str(getattr(model, "mtp_hybrid_override_pattern", None) or "")
    prediction = predicted[0] if predicted else own
    for symbol in main.replace("|", "") + prediction:
        if symbol not in (MAMBA, ATTENTION, MLP, EXPERTS):
            raise UncountableModel(f"{name}={text!r}: layers {symbol!r} are not known here")
    return HybridPattern(tuple(main.split("|")), prediction, len(predicted))


def moe_layers_of(freq: Any, layers: int) -> tuple[bool, ...]:
    """Whether each of a model's layers has experts.

    Args:
        freq: moe_layer_freq: a number, a list of 0 and 1, or a text such as ``[0]*3+[1]*58``.
        layers: how many there are.

    Raises:
        UncountableModel: it is none of these, or has another number of layers.
    """
    if isinstance(freq, str):
        freq = _evaluated(freq)
    if isinstance(freq, int) and not isinstance(freq, bool) and freq != 0:
        return tuple(layer % freq == 0 for layer in range(layers))
    if not isinstance(freq, Sequence) or any(entry not in (0, 1) for entry in freq):
        raise UncountableModel(
            f"moe_layer_freq={freq!r} is neither a number other than 0 nor a list of 0 and 1"
        )
    if len(freq) != layers:
        raise UncountableModel(f"moe_layer_freq has {len(freq)} entries for num_layers={layers}")
    return tuple(entry == 1 for entry in freq)


def _evaluated(pattern: str) -> Any:
    """The value of a pattern such as ``[0]*3+[1]*58``: only lists, sums and products."""

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Expression):
            return value(node.body)
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.List):
            return [value(entry) for entry in node.elts]
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.Add):
                if isinstance(left, list) and isinstance(right, list):
                    return left + right
            elif isinstance(left, list) != isinstance(right, list):
                entries, times = (left, right) if isinstance(left, list) else (right, left)
                if len(entries) * times <= 100_000:
                    return entries * times
        raise ValueError

    try:
        return value(ast.parse(pattern.strip(), mode="eval"))
    except (SyntaxError, ValueError, RecursionError):
        raise UncountableModel(
            f"moe_layer_freq={pattern!r} is not understood: write a list such as [0]*3+[1]*58"
        ) from None
