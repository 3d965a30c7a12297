"""What to change when a profile contradicts the plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron.bridge.models.pipeline_layout import virtual_sizes
from megatron.bridge.recipes.launch_queues import CONNECTIONS
from overlapkit.plan.advise.proposal import Proposal

SMALL_BUCKET = 8 * 1024 * 1024
"""Parameters. Halving a smaller bucket adds latency rather than overlap."""


@dataclass(frozen=True)
class NextStep:
    """One thing to try.

    Attributes:
        shows: what `overlapkit trace` would show: the id of a diagnosis, or what to look at.
        change: what to set in that case, and why it helps.
    """

    shows: str
    change: str


def next_steps(p: Proposal) -> list[NextStep]:
    """What to try for this run, what usually helps most first."""
    return [
        *_tensor(p),
        *_gradients(p),
        *_pipeline(p),
        *_experts(p),
        *_launch(p),
    ]


def _tensor(p: Proposal) -> Iterator[NextStep]:
    if not p.effective("model.tp_comm_overlap"):
        return
    if p.preset is not None and p.preset.name is not None:
        yield NextStep(
            "compute-slowed: GEMMs take longer while userbuffers kernels run",
            "lower num_sm of the bulk entries (qkv_dgrad, qkv_wgrad, fc1_dgrad, fc1_wgrad) in a "
            "copy of the preset, or compare with Transformer Engine's own settings: "
            "comm_overlap.tp_comm_overlap_cfg=null",
        )
    else:
        yield NextStep(
            "TP communication is exposed although userbuffers kernels run",
            "set comm_overlap.tp_comm_overlap_cfg: start from the preset of the nearest width, "
            "and raise num_sm where a collective takes longer than its GEMM",
        )


def _gradients(p: Proposal) -> Iterator[NextStep]:
    if not p.effective("ddp.overlap_grad_reduce"):
        return
    size = p.effective("ddp.bucket_size")
    in_one_piece = any(d.rule == "core.single-bucket" for d in p.report.decisions)
    if size and size > SMALL_BUCKET and not in_one_piece:
        yield NextStep(
            "the last gradient reduction is exposed after the backward",
            f"halve the bucket (comm_overlap.bucket_size={size // 2}): about one bucket is "
            "exposed; double it if there are many short reductions far below the link's bandwidth",
        )
    if p.effective("ddp.grad_reduce_in_fp32"):
        yield NextStep(
            "gradient reductions are exposed at the full bandwidth of the link",
            "set mixed_precision.grad_reduce_in_fp32=false, which halves their bytes; gradients "
            "are then summed over the ranks in 16 bits: watch the loss",
        )


def _pipeline(p: Proposal) -> Iterator[NextStep]:
    m = p.run.model
    pp = m.pipeline_model_parallel_size or 1
    if pp == 1:
        return
    sizes = virtual_sizes(m)
    if not p.effective("model.overlap_p2p_comm") and sizes:
        others = f" ({', '.join(map(str, sizes[1:4]))} divide a stage's layers too)"
        yield NextStep(
            "pipeline-exposed, or idle stages",
            f"interleave: set model.virtual_pipeline_model_parallel_size={sizes[0]}"
            f"{others if len(sizes) > 1 else ''}, which also overlaps the sends and divides the "
            "bubble by VPP",
        )
    if not m.share_embeddings_and_output_weights and not m.num_moe_experts:
        yield NextStep(
            "the last stage ends later than the others (spread over ranks)",
            "set comm_overlap.defer_embedding_wgrad_compute=true and "
            "comm_overlap.wgrad_deferral_limit=22, which move the weight gradients of the output "
            "layer to where the pipeline drains (needs model.gradient_accumulation_fusion=true)",
        )


def _experts(p: Proposal) -> Iterator[NextStep]:
    if not (p.run.model.expert_model_parallel_size or 1) > 1:
        return
    if not p.effective("model.overlap_moe_expert_parallel_comm"):
        yield NextStep(
            "expert-exchange-exposed",
            "set comm_overlap.overlap_moe_expert_parallel_comm=true once its conditions are met, "
            "or model.moe_token_dispatcher_type=flex with a DeepEP or HybridEP backend, whose "
            "kernels are faster",
        )
    elif not p.effective("model.delay_wgrad_compute"):
        yield NextStep(
            "expert-exchange-exposed in the backward",
            "set comm_overlap.delay_wgrad_compute=true, so that the exchange can hide under the "
            "GEMMs of the weight gradients (Transformer Engine 2.7 or newer)",
        )


def _launch(p: Proposal) -> Iterator[NextStep]:
    values = {v.name: v.value for v in p.report.launch_env}
    if values.get(CONNECTIONS) == "1" and p.effective("ddp.overlap_grad_reduce"):
        yield NextStep(
            "one-queue: gradient reductions start only after compute that was launched before them",
            "TP overlap needs this launch order; if TP communication is hidden and DP is not, try "
            f"{CONNECTIONS}=2 to 8, and keep it only if both stay hidden",
        )
    yield NextStep(
        "layernorm-waits: a norm waits for a collective",
        "raise both NVTE_*_LAYERNORM_SM_MARGIN to the number of SMs that the collective uses",
    )
    yield NextStep(
        "device-idle: the GPU waits for the host",
        "set train.manual_gc=true, launch fewer small kernels (CUDA graphs), or use a larger "
        "micro-batch",
    )
