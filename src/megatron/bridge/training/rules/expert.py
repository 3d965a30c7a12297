"""When expert-parallel communication overlaps. An unmet need stops the run, not only the overlap.

Megatron-Core asserts most of these needs too, but later, on every rank of the job.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Need, Outcome, Rule, rule, unmet
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.remedies import (
    DELAYED,
    EP_OVERLAP,
    Edits,
    ep_overlap_off,
    half_precision,
    interleaved,
    off,
    without,
)
from megatron.bridge.training.rules.context import OPT_IN_REASON, Context, choose
from megatron.bridge.training.rules.graphs import graph_scope
from megatron.bridge.training.versions import Range

EP_OFF_UNLESS_ASKED = rule(
    "ep.off-unless-asked",
    Dimension.EP,
    claim="overlap_moe_expert_parallel_comm and delay_wgrad_compute are off unless requested.",
    remedy="set comm_overlap.overlap_moe_expert_parallel_comm=true",
    opt_in=True,
)


def _ep_rule(
    name: str, need: str, remedy: str, versions: tuple[Range, ...] = (), source: str = ""
) -> Rule:
    return rule(
        f"ep.{name}",
        Dimension.EP,
        claim=f"overlap_moe_expert_parallel_comm needs {need}; otherwise setup() raises an error.",
        remedy=remedy,
        versions=versions,
        source=source,
        depth=2,
    )


def _is(*names: str) -> Any:
    """A `found` that shows the values of model fields."""
    return lambda c: ", ".join(f"{name} is {c.of_model(name)!r}" for name in names)


def _names(value: Any) -> list[str]:
    """A list of names, also where it was written as one string."""
    return value.split(",") if isinstance(value, str) else list(value or ())


def _selective_recompute(c: Context) -> Edits:
    """Selective recomputation, which has neither a method nor a number of layers."""
    fields = ("recompute_method", "recompute_num_layers")
    return (
        Edit("model.recompute_granularity", "selective"),
        *(Edit(f"model.{name}", None) for name in fields if c.of_model(name) is not None),
    )


EP_GATE: tuple[Need[Context], ...] = (
    Need(
        _ep_rule(
            "needs-expert-parallel",
            "expert_model_parallel_size > 1",
            "set overlap_moe_expert_parallel_comm=false, or model.expert_model_parallel_size > 1",
        ),
        met=lambda c: (c.of_model("expert_model_parallel_size") or 1) > 1,
        found=_is("expert_model_parallel_size"),
        edits=ep_overlap_off,
        otherwise="model.expert_model_parallel_size > 1",
    ),
    Need(
        _ep_rule(
            "needs-experts",
            "num_moe_experts > 1",
            "set overlap_moe_expert_parallel_comm=false, or model.num_moe_experts > 1",
        ),
        met=lambda c: (c.of_model("num_moe_experts") or 0) > 1,
        found=_is("num_moe_experts"),
        edits=ep_overlap_off,
        otherwise="model.num_moe_experts > 1",
    ),
    Need(
        _ep_rule(
            "needs-dispatcher",
            'moe_token_dispatcher_type "alltoall" or "flex"',
            "set model.moe_token_dispatcher_type=alltoall",
        ),
        met=lambda c: c.of_model("moe_token_dispatcher_type") in ("alltoall", "flex"),
        found=_is("moe_token_dispatcher_type"),
        edits=lambda c: (Edit("model.moe_token_dispatcher_type", "alltoall"),),
    ),
    Need(
        _ep_rule("needs-half-precision", "bf16 or fp16", "set mixed_precision=bf16_mixed"),
        met=lambda c: bool(c.of_model("bf16") or c.of_model("fp16")),
        found=_is("bf16", "fp16"),
        edits=half_precision,
    ),
    Need(
        _ep_rule(
            "needs-torch",
            "torch >= 2.6.0 (older versions hang)",
            "set overlap_moe_expert_parallel_comm=false, or use torch 2.6.0 or newer",
        ),
        met=lambda c: c.software.is_torch_min_version("2.6.0"),
        found=lambda c: "torch is older than 2.6.0",
        edits=ep_overlap_off,
        otherwise="use torch 2.6.0 or newer",
    ),
    Need(
        _ep_rule(
            "needs-virtual-pipeline",
            "a virtual pipeline size where PP > 1",
            "set model.virtual_pipeline_model_parallel_size to a size that divides the layers of "
            "a stage",
        ),
        met=lambda c: (
            c.pipeline_size <= 1 or c.of_model("virtual_pipeline_model_parallel_size") is not None
        ),
        found=_is("pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"),
        edits=lambda c: interleaved(c) or ep_overlap_off(c),
    ),
    Need(
        _ep_rule(
            "no-full-recompute",
            'recompute_granularity other than "full"',
            "set model.recompute_granularity=selective",
        ),
        met=lambda c: c.of_model("recompute_granularity") != "full",
        found=_is("recompute_granularity"),
        edits=_selective_recompute,
    ),
    Need(
        _ep_rule(
            "no-recompute-method", "recompute_method to be None", "set model.recompute_method=null"
        ),
        met=lambda c: c.of_model("recompute_method") is None,
        found=_is("recompute_method"),
        edits=lambda c: (Edit("model.recompute_method", None),),
    ),
    Need(
        _ep_rule(
            "no-recompute-layers",
            "recompute_num_layers to be None",
            "set model.recompute_num_layers=null",
        ),
        met=lambda c: c.of_model("recompute_num_layers") is None,
        found=_is("recompute_num_layers"),
        edits=lambda c: (Edit("model.recompute_num_layers", None),),
    ),
    Need(
        _ep_rule(
            "no-moe-recompute",
            'recompute_modules without "moe"',
            'remove "moe" from model.recompute_modules',
            # Megatron-Bridge asks since 0.6.0, the Megatron-Core of 0.4.2 and 0.5.1 by itself.
            (Range("bridge", since="0.4.2"),),
            "Megatron-LM 45b8eac955, Megatron-Bridge a8087d298",
        ),
        met=lambda c: "moe" not in _names(c.of_model("recompute_modules")),
        found=lambda c: (
            f"there is moe in recompute_modules, which is {c.of_model('recompute_modules')!r}"
        ),
        edits=lambda c: (
            without("model.recompute_modules", _names(c.of_model("recompute_modules")), "moe"),
        ),
    ),
    Need(
        _ep_rule(
            "no-shared-expert-overlap",
            "moe_shared_expert_overlap to be off",
            "set model.moe_shared_expert_overlap=false",
        ),
        met=lambda c: not c.of_model("moe_shared_expert_overlap"),
        found=_is("moe_shared_expert_overlap"),
        edits=lambda c: (Edit("model.moe_shared_expert_overlap", False),),
    ),
    Need(
        _ep_rule(
            "one-mtp-layer",
            "mtp_num_layers to be None, 0 or 1",
            "set overlap_moe_expert_parallel_comm=false, or model.mtp_num_layers=null (1 with "
            "PP > 1)",
        ),
        met=lambda c: c.of_model("mtp_num_layers") in (None, 0, 1),
        found=lambda c: (
            f"mtp_num_layers is {c.of_model('mtp_num_layers')!r}, and multi-token prediction "
            "can have at most one layer"
        ),
        edits=ep_overlap_off,
        otherwise="model.mtp_num_layers=null (1 with PP > 1)",
    ),
)


def _delay_rule(
    name: str, need: str, remedy: str, versions: tuple[Range, ...] = (), source: str = ""
) -> Rule:
    return rule(
        f"ep.delay-{name}",
        Dimension.EP,
        claim=f"delay_wgrad_compute needs {need}; otherwise setup() raises an error.",
        remedy=remedy,
        versions=versions,
        source=source,
        depth=2,
    )


def _ep_overlap_on(c: Context) -> bool:
    requested = c.request.overlap_moe_expert_parallel_comm
    return bool(c.of_model("overlap_moe_expert_parallel_comm") if requested is None else requested)


def _reduces_into_main_grad(c: Context) -> bool:
    """Whether a reduction or a fused kernel reads the weight gradient from where it is written."""
    overlap = getattr(c.ddp, "overlap_grad_reduce", False) or c.request.overlap_grad_reduce
    return bool(overlap or c.of_model("gradient_accumulation_fusion"))


def _wgrad_in_graph(c: Context) -> bool:
    scope = graph_scope(c)
    shared_expert = c.of_model("moe_shared_expert_intermediate_size") is not None
    exposed_shared_expert = shared_expert and not c.of_model("moe_shared_expert_overlap")
    return "attn" in scope or ("moe_router" in scope and exposed_shared_expert)


# Megatron-Bridge 0.4.2 has the check, but compares scopes with the enum's members alone: it accepts
# scopes that are given by name, as a file has them.
_GRAPH_RULES = (Range("bridge", since="0.5.1"),)
_GRAPH_SOURCE = "Megatron-Bridge 71768cde2, 56e56d708"


def with_ep_overlap(c: Context) -> Edits:
    """What delayed weight gradients need: expert-parallel overlap, or none of both."""
    if any(unmet(EP_GATE, c)):
        return off(DELAYED)(c)
    return (Edit(c.key(EP_OVERLAP), True),)


DELAY_WGRAD_GATE: tuple[Need[Context], ...] = (
    Need(
        _delay_rule(
            "needs-ep-overlap",
            "overlap_moe_expert_parallel_comm",
            "set comm_overlap.overlap_moe_expert_parallel_comm=true as well",
        ),
        met=_ep_overlap_on,
        found=lambda c: "overlap_moe_expert_parallel_comm is off",
        edits=with_ep_overlap,
    ),
    Need(
        _delay_rule(
            "needs-te-2.7",
            "Transformer Engine >= 2.7.0 with overlap_grad_reduce or gradient_accumulation_fusion",
            "set delay_wgrad_compute=false, or use Transformer Engine 2.7.0 or newer",
        ),
        met=lambda c: not _reduces_into_main_grad(c) or c.software.is_te_min_version("2.7.0"),
        found=lambda c: (
            "overlap_grad_reduce or gradient_accumulation_fusion is on and Transformer Engine is "
            "absent or older than 2.7.0"
        ),
        edits=off(DELAYED),
        otherwise="use Transformer Engine 2.7.0 or newer",
    ),
    Need(
        _delay_rule(
            "graph-needs-te-2.12",
            "Transformer Engine >= 2.12.0 where a CUDA graph contains the delayed gradient",
            "set delay_wgrad_compute=false, or use Transformer Engine 2.12.0 or newer, or a "
            "CUDA-graph scope without attention",
            _GRAPH_RULES,
            _GRAPH_SOURCE,
        ),
        met=lambda c: not _wgrad_in_graph(c) or c.software.is_te_min_version("2.12.0"),
        found=lambda c: (
            f"the CUDA-graph scope {sorted(graph_scope(c))} contains weight gradients and "
            "Transformer Engine is absent or older than 2.12.0"
        ),
        edits=off(DELAYED),
        otherwise="use Transformer Engine 2.12.0 or newer, or a CUDA-graph scope without attention",
    ),
    Need(
        _delay_rule(
            "graph-needs-fusion",
            "gradient_accumulation_fusion where a CUDA graph contains the delayed gradient",
            "set model.gradient_accumulation_fusion=true",
            _GRAPH_RULES,
            _GRAPH_SOURCE,
        ),
        met=lambda c: not _wgrad_in_graph(c) or bool(c.of_model("gradient_accumulation_fusion")),
        found=lambda c: (
            f"the CUDA-graph scope {sorted(graph_scope(c))} contains weight gradients and "
            "gradient_accumulation_fusion is off"
        ),
        edits=lambda c: (Edit("model.gradient_accumulation_fusion", True),),
    ),
    Need(
        _delay_rule(
            "graph-no-attention-bias",
            "add_bias_linear and add_qkv_bias to be off (no attention bias) where a CUDA graph "
            "covers attention",
            "set delay_wgrad_compute=false, or use a CUDA-graph scope without attention",
            _GRAPH_RULES,
            _GRAPH_SOURCE,
        ),
        met=lambda c: (
            "attn" not in graph_scope(c)
            or not (c.of_model("add_bias_linear") or c.of_model("add_qkv_bias"))
        ),
        found=lambda c: (
            "the CUDA graph covers attention, and there is an attention bias: "
            + _is("add_bias_linear", "add_qkv_bias")(c)
        ),
        edits=off(DELAYED),
        otherwise="use a CUDA-graph scope without attention",
    ),
)


def _decide_gated(c: Context, name: str, gate: tuple[Need[Context], ...]) -> Iterator[Decision]:
    """An expert-parallel knob, as requested. Each unmet need is an error: the run would fail."""
    knob, requested = f"model.{name}", getattr(c.request, name)
    broken = list(unmet(gate, c)) if requested else []
    for each in broken:
        yield each.decide(knob, requested=True, effective=False, outcome=Outcome.ERROR)
    if not broken:
        chosen = choose(EP_OFF_UNLESS_ASKED, knob, False, requested, OPT_IN_REASON)
        lost = requested is None and c.of_model(name)
        yield _said_in_comm_overlap(c, chosen, gate) if lost else chosen


def _said_in_comm_overlap(
    c: Context, chosen: Decision, gate: tuple[Need[Context], ...]
) -> Decision:
    """With the way to keep what the model has: in comm_overlap, or off where a need is not met."""
    name = chosen.knob.partition(".")[2]
    allowed = not any(unmet(gate, c))
    edit = Edit(f"comm_overlap.{name}", True) if allowed else Edit(chosen.knob, False)
    return replace(chosen, remedy=in_words((edit,)), edits=(edit,))


def decide_ep(c: Context) -> Iterator[Decision]:
    """Both expert-parallel knobs; an unmet need of either is an error."""
    request = c.request
    if request.delay_wgrad_compute and request.overlap_moe_expert_parallel_comm is None:
        # The delayed gradient needs the model's own switch: keep it as requested, do not reset it.
        on_model = c.of_model("overlap_moe_expert_parallel_comm") or None
        c = replace(c, request=replace(request, overlap_moe_expert_parallel_comm=on_model))
    yield from _decide_gated(c, "overlap_moe_expert_parallel_comm", EP_GATE)
    yield from _decide_gated(c, "delay_wgrad_compute", DELAY_WGRAD_GATE)
