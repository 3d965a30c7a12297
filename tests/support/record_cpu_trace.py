"""Records the real profiles of tests/data/traces: torch.profiler on two CPU ranks over gloo.

    uv run python tests/support/record_cpu_trace.py ddp tests/data/traces
    uv run python tests/support/record_cpu_trace.py megatron-overlap tests/data/traces
    uv run python tests/support/record_cpu_trace.py megatron-no-overlap tests/data/traces
    uv run python tests/support/record_cpu_trace.py megatron-pipeline tests/data/traces

Writes ``<kind>.rank0.json.gz`` and ``<kind>.rank1.json.gz``, exactly as the profiler exports
them, and prints the versions for the README there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile, schedule

RANKS = 2
STEPS = 3


def ddp_step() -> Callable[[], None]:
    """PyTorch's DistributedDataParallel on a perceptron, with small buckets."""
    width = 256
    layers = [torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU()) for _ in range(6)]
    # 256 x 256 parameters of 4 bytes are 0.26 MB, so that each layer fills a bucket.
    model = torch.nn.parallel.DistributedDataParallel(
        torch.nn.Sequential(*layers), bucket_cap_mb=0.25
    )
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(512, width)

    def step() -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    return step


def megatron_step(overlap: bool, pipeline: bool) -> Callable[[], None]:
    """Megatron-Core's GPT with its distributed optimizer and its schedules."""
    from overlapkit.lab.rank.cuda_stand_in import stand_in_for_cuda

    stand_in_for_cuda()
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer import TransformerConfig

    stages = RANKS if pipeline else 1
    parallel_state.initialize_model_parallel(pipeline_model_parallel_size=stages)
    config = TransformerConfig(
        num_layers=2 if pipeline else 4,
        hidden_size=128,
        num_attention_heads=4,
        pipeline_model_parallel_size=stages,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
    )
    vocabulary, length, batch = 512, 64, 4
    model = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(),
        vocab_size=vocabulary,
        max_sequence_length=length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    wrapped = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            overlap_grad_reduce=overlap,
            overlap_param_gather=overlap,
            bucket_size=200_000,
        ),
        model,
    )
    config.no_sync_func = wrapped.no_sync
    config.finalize_model_grads_func = finalize_model_grads
    if overlap:
        config.grad_sync_func = wrapped.start_grad_sync
        config.param_sync_func = wrapped.start_param_sync
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=1e-3,
            use_distributed_optimizer=True,
            overlap_param_gather=overlap,
            clip_grad=0.0,
        ),
        [wrapped],
    )
    tokens = torch.randint(vocabulary, (batch, length))
    positions = torch.arange(length).expand(batch, length)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)

    def forward(_: Any, module: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
        output = module(tokens, positions, mask, labels=tokens)
        return output, lambda losses: (losses.mean(), {})

    def step() -> None:
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=None,
            model=[wrapped],
            num_microbatches=4 if pipeline else 1,
            seq_length=length,
            micro_batch_size=batch,
            forward_only=False,
        )
        optimizer.step()

    return step


KINDS: dict[str, Callable[[], Callable[[], None]]] = {
    "ddp": ddp_step,
    "megatron-overlap": lambda: megatron_step(overlap=True, pipeline=False),
    "megatron-no-overlap": lambda: megatron_step(overlap=False, pipeline=False),
    "megatron-pipeline": lambda: megatron_step(overlap=False, pipeline=True),
}


def record(rank: int, kind: str, folder: str) -> None:
    """Run the training loop of `kind` as `rank` and export its profile."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    step = KINDS[kind]()
    step()
    # Parts of the path end up in the file, so it is exported under its bare name.
    os.chdir(folder)
    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=0, warmup=1, active=STEPS, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(f"{kind}.rank{rank}.json.gz"),
    ) as profiler:
        for _ in range(1 + STEPS):
            step()
            profiler.step()
    dist.destroy_process_group()


def main() -> None:
    """Record one kind into one folder."""
    if len(sys.argv) != 3 or sys.argv[1] not in KINDS:
        raise SystemExit(f"usage: record_cpu_trace.py {{{','.join(KINDS)}}} FOLDER")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29517", GLOO_SOCKET_IFNAME="lo")
    mp.spawn(record, args=(sys.argv[1], sys.argv[2]), nprocs=RANKS)
    print(f"torch {torch.__version__}, python {sys.version.split()[0]}")
    if sys.argv[1].startswith("megatron"):
        from importlib.metadata import version

        print(f"megatron-core {version('megatron-core')}")


if __name__ == "__main__":
    main()
