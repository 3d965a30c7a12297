"""CUDA graphs: what is captured, which settings a version makes of a request, and what it refuses.

A graph matters to overlap because work inside it cannot be moved to another stream afterwards. The
scopes moved from `cuda_graph_scope` to `cuda_graph_modules` in megatron-core 0.18.2; both are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.refusal import Refusal, override
from megatron.bridge.training.versions import Range
from megatron.bridge.utils.cuda_graph import (
    FULL_ITERATION,
    WHOLE,
    captured_names,
    is_full_iteration_cuda_graph,
    part_names,
)

_WITH_STEP = "optimizer.overlap_param_gather_with_optimizer_step"
_FIELD, _FORMER = "cuda_graph_modules", "cuda_graph_scope"
_WRITTEN = "_cuda_graph_scopes_written_as"
"""An attribute of a model: which of the two the user wrote, once the scopes were moved."""

SCOPES_CLEARED = rule(
    "bridge.graph-scopes-cleared",
    Dimension.ANY,
    claim="CUDA-graph scopes are dropped where cuda_graph_impl is none: nothing is captured.",
    remedy="set model.cuda_graph_impl=transformer_engine",
    edits=(Edit("model.cuda_graph_impl", "transformer_engine"),),
    versions=(Range("bridge", since="0.4.2"),),
    source="Megatron-Bridge 960a718cb",
)
WHOLE_ITERATION = rule(
    "core.graph-full-iteration",
    Dimension.ANY,
    claim="cuda_graph_impl local with the scope full_iteration becomes cuda_graph_impl "
    "full_iteration.",
    remedy="set model.cuda_graph_impl=full_iteration",
    edits=(Edit("model.cuda_graph_impl", "full_iteration"),),
    versions=(Range("core", since="0.18.2"),),
    source="Megatron-LM e41b37002c",
)


def graph_scope(c: Context) -> frozenset[str]:
    """Names of the CUDA-graph scopes, from both fields; empty means the entire layer."""
    return frozenset(captured_names(c.model))


def graph_impl(c: Context) -> str:
    """Which implementation captures graphs; "none" where nothing does."""
    return str(c.of_model("cuda_graph_impl") or "none")


def scope_text(c: Context) -> str:
    """The implementation and the scopes, as the start of a reason."""
    return (
        f"cuda_graph_impl is {graph_impl(c)} with scope "
        f"{sorted(graph_scope(c)) or 'the entire layer'}"
    )


def scopes_without(c: Context, unwanted: AbstractSet[str]) -> tuple[Edit, ...]:
    """The scopes without some of them, in the field that the user wrote; no graphs without any."""
    kept = sorted(graph_scope(c) - unwanted)
    if not kept:
        return (Edit("model.cuda_graph_impl", "none"),)
    return (Edit(f"model.{c.of_model(_WRITTEN) or _field(c)}", kept),)


def _field(c: Context) -> str:
    return _FIELD if part_names(c.of_model(_FIELD)) else _FORMER


def update_graphs(c: Context) -> Iterator[Decision]:
    """What a version makes of the graph settings, in place, before anything checks them."""
    scopes = sorted(graph_scope(c))
    if graph_impl(c) == "none":
        if SCOPES_CLEARED.holds(c.stack):
            _set_scopes(c, [])
            yield from _note_cleared(scopes)
    elif graph_impl(c) == "local" and is_full_iteration_cuda_graph(c.model):
        reason = f"cuda_graph_impl is local with scope {scopes}"
        yield from override(c, WHOLE_ITERATION, "model.cuda_graph_impl", FULL_ITERATION, reason)
        if graph_impl(c) == FULL_ITERATION:
            _set_scopes(c, [])
    elif part_names(c.of_model(_FORMER)) and not part_names(c.of_model(_FIELD)):
        _set_scopes(c, c.of_model(_FORMER))


def _note_cleared(scopes: list[str]) -> Iterator[Decision]:
    if scopes:
        yield SCOPES_CLEARED.decide(
            "model.cuda_graph_scope",
            requested=scopes,
            effective=[],
            reason="cuda_graph_impl is none",
            outcome=Outcome.NOTE,
            remedy=SCOPES_CLEARED.remedy,
            edits=SCOPES_CLEARED.edits,
        )


def _set_scopes(c: Context, scopes: Any) -> None:
    """Write the scopes into the field of the run's version: the same commit brought it."""
    setattr(c.model, _WRITTEN, _field(c))
    if WHOLE_ITERATION.holds(c.stack) and hasattr(c.model, _FIELD):
        c.model.cuda_graph_modules, c.model.cuda_graph_scope = scopes, None
    else:
        c.model.cuda_graph_scope = scopes


GRAPH_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        rule(
            "bridge.local-graph-scopes",
            Dimension.ANY,
            claim="cuda_graph_impl local with scopes of single layers is refused: it is for the "
            "full iteration.",
            remedy="set model.cuda_graph_impl=transformer_engine, or none",
            edits=(Edit("model.cuda_graph_impl", "transformer_engine"),),
            versions=(Range("bridge", since="0.6.0"),),
            source="Megatron-Bridge 7e8662c66",
        ),
        "model.cuda_graph_impl",
        lambda c: scope_text(c) if graph_impl(c) == "local" and not graph_scope(c) & WHOLE else "",
    ),
    Refusal(
        rule(
            "bridge.full-iteration-nan-check",
            Dimension.ANY,
            claim="A CUDA graph of the full iteration is refused with "
            "rerun_state_machine.check_for_nan_in_loss, which is on by default.",
            remedy="set rerun_state_machine.check_for_nan_in_loss=false",
            edits=(Edit("rerun_state_machine.check_for_nan_in_loss", False),),
        ),
        "rerun_state_machine.check_for_nan_in_loss",
        lambda c: (
            scope_text(c) if is_full_iteration_cuda_graph(c.model) and c.checks_for_nan else ""
        ),
    ),
    Refusal(
        rule(
            "core.full-iteration-with-optimizer-step",
            Dimension.DP,
            claim="overlap_param_gather_with_optimizer_step fails with a CUDA graph of the full "
            "iteration: the gather is started by the step before, outside of what is captured, and "
            "the forward in the graph waits for it (cudaErrorStreamCaptureIsolation). "
            "overlap_param_gather alone works.",
            remedy="set overlap_param_gather_with_optimizer_step=false",
            source="Megatron-Bridge pull request 5788 and issue 1688",
        ),
        _WITH_STEP,
        lambda c: (
            f"{scope_text(c)}: its capture fails on a gather that was started outside of it"
            if is_full_iteration_cuda_graph(c.model)
            and c.of_optimizer("overlap_param_gather_with_optimizer_step")
            and c.of_ddp("overlap_param_gather")
            and c.fsdp is None
            else ""
        ),
        lambda c: (Edit(c.key(_WITH_STEP), False),),
    ),
    Refusal(
        rule(
            "core.graph-scope-twice",
            Dimension.ANY,
            claim="cuda_graph_scope, the former name, is refused beside cuda_graph_modules.",
            remedy="set model.cuda_graph_scope=null",
            edits=(Edit("model.cuda_graph_scope", None),),
            versions=(Range("core", since="0.18.2"),),
            source="Megatron-LM e41b37002c",
        ),
        "model.cuda_graph_scope",
        lambda c: (
            f"cuda_graph_scope is {former} and cuda_graph_modules is {names}"
            if graph_impl(c) != "none"
            and (former := part_names(c.of_model(_FORMER)))
            and (names := part_names(c.of_model(_FIELD)))
            else ""
        ),
    ),
)
"""In the order in which they are reported."""
