"""Configurations for the rules of sizes that must divide each other."""

from __future__ import annotations

from typing import Any

PP4 = {"pipeline_model_parallel_size": 4}
INTERLEAVED = {**PP4, "virtual_pipeline_model_parallel_size": 2}

BROKEN: dict[str, dict[str, Any]] = {
    "core.stages-divide-layers": {"model": {**PP4, "num_layers": 10}},
    "core.chunks-divide-layers": {
        "model": {**PP4, "num_layers": 24, "virtual_pipeline_model_parallel_size": 4},
        "comm": {"tp_comm_overlap": False},
    },
    "core.chunks-need-stages": {"model": {"virtual_pipeline_model_parallel_size": 2}},
    "core.stage-sizes-exclude": {
        "model": {
            **PP4,
            "num_layers": 8,
            "num_layers_in_first_pipeline_stage": 2,
            "account_for_loss_in_pipeline_split": True,
        }
    },
    "core.batch-divides": {"train": {"micro_batch_size": 2, "global_batch_size": 48}},
    "core.microbatches-fill-pipeline": {
        "model": INTERLEAVED,
        "comm": {"tp_comm_overlap": False},
        "train": {"micro_batch_size": 1, "global_batch_size": 40},
    },
    "core.checkpoint-shard-of-padding": {
        "ddp": {
            "use_distributed_optimizer": True,
            "overlap_grad_reduce": True,
            "bucket_size": 1,
            "pad_buckets_for_high_nccl_busbw": True,
        },
        "train": {"save": "checkpoints"},
    },
    "core.sequence-divides-cp": {"model": {"context_parallel_size": 4, "seq_length": 4100}},
    "core.sequence-divides-tp": {
        "model": {
            "tensor_model_parallel_size": 4,
            "sequence_parallel": True,
            "seq_length": 4098,
        }
    },
    "core.cp-a2a-divides-heads": {
        "model": {"context_parallel_size": 16, "cp_comm_type": "a2a", "seq_length": 4096}
    },
    "tp.splits-divide-rows": {
        "model": {"tensor_model_parallel_size": 4, "sequence_parallel": True},
        "comm": {
            "tp_comm_overlap": True,
            "tp_comm_overlap_cfg": {"proj_fprop": {"method": "pipeline", "num_splits": 6}},
        },
    },
}
