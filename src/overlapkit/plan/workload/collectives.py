"""The communication of a step: which collective, of how many bytes, among which ranks.

Ranks are numbered as Megatron-Core numbers them: TP innermost, then CP, then DP, then PP; for
experts their TP, then EP, then what is left of DP. So a group is told by its size and by the stride
between its members, and that tells which link it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

from megatron.bridge.models.model_shape import Experts, ModelShape
from overlapkit.errors import InputError
from overlapkit.plan.figure import Figure, given, literal
from overlapkit.plan.workload.layout import Layout
from overlapkit.plan.workload.memory_traffic import (
    attention_output,
    attention_widths,
    shared_tokens,
)
from overlapkit.plan.workload.precision import Precision


@dataclass(frozen=True)
class Collective:
    """One collective of a kind, and how often it runs.

    Attributes:
        dimension: "TP", "DP", "PP", "CP" or "EP".
        name: what travels.
        kind: "all-gather", "reduce-scatter", "all-reduce", "all-to-all" or "send".
        payload: bytes: of the gathered tensor, of the tensor that is reduced, of what a rank has
            for all members of its group together, of the message sent.
        ranks: members of the group.
        stride: ranks from one member to the next.
        phase: "forward", "backward" or "step".
        count: how often, per layer and microbatch (per step for phase "step").
        beside: the GEMM that it can hide under, as ``name which``; empty for none.
        always_hidden: whether the layer starts it asynchronously whatever the overlap switches.
    """

    dimension: str
    name: str
    kind: str
    payload: Figure
    ranks: int
    stride: int
    phase: str
    count: int = 1
    beside: str = ""
    always_hidden: bool = False


def tensor_collectives(
    shape: ModelShape, layout: Layout, base: Precision, low: Precision, *, mlp: bool
) -> list[Collective]:
    """Tensor-parallel communication of a layer, its MLP left out where experts stand instead.

    With sequence parallelism the input of qkv and fc1 is gathered and the output of proj and fc2
    reduce-scattered; the backward does the reverse and gathers the input again for wgrad. That
    gather runs beside dgrad, and the reduce-scatter of the input's gradient beside wgrad, with or
    without tp_comm_overlap (Megatron-Core's and Transformer Engine's linear layers). Without
    sequence parallelism the output and the input's gradient are all-reduced.
    """
    if layout.tp == 1:
        return []
    tokens, hidden = layout.tokens, given("hidden size", shape.hidden, "", "model.hidden_size")
    wide = (tokens * hidden * literal(base.operand_bytes, "B")).called("activation", "B")
    narrow = (tokens * hidden * literal(low.gather_bytes, "B")).called(
        "activation as gathered", "B"
    )
    entry = narrow
    if shape.latent:
        rank = (shape.latent.q_rank or 0) + shape.latent.kv_rank + shape.latent.qk_position_dim
        entry = (
            tokens
            * given("latent width", rank, "", "model.q_lora_rank + model.kv_lora_rank + …")
            * literal(base.operand_bytes, "B")
        ).called("latents", "B")
    blocks = [("qkv", "proj", entry)] + ([("fc1", "fc2", narrow)] if mlp else [])

    def one(name: str, kind: str, payload: Figure, phase: str, at: str, own: bool) -> Collective:
        return Collective(
            "TP", name, kind, payload, layout.tp, 1, phase, beside=at, always_hidden=own
        )

    result = []
    for first, last, gathered in blocks:
        if not layout.sequence_parallel:
            result += [
                one(f"{last} output", "all-reduce", wide, "forward", f"{last} fprop", False),
                one(f"{first} gradient", "all-reduce", wide, "backward", f"{first} wgrad", True),
            ]
            continue
        result += [
            one(f"{first} input", "all-gather", gathered, "forward", f"{first} fprop", False),
            one(f"{last} output", "reduce-scatter", wide, "forward", f"{last} fprop", False),
            one(f"{last} gradient", "all-gather", narrow, "backward", f"{last} dgrad", False),
            one(f"{first} input", "all-gather", gathered, "backward", f"{first} dgrad", True),
            one(f"{first} gradient", "reduce-scatter", wide, "backward", f"{first} wgrad", True),
        ]
    return result


def vocabulary_collectives(shape: ModelShape, layout: Layout, base: Precision) -> list[Collective]:
    """Tensor-parallel communication around the output layer, which no switch hides."""
    if layout.tp == 1:
        return []
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    wide = (layout.tokens * hidden * literal(base.operand_bytes, "B")).called("activation", "B")
    if not layout.sequence_parallel:
        return [
            Collective("TP", "output layer gradient", "all-reduce", wide, layout.tp, 1, "backward")
        ]
    return [
        Collective("TP", "output layer input", "all-gather", wide, layout.tp, 1, phase)
        for phase in ("forward", "backward")
    ] + [
        Collective("TP", "output layer gradient", "reduce-scatter", wide, layout.tp, 1, "backward")
    ]


def context_collectives(
    model: Any, shape: ModelShape, layout: Layout, base: Precision, layer: int = 0
) -> list[Collective]:
    """Context-parallel communication of one layer's attention, by cp_comm_type.

    Raises:
        InputError: an unknown cp_comm_type.
    """
    if layout.cp == 1:
        return []
    kind = getattr(model, "cp_comm_type", None) or "p2p"
    if isinstance(kind, (list, tuple)):
        kind = kind[min(layer, len(kind) - 1)]
    if kind not in CP_KINDS:
        raise InputError(f"model.cp_comm_type={kind!r}: unknown; known are {', '.join(CP_KINDS)}")
    queries, keys, values = attention_widths(shape)
    size, tp, cp = literal(base.operand_bytes, "B"), layout.tp, layout.cp
    kv = (
        layout.tokens
        * given("key and value width per rank", (keys + values) / tp, "", "heads x head size / TP")
        * size
    )
    kv = kv.called("keys and values of a rank", "B")
    qkv = (
        layout.tokens
        * given(
            "attention width per rank", (queries + keys + values) / tp, "", "heads x head size / TP"
        )
        * size
    )
    out = (
        layout.tokens
        * given(
            "attention output width", attention_output(shape) / tp, "", "heads x head size / TP"
        )
        * size
    )
    qkv, out = qkv.called("queries, keys and values", "B"), out.called("attention output", "B")
    inner = _inner_ranks(model, layout) if kind == "a2a+p2p" else cp
    result = []
    if kind in ("a2a", "a2a+p2p"):
        result = [
            Collective("CP", name, "all-to-all", payload, inner, tp, phase)
            for phase in ("forward", "backward")
            for name, payload in (("attention input", qkv), ("attention output", out))
        ]
    if kind in ("p2p", "a2a+p2p"):
        ring = cp // inner if kind == "a2a+p2p" else cp
        stride = tp * (inner if kind == "a2a+p2p" else 1)
        both = (2 * kv).called("keys, values and their gradients", "B")
        for phase, payload in (("forward", kv), ("backward", both)):
            result.append(
                Collective(
                    "CP", "ring step", "send", payload, ring, stride, phase, ring - 1, "attention"
                )
            )
    if kind == "all_gather":
        whole = (kv * given("CP", cp, "ranks", "model.context_parallel_size")).called(
            "keys and values of all ranks", "B"
        )
        result = [
            Collective("CP", "keys and values", "all-gather", whole, cp, tp, "forward"),
            Collective("CP", "keys and values", "all-gather", whole, cp, tp, "backward"),
            Collective("CP", "their gradients", "reduce-scatter", whole, cp, tp, "backward"),
        ]
    return [one for one in result if one.ranks > 1]


CP_KINDS = ("p2p", "a2a", "all_gather", "a2a+p2p")


def _inner_ranks(model: Any, layout: Layout) -> int:
    sizes = getattr(model, "hierarchical_context_parallel_sizes", None)
    if not isinstance(sizes, (list, tuple)) or len(sizes) != 2 or sizes[0] * sizes[1] != layout.cp:
        raise InputError(
            f"model.hierarchical_context_parallel_sizes={sizes!r}: cp_comm_type a2a+p2p needs two "
            f"sizes whose product is model.context_parallel_size={layout.cp}"
        )
    return int(sizes[0])


def expert_collectives(
    model: Any, shape: ModelShape, experts: Experts, layout: Layout, base: Precision
) -> list[Collective]:
    """Dispatch of tokens to their experts and combination of what they yield, both ways."""
    tokens = shared_tokens(layout)
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    group, stride = layout.ep, layout.expert_tp
    dispatcher = getattr(model, "moe_token_dispatcher_type", "alltoall")
    result = []
    phases = ("forward", "backward")
    if dispatcher == "allgather":
        group *= layout.expert_tp
        everyone = (
            tokens
            * given("EP x expert TP", group, "ranks", "layout")
            * hidden
            * literal(base.operand_bytes, "B")
        )
        everyone = everyone.called("tokens of all ranks", "B")
        result = [
            Collective("EP", name, kind, everyone, group, 1, phase)
            for phase in phases
            for name, kind in (("dispatch", "all-gather"), ("combine", "reduce-scatter"))
        ]
        return result if group > 1 else []
    copies = given(
        "copies of a token sent",
        token_copies(model, experts, layout),
        "",
        "model.moe_router_topk, model.moe_token_dispatcher_type",
    )
    sent = (tokens * copies * hidden * literal(base.operand_bytes, "B")).called(
        "dispatched tokens", "B"
    )
    if group > 1:
        result = [
            Collective("EP", name, "all-to-all", sent, group, stride, phase, beside="layer")
            for phase in phases
            for name in ("dispatch", "combine")
        ]
    if layout.expert_tp > 1:
        ranks = given("expert TP", layout.expert_tp, "ranks", "model.expert_tensor_parallel_size")
        whole = (sent * ranks).called("tokens of an expert's TP ranks", "B")
        result += [
            Collective("EP", name, kind, whole, layout.expert_tp, 1, phase, beside="layer")
            for phase in phases
            for name, kind in (
                ("tokens to expert TP", "all-gather"),
                ("tokens from expert TP", "reduce-scatter"),
            )
        ]
    return result


def routed_copies(model: Any) -> int:
    """Experts that each token goes to."""
    return int(getattr(model, "moe_router_topk", 2) or 1)


def token_copies(model: Any, experts: Experts, layout: Layout) -> float:
    """Times that a token is sent: once per expert, or once per rank with the flex dispatcher.

    The latter's expected number for experts chosen at random: ranks times the chance that at least
    one of a rank's experts is among those chosen.
    """
    top = routed_copies(model)
    if getattr(model, "moe_token_dispatcher_type", "alltoall") != "flex":
        return top
    here = experts.count // layout.ep
    missed = comb(experts.count - here, top) / comb(experts.count, top)
    return layout.ep * (1 - missed)
