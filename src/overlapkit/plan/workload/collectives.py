"""The communication of a step: which collective, of how many bytes, among which ranks.

Megatron-Core numbers ranks with TP innermost, then CP, then DP, then PP; for experts with their TP
innermost, then EP, then what remains of DP. The size of a group and the stride between its members
therefore determine which link it uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import comb
from typing import Any

from megatron.bridge.models.layer_blocks import ATTENTION, EXPERTS, MAMBA, MLP
from megatron.bridge.models.model_shape import Experts, ModelShape
from overlapkit.errors import InputError
from overlapkit.plan.figure import Figure, given, literal
from overlapkit.plan.workload.layout import Layout
from overlapkit.plan.workload.memory_traffic import (
    attention_output,
    attention_widths,
    expert_input,
    shared_tokens,
)
from overlapkit.plan.workload.precision import Precision

PHASES = ("forward", "backward")


@dataclass(frozen=True)
class Routing:
    """Tokens that go once to each domain of fast links, and from there to their experts.

    Attributes:
        experts: of the model, spread evenly over the group.
        chosen: experts that each token goes to, at random.
        copy: bytes of all tokens of a rank, sent once.
    """

    experts: int
    chosen: int
    copy: Figure

    def copies_to(self, groups: int) -> float:
        """Expected number of equal groups of experts that have at least one of a token's: groups
        times the probability that one of them is chosen."""
        missed = comb(self.experts - self.experts // groups, self.chosen)
        return groups * (1 - missed / comb(self.experts, self.chosen))


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of a kind, and how often it runs.

    Attributes:
        dimension: "TP", "DP", "PP", "CP" or "EP".
        name: what is sent.
        kind: "all-gather", "reduce-scatter", "all-reduce", "all-to-all" or "send".
        payload: bytes: of the gathered tensor, of the tensor that is reduced, of what a rank has
            for all members of its group together, or of the message.
        ranks: members of the group.
        stride: ranks from one member to the next.
        phase: "forward", "backward" or "step".
        count: how often, per layer and microbatch (per step for phase "step").
        beside: the GEMM that it can hide under, as ``name which``; empty for none.
        asynchronous: whether the layer starts it before that GEMM, which it does not depend on.
        routing: of an all-to-all that sends a token once to each domain; None for others.
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
    asynchronous: bool = False
    routing: Routing | None = None


def tensor_collectives(
    shape: ModelShape, layout: Layout, base: Precision, low: Precision, blocks: str
) -> list[Collective]:
    """Tensor-parallel communication of a layer.

    With sequence parallelism the input of qkv and fc1 is gathered and the output of proj and fc2
    reduce-scattered; the backward does the reverse and gathers the input again for wgrad. That
    gather is started before dgrad, and the reduce-scatter of the input's gradient before wgrad,
    with or without tp_comm_overlap (Megatron-Core's and Transformer Engine's linear layers).
    Without sequence parallelism the output and the input's gradient are all-reduced.

    Args:
        shape: of the model.
        layout: ranks.
        base: precision of activations.
        low: precision of the linear layers.
        blocks: of the layer. Of experts only the shared one is divided over TP here.
    """
    if layout.tp == 1:
        return []
    tokens, hidden = layout.tokens, given("hidden size", shape.hidden, "", "model.hidden_size")
    wide = (tokens * hidden * literal(base.operand_bytes, "B")).called("activation", "B")
    narrow = (tokens * hidden * literal(low.gather_bytes, "B")).called(
        "activation as gathered", "B"
    )
    one = partial(Collective, dimension="TP", ranks=layout.tp, stride=1)
    result = []
    linears = {
        ATTENTION: ("qkv", "proj", _latents(shape, tokens, base) or narrow),
        MAMBA: ("in_proj", "out_proj", narrow),
        MLP: ("fc1", "fc2", narrow),
    }
    if shape.experts and shape.experts.shared_ffn:
        linears[EXPERTS] = "shared fc1", "shared fc2", narrow
    for first, last, gathered in [linears[block] for block in blocks if block in linears]:
        forward = partial(one, phase="forward")
        backward = partial(one, phase="backward")
        own = partial(backward, asynchronous=True)
        if layout.sequence_parallel:
            gather, scatter = "all-gather", "reduce-scatter"
            result += [
                forward(
                    name=f"{first} input", kind=gather, payload=gathered, beside=f"{first} fprop"
                ),
                forward(name=f"{last} output", kind=scatter, payload=wide, beside=f"{last} fprop"),
                backward(
                    name=f"{last} gradient", kind=gather, payload=narrow, beside=f"{last} dgrad"
                ),
                own(name=f"{first} input", kind=gather, payload=gathered, beside=f"{first} dgrad"),
                own(name=f"{first} gradient", kind=scatter, payload=wide, beside=f"{first} wgrad"),
            ]
        else:
            kind = "all-reduce"
            result += [
                forward(name=f"{last} output", kind=kind, payload=wide, beside=f"{last} fprop"),
                own(name=f"{first} gradient", kind=kind, payload=wide, beside=f"{first} wgrad"),
            ]
    return result


def _latents(shape: ModelShape, tokens: Figure, base: Precision) -> Figure | None:
    """What multi-latent attention gathers instead of its input; None for other attention."""
    if not shape.latent:
        return None
    rank = (shape.latent.q_rank or 0) + shape.latent.kv_rank + shape.latent.qk_position_dim
    width = given("latent width", rank, "", "model.q_lora_rank + model.kv_lora_rank + …")
    return (tokens * width * literal(base.operand_bytes, "B")).called("latents", "B")


def vocabulary_collectives(shape: ModelShape, layout: Layout, base: Precision) -> list[Collective]:
    """Tensor-parallel communication around the output layer, which no switch hides."""
    if layout.tp == 1:
        return []
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    wide = (layout.tokens * hidden * literal(base.operand_bytes, "B")).called("activation", "B")
    one = partial(Collective, dimension="TP", payload=wide, ranks=layout.tp, stride=1)
    gradient = partial(one, name="output layer gradient", phase="backward")
    if not layout.sequence_parallel:
        return [gradient(kind="all-reduce")]
    gathered = [one(name="output layer input", kind="all-gather", phase=phase) for phase in PHASES]
    return [*gathered, gradient(kind="reduce-scatter")]


CP_KINDS = ("p2p", "a2a", "all_gather", "a2a+p2p")
"""Values of cp_comm_type in Megatron-Core."""


def context_collectives(
    model: Any, shape: ModelShape, layout: Layout, base: Precision, layer: int = 0
) -> list[Collective]:
    """Context-parallel communication of one layer's attention, by cp_comm_type.

    Raises:
        InputError: an unknown cp_comm_type, or sizes that do not fit it.
    """
    if layout.cp == 1:
        return []
    kind = context_kind(model, layer)
    if kind not in CP_KINDS:
        raise InputError(f"model.cp_comm_type={kind!r}: unknown; known are {', '.join(CP_KINDS)}")
    tensors = _attention_tensors(shape, layout, base)
    if kind == "all_gather":
        found = _gathered(tensors, layout)
    elif kind == "p2p":
        found = _ring(tensors, ranks=layout.cp, stride=layout.tp)
    else:
        inner = _inner_ranks(model, layout) if kind == "a2a+p2p" else layout.cp
        found = _exchanged(tensors, ranks=inner, stride=layout.tp)
        # The ring connects the groups that have exchanged heads; with a2a alone there is one.
        found += _ring(tensors, ranks=layout.cp // inner, stride=layout.tp * inner)
    return [one for one in found if one.ranks > 1]


def context_kind(model: Any, layer: int) -> str:
    """cp_comm_type of a layer."""
    kind = getattr(model, "cp_comm_type", None) or "p2p"
    if isinstance(kind, (list, tuple)):
        kind = kind[min(layer, len(kind) - 1)]
    return str(kind)


@dataclass(frozen=True)
class _AttentionTensors:
    """Bytes of what context-parallel ranks exchange: keys and values, with queries, and output."""

    kv: Figure
    qkv: Figure
    out: Figure


def _attention_tensors(shape: ModelShape, layout: Layout, base: Precision) -> _AttentionTensors:
    queries, keys, values = attention_widths(shape)
    size = literal(base.operand_bytes, "B")

    def tensor(name: str, width_name: str, width: int) -> Figure:
        each = given(width_name, width / layout.tp, "", "heads x head size / TP")
        return (layout.tokens * each * size).called(name, "B")

    return _AttentionTensors(
        kv=tensor("keys and values of a rank", "key and value width per rank", keys + values),
        qkv=tensor("queries, keys and values", "attention width per rank", queries + keys + values),
        out=tensor("attention output", "attention output width", attention_output(shape)),
    )


def _exchanged(tensors: _AttentionTensors, *, ranks: int, stride: int) -> list[Collective]:
    """a2a: ranks exchange their parts of the sequence for parts of the heads, and back."""
    return [
        Collective(
            dimension="CP",
            name=name,
            kind="all-to-all",
            payload=payload,
            ranks=ranks,
            stride=stride,
            phase=phase,
        )
        for phase in PHASES
        for name, payload in (("attention input", tensors.qkv), ("attention output", tensors.out))
    ]


def _ring(tensors: _AttentionTensors, *, ranks: int, stride: int) -> list[Collective]:
    """p2p: keys and values go round, in the backward with their gradients."""
    both = (2 * tensors.kv).called("keys, values and their gradients", "B")
    return [
        Collective(
            dimension="CP",
            name="ring step",
            kind="send",
            payload=payload,
            ranks=ranks,
            stride=stride,
            phase=phase,
            count=ranks - 1,
            beside="attention",
        )
        for phase, payload in zip(PHASES, (tensors.kv, both), strict=True)
    ]


def _gathered(tensors: _AttentionTensors, layout: Layout) -> list[Collective]:
    """all_gather: every rank has all keys and values."""
    ranks = given("CP", layout.cp, "ranks", "model.context_parallel_size")
    everyone = (tensors.kv * ranks).called("keys and values of all ranks", "B")
    one = partial(Collective, dimension="CP", payload=everyone, ranks=layout.cp, stride=layout.tp)
    return [
        *(one(name="keys and values", kind="all-gather", phase=phase) for phase in PHASES),
        one(name="their gradients", kind="reduce-scatter", phase="backward"),
    ]


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
    """Dispatch of tokens to their experts and combination of the results, both ways."""
    hidden = expert_input(shape)
    size = literal(base.operand_bytes, "B")
    tokens = shared_tokens(layout)
    if getattr(model, "moe_token_dispatcher_type", "alltoall") == "allgather":
        group = layout.ep * layout.expert_tp
        ranks = given("EP x expert TP", group, "ranks", "layout")
        everyone = (tokens * ranks * hidden * size).called("tokens of all ranks", "B")
        names = {"dispatch": "all-gather", "combine": "reduce-scatter"}
        return _both_ways(names, everyone, group) if group > 1 else []
    copies = given(
        "copies of a token sent",
        token_copies(model, experts, layout),
        "",
        "model.moe_router_topk, model.moe_token_dispatcher_type",
    )
    sent = (tokens * copies * hidden * size).called("dispatched tokens", "B")
    result = []
    if layout.ep > 1:
        names = {"dispatch": "all-to-all", "combine": "all-to-all"}
        routing = None
        if _once_per_domain(model):
            one = (tokens * hidden * size).called("tokens of a rank", "B")
            routing = Routing(experts.count, routed_copies(model), one)
        result = _both_ways(
            names, sent, layout.ep, stride=layout.expert_tp, beside="layer", routing=routing
        )
    if layout.expert_tp > 1:
        ranks = given("expert TP", layout.expert_tp, "ranks", "model.expert_tensor_parallel_size")
        shared = (sent * ranks).called("tokens of an expert's TP ranks", "B")
        names = {"tokens to expert TP": "all-gather", "tokens from expert TP": "reduce-scatter"}
        result += _both_ways(names, shared, layout.expert_tp, beside="layer")
    return result


def _both_ways(
    kinds: dict[str, str],
    payload: Figure,
    ranks: int,
    *,
    stride: int = 1,
    beside: str = "",
    routing: Routing | None = None,
) -> list[Collective]:
    """The experts' collectives, by name, in the forward and again in the backward."""
    return [
        Collective(
            dimension="EP",
            name=name,
            kind=kind,
            payload=payload,
            ranks=ranks,
            stride=stride,
            phase=phase,
            beside=beside,
            routing=routing,
        )
        for phase in PHASES
        for name, kind in kinds.items()
    ]


def routed_copies(model: Any) -> int:
    """Experts that each token goes to."""
    return int(getattr(model, "moe_router_topk", 2) or 1)


def token_copies(model: Any, experts: Experts, layout: Layout) -> float:
    """Times that a token is sent: once per expert, or once per rank with the flex dispatcher."""
    top = routed_copies(model)
    if not _once_per_domain(model):
        return top
    return Routing(experts.count, top, literal(0, "B")).copies_to(layout.ep)


def _once_per_domain(model: Any) -> bool:
    """Whether the dispatcher is flex (DeepEP or HybridEP), which forwards within a domain."""
    return getattr(model, "moe_token_dispatcher_type", "alltoall") == "flex"
