"""Configurations that make each rule of comm_overlap and Megatron-Core speak, by its id."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

# Imported for the rules that it declares.
from megatron.bridge.training.decisions import RULES
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN
from support import layer_cases, machine_cases, newer_stack_cases, size_cases
from support.rule_runs import DELAY, DISTRIBUTED, EP, EVERYTHING, MOE, OFF, TP4


def on_stack(name: str, case: dict[str, Any], *, holds: bool = True) -> dict[str, Any]:
    """A case on the newest known stack for which the rule holds, or does not."""
    stack = next(s for s in reversed(KNOWN) if RULES[name].holds(s) is holds)
    return {**case, "software": replace(case.get("software", EVERYTHING), stack=stack)}


WIDE = {**TP4, "hidden_size": 8192, "num_attention_heads": 64}

MXFP8_GATHER = {
    **DISTRIBUTED,
    "fp8_param_gather": True,
    "reuse_grad_buf_for_mxfp8_param_ag": True,
}

STAGES = {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2}

# Each rule that finds something, with a configuration that it finds it in.
BROKEN: dict[str, dict[str, Any]] = {
    "core.full-iteration-with-optimizer-step": {
        "model": {**STAGES, "cuda_graph_impl": "local", "cuda_graph_scope": ["full_iteration"]},
        "ddp": DISTRIBUTED,
        "comm": {**OFF, "overlap_param_gather_with_optimizer_step": True},
        "rerun_state_machine": {"check_for_nan_in_loss": False},
    },
    "core.ep-overlap-hybrid": {"model": {**MOE, "is_hybrid_model": True}, "comm": EP},
    "core.hybrid-no-virtual-pipeline": {
        "model": {**STAGES, "is_hybrid_model": True},
        "comm": OFF,
    },
    "core.cp-exchange-of-each-layer": {
        "model": {"context_parallel_size": 2, "cp_comm_type": ["p2p", "a2a"]},
    },
    **newer_stack_cases.BROKEN,
    **machine_cases.BROKEN,
    **size_cases.BROKEN,
    "tp.needs-tensor-parallel": {"comm": {"tp_comm_overlap": True}},
    "tp.needs-sequence-parallel": {
        "model": {**TP4, "sequence_parallel": False},
        "comm": {"tp_comm_overlap": True},
    },
    "tp.needs-transformer-engine": {
        "model": TP4,
        "comm": {"tp_comm_overlap": True},
        "software": AssumedSoftware(te=None),
    },
    "pp.same-peer-hazard": {
        "model": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    },
    "wrong.optimizer-instances": {
        "ddp": {**DISTRIBUTED, "num_distributed_optimizer_instances": 2},
        "comm": OFF,
    },
    "wrong.mxfp8-experts-cleared": {
        "model": MOE,
        "ddp": MXFP8_GATHER,
        "comm": {**OFF, "overlap_param_gather": False},
    },
    "wrong.mxfp8-gathers-differ": {
        "ddp": {**MXFP8_GATHER, "overlap_grad_reduce": True, "overlap_param_gather": True},
        # Megatron-Bridge keeps them equal since 0.5.1, with the core that has no such bug.
    },
    "wrong.mxfp8-with-optimizer-step": {
        "model": {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2},
        "ddp": MXFP8_GATHER,
        "comm": {**OFF, "overlap_param_gather_with_optimizer_step": True},
    },
    "wrong.fp8-forced-gather": {
        "ddp": {**DISTRIBUTED, "fp8_param_gather": True},
        "comm": OFF,
        "train": {"eval_iters": 10, "eval_interval": 100},
    },
    "wrong.experts-reduced-as-dense": {
        "model": {
            "tensor_model_parallel_size": 4,
            "sequence_parallel": True,
            "num_moe_experts": 8,
            "expert_tensor_parallel_size": 1,
            "moe_token_dispatcher_type": "alltoall",
            "add_bias_linear": False,
        },
    },
    "wrong.mtp-learned-positions": {
        "model": {"pipeline_model_parallel_size": 4, "mtp_num_layers": 1},
    },
    **layer_cases.BROKEN,
    "dp.param-gather-differs": {
        "ddp": DISTRIBUTED,
        "optimizer": {**DISTRIBUTED, "overlap_param_gather": True},
    },
    "dp.needs-distributed-optimizer": {"comm": {**OFF, "overlap_grad_reduce": True}},
    "dp.bucket-size-value": {"ddp": DISTRIBUTED, "comm": {**OFF, "bucket_size": "big"}},
    "ep.needs-expert-parallel": {"model": {**MOE, "expert_model_parallel_size": 1}, "comm": EP},
    "ep.needs-experts": {"model": {**MOE, "num_moe_experts": None}, "comm": EP},
    "ep.needs-dispatcher": {
        "model": {**MOE, "moe_token_dispatcher_type": "allgather"},
        "comm": EP,
    },
    "ep.needs-half-precision": {"model": {**MOE, "bf16": False}, "comm": EP},
    "ep.needs-torch": {
        "model": MOE,
        "comm": EP,
        "software": AssumedSoftware(torch="2.5.1"),
    },
    "ep.needs-virtual-pipeline": {
        "model": {**MOE, "pipeline_model_parallel_size": 2},
        "comm": EP,
    },
    "ep.no-full-recompute": {"model": {**MOE, "recompute_granularity": "full"}, "comm": EP},
    "ep.no-recompute-method": {"model": {**MOE, "recompute_method": "block"}, "comm": EP},
    "ep.no-recompute-layers": {"model": {**MOE, "recompute_num_layers": 1}, "comm": EP},
    "ep.no-moe-recompute": {"model": {**MOE, "recompute_modules": ["moe"]}, "comm": EP},
    "ep.no-shared-expert-overlap": {
        "model": {**MOE, "moe_shared_expert_overlap": True},
        "comm": EP,
    },
    "ep.one-mtp-layer": {"model": {**MOE, "mtp_num_layers": 2}, "comm": EP},
    "ep.delay-needs-ep-overlap": {
        "model": MOE,
        "comm": {"tp_comm_overlap": False, "delay_wgrad_compute": True},
    },
    "ep.delay-needs-te-2.7": {
        "model": {**MOE, "gradient_accumulation_fusion": True},
        "comm": DELAY,
        "software": AssumedSoftware(te="2.6.0"),
    },
    "ep.delay-graph-needs-te-2.12": {
        "model": {**MOE, "cuda_graph_scope": ["attn"], "gradient_accumulation_fusion": True},
        "comm": DELAY,
        "software": AssumedSoftware(te="2.11"),
    },
    "ep.delay-graph-needs-fusion": {
        "model": {
            **MOE,
            "cuda_graph_scope": ["moe_router"],
            "moe_shared_expert_intermediate_size": 64,
            "gradient_accumulation_fusion": False,
        },
        "comm": DELAY,
    },
    "ep.delay-graph-no-attention-bias": {
        "model": {
            **MOE,
            "cuda_graph_scope": ["attn"],
            "gradient_accumulation_fusion": True,
            "add_bias_linear": True,
        },
        "comm": DELAY,
    },
    "core.reuse-grad-buf-needs": {"ddp": {"reuse_grad_buf_for_mxfp8_param_ag": True}},
    "core.fp8-param-needs": {"model": {"fp8_param": True}},
    "core.sequence-parallel": {"model": {"sequence_parallel": True}},
    "core.p2p-modes-exclude": {
        "model": {
            "pipeline_model_parallel_size": 4,
            "virtual_pipeline_model_parallel_size": 2,
            "overlap_p2p_comm": True,
            "batch_p2p_comm": True,
        }
    },
    "core.p2p-overlap-needs-interleaving": {
        "model": {"pipeline_model_parallel_size": 4, "overlap_p2p_comm": True}
    },
    "core.p2p-warmup-flush": {"model": {"overlap_p2p_comm_warmup_flush": True}},
    "core.defer-embedding-wgrad": {
        "model": {"pipeline_model_parallel_size": 4, "gradient_accumulation_fusion": True},
        "comm": {**OFF, "defer_embedding_wgrad_compute": True},
    },
    "core.expert-parallel-needs-experts": {"model": {"expert_model_parallel_size": 4}},
    "core.ep-overlap-mtp-zero": {"model": {**MOE, "mtp_num_layers": 0}, "comm": EP},
    "core.ep-overlap-mtp-needs-pipeline": {"model": {**MOE, "mtp_num_layers": 1}, "comm": EP},
    "core.ep-overlap-graph-kind": {
        "model": {**MOE, "cuda_graph_impl": "local", "cuda_graph_scope": "full_iteration"},
        "comm": EP,
    },
    "core.ep-overlap-needs": {
        "model": {**MOE, "cuda_graph_impl": "transformer_engine", "cuda_graph_scope": ["moe"]},
        "comm": EP,
    },
    "core.early-release-needs-ep-overlap": {
        "model": {**MOE, "ep_overlap_early_attn_memory_release": True}
    },
    "core.dispatch-wgrad-excludes": {
        "model": {**MOE, "overlap_dispatch_backward_with_experts_wgrad": True},
        "comm": EP,
    },
    "core.dispatch-wgrad-needs-te": {
        "model": {**MOE, "overlap_dispatch_backward_with_experts_wgrad": True},
        "software": AssumedSoftware(te="2.2.0"),
    },
    "core.delay-wgrad-needs": {"model": {**MOE, "delay_wgrad_compute": True}},
    "core.delay-wgrad-legacy-gemm": {
        "model": {**MOE, "moe_use_legacy_grouped_gemm": True},
        "comm": DELAY,
    },
    "core.delay-wgrad-graph-needs-te": {
        "model": {**MOE, "cuda_graph_impl": "transformer_engine", "cuda_graph_scope": ["mamba"]},
        "comm": DELAY,
        "software": AssumedSoftware(te="2.9.0"),
    },
    "bridge.local-graph-scopes": {
        "model": {"cuda_graph_impl": "local", "cuda_graph_modules": ["attn"]}
    },
    "core.num-buckets-excludes": {
        "ddp": {**DISTRIBUTED, "num_buckets": 4},
        "comm": OFF,
    },
    "core.mxfp8-gather-needs-reuse": {
        "model": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
        "ddp": {**DISTRIBUTED, "fp8_param_gather": True},
    },
    "core.mxfp8-reuse-excludes-step": {
        "model": {
            "fp8": "e4m3",
            "fp8_recipe": "mxfp8",
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
        },
        "ddp": {
            **DISTRIBUTED,
            "fp8_param_gather": True,
            "reuse_grad_buf_for_mxfp8_param_ag": True,
        },
        "comm": {**OFF, "overlap_param_gather_with_optimizer_step": True},
    },
    "core.optimizer-instances-need": {"ddp": {"num_distributed_optimizer_instances": 2}},
    "core.shared-expert-overlap-needs": {
        "model": {
            **MOE,
            "moe_token_dispatcher_type": "flex",
            "moe_shared_expert_intermediate_size": 64,
            "moe_shared_expert_overlap": True,
        }
    },
    "core.param-gather-needs": {"ddp": {**DISTRIBUTED, "overlap_param_gather": True}},
    "core.param-gather-with-optimizer-step-needs": {
        "ddp": {**DISTRIBUTED, "overlap_grad_reduce": True},
        "optimizer": {**DISTRIBUTED, "overlap_param_gather_with_optimizer_step": True},
    },
    "core.bucket-ignored": {"ddp": {"bucket_size": 1_000_000}},
}

# Each note, with a configuration that draws it.
NOTED: dict[str, dict[str, Any]] = {
    **newer_stack_cases.NOTED,
    "wrong.fsdp-sharded-experts": {
        "model": {**MOE, "expert_model_parallel_size": 16},
        "ddp": {
            "use_megatron_fsdp": True,
            "data_parallel_sharding_strategy": "optim_grads_params",
        },
    },
    "bridge.optimizer-step-checkpoint": {
        "model": STAGES,
        "ddp": DISTRIBUTED,
        "comm": {**OFF, "overlap_param_gather_with_optimizer_step": True},
    },
    "core.cp-exchange-exposed": {
        "model": {"context_parallel_size": 2, "cp_comm_type": "a2a"},
    },
    "tp.userbuffers-default": {"model": WIDE, "comm": {"tp_comm_overlap": True}},
    "tp.preset-fit": {
        "model": WIDE,
        "comm": {
            "tp_comm_overlap": True,
            "tp_comm_overlap_cfg": "userbuffers_fp8_b200_h8192_tp2_mbs1_seqlen8192",
        },
    },
    "dp.distributed-optimizer-sync": {"optimizer": DISTRIBUTED},
    "core.no-replica": {"ddp": {"overlap_grad_reduce": True}, "world_size": 1},
    "core.fsdp": {"ddp": {"use_megatron_fsdp": True}},
    "core.bucket-default": {"ddp": {"overlap_grad_reduce": True}},
    "core.bucket-count": {"ddp": {"overlap_grad_reduce": True}},
    "core.single-bucket": {"ddp": {"overlap_grad_reduce": True}},
    "core.layout-sets-vpp": {
        "model": {
            "pipeline_model_parallel_size": 4,
            "pipeline_model_parallel_layout": "Et|(t|)*6tL",
        },
    },
    "dp.param-gather-sync": {
        "ddp": {**DISTRIBUTED, "overlap_grad_reduce": True, "overlap_param_gather": True}
    },
    "core.sent-then-freed": {
        "model": {
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
            "deallocate_pipeline_outputs": True,
        },
        "comm": OFF,
    },
    "core.first-chunk-only": {
        "model": {"pipeline_model_parallel_size": 4},
        "ddp": {"overlap_grad_reduce": True},
    },
}

# Rules that only ever grant or choose a default, with one configuration each.
CHOSEN: dict[str, dict[str, Any]] = {
    "any.user-wins": {
        "ddp": DISTRIBUTED,
        "comm": {**OFF, "overlap_grad_reduce": False},
    },
    "any.no-comm-overlap": {},
    "tp.off-unless-asked": {"comm": OFF},
    "tp.bootstrap-backend": {"comm": OFF},
    "pp.none": {"comm": OFF},
    "pp.interleaved": {
        "model": {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2},
        "comm": OFF,
    },
    "pp.not-interleaved": {"model": {"pipeline_model_parallel_size": 4}, "comm": OFF},
    "pp.wgrad-deferral": {"comm": OFF},
    "ep.off-unless-asked": {"comm": OFF},
    "dp.size-1": {"ddp": DISTRIBUTED, "comm": OFF, "world_size": 1},
    "dp.defaults": {"ddp": DISTRIBUTED, "comm": OFF},
    "dp.bucket-size": {"ddp": DISTRIBUTED, "comm": OFF},
    "dp.align-param-gather": {"ddp": DISTRIBUTED, "comm": OFF},
    "dp.param-gather-with-optimizer-step": {"ddp": DISTRIBUTED, "comm": OFF},
}

ALL_CASES = BROKEN | NOTED | CHOSEN
