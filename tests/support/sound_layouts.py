"""Sound layouts of every kind, drawn with a seed: their sizes divide each other as they must."""

from __future__ import annotations

import random
from typing import Any

Sections = dict[str, dict[str, Any]]


def sound_layout(seed: int) -> tuple[Sections, int]:
    """A configuration with a sound layout, and the GPUs of its job."""
    draw = random.Random(seed)
    tp, pp, cp = (
        draw.choice((1, 1, 2, 4, 8)),
        draw.choice((1, 1, 2, 3, 4, 8)),
        draw.choice((1, 1, 2)),
    )
    experts = draw.random() < 0.4
    dp = draw.choice((1, 2, 4, 8, 16))
    model: dict[str, Any] = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_query_groups": draw.choice((None, 8)),
        "ffn_hidden_size": draw.choice((None, 14336)),
        "gated_linear_unit": draw.random() < 0.5,
        "add_bias_linear": False,
        "normalization": draw.choice(("RMSNorm", "LayerNorm")),
        "seq_length": 4096,
        "vocab_size": 128256,
        "hidden_dropout": 0.0,
        "share_embeddings_and_output_weights": draw.random() < 0.5,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "context_parallel_size": cp,
        "sequence_parallel": tp > 1,
        **_stages(draw, pp),
    }
    if experts:
        ep = draw.choice([n for n in (1, 2, 4, 8) if dp * cp * tp % n == 0])
        model |= {
            "num_moe_experts": ep * draw.choice((1, 2, 8)),
            "moe_router_topk": 1,
            "moe_ffn_hidden_size": 2048,
            "moe_token_dispatcher_type": "alltoall",
            "expert_model_parallel_size": ep,
            "expert_tensor_parallel_size": 1,
            "moe_shared_expert_intermediate_size": draw.choice((None, 2048)),
        }
        model["moe_router_topk"] = draw.randint(1, min(8, model["num_moe_experts"]))
        # Megatron-Core wants it where a token is sent to one expert.
        model["moe_router_pre_softmax"] = model["moe_router_topk"] == 1
    distributed = draw.random() < 0.8
    overlap = draw.random() < 0.8
    sections: Sections = {
        "model": {key: value for key, value in model.items() if value is not None},
        "ddp": {
            "use_distributed_optimizer": distributed,
            "overlap_grad_reduce": overlap,
            "overlap_param_gather": overlap and distributed and draw.random() < 0.8,
        },
        "optimizer": {"use_distributed_optimizer": distributed},
        "mixed_precision": {"bf16": True, "params_dtype": "bfloat16", "pipeline_dtype": "bfloat16"},
    }
    microbatches = draw.choice((1, 2, 4)) * pp + (
        0 if "virtual_pipeline_model_parallel_size" in model else draw.choice((0, 0, 1))
    )
    micro = draw.choice((1, 2, 4))
    sections["train"] = {
        "micro_batch_size": micro,
        "global_batch_size": micro * dp * microbatches,
    }
    if draw.random() < 0.6:
        sections["comm_overlap"] = {"tp_comm_overlap": tp > 1}
        sections["ddp"] = {"use_distributed_optimizer": distributed}
    return sections, tp * pp * cp * dp


def _stages(draw: random.Random, pp: int) -> dict[str, Any]:
    """Layers, divided evenly or not."""
    if pp == 1:
        return {"num_layers": draw.randint(1, 80)}
    each = draw.randint(1, 6)
    kind = draw.choice(
        ("even", "even", "interleaved", "interleaved", "first", "accounted", "layout")
    )
    vpp = draw.randint(2, 6)
    if kind == "interleaved":
        keys = {"virtual_pipeline_model_parallel_size": vpp}
        return {"num_layers": pp * vpp * each, **keys}
    if kind == "first" and pp > 1:
        first = draw.randint(1, 5)
        return {
            "num_layers": first + (pp - 1) * each,
            "num_layers_in_first_pipeline_stage": first,
        }
    if kind == "accounted" and each > 1:
        return {
            "num_layers": pp * each - 2,
            "account_for_embedding_in_pipeline_split": True,
            "account_for_loss_in_pipeline_split": True,
        }
    if kind == "layout":
        counts = [draw.randint(0, 4) for _ in range(pp)]
        counts[0] = max(1, counts[0])
        rows = [["decoder"] * count for count in counts]
        rows[0].insert(0, "embedding")
        rows[-1].append("loss")
        return {"num_layers": sum(counts), "pipeline_model_parallel_layout": rows}
    return {"num_layers": pp * each}
