"""Any configuration that explain reads, made small enough to be trained here.

The steps, in order: narrower layers, fewer layers, a smaller layout, fewer microbatches, smaller
buckets. Each keeps what decides about overlap, writes down what it changed, and says what is
therefore no longer proven.
"""

from __future__ import annotations

from typing import Any

from megatron.bridge.training.decisions import OverlapConfigError
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.effective import make_effective
from overlapkit.config.run import Run, Settings, build_run
from overlapkit.config.schema import shown
from overlapkit.errors import InputError
from overlapkit.lab.own.batches import fewer_microbatches
from overlapkit.lab.own.bucket_sizes import size_buckets
from overlapkit.lab.own.knobs import adapt_model, keep_knobs
from overlapkit.lab.own.layout import Layout, layout_of, smaller
from overlapkit.lab.own.reduced import Change as Change
from overlapkit.lab.own.reduced import Notes
from overlapkit.lab.own.reduced import Reduced as Reduced
from overlapkit.lab.own.stages import fewer_layers
from overlapkit.lab.own.widths import narrower
from overlapkit.translate.translation import bridge_sections, smallest_job

RANKS = 8
"""Processes that a configuration is shrunk to by default."""

_NOT_GPT = {
    "encoder_num_layers": "it is an encoder-decoder model",
    "seq_length_dec": "it is an encoder-decoder model",
    "hybrid_override_pattern": "it has Mamba layers, whose kernels need a GPU",
    "hybrid_layer_pattern": "it has Mamba layers, whose kernels need a GPU",
    "is_hybrid_model": "it has Mamba layers, whose kernels need a GPU",
    "mamba_stack_spec": "it has Mamba layers, whose kernels need a GPU",
    "vision_config": "it has a vision tower",
    "heterogeneous_block_specs": "its layers differ from each other",
    "experimental_attention_variant": "its attention needs a GPU",
}

_SIZES = (
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_head_dim",
    "v_head_dim",
    "num_layers",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "mtp_num_layers",
    "num_moe_experts",
    "moe_router_topk",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "seq_length",
    "microbatch_group_size_per_vp_stage",
    "recompute_num_layers",
)

_OF_FP8 = ("fp8_param_gather", "fp4_param_gather", "reuse_grad_buf_for_mxfp8_param_ag")

Sections = dict[str, dict[str, Any]]


def shrink(
    settings: Settings, *, ranks: int = RANKS, world_size: int | None = None, scale: int = 1
) -> Reduced:
    """A configuration with the structure of the user's that trains on a few ranks.

    Args:
        settings: the user's, as read.
        ranks: the most processes.
        world_size: GPUs of the user's job. None takes what a launch script states, and else the
            smallest job with data parallelism.
        scale: how much wider the layers and longer the sequences are than at least: 1 to compare
            numbers, more where compute must take its time.

    Raises:
        InputError: the model is none that the lab trains, its layers do not fit its pipeline, or a
            section cannot be built.
    """
    source = settings.source
    given = _requested(settings)
    _only_gpt(given.get("model", {}), source)
    size = world_size or (settings.launch.world_size if settings.launch else None)
    gpus = size or smallest_job(settings)
    run, effective = _runs(settings, gpus)
    _check_sizes(effective.model, source)
    notes = Notes()
    old = layout_of(effective.model, run.ddp, gpus, source)
    differ = _batches(given, effective)
    new = smaller(
        old,
        ranks,
        two_stages_differ=differ,
        dp_known=size is not None,
        cp_overlaps="comm_overlap" not in given,
        notes=notes,
    )
    if size is None:
        notes.kept.append(
            "data parallelism of 2 or more, since the configuration does not say on how many GPUs "
            "it runs"
        )
    model = keep_knobs("model", given.get("model", {}), notes)
    adapt_model(model, run.model, notes)
    model |= narrower(run.model, new, scale, notes)
    # A layout states its own virtual stages, which only the effective model has.
    model |= fewer_layers(effective.model, old, new, notes, source)
    model |= _layout_keys(new, model)
    _recompute(model, notes)
    train, of_model = fewer_microbatches(effective.model, run.train, old, new, notes)
    model |= of_model
    sections: Sections = {
        "model": model,
        "ddp": keep_knobs("ddp", given.get("ddp", {}), notes),
        "optimizer": _optimizer(given.get("optimizer", {}), notes),
        "train": train,
    }
    if new.instances > 1:
        sections["ddp"]["num_distributed_optimizer_instances"] = new.instances
    if given.get("comm_overlap"):
        # tp_comm_overlap is required.
        kept = keep_knobs("comm_overlap", given["comm_overlap"], notes)
        sections["comm_overlap"] = {"tp_comm_overlap": False, **kept}
    _precision(sections, run, notes)
    if (given.get("peft") or {}) and settings.values.get("peft"):
        notes.unproven.append("peft: adapters are not trained; all weights are")
    size_buckets(sections, effective, old, new, notes)
    return Reduced(
        sections,
        new.ranks,
        tuple(notes.changed),
        tuple(dict.fromkeys(notes.unproven)),
        tuple(dict.fromkeys(notes.kept)),
    )


def _requested(settings: Settings) -> Sections:
    sections, _ = bridge_sections(settings)
    return {section: dict(content) for section, content in sections.items() if content is not None}


def _only_gpt(model: dict[str, Any], source: str) -> None:
    for key, why in _NOT_GPT.items():
        if model.get(key):
            raise InputError(
                f"{source}: model.{key}: {why}; the lab trains GPT models: give a configuration of "
                "the same layout with attention and MLP layers alone"
            )


def _check_sizes(model: Any, source: str) -> None:
    """Refuse sizes that no run can have: of them others are computed here."""
    for key in _SIZES:
        value = getattr(model, key, None)
        if value is not None and (type(value) is not int or value < 0):
            raise InputError(f"{source}: model.{key} must be a whole number, not {shown(value)}")
    layout = getattr(model, "pipeline_model_parallel_layout", None)
    if layout is not None and not isinstance(layout, str):
        rows = layout if isinstance(layout, list) else [None]
        if not rows or not all(isinstance(row, list) for row in rows):
            raise InputError(
                f"{source}: model.pipeline_model_parallel_layout must be a text such as Et|tL or a "
                f"list of lists, not {shown(layout)}"
            )


def _runs(settings: Settings, size: int) -> tuple[Run, Run]:
    """The run as requested, and as the rules make it effective."""
    try:
        return build_run(settings), make_effective(settings, size, AssumedSoftware())[0]
    except OverlapConfigError as error:
        raise InputError(f"{settings.source}: {error}") from None


def _batches(given: Sections, effective: Run) -> bool:
    """Whether interleaved stages exchange, or are asked to, by batched p2p communication."""
    requested = given.get("comm_overlap", {}).get("batch_p2p_comm")
    model = effective.model
    interleaved = (getattr(model, "virtual_pipeline_model_parallel_size", None) or 1) > 1
    in_effect = model.batch_p2p_comm and not model.overlap_p2p_comm
    return interleaved and bool(requested or in_effect)


def _layout_keys(new: Layout, model: dict[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "tensor_model_parallel_size": new.tp,
        "pipeline_model_parallel_size": new.pp,
    }
    if new.ep > 1:
        keys["expert_model_parallel_size"] = new.ep
    if model.get("num_moe_experts"):
        keys["expert_tensor_parallel_size"] = new.expert_tp
    if model.get("sequence_parallel"):
        keys["sequence_parallel"] = new.tp > 1
    return keys


def _recompute(model: dict[str, Any], notes: Notes) -> None:
    if not model.get("recompute_granularity"):
        return
    notes.kept.append(f"recompute_granularity={model['recompute_granularity']}")
    layers = model.get("recompute_num_layers")
    if layers:
        # Megatron-Core: at most as many as a chunk has.
        stages = model["pipeline_model_parallel_size"]
        chunks = stages * (model.get("virtual_pipeline_model_parallel_size") or 1)
        model["recompute_num_layers"] = min(layers, max(1, model["num_layers"] // chunks))
        new = model["recompute_num_layers"]
        notes.change("model.recompute_num_layers", layers, new, "fewer layers")


def _optimizer(given: dict[str, Any], notes: Notes) -> dict[str, Any]:
    kept = keep_knobs("optimizer", given, notes)
    name = given.get("optimizer")
    if name is not None:
        kept["optimizer"] = name if name in ("adam", "sgd") else "adam"
        notes.change("optimizer.optimizer", name, kept["optimizer"], "the lab has no other")
    return kept


def _precision(sections: Sections, run: Run, notes: Notes) -> None:
    """bf16 stays; FP8, FP4 and fp16 become bf16; without mixed precision the dtypes stay."""
    requested = run.mixed_precision
    model = sections["model"]
    if requested is None:
        if getattr(run.model, "fp16", False):
            _to_bf16("model.fp16", notes)
            half = {"bf16": True, "params_dtype": "torch.bfloat16"}
            model |= {**half, "pipeline_dtype": "torch.bfloat16"}
            sections["optimizer"] |= half
        return
    if requested.fp8 or requested.fp4:
        kind = "fp8" if requested.fp8 else "fp4"
        for key in (kind, *_OF_FP8):
            value = getattr(requested, key, None) or None
            notes.change(f"mixed_precision.{key}", value, None, "it needs Transformer Engine")
        notes.unproven.append(
            f"mixed_precision: {kind.upper()} needs Transformer Engine; its scaling, and the "
            "gathers of its weights, are not trained; bf16 is"
        )
    elif requested.fp16:
        _to_bf16("mixed_precision.fp16", notes)
    sections["mixed_precision"] = {"grad_reduce_in_fp32": bool(requested.grad_reduce_in_fp32)}
    if requested.bf16 or requested.fp16 or requested.fp8 or requested.fp4:
        sections["mixed_precision"] |= {
            "bf16": True,
            "params_dtype": "torch.bfloat16",
            "pipeline_dtype": "torch.bfloat16",
        }
    for key in ("bf16", "params_dtype", "pipeline_dtype"):
        model.pop(key, None)


def _to_bf16(key: str, notes: Notes) -> None:
    notes.change(key, True, None, "bf16 needs no loss scale")
    notes.unproven.append(f"{key}: the scaling of the loss is not trained; bf16 is")
