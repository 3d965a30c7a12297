"""What the forward of a layer keeps for its backward.

Counted as in Korthikanti et al., Reducing Activation Recomputation in Large Transformer Models,
2022, section 4.1, for kernels as Transformer Engine fuses them: flash attention keeps no scores,
the input of a quantized GEMM is kept in its small format, and there is no dropout mask.
"""

from __future__ import annotations

from megatron.bridge.models.layer_blocks import ATTENTION, MAMBA, MLP
from overlapkit.plan.figure import Figure, given, literal, total
from overlapkit.plan.workload.layers import LayerWork
from overlapkit.plan.workload.mamba import mamba_kept
from overlapkit.plan.workload.memory_traffic import (
    attention_output,
    attention_widths,
    expert_input,
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


def layer_activations(workload: Workload, work: LayerWork) -> Figure:
    """Bytes that one layer keeps of one microbatch, without full recomputation.

    Args:
        workload: of the run.
        work: the kind of layer.
    """
    shape, layout, base, low = workload.shape, workload.layout, workload.base, work.precision
    modules = work.recompute.modules
    shared = shared_tokens(layout)
    hidden = given("hidden size", shape.hidden, "", "model.hidden_size")
    size, small = base.operand_bytes, low.operand_bytes
    norms = 0 if "layernorm" in modules else small
    if not work.blocks:
        # Prediction: embedding and hidden state, normalized and together, and its output's norm.
        return (shared * hidden * literal(3 * size + 2 * small + size, "B")).called(
            "activations of a layer", "B"
        )
    # Of each block the residual sum, which its norm reads, and the normalized input of its GEMMs.
    kept = [shared * hidden * literal(len(work.blocks) * (size + norms), "B")]
    if ATTENTION in work.blocks:
        kept.append(_attention(workload, low, modules))
    if MAMBA in work.blocks and shape.mamba:
        kept.append(mamba_kept(shape, shape.mamba, layout, base, low))
    if work.moe and shape.experts:
        if "moe" not in modules:
            kept.append(_experts(workload, low, work.recompute))
        if shape.experts.shared_ffn and not {"moe", "shared_experts"} & set(modules):
            width = shape.experts.shared_ffn / shape.tp
            kept.append(_mlp(workload, layout.tokens, width, low, ()))
    elif MLP in work.blocks and "mlp" not in modules:
        kept.append(_mlp(workload, layout.tokens, shape.ffn / shape.tp, low, modules))
    return total(kept).called("activations of a layer", "B")


def _attention(workload: Workload, low: Precision, modules: tuple[str, ...]) -> Figure:
    """Queries, keys, values, the output, and the output projection's input."""
    shape, tokens = workload.shape, workload.layout.tokens
    size, small = workload.base.operand_bytes, low.operand_bytes
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
    if "core_attn" in modules:
        return tokens * out * literal(small, "B")
    own = 0 if low is workload.base else small
    both = tokens * (inside + out) * literal(size, "B")
    return both + tokens * out * literal(own, "B")


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
    width = shape.experts.ffn / shape.expert_tp
    kept = rows * expert_input(shape) * literal(low.operand_bytes, "B") + _mlp(
        workload, rows, width, low, recompute.modules
    )
    if shape.experts.latent:
        # The projection back keeps what it projects.
        kept = kept + shared_tokens(layout) * expert_input(shape) * literal(low.operand_bytes, "B")
    return kept


def logits(workload: Workload) -> Figure:
    """Bytes of the logits and their gradient, while the loss is computed; with multi-token
    prediction those of all depths, whose losses are added up before the backward."""
    shape = workload.shape
    vocab = given("vocabulary per rank", shape.vocab / shape.tp, "", "padded vocabulary / TP")
    size = workload.base.operand_bytes
    # The fp32 copy that the loss uses becomes the gradient.
    return workload.of_all_heads(workload.layout.tokens * vocab * literal(size + 4, "B")).called(
        "logits and their gradient", "B"
    )
