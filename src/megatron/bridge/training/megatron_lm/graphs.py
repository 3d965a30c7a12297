"""Megatron-LM's checks of delayed weight gradients and of CUDA graphs, by version."""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import REMOVED, Edit, either
from megatron.bridge.training.megatron_lm.request import MegatronLmRequest, stops
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.graphs import graph_scope
from megatron.bridge.training.versions import Range

_DELAY = "model.delay_wgrad_compute"
_NOT_DELAYED = (Edit(_DELAY, False), Edit("ddp.delay_wgrad_compute", False))

DELAY_NEEDS_TE = rule(
    "lm.delay-wgrad-needs-te",
    Dimension.EP,
    claim="--delay-wgrad-compute needs Transformer Engine >= 2.3.0, >= 2.8.0 with "
    "--overlap-grad-reduce, and >= 2.7.0 with --no-gradient-accumulation-fusion; otherwise a "
    "Megatron-LM job stops. Megatron-Bridge's check is another one.",
    remedy="omit --delay-wgrad-compute, or use Transformer Engine 2.8.0 or newer",
    source="Megatron-LM's arguments.py; megatron/core/extensions/transformer_engine.py",
)
DELAY_NEEDS_IMPLEMENTATION = rule(
    "lm.delay-wgrad-needs-implementation",
    Dimension.EP,
    claim="--delay-wgrad-compute needs --transformer-impl transformer_engine, the default.",
    remedy="omit --transformer-impl, or omit --delay-wgrad-compute",
    edits=(Edit("model.transformer_impl", REMOVED),),
)
DELAY_IN_GRAPH = rule(
    "lm.delay-wgrad-in-graph",
    Dimension.EP,
    claim="With --overlap-grad-reduce, --delay-wgrad-compute with a CUDA graph that contains the "
    "delayed gradient (attn, or moe_router with shared experts that are not overlapped) needs "
    "Transformer Engine >= 2.12.0 and gradient accumulation fusion, and for attn no linear and no "
    "QKV bias. Without --overlap-grad-reduce Megatron-LM does not check it.",
    remedy="remove attn and moe_router from the scope of the CUDA graph, or omit "
    "--delay-wgrad-compute, or use Transformer Engine 2.12.0 or newer with gradient accumulation "
    "fusion and without an attention bias",
    versions=(Range("core", since="0.17.1"),),
    source="Megatron-LM 1934391a95",
)
SCOPE_TWICE = rule(
    "lm.graph-scope-excludes-modules",
    Dimension.ANY,
    claim="--cuda-graph-scope, the old name, and --cuda-graph-modules together stop a Megatron-LM "
    "job at start.",
    remedy="omit --cuda-graph-scope",
    edits=(Edit("model.cuda_graph_scope", REMOVED),),
    versions=(Range("core", since="0.18.2"),),
    source="Megatron-LM e41b37002c",
)
FULL_ITERATION = rule(
    "lm.full-iteration-graph-needs",
    Dimension.ANY,
    claim="A CUDA graph of the full iteration stops a Megatron-LM job at start without "
    "--no-check-for-nan-in-loss-and-grad.",
    remedy="pass --no-check-for-nan-in-loss-and-grad",
    edits=(
        Edit("megatron_lm.check_for_nan", False),
        Edit("ddp.check_for_nan_in_grad", False),
    ),
)


def graph_checks(c: Context, request: MegatronLmRequest) -> Iterator[Decision]:
    """What the parser asks of CUDA graphs."""
    scope, modules = (c.of_model(f"cuda_graph_{name}") for name in ("scope", "modules"))
    passed = [each for each in (scope, modules) if each and isinstance(each, list)]
    if SCOPE_TWICE.holds(c.stack) and len(passed) > 1:
        yield SCOPE_TWICE.error("model.cuda_graph_scope", scope, stops("both are passed"))
    kind = c.of_model("cuda_graph_impl") or "none"
    whole = kind == "full_iteration" or (kind == "local" and "full_iteration" in graph_scope(c))
    # With the dynamic loss scale of --fp16 Megatron-LM turns the check off by itself.
    if whole and request.check_for_nan and not c.of_model("fp16"):
        found = "--no-check-for-nan-in-loss-and-grad is not passed"
        yield FULL_ITERATION.error("model.cuda_graph_impl", kind, stops(found))


def delay_checks(c: Context) -> Iterator[Decision]:
    """What the parser and Transformer Engine's layers ask of delayed weight gradients."""
    if not c.of_model("delay_wgrad_compute"):
        return
    implementation = c.of_model("transformer_impl") or "transformer_engine"
    if implementation != "transformer_engine":
        yield DELAY_NEEDS_IMPLEMENTATION.error(
            _DELAY, True, stops(f"--transformer-impl is {implementation}")
        )
    overlap = bool(c.ddp.overlap_grad_reduce)
    fused = bool(c.of_model("gradient_accumulation_fusion"))
    for version, applies, why in (
        ("2.8.0", overlap, "overlap_grad_reduce is on"),
        ("2.7.0", not fused, "gradient_accumulation_fusion is off"),
        ("2.3.0", True, "delay_wgrad_compute is on"),
    ):
        if applies and not c.software.is_te_min_version(version):
            found = f"{why} and Transformer Engine is absent or older than {version}"
            yield DELAY_NEEDS_TE.error(
                _DELAY,
                True,
                stops(found),
                either(_NOT_DELAYED, f"use Transformer Engine {version} or newer"),
                _NOT_DELAYED,
            )
            break
    if overlap and DELAY_IN_GRAPH.holds(c.stack):
        yield from _in_graph(c, fused=fused)


def _in_graph(c: Context, *, fused: bool) -> Iterator[Decision]:
    scope = graph_scope(c)
    attention = "attn" in scope
    shared = c.of_model("moe_shared_expert_intermediate_size") is not None
    exposed = shared and not c.of_model("moe_shared_expert_overlap")
    if not attention and not ("moe_router" in scope and exposed):
        return
    # With a linear bias Megatron-LM adds a QKV bias by itself.
    bias = bool(c.of_model("add_bias_linear") or c.of_model("add_qkv_bias"))
    lacking = {
        "Transformer Engine is absent or older than 2.12.0": not c.software.is_te_min_version(
            "2.12.0"
        ),
        "gradient_accumulation_fusion is off": not fused,
        "there is an attention bias": attention and bias,
    }
    found = [what for what, is_so in lacking.items() if is_so]
    if found:
        edits = _without_the_delayed(c, attention=attention, router=exposed)
        yield DELAY_IN_GRAPH.decide(
            _DELAY,
            requested=True,
            effective=True,
            reason=stops(
                f"the CUDA graph of {', '.join(sorted(scope))} contains the delayed gradient, and "
                f"{' and '.join(found)}"
            ),
            outcome=Outcome.ERROR,
            remedy=either(edits, "omit --delay-wgrad-compute"),
            edits=edits,
        )


def _without_the_delayed(c: Context, *, attention: bool, router: bool) -> tuple[Edit, ...]:
    """The CUDA graph without the parts whose gradients are delayed; none where nothing is left."""
    parts = {"attn"} if attention else set()
    parts |= {"moe_router"} if router else set()
    edits: list[Edit] = []
    left: list[str] = []
    for key in ("cuda_graph_modules", "cuda_graph_scope"):
        captured = c.of_model(key)
        if captured and isinstance(captured, list):
            kept = [part for part in captured if part not in parts]
            edits.append(Edit(f"model.{key}", kept or REMOVED))
            left += kept
    # An empty list means the whole layer.
    return (*edits, *(() if left else (Edit("model.cuda_graph_impl", REMOVED),)))
