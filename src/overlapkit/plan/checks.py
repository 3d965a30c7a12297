"""Layouts that cannot run, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.models.layer_blocks import UncountableModel, hybrid_pattern
from megatron.bridge.models.pipeline_layout import layers_by_chunk
from overlapkit.config.megatron_lm.flags import CHUNK_LAYERS
from overlapkit.config.places import in_messages
from overlapkit.config.run import Run, Settings, build_run
from overlapkit.errors import InputError


def check_layout(run: Run, world_size: int, domain: int, *, source: str) -> None:
    """Refuse a layout that Megatron-Core or the machine refuses.

    Args:
        run: the configurations, effective or not.
        world_size: GPUs of the job.
        domain: GPUs that NVLink connects.
        source: where the layout comes from, for the message.

    Raises:
        InputError: the first fault, with its key, its value and its remedy.
    """
    for fault in faults(run, world_size, domain):
        raise InputError(f"{source}: {fault}")


def check_chunks(settings: Settings) -> None:
    """Refuse a Megatron-LM job whose chunks do not divide the layers of a stage.

    Raises:
        InputError: with the place of the flag.
    """
    request = settings.values.get("megatron_lm") or {}
    of_chunk = request.get("num_layers_per_virtual_pipeline_stage")
    changed = {
        f"model.{name}_parallel_size" for name in ("pipeline_model", "virtual_pipeline_model")
    }
    if of_chunk is None or changed & settings.overridden:
        return
    m = build_run(settings).model
    layers = (m.num_layers or 0) + m.account_for_embedding_in_pipeline_split
    layers += m.account_for_loss_in_pipeline_split
    stages = m.pipeline_model_parallel_size or 1
    if layers != of_chunk * stages * (m.virtual_pipeline_model_parallel_size or 1):
        place = in_messages(
            settings.where, "model.virtual_pipeline_model_parallel_size", settings.source
        )
        raise InputError(
            f"{place}: {CHUNK_LAYERS} {of_chunk} does not divide the layers of a stage "
            f"({layers} on {stages} stages); overlapkit explain names the values that do"
        )


def faults(run: Run, world_size: int, domain: int) -> Iterator[str]:
    """Every fault of a layout, as a sentence with its remedy."""
    m = run.model
    tp, pp, cp, ep = (
        getattr(m, f"{name}_parallel_size", 1) or 1
        for name in ("tensor_model", "pipeline_model", "context", "expert_model")
    )
    ranks = tp * pp * cp
    for name in ("num_layers", "hidden_size", "num_attention_heads"):
        if not getattr(m, name, None):
            yield (
                f"model.{name} is not set, and a plan needs the model's sizes; give model.{name}=N "
                "and the other sizes, or --model NAME for a published model"
            )
            return
    if tp > domain:
        yield (
            f"model.tensor_model_parallel_size={tp} extends beyond the NVLink domain of {domain} "
            f"GPUs, so that every layer would wait for the network; set it to "
            f"{_largest_divisor(tp, domain)} or less"
        )
    yield from _divides(m, tp, domain, "num_attention_heads", "attention heads")
    yield from _divides(m, tp, domain, "ffn_hidden_size", "the feed-forward width")
    if world_size % ranks:
        yield (
            f"--world-size {world_size} is not divisible by TP x PP x CP = {tp} x {pp} x {cp} = "
            f"{ranks}; use {_multiples(world_size, ranks)} GPUs, or change the layout"
        )
        return
    groups = getattr(m, "num_query_groups", None)
    if isinstance(groups, int) and groups and groups % tp and tp % groups:
        yield (
            f"model.num_query_groups={groups} is neither a multiple nor a divisor of "
            f"model.tensor_model_parallel_size={tp}; choose a TP among {_divisors(groups)}"
        )
    yield from _experts(m, ep, world_size // pp)
    yield from _pipeline(m, pp)
    yield from _sequence(m, tp, cp)
    yield from _batch(run.train, m, world_size // ranks, pp)


def _divides(m: Any, tp: int, domain: int, name: str, what: str) -> Iterator[str]:
    size = getattr(m, name, None)
    # What is not a number is reported by what counts the model's parameters.
    if isinstance(size, int) and size and size % tp:
        yield (
            f"model.tensor_model_parallel_size={tp} does not divide {what} (model.{name}={size}); "
            f"choose a TP among {_divisors(size, domain)}"
        )


def _experts(m: Any, ep: int, stage_ranks: int) -> Iterator[str]:
    experts: int = getattr(m, "num_moe_experts", None) or 0
    if ep > 1 and not experts:
        yield (
            f"model.expert_model_parallel_size={ep} needs a mixture of experts, but "
            "model.num_moe_experts is not set; set it, or set EP to 1"
        )
    elif ep > 1 and experts % ep:
        yield (
            f"model.expert_model_parallel_size={ep} does not divide model.num_moe_experts="
            f"{experts}; choose an EP among {_divisors(experts)}"
        )
    top = getattr(m, "moe_router_topk", None)
    if experts and isinstance(top, int) and not 1 <= top <= experts:
        yield (
            f"model.moe_router_topk={top} must be from 1 to the {experts} experts of "
            "model.num_moe_experts"
        )
    etp = getattr(m, "expert_tensor_parallel_size", None) or (
        getattr(m, "tensor_model_parallel_size", 1) or 1
    )
    if experts and stage_ranks % (ep * etp):
        yield (
            f"model.expert_model_parallel_size={ep} x expert TP {etp} does not divide the "
            f"{stage_ranks} GPUs of a pipeline stage; choose sizes whose product does"
        )


def _pipeline(m: Any, pp: int) -> Iterator[str]:
    vp = getattr(m, "virtual_pipeline_model_parallel_size", None)
    if pp == 1 and vp and vp > 1:
        yield (
            f"model.virtual_pipeline_model_parallel_size={vp} needs a pipeline, but "
            "model.pipeline_model_parallel_size is 1; set VPP to null"
        )
        return
    try:
        hybrid_pattern(m)
    except UncountableModel:
        # Its layers are counted, whatever they are; the estimate says that it does not know them.
        return
    try:
        layers_by_chunk(m)
    except UncountableModel as error:
        layers = m.num_layers
        if getattr(m, "pipeline_model_parallel_layout", None) is not None:
            yield f"model.{error}; make both agree"
            return
        fits = [n for n in range(1, 65) if layers and layers % n == 0 and n <= layers]
        yield (
            f"model.pipeline_model_parallel_size={pp}, VPP {vp or 'none'}: {error}; "
            f"PP x VPP must divide the {layers} layers ({', '.join(map(str, fits))}), or the "
            "layers plus embedding and loss (model.account_for_embedding_in_pipeline_split and "
            "model.account_for_loss_in_pipeline_split)"
        )


def _sequence(m: Any, tp: int, cp: int) -> Iterator[str]:
    sequence = getattr(m, "seq_length", None)
    if not sequence:
        return
    if cp > 1 and sequence % (2 * cp):
        yield (
            f"model.seq_length={sequence} is not a multiple of 2 x CP = {2 * cp}, which context "
            "parallelism needs to divide a causal sequence evenly; change one of them"
        )
    elif tp > 1 and (sequence // cp) % tp:
        yield (
            f"model.seq_length={sequence} over CP {cp} is not a multiple of "
            f"model.tensor_model_parallel_size={tp}, which sequence parallelism needs; change one "
            "of them"
        )


def _batch(train: Any, m: Any, dp: int, pp: int) -> Iterator[str]:
    micro, batch = train.micro_batch_size, train.global_batch_size
    if not micro or not batch:
        return
    for name, size in (("micro_batch_size", micro), ("global_batch_size", batch)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            yield f"train.{name}={size!r}: must be a number of sequences, 1 or more"
            return
    if batch % (micro * dp):
        yield (
            f"train.global_batch_size={batch} is not a multiple of micro-batch {micro} x "
            f"data-parallel size {dp}; use {_multiples(batch, micro * dp)}"
        )
        return
    vp = getattr(m, "virtual_pipeline_model_parallel_size", None) or 1
    count = batch // (micro * dp)
    if vp > 1 and count < pp:
        yield (
            f"{count} microbatches are fewer than the {pp} stages of an interleaved pipeline; set "
            f"train.global_batch_size to {micro * dp * pp} or more, or "
            "model.virtual_pipeline_model_parallel_size=null"
        )
    elif vp > 1 and 0 < count % pp < pp:
        yield (
            f"{count} microbatches are not a multiple of the {pp} stages of an interleaved "
            f"pipeline; set train.global_batch_size to {_multiples(batch, micro * dp * pp)}"
        )


def _divisors(number: int, most: int = 64) -> str:
    return ", ".join(str(n) for n in range(1, most + 1) if number % n == 0)


def _largest_divisor(number: int, limit: int) -> int:
    return max(n for n in range(1, limit + 1) if number % n == 0)


def _multiples(near: int, of: int) -> str:
    below = near // of * of
    return f"{below} or {below + of}" if below else str(of)
