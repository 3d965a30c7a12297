"""Megatron-LM's checks of the layers of a chunk."""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.training.decisions import Decision, Dimension, rule
from megatron.bridge.training.edits import REMOVED, Edit, either
from megatron.bridge.training.megatron_lm.request import MegatronLmRequest, stops
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.sizes.layers import stages_of
from megatron.bridge.training.rules.sizes.near import divisors, nearest, would_do

_LAYERS = "megatron_lm.num_layers_per_virtual_pipeline_stage"
_CHUNKS = "model.virtual_pipeline_model_parallel_size"
_FLAG = "--num-layers-per-virtual-pipeline-stage"

CHUNK_LAYERS_DIVIDE = rule(
    "lm.chunk-layers-divide",
    Dimension.PP,
    claim=f"{_FLAG} stops a Megatron-LM job at start where it does not divide the layers of a "
    "stage, the embedding and the loss counted where they count as layers, and where the first or "
    "the last stage has a size of its own.",
    remedy=f"pass a {_FLAG} that divides the layers of a stage, or pass "
    "--num-virtual-stages-per-pipeline-rank instead",
    source="Megatron-LM's arguments.py",
)


def chunk_checks(c: Context, request: MegatronLmRequest) -> Iterator[Decision]:
    """Whether chunks of that many layers fill a stage."""
    given = request.num_layers_per_virtual_pipeline_stage
    stages = stages_of(c)
    if given is None or stages is None:
        return
    if stages.fixed:
        fit = [n for n in divisors(min(stages.fixed)) if n > 1 and stages.divides]
        fit = [n for n in fit if not any(size % n for size in stages.sizes)]
        edits: tuple[Edit, ...] = (Edit(_CHUNKS, fit[0] if fit else REMOVED),)
        yield CHUNK_LAYERS_DIVIDE.error(
            _CHUNKS,
            c.of_model("virtual_pipeline_model_parallel_size"),
            stops(f"{_FLAG} {given} with a first or last stage that has a size of its own"),
            either(edits),
            edits,
        )
    elif stages.divides and stages.sizes[0] % given:
        size = stages.sizes[0]
        # With all layers in one chunk nothing is interleaved.
        near = nearest(given, (n for n in divisors(size) if n < size))
        edits = (Edit(_LAYERS, near[0] if near else REMOVED),)
        yield CHUNK_LAYERS_DIVIDE.error(
            _CHUNKS,
            c.of_model("virtual_pipeline_model_parallel_size"),
            stops(f"{_FLAG} {given} does not divide the layers of a stage ({size})")
            + would_do(near, "layers"),
            either(edits),
            edits,
        )
