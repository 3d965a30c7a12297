"""How a run divides its model and its batch over the GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.models.layer_blocks import UncountableModel
from megatron.bridge.models.model_fields import read_size
from megatron.bridge.models.pipeline_layout import ModelPart, parts_by_chunk
from megatron.bridge.training.decisions import OverlapConfigError
from megatron.bridge.training.runtime_update import data_parallel_size
from overlapkit.config.run import Run
from overlapkit.errors import InputError
from overlapkit.plan.figure import Figure, given


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranks by dimension, and the batch.

    Attributes:
        world, tp, pp, vp, cp, ep, expert_tp, dp: ranks. `vp` is 1 without virtual pipelining. `dp`
            does not include context parallelism.
        instances: replicas of the distributed optimizer's shards (1 shards over all of DP x CP).
        micro_batch: sequences.
        microbatches: passes of one data-parallel rank through the pipeline in a step.
        sequence: tokens of a sequence, over all context-parallel ranks.
        sequence_parallel: whether TP ranks divide the tokens outside attention and MLP.
        sharding: "none", "optimizer" (distributed optimizer), "gradients" or "parameters" (FSDP).
        parts: what every chunk has, as ``[vp_stage][pp_rank]``.
    """

    world: int
    tp: int
    pp: int
    vp: int
    cp: int
    ep: int
    expert_tp: int
    dp: int
    instances: int
    micro_batch: int
    microbatches: int
    sequence: int
    sequence_parallel: bool
    sharding: str
    parts: tuple[tuple[ModelPart, ...], ...]

    @property
    def global_batch(self) -> int:
        """Sequences of a step, over all ranks."""
        return self.micro_batch * self.microbatches * self.dp

    @property
    def replicas(self) -> int:
        """Ranks that have the same dense parameters."""
        return self.dp * self.cp

    @property
    def expert_replicas(self) -> int:
        """Ranks that have the same experts."""
        return self.replicas * self.tp // (self.ep * self.expert_tp)

    @property
    def tokens(self) -> Figure:
        """Tokens of a microbatch that one context-parallel rank works on."""
        batch = given("micro-batch", self.micro_batch, "sequences", "train.micro_batch_size")
        length = given("sequence", self.sequence, "tokens", "model.seq_length")
        ranks = given("CP", self.cp, "ranks", "model.context_parallel_size")
        return (batch * length / ranks).called("tokens of a microbatch", "tokens")

    @property
    def step_tokens(self) -> Figure:
        """Tokens of a step, over all ranks."""
        batch = given("global batch", self.global_batch, "sequences", "train.global_batch_size")
        length = given("sequence", self.sequence, "tokens", "model.seq_length")
        return (batch * length).called("tokens of a step", "tokens")


def layout_of(run: Run, world_size: int) -> Layout:
    """The layout of a run whose configurations are effective (`update_runtime`).

    Raises:
        InputError: a size is missing or does not divide. The message names it and the remedy.
    """
    model = run.model
    try:
        tp = read_size(model, "tensor_model_parallel_size")
        parts = tuple(tuple(row) for row in parts_by_chunk(model))
        layout = Layout(
            world=world_size,
            tp=tp,
            pp=read_size(model, "pipeline_model_parallel_size"),
            vp=len(parts),
            cp=read_size(model, "context_parallel_size"),
            ep=read_size(model, "expert_model_parallel_size"),
            expert_tp=read_size(model, "expert_tensor_parallel_size", default=tp),
            dp=data_parallel_size(model, world_size),
            instances=getattr(run.ddp, "num_distributed_optimizer_instances", 1) or 1,
            micro_batch=_batch(run.train, "micro_batch_size"),
            microbatches=0,
            sequence=read_size(model, "seq_length"),
            sequence_parallel=bool(getattr(model, "sequence_parallel", False)) and tp > 1,
            sharding=_sharding(run.ddp),
            parts=parts,
        )
    except (UncountableModel, OverlapConfigError) as error:
        raise InputError(f"the layout cannot be planned: {error}") from None
    _check_divisions(layout)
    return replace(layout, microbatches=_microbatches(run.train, layout))


def _check_divisions(layout: Layout) -> None:
    ep, expert_ranks = layout.ep, layout.ep * layout.expert_tp
    stage_ranks = layout.dp * layout.cp * layout.tp
    if stage_ranks % expert_ranks:
        raise InputError(
            f"model.expert_model_parallel_size={ep}: EP x expert TP = {expert_ranks} does not "
            f"divide DP x CP x TP = {stage_ranks}; choose an EP that divides it"
        )
    if layout.sequence % layout.cp:
        raise InputError(
            f"model.seq_length={layout.sequence} is not divisible by "
            f"model.context_parallel_size={layout.cp}; choose a CP that divides it"
        )


def _microbatches(train: Any, layout: Layout) -> int:
    """Passes of one data-parallel rank through the pipeline in a step."""
    unit = layout.micro_batch * layout.dp
    microbatches, rest = divmod(_batch(train, "global_batch_size"), unit)
    if rest or not microbatches:
        raise InputError(
            f"train.global_batch_size={train.global_batch_size} is not a multiple of micro-batch "
            f"{layout.micro_batch} x data-parallel size {layout.dp}; set it to a multiple of {unit}"
        )
    if layout.vp > 1 and microbatches < layout.pp:
        raise InputError(
            f"{microbatches} microbatches are fewer than the {layout.pp} stages of an interleaved "
            f"pipeline; set train.global_batch_size to {unit * layout.pp} or more, or "
            "model.virtual_pipeline_model_parallel_size to null"
        )
    return microbatches


def _sharding(ddp: Any) -> str:
    """What is divided over data-parallel ranks; see data_parallel_sharding_strategy."""
    if getattr(ddp, "use_megatron_fsdp", False) or getattr(ddp, "use_custom_fsdp", False):
        strategy = getattr(ddp, "data_parallel_sharding_strategy", "no_shard")
        return {
            "no_shard": "none",
            "optim": "optimizer",
            "optim_grads": "gradients",
            "optim_grads_params": "parameters",
        }.get(str(strategy), "none")
    return "optimizer" if getattr(ddp, "use_distributed_optimizer", False) else "none"


def _batch(train: Any, name: str) -> int:
    value = getattr(train, name, None)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"train.{name} is not set; give train.{name}=N, in sequences")
    return value
