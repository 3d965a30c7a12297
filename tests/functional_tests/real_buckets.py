"""Builds real Megatron-Core models and prints what their tensors and gradient buckets are.

    python real_buckets.py FOLDER LAYER_SPEC

FOLDER/real.json holds cases for four real ranks over gloo. Those in FOLDER/played.json name a
"world", whose ranks this process plays one after the other over torch's fake process group. Writes
FOLDER/<rank>.json for each real rank and FOLDER/all.json for the played ones: chunks by case.
Everything is imported once and the real ranks are forked, since importing takes most of the time.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_mtp_block_spec,
)
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch.testing._internal.distributed.fake_pg import FakeStore

from overlapkit.lab.rank.cuda_stand_in import stand_in_for_cuda

PROVIDER_FIELDS = (
    "vocab_size",
    "seq_length",
    "position_embedding_type",
    "share_embeddings_and_output_weights",
)


def build(case: dict[str, Any], spec: str) -> list[dict[str, Any]]:
    """The chunks of the present rank, as Megatron-LM builds and wraps them."""
    model = dict(case["model"])
    own = {name: model.pop(name) for name in PROVIDER_FIELDS}
    cp = model.pop("context_parallel_size", 1)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=model.get("tensor_model_parallel_size", 1),
        pipeline_model_parallel_size=model.get("pipeline_model_parallel_size", 1),
        virtual_pipeline_model_parallel_size=model.get("virtual_pipeline_model_parallel_size"),
        context_parallel_size=cp,
        expert_model_parallel_size=model.get("expert_model_parallel_size", 1),
        expert_tensor_parallel_size=model.get("expert_tensor_parallel_size"),
        num_distributed_optimizer_instances=case["ddp"].get(
            "num_distributed_optimizer_instances", 1
        ),
        create_gloo_process_groups=False,
    )
    of_type = MLATransformerConfig if model.get("multi_latent_attention") else TransformerConfig
    config = of_type(
        use_cpu_initialization=True,
        perform_initialization=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        pipeline_dtype=torch.bfloat16 if model.get("bf16") else torch.float32,
        params_dtype=torch.bfloat16 if model.get("bf16") else torch.float32,
        **model,
    )
    ddp_config = DistributedDataParallelConfig(**case["ddp"])
    pp_rank = parallel_state.get_pipeline_model_parallel_rank()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    chunks = config.virtual_pipeline_model_parallel_size or 1
    described = []
    for vp_stage in range(chunks):
        first = pp_rank == vp_stage == 0
        last = pp_rank == stages - 1 and vp_stage == chunks - 1
        fused, stage = spec == "transformer_engine", vp_stage if chunks > 1 else None
        layers = get_gpt_decoder_block_spec(
            config,
            use_transformer_engine=fused,
            normalization=config.normalization,
            qk_l2_norm=config.qk_l2_norm,
            vp_stage=stage,
        )
        predicting = None
        if config.mtp_num_layers and layers.layer_specs:
            predicting = get_gpt_mtp_block_spec(config, layers, fused, vp_stage=stage)
        gpt = GPTModel(
            config=config,
            transformer_layer_spec=layers,
            mtp_block_spec=predicting,
            vocab_size=own["vocab_size"],
            max_sequence_length=own["seq_length"],
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=own["share_embeddings_and_output_weights"],
            position_embedding_type=own["position_embedding_type"],
            vp_stage=stage,
        )
        if config.bf16:
            # As Float16Module does before the model is wrapped.
            gpt.bfloat16()
        tensors = [
            (
                name,
                parameter.numel(),
                not getattr(parameter, "allreduce", True),
                getattr(parameter, "shared_embedding", False),
            )
            for name, parameter in gpt.named_parameters()
        ]
        names = {id(parameter): name for name, parameter in gpt.named_parameters()}
        ddp = DistributedDataParallel(
            config, ddp_config, gpt, disable_bucketing=vp_stage > 0 or case["with_optimizer_step"]
        )
        groups = [*ddp.bucket_groups, *ddp.expert_parallel_bucket_groups]
        buckets = [
            {
                "tensors": [names[id(parameter)] for parameter in bucket.params_list],
                "size": bucket.grad_data.numel(),
                "expert": group in ddp.expert_parallel_bucket_groups,
                "reduced_bytes": bucket.grad_data.nbytes,
                "gathered_bytes": 0 if bucket.param_data is None else bucket.param_data.nbytes,
            }
            for group in groups
            for bucket in group.buckets
        ]
        described.append(
            {
                "pp_rank": pp_rank,
                "vp_stage": vp_stage,
                "bucket_size": ddp.bucket_size,
                "tensors": tensors,
                "buckets": buckets,
                "collectives": len(groups),
            }
        )
    parallel_state.destroy_model_parallel()
    return described


def play(case: dict[str, Any], spec: str) -> list[dict[str, Any]]:
    """Every rank of the case's world in turn, over a process group that communicates nothing."""
    chunks = []
    for rank in case.get("ranks", range(case["world"])):
        torch.distributed.init_process_group(
            "fake", rank=rank, world_size=case["world"], store=FakeStore()
        )
        chunks += build(case, spec)
        torch.distributed.destroy_process_group()
    return chunks


def rank_of_four(rank: int, folder: Path, spec: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=4
    )
    cases = json.loads((folder / "real.json").read_text())
    built = {case["id"]: build(case, spec) for case in cases}
    torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(built))


def main(folder: Path, spec: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    stand_in_for_cuda()
    # Building the legacy grouped experts needs none of its kernels, only this check to pass.
    with contextlib.suppress(ImportError):  # It ended with megatron-core 0.16.
        from megatron.core.transformer.moe import grouped_gemm_util

        grouped_gemm_util.assert_grouped_gemm_is_available = lambda: None
    if spec == "transformer_engine":
        # Its modules ask for CUDA when they are built, but are built on the device that is named.
        torch.cuda.is_available = lambda: True
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank_of_four, args=(rank, folder, spec)) for rank in range(4)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    cases = json.loads((folder / "played.json").read_text())
    built = {case["id"]: play(case, spec) for case in cases}
    (folder / "all.json").write_text(json.dumps(built))
    sys.exit(max(process.exitcode or 0 for process in ranks))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
