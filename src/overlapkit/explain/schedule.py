"""The microbatches of a step, and how long a pipeline stands idle for want of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron.bridge.models.pipeline_layout import virtual_size_of_layout, virtual_sizes
from megatron.bridge.training.rules.sizes.batches import fills_pipeline
from overlapkit.config.run import Framework, Run
from overlapkit.output.numbers import share_percent

_SHOWN = 3
"""Virtual pipeline sizes that the line of text names."""


@dataclass(frozen=True)
class Pipeline:
    """How long a pipeline fills and drains.

    Attributes:
        stages: pipeline stages.
        chunks: model chunks of each stage (VPP).
        microbatches: of a step.
        bubble: time in which a GPU waits while others fill and drain, over the time in which it
            computes: (stages - 1) / (chunks x microbatches), with stages that take equally long.
            Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
            Megatron-LM" (2021), section 2.2.
        interleaved: the same for each virtual pipeline size that divides the layers; empty where
            the pipeline is interleaved already, or the microbatches do not fill another one.
    """

    stages: int
    chunks: int
    microbatches: int
    bubble: float
    interleaved: Mapping[int, float]


def microbatches_of(run: Run, data_parallel_size: int, framework: Framework) -> int | None:
    """Microbatches of a step on each replica, after a ramp-up of the batch.

    None where a batch size is not known, or Megatron-Core refuses them.

    Args:
        run: with its configurations effective.
        data_parallel_size: world size / (TP x PP x CP).
        framework: Megatron-LM's default is one microbatch for each replica, Megatron-Bridge's none.
    """
    micro, batch = (getattr(run.train, f"{name}_batch_size", None) for name in ("micro", "global"))
    if not micro:
        return None
    unit = micro * data_parallel_size
    batch = batch or (unit if framework == "megatron-lm" else None)
    decreases = bool(getattr(run.train, "decrease_batch_size_if_needed", False))
    if not batch or (batch % unit and not decreases):
        return None
    return batch // unit or None


def pipeline_of(run: Run, microbatches: int | None) -> Pipeline | None:
    """The pipeline of a run; None with one stage, or where its microbatches are not known.

    Args:
        run: with its configurations effective.
        microbatches: of a step.
    """
    model = run.model
    stages = model.pipeline_model_parallel_size or 1
    if stages == 1 or microbatches is None:
        return None
    layout = getattr(model, "pipeline_model_parallel_layout", None)
    chunks = model.virtual_pipeline_model_parallel_size or 1
    if layout is not None:
        chunks = virtual_size_of_layout(layout, stages) or chunks

    def bubble(size: int) -> float:
        return (stages - 1) / (size * microbatches)

    group = getattr(model, "microbatch_group_size_per_vp_stage", None) or stages
    fills = fills_pipeline(microbatches, group, stages)
    others = virtual_sizes(model) if chunks == 1 and fills else []
    return Pipeline(stages, chunks, microbatches, bubble(chunks), {n: bubble(n) for n in others})


def bubble_text(pipeline: Pipeline) -> str:
    """The bubble in one line, and what interleaving would make of it."""
    p = pipeline
    text = (
        f"{share_percent(p.bubble)} of a step's pure compute, where stages take equally long: "
        f"(PP - 1) / (VPP x microbatches) = {p.stages - 1} / ({p.chunks} x {p.microbatches})"
    )
    others = [f"{n}: {share_percent(share)}" for n, share in p.interleaved.items()][:_SHOWN]
    return f"{text}; with VPP {', '.join(others)}" if others else text
