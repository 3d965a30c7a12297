"""Configurations for the rules of newer stacks: each makes one rule apply."""

from __future__ import annotations

from typing import Any

from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.rules.context import Gpu
from megatron.bridge.training.software import AssumedSoftware
from support.rule_runs import DISTRIBUTED, EP, MOE, OFF

FSDP = {"use_megatron_fsdp": True}
V2 = {**FSDP, "megatron_fsdp_version": 2}
TORCH = {"use_torch_fsdp2": True}
BF16 = {"bf16": True}
FLEX = {**MOE, "moe_token_dispatcher_type": "flex"}
NCCLEP = {**FLEX, "moe_flex_dispatcher_backend": "ncclep"}
EXPANDABLE = JobEnvironment({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})
LAYER_WISE = {"use_layer_wise_distributed_optimizer": True}

BROKEN: dict[str, dict[str, Any]] = {
    "dp.torch-fsdp2-ignores": {"dist": TORCH, "ddp": {"overlap_grad_reduce": True}},
    "bridge.fsdp-excludes-torch": {"dist": {**TORCH, **FSDP}},
    "bridge.fsdp-excludes-mapping": {"dist": {**FSDP, "use_tp_pp_dp_mapping": True}},
    "bridge.fsdp-registration-needs": {"ddp": {**FSDP, "fsdp_manual_registration": True}},
    "bridge.fsdp-v2-layout": {
        "ddp": V2,
        "model": {**BF16, "tensor_model_parallel_size": 2},
    },
    "bridge.fsdp-v2-precision": {"ddp": V2},
    "bridge.fsdp-v2-fp8": {"ddp": V2, "model": {**BF16, "fp8": "hybrid"}},
    "bridge.fsdp-v2-experts": {"ddp": V2, "model": MOE},
    "bridge.fsdp-v2-instances": {
        "ddp": {**V2, **DISTRIBUTED, "num_distributed_optimizer_instances": 2},
        "model": BF16,
    },
    "bridge.full-iteration-nan-check": {
        "model": {"cuda_graph_impl": "local", "cuda_graph_scope": ["full_iteration"]},
        "rerun_state_machine": {"check_for_nan_in_loss": True},
    },
    "core.graph-scope-twice": {
        "model": {
            "cuda_graph_impl": "transformer_engine",
            "cuda_graph_scope": ["attn"],
            "cuda_graph_modules": ["mlp"],
        }
    },
    "bridge.flex-needs-backend": {"model": {**FLEX, "moe_flex_dispatcher_backend": None}},
    "bridge.deepep-gpu": {
        "model": {**FLEX, "moe_flex_dispatcher_backend": "deepep"},
        "gpu": Gpu("gb200", 10.0),
    },
    "bridge.hybridep-gpu": {
        "model": {**FLEX, "moe_flex_dispatcher_backend": "hybridep"},
        "gpu": Gpu("v100", 7.0),
    },
    "core.flex-sm-counts": {"model": {"moe_deepep_num_sms": 20, "moe_hybridep_num_sms": 16}},
    "core.ncclep-needs-flex": {"model": {**MOE, "moe_flex_dispatcher_backend": "ncclep"}},
    "core.ncclep-serialised": {"model": {**NCCLEP, "moe_ncclep_static_shape": False}, "comm": EP},
    "core.ep-overlap-ncclep-offload": {
        "model": {
            **NCCLEP,
            "fine_grained_activation_offloading": True,
            "offload_modules": ["expert_fc1"],
        },
        "comm": EP,
    },
    "core.optimizer-instances-exclude": {
        "ddp": {
            **DISTRIBUTED,
            "num_distributed_optimizer_instances": 2,
            "reduce_scatter_with_fp32_accumulation": True,
        }
    },
    "core.layer-wise-excludes-step": {
        "ddp": {"overlap_grad_reduce": True, "overlap_param_gather": True},
        "optimizer": {**LAYER_WISE, "overlap_param_gather_with_optimizer_step": True},
    },
    "core.layer-wise-one-instance": {
        "ddp": {"num_distributed_optimizer_instances": 2},
        "optimizer": LAYER_WISE,
    },
    "core.fp32-local-accumulation": {
        "ddp": {
            "param_name_patterns_for_fp32_local_accumulation": ["*.bias"],
            "grad_reduce_in_fp32": True,
        }
    },
    "core.weight-shards-average": {
        "model": {"tensor_parallel_num_weight_shards": 2},
        "ddp": {"average_in_collective": True},
    },
    "bridge.packing-no-ep-overlap": {
        "model": MOE,
        "comm": EP,
        "dataset": {"packing_buffer_size": 16},
    },
}

BROKEN |= {
    "core.param-gather-needs-optimizer": {
        "ddp": {"overlap_param_gather": True, "overlap_grad_reduce": True}
    },
    "core.layout-vpp-differs": {
        "model": {
            "pipeline_model_parallel_size": 4,
            "pipeline_model_parallel_layout": "Et|(t|)*6tL",
            "virtual_pipeline_model_parallel_size": 3,
        }
    },
    "core.fp4-param-needs": {"model": {"fp4_param": True}},
    "core.nccl-ub-expandable": {"ddp": {"nccl_ub": True}, "environment": EXPANDABLE},
    "core.nccl-ub-expandable-torch": {
        "ddp": {"nccl_ub": True},
        "environment": EXPANDABLE,
        "software": AssumedSoftware(torch="2.10.0"),
    },
    "bridge.fsdp-one-queue": {
        "dist": FSDP,
        "environment": JobEnvironment({"CUDA_DEVICE_MAX_CONNECTIONS": "1"}),
    },
}

NOTED: dict[str, dict[str, Any]] = {
    "dp.muon-by-name": {"optimizer": {"optimizer": "dist_muon"}, "comm": OFF},
    "core.param-gather-layer-wise": {
        "ddp": {"overlap_param_gather": True, "overlap_grad_reduce": True}
    },
    "bridge.bucket-default": {"ddp": {"overlap_grad_reduce": True}},
    "bridge.num-buckets": {"ddp": {"overlap_grad_reduce": True, "num_buckets": 8}},
    "bridge.fsdp-sync": {"dist": FSDP},
    "bridge.fsdp-no-fusion": {"dist": FSDP, "model": {"gradient_accumulation_fusion": True}},
    "bridge.fsdp-no-average": {"dist": FSDP, "ddp": {"average_in_collective": True}},
    "bridge.fsdp-no-average-registered": {"dist": FSDP, "ddp": {"average_in_collective": True}},
    "bridge.fsdp-no-reuse": {
        "dist": FSDP,
        "ddp": {"reuse_grad_buf_for_mxfp8_param_ag": True},
    },
    "bridge.fsdp-distributed-optimizer": {"ddp": FSDP},
    "bridge.fsdp-decoupled-grad": {
        "ddp": FSDP,
        "optimizer": {"use_precision_aware_optimizer": True},
    },
    "bridge.fsdp-registration": {"ddp": {**FSDP, "nccl_ub": True}},
    "bridge.fsdp-v2-no-overlap": {
        "ddp": {**V2, "overlap_grad_reduce": True},
        "model": BF16,
    },
    "bridge.graph-scopes-cleared": {"model": {"cuda_graph_scope": ["attn"]}},
    "core.graph-full-iteration": {
        "model": {"cuda_graph_impl": "local", "cuda_graph_scope": ["full_iteration"]},
        "comm": OFF,
    },
    "bridge.flex-falls-back": {"model": {**FLEX, "moe_flex_dispatcher_backend": None}},
}
