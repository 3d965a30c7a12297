"""Narrower layers: the ratios that decide which code runs are kept."""

from __future__ import annotations

from typing import Any

from overlapkit.lab.corpus import VOCABULARY
from overlapkit.lab.own.layout import Layout
from overlapkit.lab.own.reduced import Notes

CHANNELS = 8
"""Channels of a head, at scale 1."""

SEQUENCE = 32
"""Tokens, at scale 1."""

MOST_CHOSEN = 4
"""Most experts that a token is sent to."""

_WHY = "so that a step takes a fraction of a second"


def narrower(model: Any, new: Layout, scale: int, notes: Notes) -> dict[str, Any]:
    """The sizes in section `model` that are not numbers of layers.

    Args:
        model: the user's, with its defaults.
        new: the layout of this run.
        scale: how much wider and longer than at least: 1 to compare numbers, more where compute
            must take its time.
        notes: where the changes are written down.
    """
    result = _attention(model, new, scale, notes)
    hidden = result["hidden_size"]
    old_hidden = getattr(model, "hidden_size", None) or hidden
    old_ffn = getattr(model, "ffn_hidden_size", None) or 4 * old_hidden
    unit = 8 * new.tp
    result["ffn_hidden_size"] = _in_proportion(old_ffn, old_hidden, hidden, unit)
    if getattr(model, "num_moe_experts", None):
        result |= _experts(model, new, notes)
        old = getattr(model, "moe_ffn_hidden_size", None) or old_ffn
        result["moe_ffn_hidden_size"] = _in_proportion(old, old_hidden, hidden, unit)
        shared = getattr(model, "moe_shared_expert_intermediate_size", None)
        if shared:
            width = _in_proportion(shared, old_hidden, hidden, unit)
            result["moe_shared_expert_intermediate_size"] = width
            notes.kept.append("shared experts")
    result["seq_length"] = min(getattr(model, "seq_length", None) or SEQUENCE, SEQUENCE * scale)
    # Sequence parallelism divides the sequence.
    result["seq_length"] = max(new.tp, result["seq_length"] // new.tp * new.tp)
    result["vocab_size"] = VOCABULARY
    for key, value in result.items():
        notes.change(f"model.{key}", getattr(model, key, None), value, _WHY)
    return result


def _in_proportion(old: int, old_hidden: int, hidden: int, unit: int) -> int:
    """A width in the same proportion to the hidden size, at most four times it."""
    wanted = hidden * min(4.0, old / max(old_hidden, 1))
    return max(unit, round(wanted / unit) * unit)


def _attention(model: Any, new: Layout, scale: int, notes: Notes) -> dict[str, Any]:
    heads = getattr(model, "num_attention_heads", None) or 1
    groups = getattr(model, "num_query_groups", None) or heads
    channels = CHANNELS * scale
    latent = bool(getattr(model, "multi_latent_attention", False))
    if groups == heads or latent:
        fewer = max(new.tp, min(heads, 2 * new.tp))
        result: dict[str, Any] = {"num_attention_heads": fewer}
        if getattr(model, "num_query_groups", None):
            result["num_query_groups"] = fewer
    else:
        # Megatron-Core divides groups over tensor-parallel ranks, or gives ranks the same group.
        fewer_groups = 1 if groups == 1 else max(new.tp, min(groups, 2))
        fewer = max(fewer_groups * min(heads // groups, 2), new.tp)
        result = {"num_attention_heads": fewer, "num_query_groups": fewer_groups}
        notes.kept.append(f"{heads // groups} heads to a query group, as {fewer // fewer_groups}")
    hidden = max(fewer * channels, 4 * channels)
    result["hidden_size"] = hidden
    old_hidden = getattr(model, "hidden_size", None) or 0
    given: int = getattr(model, "kv_channels", None) or 0
    if fewer * channels != hidden or (not latent and given and given * heads != old_hidden):
        # Heads that together are wider or narrower than the hidden size.
        wider = given * heads > old_hidden
        result["kv_channels"] = 2 * hidden // fewer if wider else channels
    elif given:
        result["kv_channels"] = channels
    return result


def _experts(model: Any, new: Layout, notes: Notes) -> dict[str, Any]:
    """How many experts there are, and how they are chosen."""
    experts, ep = model.num_moe_experts, getattr(model, "expert_model_parallel_size", None) or 1
    each = max(1, experts // ep)
    chosen = min(getattr(model, "moe_router_topk", None) or 1, MOST_CHOSEN)
    groups = getattr(model, "moe_router_num_groups", None)
    fewer = new.ep * min(each, 2)
    # Where a token is sent to some of the experts, it is so here too.
    selective = chosen < experts
    while fewer < chosen + selective or (groups and groups > 1 and fewer < 2 * chosen):
        fewer += new.ep
    if groups and groups > 1 and fewer % 2:
        fewer *= 2
    if each == 1 and fewer > new.ep:
        notes.unproven.append(
            f"expert parallelism: a rank with a single expert; {fewer // new.ep} are on each here, "
            f"since a token is sent to {chosen}"
        )
    result: dict[str, Any] = {"num_moe_experts": fewer, "moe_router_topk": chosen}
    if groups:
        of = getattr(model, "moe_router_group_topk", None)
        result["moe_router_num_groups"] = min(groups, 2)
        if of:
            result["moe_router_group_topk"] = 1 if of < groups else min(groups, 2)
    notes.kept.append(f"{chosen} of {fewer} experts for each token")
    return result
