"""What the forward of a layer keeps for its backward.

Counted as in Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models,
2022, section 4.1, for kernels as Transformer Engine fuses them: flash attention keeps no scores,
the input of a quantized GEMM is kept in its small format, and there is no dropout mask.
"""

from __future__ import annotations

from overlapkit.plan.figure import Figure, given, literal, total
from overlapkit.plan.workload.memory_traffic import (
    attention_output,
    attention_widths,
    shared_tokens,
)
from overlapkit.plan.workload.precision import Precision
from overlapkit.plan.workload.recompute import Recompute
from overlapkit.plan.workload.step import Workload


def layer_input(workload: Workload) -> Figure:
    """Bytes of a layer's input, which is all that full recomputation keeps."""
    hidden = given("hidden size", workload.shape.hidden, "", "model.hidden_size")
    size = literal(workload.base.operand_bytes, "B")
    return (shared_tokens(workload.layout) * hidden * size).called("input of a layer", "B")


def layer_activations(
    workload: Workload, low: Precision, recompute: Recompute, *, moe: bool
) -> Figure:
    """Bytes that one layer keeps of one microbatch, without full recomputation.

    Args:
        workload: of the run.
        low: precision of the layer's linear layers.
        recompute: what selective recomputation drops.
        moe: whether the layer has experts.
    """
    shape, layout, base = workload.shape, workload.layout, workload.base
    modules = recompute.modules
    shared, tokens = shared_tokens(layout), layout.tokens
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    size, small = base.operand_bytes, low.operand_bytes
    norms = 0 if "layernorm" in modules else small
    queries, keys, values = attention_widths(shape)
    inside = given(
        "attention width per rank",
        (queries + keys + values) / shape.tp,
        "",
        "heads x head size / TP",
    )
    out = given(
        "attention output width per rank",
        attention_output(shape) / shape.tp,
        "",
        "heads x head size / TP",
    )
    # Two residual sums, which the norms read, and two normalized inputs of GEMMs.
    kept = [shared * hidden * literal(2 * size + 2 * norms, "B")]
    if "core_attn" in modules:
        kept.append(tokens * out * literal(small, "B"))
    else:
        own = 0 if low is base else small
        both = tokens * (inside + out) * literal(size, "B")
        kept.append(both + tokens * out * literal(own, "B"))
    if moe and shape.experts:
        if "moe" not in modules:
            kept.append(_experts(workload, low, recompute))
        if shape.experts.shared_ffn and not {"moe", "shared_experts"} & set(modules):
            kept.append(_mlp(workload, tokens, shape.experts.shared_ffn / shape.tp, low, ()))
    elif "mlp" not in modules:
        kept.append(_mlp(workload, tokens, shape.ffn / shape.tp, low, modules))
    return total(kept).called("activations of a layer", "B")


def _mlp(
    workload: Workload, rows: Figure, width: float, low: Precision, modules: tuple[str, ...]
) -> Figure:
    middle = given("feed-forward width per rank", width, "", "feed-forward width / TP")
    wide = 2 if workload.shape.gated else 1
    activated = 0 if "moe_act" in modules else low.operand_bytes
    return rows * middle * literal(wide * workload.base.operand_bytes + activated, "B")


def _experts(workload: Workload, low: Precision, recompute: Recompute) -> Figure:
    """Token copies as they arrive, and what the experts keep of them."""
    shape, layout = workload.shape, workload.layout
    assert shape.experts is not None
    copies = given(
        "copies x expert TP", workload.copies * layout.expert_tp, "", "model.moe_router_topk"
    )
    rows = (shared_tokens(layout) * copies).called("token copies at a rank's experts", "tokens")
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    width = shape.experts.ffn / shape.expert_tp
    return rows * hidden * literal(low.operand_bytes, "B") + _mlp(
        workload, rows, width, low, recompute.modules
    )


def logits(workload: Workload) -> Figure:
    """Bytes of the logits and their gradient, while the loss is computed."""
    shape = workload.shape
    vocab = given("vocabulary per rank", shape.vocab / shape.tp, "", "padded vocabulary / TP")
    size = workload.base.operand_bytes
    # The fp32 copy that the loss uses becomes the gradient.
    return (workload.layout.tokens * vocab * literal(size + 4, "B")).called(
        "logits and their gradient", "B"
    )
