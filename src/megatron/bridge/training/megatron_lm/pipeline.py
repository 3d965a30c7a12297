"""Megatron-LM's checks and defaults of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import REMOVED, Edit, either
from megatron.bridge.training.megatron_lm.request import stops
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.core_pipeline import layout_sets_vpp

ONE_CHUNK = rule(
    "lm.one-chunk-no-interleaving",
    Dimension.PP,
    claim="With one chunk per stage, Megatron-LM uses no virtual pipeline: the schedule is not "
    "interleaved.",
    remedy="pass a smaller --num-layers-per-virtual-pipeline-stage, or "
    "--num-virtual-stages-per-pipeline-rank above 1",
)
INTERLEAVING_NEEDS_STAGES = rule(
    "lm.interleaving-needs-stages",
    Dimension.PP,
    claim="Megatron-LM refuses an interleaved schedule with one pipeline stage. With p2p overlap "
    "off it also refuses two stages, because the previous and the next stage are then the same "
    "peer and their batched messages would be swapped.",
    remedy="omit --no-overlap-p2p-communication, or use more pipeline stages",
)
P2P_DEFAULT = rule(
    "lm.p2p-overlap",
    Dimension.PP,
    claim="overlap_p2p_comm is on by default with an interleaved schedule "
    "(--no-overlap-p2p-communication turns it off) and always off without one; batch_p2p_comm is "
    "its opposite.",
    remedy="pass --num-virtual-stages-per-pipeline-rank above 1",
)
ALIGN_DEFAULT = rule(
    "lm.align-param-gather",
    Dimension.DP,
    claim="align_param_gather is on by default with an interleaved schedule "
    "(--no-align-param-gather turns it off) and always off without one.",
)


_CHUNKS = "model.virtual_pipeline_model_parallel_size"
_LAYOUT = "model.pipeline_model_parallel_layout"


def _fitting_chunks(c: Context) -> int | None:
    """The smallest number of chunks above 1 that a stage's layers make, where that may be used."""
    layers, stages = c.of_model("num_layers") or 0, c.pipeline_size
    apart = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
    if stages < 2 or (stages == 2 and not c.model.overlap_p2p_comm) or any(map(c.of_model, apart)):
        return None
    for name in ("embedding", "loss"):
        layers += bool(c.of_model(f"account_for_{name}_in_pipeline_split"))
    if layers % stages:
        return None
    of_stage = layers // stages
    return next((n for n in range(2, of_stage + 1) if of_stage % n == 0), None)


def _without_interleaving(c: Context) -> tuple[Edit, ...]:
    keys = [_CHUNKS, *([_LAYOUT] if c.of_model("pipeline_model_parallel_layout") else [])]
    return tuple(Edit(key, REMOVED) for key in keys)


def pipeline_checks(c: Context, run: Any) -> Iterator[Decision]:
    """What the parser does with the pipeline's flags; it changes them, in place."""
    model = run.model
    pp = model.pipeline_model_parallel_size or 1
    if model.virtual_pipeline_model_parallel_size == 1:
        model.virtual_pipeline_model_parallel_size = None
        chunks = _fitting_chunks(c)
        edits: tuple[Edit, ...] = (Edit(_CHUNKS, REMOVED if chunks is None else chunks),)
        yield ONE_CHUNK.decide(
            "model.virtual_pipeline_model_parallel_size",
            requested=1,
            effective=None,
            reason="its layers make one chunk per stage",
            outcome=Outcome.REFUSED,
            remedy=either(edits, "" if chunks is None else "omit the flag"),
            edits=edits,
        )
    yield from layout_sets_vpp(model)
    interleaved = (model.virtual_pipeline_model_parallel_size or 1) > 1
    requested = bool(model.overlap_p2p_comm)
    if interleaved and (pp < 2 or (pp == 2 and not requested)):
        off = "" if pp < 2 else " and --no-overlap-p2p-communication"
        edits = _without_interleaving(c) if pp < 2 else (Edit("model.overlap_p2p_comm", True),)
        yield INTERLEAVING_NEEDS_STAGES.error(
            "model.virtual_pipeline_model_parallel_size",
            model.virtual_pipeline_model_parallel_size,
            stops(f"PP={pp} with VPP={model.virtual_pipeline_model_parallel_size}{off}"),
            either(edits, "use more pipeline stages"),
            edits,
        )
    model.overlap_p2p_comm = requested and interleaved
    model.batch_p2p_comm = not model.overlap_p2p_comm
    run.ddp.align_param_gather = bool(run.ddp.align_param_gather) and interleaved
    layout = (
        f"PP={pp} with VPP={model.virtual_pipeline_model_parallel_size}"
        if interleaved
        else f"PP={pp} without interleaving"
    )
    for knob, decided_by, effective in (
        ("model.overlap_p2p_comm", P2P_DEFAULT, model.overlap_p2p_comm),
        ("model.batch_p2p_comm", P2P_DEFAULT, model.batch_p2p_comm),
        ("ddp.align_param_gather", ALIGN_DEFAULT, run.ddp.align_param_gather),
    ):
        yield decided_by.decide(
            knob, requested=None, effective=effective, reason=layout, outcome=Outcome.DEFAULT
        )
