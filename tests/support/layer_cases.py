"""Configurations that make the rules about a layer's experts and recomputation speak."""

from __future__ import annotations

from typing import Any

from megatron.bridge.training.software import AssumedSoftware
from support.rule_runs import MOE, TP4

PLAIN = AssumedSoftware(te=None)
SELECTIVE = {"recompute_granularity": "selective"}
EXPERTS = {"num_moe_experts": 8, "moe_token_dispatcher_type": "alltoall"}
BIASED = {**EXPERTS, "add_bias_linear": True}

BROKEN: dict[str, dict[str, Any]] = {
    "core.expert-bias-splits": {"model": {**TP4, **BIASED}},
    "core.shared-expert-bias": {
        "model": {**MOE, "add_bias_linear": True, "moe_shared_expert_intermediate_size": 64}
    },
    "core.expert-bias-in-place": {"model": BIASED, "software": PLAIN},
    "core.experts-need-sequence-parallel": {
        "model": {**TP4, **EXPERTS, "add_bias_linear": False, "sequence_parallel": False}
    },
    "core.one-expert-pre-softmax": {
        "model": {**EXPERTS, "add_bias_linear": False, "moe_router_topk": 1}
    },
    "core.variable-lengths-dispatcher": {"model": {"variable_seq_lengths": True}},
    "core.recompute-mlp-bias": {
        "model": {**SELECTIVE, "recompute_modules": ["core_attn", "mlp"], "add_bias_linear": True}
    },
    "core.recompute-needs-te": {
        "model": {**SELECTIVE, "recompute_modules": ["layernorm"]},
        "software": PLAIN,
    },
    "core.recompute-units-divide-layers": {
        "model": {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 3,
        },
    },
    "core.distribute-activations-excludes": {
        "model": {
            **TP4,
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
            "distribute_saved_activations": True,
        }
    },
}
