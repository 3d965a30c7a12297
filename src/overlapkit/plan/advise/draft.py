"""The overlap to request for a layout, before the rules are applied."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.training.bucket_size import AUTO
from megatron.bridge.training.decisions import OverlapConfigError
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from megatron.bridge.training.rules.context import _CommOverlapConfig, fsdp_switch
from overlapkit.config.run import Run, Settings, build_run
from overlapkit.errors import InputError
from overlapkit.explain.report import Assumptions
from overlapkit.plan.advise.presets import NO_USERBUFFERS, LayerShape, PresetChoice, choose_preset
from overlapkit.plan.workload.precision import linear_precision

EP_OVERLAP = "overlap_moe_expert_parallel_comm"

_GOVERNED = {
    section: frozenset(f.name for f in dataclasses.fields(_CommOverlapConfig))
    for section in ("model", "ddp", "optimizer")
}
OPT_INS = (
    "defer_embedding_wgrad_compute",
    "overlap_param_gather_with_optimizer_step",
    "delay_wgrad_compute",
)
"""Knobs that a plan leaves as the configuration sets them."""
_OF_PRECISION = frozenset(f.name for f in dataclasses.fields(MixedPrecisionConfig))
_ENCODER_DECODER = ("encoder_num_layers", "seq_length_dec")
_HYBRID = ("is_hybrid_model", "hybrid_override_pattern", "mamba_stack_spec")


@dataclass(frozen=True)
class Request:
    """Whether to request a dimension's overlap.

    Attributes:
        on: whether it is requested.
        reason: why, or why not.
        remedy: what would make it worth requesting; None where nothing would.
    """

    on: bool
    reason: str
    remedy: str | None = None


@dataclass(frozen=True)
class Draft:
    """What to request, before the rules are applied.

    Attributes:
        base: the settings without overlap.
        values: their sections, with what overlap needs switched on.
        comm: the comm_overlap section to request.
        tensor: whether TP overlap is requested, and why.
        preset: the userbuffers settings; None where there is no TP overlap.
        precision: of the linear layers.
        pinned: keys of comm_overlap that the user fixed on the command line.
    """

    base: Settings
    values: dict[str, dict[str, Any] | None]
    comm: dict[str, Any]
    tensor: Request
    preset: PresetChoice | None
    precision: str
    pinned: frozenset[str]

    def settings(self, comm: Mapping[str, Any] | None = None) -> Settings:
        """The settings to write, with another comm_overlap section if given."""
        values = {**self.values, "comm_overlap": dict(self.comm if comm is None else comm)}
        before = self.base.values
        added = {
            f"{section}.{key}"
            for section, content in values.items()
            for key, value in (content or {}).items()
            if key not in (before.get(section) or {}) or (before[section] or {})[key] != value
        }
        return replace(self.base, values=values, asked=_present(values, self.base.asked | added))


def draft(
    settings: Settings, world_size: int, assumptions: Assumptions, *, expert_overlap: bool = True
) -> Draft:
    """What to request of the rules.

    Args:
        settings: with the layout, the batch and the precision. Their own overlap is replaced,
            except for keys of comm_overlap that an override set.
        world_size: GPUs of the job.
        assumptions: GPU and software.
        expert_overlap: whether to try the overlap of the experts' exchange where there is one.

    Raises:
        InputError: the precision is not possible.
    """
    base = without_overlap(settings)
    run = run_in_precision(base, assumptions)
    lora = settings.values.get("peft") is not None
    tensor, preset = _tensor(run, assumptions, lora=lora)
    if tensor.on and states_no_sequence_parallel(settings):
        tensor, preset = _NO_SEQUENCE_PARALLEL, None
    model = run.model
    tp = model.tensor_model_parallel_size or 1
    replicas = world_size // (tp * (model.pipeline_model_parallel_size or 1))
    exchanged = replicas > 1 and not lora
    comm: dict[str, Any] = {"tp_comm_overlap": tensor.on}
    if preset is not None and preset.name is not None:
        comm["tp_comm_overlap_cfg"] = preset.name
    if exchanged:
        comm |= {"overlap_grad_reduce": True, "overlap_param_gather": True}
        if fsdp_switch(run.ddp, run.dist) is None:
            # FSDP exchanges unit by unit, and has no buckets.
            comm["bucket_size"] = AUTO
    if expert_overlap and (model.expert_model_parallel_size or 1) > 1:
        comm[EP_OVERLAP] = True
    pinned = frozenset(
        key.partition(".")[2] for key in settings.overridden if key.startswith("comm_overlap.")
    )
    comm = _opt_ins(settings, expert_overlap=EP_OVERLAP in comm) | comm | _fixed(settings, pinned)
    if not comm.get("tp_comm_overlap"):
        comm.pop("tp_comm_overlap_cfg", None)

    values = {s: dict(c) if isinstance(c, dict) else c for s, c in base.values.items()}
    if tp > 1 and not states_no_sequence_parallel(settings):
        values["model"] = {**(values.get("model") or {}), "sequence_parallel": True}
    if exchanged:
        _shard_optimizer(values, settings.overridden)
    return Draft(
        base=base,
        values=values,
        comm=comm,
        tensor=tensor,
        preset=preset,
        precision=linear_precision(model).name,
        pinned=pinned,
    )


def _fixed(settings: Settings, pinned: frozenset[str]) -> dict[str, Any]:
    """The keys of comm_overlap that the command line fixes."""
    comm = settings.values.get("comm_overlap") or {}
    return {key: comm[key] for key in pinned if key in comm}


def requests(settings: Settings, knob: str) -> bool:
    """Whether the configuration as given switches a knob on."""
    sections = (settings.values.get(name) or {} for name in ("comm_overlap", *_GOVERNED))
    return any(section.get(knob) is True for section in sections)


def _opt_ins(settings: Settings, *, expert_overlap: bool) -> dict[str, Any]:
    """What a plan does not decide: `OPT_INS` stay as the configuration sets them."""
    kept: dict[str, Any] = {k: True for k in OPT_INS if requests(settings, k)}
    if not expert_overlap:
        kept.pop("delay_wgrad_compute", None)
    if "defer_embedding_wgrad_compute" in kept:
        for section in ("comm_overlap", "model"):
            limit = (settings.values.get(section) or {}).get("wgrad_deferral_limit")
            if limit is not None:
                return kept | {"wgrad_deferral_limit": limit}
    return kept


_NO_SEQUENCE_PARALLEL = Request(
    False,
    "model.sequence_parallel is false in the configuration, so layers all-reduce and have no "
    "all-gather or reduce-scatter to overlap",
    "set model.sequence_parallel=true, which TP overlap needs",
)


def states_no_sequence_parallel(settings: Settings) -> bool:
    """Whether the configuration itself sets model.sequence_parallel to false for this layout.

    A value that was stated for another TP is ignored: Megatron-Core requires false with TP 1.
    """
    stated = (settings.values.get("model") or {}).get("sequence_parallel")
    if "model.sequence_parallel" in settings.overridden:
        return stated is False
    return stated is False and "model.tensor_model_parallel_size" not in settings.overridden


def run_in_precision(settings: Settings, assumptions: Assumptions) -> Run:
    """The configurations of a run with mixed precision applied, and nothing else.

    Raises:
        InputError: the precision is not possible.
    """
    run = build_run(settings)
    if run.mixed_precision is not None:
        try:
            run.mixed_precision.setup(
                run.model, run.optimizer, run.ddp, software=assumptions.software
            )
        except OverlapConfigError as error:
            raise InputError(f"{settings.source}: {error}") from None
    return run


def without_overlap(settings: Settings) -> Settings:
    """The settings without overlap, and without what mixed precision overwrites anyway."""
    values: dict[str, dict[str, Any] | None] = {}
    precision = settings.values.get("mixed_precision") is not None
    for section, content in settings.values.items():
        if section == "comm_overlap":
            continue
        dropped = _GOVERNED.get(section, frozenset())
        if precision and dropped:
            dropped |= _OF_PRECISION
        values[section] = (
            {k: v for k, v in content.items() if k not in dropped} if content else content
        )
    return replace(settings, values=values, asked=_present(values, settings.asked))


def _present(values: Mapping[str, dict[str, Any] | None], keys: frozenset[str]) -> frozenset[str]:
    """The keys that `values` still contain, and those of no section."""
    present = {f"{s}.{k}" for s, content in values.items() for k in (content or {})}
    return frozenset(key for key in keys if key in present or "." not in key)


def _shard_optimizer(values: dict[str, dict[str, Any] | None], overridden: frozenset[str]) -> None:
    """Turn on the distributed optimizer, without which comm_overlap does not overlap gradients."""
    name = "use_distributed_optimizer"
    if any(f"{section}.{name}" in overridden for section in ("ddp", "optimizer")):
        return
    for section in ("ddp", "optimizer"):
        values[section] = {**(values.get(section) or {}), name: True}


def _tensor(
    run: Run, assumptions: Assumptions, *, lora: bool
) -> tuple[Request, PresetChoice | None]:
    """Whether to request TP overlap, and the userbuffers settings for it."""
    m = run.model
    refused = _no_userbuffers(run)
    if refused is not None:
        return Request(False, refused), None
    preset = choose_preset(_layer_shape(run, assumptions, lora=lora))
    if lora and preset.name is None:
        reason = (
            "frozen weights have no wgrad GEMM for bulk overlap to hide a layer's gradient "
            f"exchange under, and {preset.reason}"
        )
        return Request(False, reason), None
    if preset.name is None and (m.context_parallel_size or 1) > 1 and not _is_hybrid(m):
        reason = (
            f"{preset.reason}; with CP {m.context_parallel_size} attention takes most of a layer, "
            "and Megatron-Bridge's recipes (Llama 3 8B with 16K to 128K tokens) keep it off"
        )
        return Request(False, reason), None
    reason = "each layer's all-gathers and reduce-scatters run in pieces during its own GEMMs"
    return Request(True, reason), preset


def _no_userbuffers(run: Run) -> str | None:
    """Why userbuffers cannot, or should not, carry the layers' exchange; None where they can."""
    m = run.model
    if (m.tensor_model_parallel_size or 1) < 2:
        return "TP is 1: each GPU has entire layers and exchanges nothing within them"
    if m.num_moe_experts and not _is_hybrid(m):
        return (
            "in a mixture of experts userbuffers overlap only attention's GEMMs, and take SMs from "
            "the experts' grouped GEMMs; published recipes for such models keep it off"
        )
    precision = linear_precision(m).name
    if precision in NO_USERBUFFERS:
        return NO_USERBUFFERS[precision]
    if any(getattr(m, name, None) for name in _ENCODER_DECODER):
        return "userbuffers have one size, but encoder and decoder sequences have two"
    if getattr(m, "variable_seq_lengths", False):
        return "userbuffers have one size, but model.variable_seq_lengths makes it vary"
    return None


def _is_hybrid(model: Any) -> bool:
    return any(getattr(model, name, None) for name in _HYBRID)


def _layer_shape(run: Run, assumptions: Assumptions, *, lora: bool) -> LayerShape:
    m = run.model
    return LayerShape(
        gpu=assumptions.gpu_name,
        generation=_generation(assumptions),
        precision=linear_precision(m).name,
        hidden_size=m.hidden_size or 0,
        tp=m.tensor_model_parallel_size or 1,
        cp=m.context_parallel_size or 1,
        micro_batch=run.train.micro_batch_size or 1,
        sequence=m.seq_length or 1024,
        lora=lora,
        transformer=not _is_hybrid(m),
    )


def _generation(assumptions: Assumptions) -> str:
    capability = float(assumptions.gpu.least_capability)
    if capability >= 10:
        return "blackwell"
    return "hopper" if capability >= 9 else "ampere"
