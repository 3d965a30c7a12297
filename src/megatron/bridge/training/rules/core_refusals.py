"""What stops a job: combinations that Megatron-Core, or Megatron-Bridge around it, refuses.

Each refusal is a rule with the versions that have it and a test: a gate that a version lifted ends
there, and one that a version added begins there. The facts are from the source of the tags in
`megatron.bridge.training.versions.KNOWN`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Rule, rule
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.expert import graph_scope
from megatron.bridge.training.versions import Range


@dataclass(frozen=True)
class Refusal:
    """A combination that stops a job.

    Attributes:
        rule: the rule, with the versions that refuse the combination.
        knob: the setting that it is about.
        found: what was found, as the start of a reason; empty where the combination is accepted.
    """

    rule: Rule
    knob: str
    found: Callable[[Context], str]


def refusals(c: Context) -> Iterator[Decision]:
    """Every combination that the stack of the run refuses."""
    for each in REFUSALS:
        if each.rule.holds(c.stack) and (found := each.found(c)):
            section, _, name = each.knob.partition(".")
            value = getattr(getattr(c, section), name, None)
            yield each.rule.error(each.knob, value, found)


def _ep_overlap(c: Context) -> bool:
    return bool(c.of_model("overlap_moe_expert_parallel_comm"))


def _graphs(c: Context) -> str:
    return str(c.of_model("cuda_graph_impl") or "none")


def _scope(c: Context) -> str:
    return (
        f"cuda_graph_impl is {_graphs(c)} with scope {sorted(graph_scope(c)) or 'the entire layer'}"
    )


def _whole_iteration(c: Context) -> bool:
    return _graphs(c) == "full_iteration" or "full_iteration" in graph_scope(c)


def _of_optimizer(c: Context, name: str) -> Any:
    return getattr(c.optimizer, name, None)


def _of_ddp(c: Context, name: str) -> Any:
    return getattr(c.ddp, name, None)


def _mxfp8_gather(c: Context) -> bool:
    return bool(_of_ddp(c, "fp8_param_gather")) and c.of_model("fp8_recipe") == "mxfp8"


_EP_OVERLAP = "model.overlap_moe_expert_parallel_comm"

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        rule(
            "core.ep-overlap-mtp-zero",
            Dimension.EP,
            claim="overlap_moe_expert_parallel_comm is refused with mtp_num_layers 0, which is "
            "not the same as None.",
            remedy="set model.mtp_num_layers=null",
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
            remedy="set model.pipeline_model_parallel_size > 1, or model.mtp_num_layers=null",
            versions=(Range("core", until="0.18.2"),),
            source="Megatron-LM 286445c28a",
        ),
        _EP_OVERLAP,
        lambda c: (
            "mtp_num_layers is 1 and pipeline_model_parallel_size is 1"
            if _ep_overlap(c) and c.of_model("mtp_num_layers") == 1 and c.pipeline_size == 1
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.ep-overlap-graph-kind",
            Dimension.EP,
            claim="overlap_moe_expert_parallel_comm is refused with CUDA graphs other than "
            "Transformer Engine's.",
            remedy="set model.cuda_graph_impl=none or transformer_engine",
            versions=(Range("core", until="0.18.2"),),
            source="Megatron-LM e41b37002c",
        ),
        _EP_OVERLAP,
        lambda c: (
            _scope(c) if _ep_overlap(c) and _graphs(c) not in ("none", "transformer_engine") else ""
        ),
    ),
    Refusal(
        rule(
            "core.ep-overlap-needs",
            Dimension.EP,
            claim="overlap_moe_expert_parallel_comm is refused with Transformer Engine's CUDA "
            "graphs of the experts or of the MLP.",
            remedy="remove moe and mlp from the CUDA-graph scopes, or set "
            "model.cuda_graph_impl=none",
        ),
        _EP_OVERLAP,
        lambda c: (
            _scope(c)
            if _ep_overlap(c)
            and _graphs(c) == "transformer_engine"
            and graph_scope(c) & {"moe", "mlp"}
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.early-release-needs-ep-overlap",
            Dimension.EP,
            claim="ep_overlap_early_attn_memory_release needs overlap_moe_expert_parallel_comm.",
            remedy="set model.ep_overlap_early_attn_memory_release=false",
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
            remedy="use Transformer Engine 2.3.0 or newer",
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
            remedy="set model.overlap_moe_expert_parallel_comm=true, or with a comm_overlap "
            "section comm_overlap.overlap_moe_expert_parallel_comm=true",
        ),
        "model.delay_wgrad_compute",
        lambda c: (
            "overlap_moe_expert_parallel_comm is not in effect on the model"
            if c.of_model("delay_wgrad_compute") and not _ep_overlap(c)
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.delay-wgrad-legacy-gemm",
            Dimension.EP,
            claim="delay_wgrad_compute is refused with the legacy grouped GEMM.",
            remedy="set model.moe_use_legacy_grouped_gemm=false",
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
            remedy="use Transformer Engine 2.10.0 or newer, or set model.cuda_graph_impl=none",
        ),
        "model.delay_wgrad_compute",
        lambda c: (
            "cuda_graph_impl is transformer_engine and Transformer Engine is absent or older than "
            "2.10.0"
            if c.of_model("delay_wgrad_compute")
            and _graphs(c) == "transformer_engine"
            and not c.software.is_te_min_version("2.10.0")
            else ""
        ),
    ),
    Refusal(
        rule(
            "bridge.local-graph-scopes",
            Dimension.ANY,
            claim="cuda_graph_impl local with scopes of single layers is refused: it is for the "
            "full iteration.",
            remedy="set model.cuda_graph_impl=transformer_engine or none",
            versions=(Range("bridge", since="0.6.0"),),
            source="Megatron-Bridge 7e8662c66",
        ),
        "model.cuda_graph_impl",
        lambda c: (
            _scope(c)
            if _graphs(c) == "local"
            and not _whole_iteration(c)
            and "full_iteration_inference" not in graph_scope(c)
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.num-buckets-excludes",
            Dimension.DP,
            claim="ddp.num_buckets is refused together with a bucket_size, which comm_overlap sets "
            "wherever the data-parallel size is above 1.",
            remedy="remove ddp.num_buckets and set comm_overlap.bucket_size, or use num_buckets "
            "without a comm_overlap section",
            versions=(Range("core", since="0.18.2"),),
            source="Megatron-LM 0dc36dfc6f",
        ),
        "ddp.num_buckets",
        lambda c: (
            f"bucket_size is {_of_ddp(c, 'bucket_size')}"
            if _of_ddp(c, "num_buckets") is not None and _of_ddp(c, "bucket_size") is not None
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.mxfp8-gather-needs-reuse",
            Dimension.PRECISION,
            claim="fp8_param_gather with the mxfp8 recipe needs reuse_grad_buf_for_mxfp8_param_ag.",
            remedy="set mixed_precision.reuse_grad_buf_for_mxfp8_param_ag=true",
            source="Megatron-Bridge 6e39e973b",
        ),
        "ddp.fp8_param_gather",
        lambda c: (
            "ddp.reuse_grad_buf_for_mxfp8_param_ag is off"
            if _mxfp8_gather(c)
            and not _of_ddp(c, "reuse_grad_buf_for_mxfp8_param_ag")
            and c.fsdp is None
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.mxfp8-reuse-excludes-step",
            Dimension.PRECISION,
            claim="reuse_grad_buf_for_mxfp8_param_ag is refused together with "
            "overlap_param_gather_with_optimizer_step.",
            remedy="set comm_overlap.overlap_param_gather_with_optimizer_step=false",
            versions=(Range("core", since="0.19.0"),),
            source="Megatron-LM 0552f29307",
        ),
        "optimizer.overlap_param_gather_with_optimizer_step",
        lambda c: (
            "reuse_grad_buf_for_mxfp8_param_ag is on"
            if _of_optimizer(c, "overlap_param_gather_with_optimizer_step")
            and _of_ddp(c, "reuse_grad_buf_for_mxfp8_param_ag")
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.optimizer-instances-need",
            Dimension.DP,
            claim="num_distributed_optimizer_instances above 1 needs the distributed optimizer.",
            remedy="set ddp.use_distributed_optimizer=true",
        ),
        "ddp.num_distributed_optimizer_instances",
        lambda c: (
            "ddp.use_distributed_optimizer is off"
            if (_of_ddp(c, "num_distributed_optimizer_instances") or 1) > 1
            and not _of_ddp(c, "use_distributed_optimizer")
            else ""
        ),
    ),
)
"""Every refusal, in the order in which it is reported."""
