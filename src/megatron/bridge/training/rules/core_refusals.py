"""What stops a job with expert-parallel overlap or delayed weight gradients.

Each refusal is a rule with the versions that have it and a test: a gate that a version lifted ends
there, and one that a version added begins there. The facts are from the source of the tags in
`megatron.bridge.training.versions.KNOWN`.
"""

from __future__ import annotations

from megatron.bridge.training.decisions import Dimension, rule
from megatron.bridge.training.edits import Edit
from megatron.bridge.training.remedies import DELAYED, ep_overlap_off, off
from megatron.bridge.training.rules.context import Context, hybrid_by
from megatron.bridge.training.rules.expert import with_ep_overlap
from megatron.bridge.training.rules.graphs import (
    graph_impl,
    graph_scope,
    scope_text,
    scopes_without,
)
from megatron.bridge.training.rules.refusal import Refusal
from megatron.bridge.training.versions import Range


def _ep_overlap(c: Context) -> bool:
    return bool(c.of_model("overlap_moe_expert_parallel_comm"))


_NO_DISPATCH_WGRAD = (Edit("model.overlap_dispatch_backward_with_experts_wgrad", False),)
_EP_OVERLAP = "model.overlap_moe_expert_parallel_comm"

EXPERT_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        rule(
            "core.ep-overlap-mtp-zero",
            Dimension.EP,
            claim="overlap_moe_expert_parallel_comm is refused with mtp_num_layers 0, which is "
            "not the same as None.",
            remedy="set model.mtp_num_layers=null",
            edits=(Edit("model.mtp_num_layers", None),),
            versions=(Range("core", until="0.19.0"),),
            source="Megatron-LM acd0e358ae, Megatron-Bridge 890cee39b",
        ),
        _EP_OVERLAP,
        lambda c: (
            "mtp_num_layers is 0: only None and 1 are accepted"
            if _ep_overlap(c) and c.of_model("mtp_num_layers") == 0
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.ep-overlap-mtp-needs-pipeline",
            Dimension.EP,
            claim="overlap_moe_expert_parallel_comm with an MTP layer needs PP > 1.",
            remedy="set overlap_moe_expert_parallel_comm=false, or "
            "model.pipeline_model_parallel_size > 1",
            versions=(Range("core", until="0.18.2"),),
            source="Megatron-LM 286445c28a",
        ),
        _EP_OVERLAP,
        lambda c: (
            "mtp_num_layers is 1 and pipeline_model_parallel_size is 1"
            if _ep_overlap(c) and c.of_model("mtp_num_layers") == 1 and c.pipeline_size == 1
            else ""
        ),
        ep_overlap_off,
        "model.pipeline_model_parallel_size > 1",
    ),
    Refusal(
        rule(
            "core.ep-overlap-graph-kind",
            Dimension.EP,
            claim="overlap_moe_expert_parallel_comm is refused with CUDA graphs other than "
            "Transformer Engine's.",
            remedy="set model.cuda_graph_impl=none, or transformer_engine with other scopes",
            edits=(Edit("model.cuda_graph_impl", "none"),),
            versions=(Range("core", until="0.18.2"),),
            source="Megatron-LM e41b37002c",
        ),
        _EP_OVERLAP,
        lambda c: (
            scope_text(c)
            if _ep_overlap(c) and graph_impl(c) not in ("none", "transformer_engine")
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.ep-overlap-needs",
            Dimension.EP,
            claim="overlap_moe_expert_parallel_comm is refused with Transformer Engine's CUDA "
            "graphs of the experts or of the MLP.",
            remedy="remove moe and mlp from the CUDA-graph scopes, or set "
            "model.cuda_graph_impl=none where no other is left",
        ),
        _EP_OVERLAP,
        lambda c: (
            scope_text(c)
            if _ep_overlap(c)
            and graph_impl(c) == "transformer_engine"
            and graph_scope(c) & {"moe", "mlp"}
            else ""
        ),
        lambda c: scopes_without(c, {"moe", "mlp"}),
    ),
    Refusal(
        rule(
            "core.ep-overlap-hybrid",
            Dimension.EP,
            claim="overlap_moe_expert_parallel_comm fails at the first step of a hybrid model "
            "(Mamba layers, or the class that may have them): only GPTModel has the schedule of "
            "its layers that the overlap runs (build_schedule_plan).",
            remedy="set overlap_moe_expert_parallel_comm=false",
            source="Megatron-Bridge issue 4975; Megatron-LM issue 5854 and the open pull request "
            "4798",
        ),
        _EP_OVERLAP,
        lambda c: (
            f"{hybrid_by(c)}: the schedule finds no build_schedule_plan, and raises a RuntimeError "
            "at the first step"
            if _ep_overlap(c) and hybrid_by(c)
            else ""
        ),
        ep_overlap_off,
    ),
    Refusal(
        rule(
            "core.hybrid-no-virtual-pipeline",
            Dimension.PP,
            claim="A hybrid model (Mamba layers) is refused with a virtual pipeline size.",
            remedy="set model.virtual_pipeline_model_parallel_size=null",
            edits=(Edit("model.virtual_pipeline_model_parallel_size", None),),
            versions=(Range("core", until="0.17.1"),),
            source="Megatron-Core 0.16.1 megatron/core/ssm/mamba_block.py",
        ),
        "model.virtual_pipeline_model_parallel_size",
        lambda c: (
            f"{hybrid_by(c)}: an assertion stops the job when the model is built"
            if c.of_model("virtual_pipeline_model_parallel_size") is not None and hybrid_by(c)
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.early-release-needs-ep-overlap",
            Dimension.EP,
            claim="ep_overlap_early_attn_memory_release needs overlap_moe_expert_parallel_comm.",
            remedy="set model.ep_overlap_early_attn_memory_release=false",
            edits=(Edit("model.ep_overlap_early_attn_memory_release", False),),
            source="Megatron-LM a56a0b001d",
        ),
        "model.ep_overlap_early_attn_memory_release",
        lambda c: (
            "overlap_moe_expert_parallel_comm is off"
            if c.of_model("ep_overlap_early_attn_memory_release") and not _ep_overlap(c)
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.dispatch-wgrad-excludes",
            Dimension.EP,
            claim="overlap_dispatch_backward_with_experts_wgrad excludes "
            "overlap_moe_expert_parallel_comm and delay_wgrad_compute.",
            remedy="set model.overlap_dispatch_backward_with_experts_wgrad=false",
            edits=_NO_DISPATCH_WGRAD,
            versions=(Range("core", since="0.18.2"),),
            source="Megatron-LM 97e36aaba3",
        ),
        "model.overlap_dispatch_backward_with_experts_wgrad",
        lambda c: (
            ", ".join(
                f"{name} is on"
                for name in ("overlap_moe_expert_parallel_comm", "delay_wgrad_compute")
                if c.of_model(name)
            )
            if c.of_model("overlap_dispatch_backward_with_experts_wgrad")
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.dispatch-wgrad-needs-te",
            Dimension.EP,
            claim="overlap_dispatch_backward_with_experts_wgrad needs Transformer Engine >= 2.3.0.",
            remedy="set model.overlap_dispatch_backward_with_experts_wgrad=false, or use "
            "Transformer Engine 2.3.0 or newer",
            edits=_NO_DISPATCH_WGRAD,
            versions=(Range("core", since="0.18.2"),),
            source="Megatron-LM 97e36aaba3",
        ),
        "model.overlap_dispatch_backward_with_experts_wgrad",
        lambda c: (
            "Transformer Engine is absent or older than 2.3.0"
            if c.of_model("overlap_dispatch_backward_with_experts_wgrad")
            and not c.software.is_te_min_version("2.3.0")
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.delay-wgrad-needs",
            Dimension.EP,
            claim="delay_wgrad_compute is refused without overlap_moe_expert_parallel_comm in "
            "effect.",
            remedy="set overlap_moe_expert_parallel_comm=true, or delay_wgrad_compute=false",
        ),
        "model.delay_wgrad_compute",
        lambda c: (
            "overlap_moe_expert_parallel_comm is not in effect on the model"
            if c.of_model("delay_wgrad_compute") and not _ep_overlap(c)
            else ""
        ),
        with_ep_overlap,
    ),
    Refusal(
        rule(
            "core.delay-wgrad-legacy-gemm",
            Dimension.EP,
            claim="delay_wgrad_compute is refused with the legacy grouped GEMM.",
            remedy="set model.moe_use_legacy_grouped_gemm=false",
            edits=(Edit("model.moe_use_legacy_grouped_gemm", False),),
            versions=(Range("core", until="0.17.1"),),
            source="Megatron-LM 2caa681a1d, Megatron-Bridge cb0f2cb41",
        ),
        "model.delay_wgrad_compute",
        lambda c: (
            "moe_use_legacy_grouped_gemm is on"
            if c.of_model("delay_wgrad_compute") and c.of_model("moe_use_legacy_grouped_gemm")
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.delay-wgrad-graph-needs-te",
            Dimension.EP,
            claim="delay_wgrad_compute with Transformer Engine's CUDA graphs needs Transformer "
            "Engine >= 2.10.0, whatever the scope.",
            remedy="set delay_wgrad_compute=false, or use Transformer Engine 2.10.0 or newer",
        ),
        "model.delay_wgrad_compute",
        lambda c: (
            "cuda_graph_impl is transformer_engine and Transformer Engine is absent or older than "
            "2.10.0"
            if c.of_model("delay_wgrad_compute")
            and graph_impl(c) == "transformer_engine"
            and not c.software.is_te_min_version("2.10.0")
            else ""
        ),
        off(DELAYED),
        "use Transformer Engine 2.10.0 or newer",
    ),
)
"""In the order in which they are reported."""
