"""The overlap to ask for: a configuration, held against every rule before anything is claimed.

`propose` writes a comm_overlap section onto the settings of a run and applies the rules of
`megatron.bridge` to it, as `overlapkit explain` does. What the rules do not grant is taken out
again, with their reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.training.bucket_size import AUTO
from megatron.bridge.training.decisions import Decision, OverlapConfigError
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from megatron.bridge.training.rules.context import _CommOverlapConfig, fsdp_switch
from overlapkit.config.effective import make_effective
from overlapkit.config.run import Run, Settings, build_run
from overlapkit.errors import InputError
from overlapkit.explain.report import Assumptions, Report, explain
from overlapkit.plan.advise.presets import NO_USERBUFFERS, LayerShape, PresetChoice, choose_preset
from overlapkit.plan.workload.precision import linear_precision

EP_OVERLAP = "overlap_moe_expert_parallel_comm"

_GOVERNED = {
    section: frozenset(f.name for f in dataclasses.fields(_CommOverlapConfig))
    for section in ("model", "ddp", "optimizer")
}
_KEPT = (
    "defer_embedding_wgrad_compute",
    "overlap_param_gather_with_optimizer_step",
    "delay_wgrad_compute",
)
"""Opt-in knobs that a plan leaves as the configuration has them."""
_OF_PRECISION = frozenset(f.name for f in dataclasses.fields(MixedPrecisionConfig))
_ENCODER_DECODER = ("encoder_num_layers", "seq_length_dec")
_HYBRID = ("is_hybrid_model", "hybrid_override_pattern", "mamba_stack_spec")


@dataclass(frozen=True)
class Asked:
    """Whether a dimension's overlap is worth asking for, why, and what would make it so."""

    on: bool
    reason: str
    remedy: str | None = None


@dataclass(frozen=True)
class Draft:
    """What to ask for, before the rules have spoken.

    Attributes:
        base: the settings without overlap.
        values: their sections, with what overlap needs switched on.
        comm: the comm_overlap section to ask for.
        tensor: whether TP overlap is asked for, and why.
        preset: the userbuffers settings; None where there is no TP overlap.
        precision: of the linear layers.
        pinned: keys of comm_overlap that the user fixed on the command line.
    """

    base: Settings
    values: dict[str, dict[str, Any] | None]
    comm: dict[str, Any]
    tensor: Asked
    preset: PresetChoice | None
    precision: str
    pinned: frozenset[str]

    def settings(self, comm: Mapping[str, Any] | None = None) -> Settings:
        """The settings to be written, with another comm_overlap section if given."""
        held = {**self.values, "comm_overlap": dict(self.comm if comm is None else comm)}
        before = self.base.values
        added = {
            f"{section}.{key}"
            for section, content in held.items()
            for key, value in (content or {}).items()
            if key not in (before.get(section) or {}) or (before[section] or {})[key] != value
        }
        return replace(self.base, values=held, asked=_asked(held, self.base.asked | added))


@dataclass(frozen=True)
class Proposal:
    """A configuration with the overlap recommended for it.

    Attributes:
        draft: what was asked for.
        settings: ready to be written out; everything in it passes the rules.
        report: what the rules make of it.
        run: its configurations, effective.
        refused: what the rules did not grant of what was tried, and was taken out again.
        bucket: how large gradient buckets should be, and why; None where nothing is cut.
    """

    draft: Draft
    settings: Settings
    report: Report
    run: Run
    refused: tuple[Decision, ...]
    bucket: Decision | None

    @property
    def tensor(self) -> Asked:
        """Whether TP overlap is asked for, and why."""
        return self.draft.tensor

    @property
    def preset(self) -> PresetChoice | None:
        """The userbuffers settings; None where there is no TP overlap."""
        return self.draft.preset

    @property
    def pinned(self) -> frozenset[str]:
        """Keys of comm_overlap that the user fixed on the command line."""
        return self.draft.pinned

    def effective(self, knob: str) -> Any:
        """The value of a knob such as ``model.tp_comm_overlap`` that the run will have."""
        return self.report.effective[knob]


def propose(
    settings: Settings, world_size: int, assumptions: Assumptions, *, expert_overlap: bool = True
) -> Proposal:
    """The overlap to ask for with one layout.

    Args:
        settings: with the layout, the batch and the precision; its own overlap is replaced, but
            for keys of comm_overlap that an override set.
        world_size: GPUs of the job.
        assumptions: GPU and software.
        expert_overlap: whether to try the overlap of the experts' exchange where there is one.

    Raises:
        InputError: as `explain`.
    """
    asked = draft(settings, world_size, assumptions, expert_overlap=expert_overlap)
    comm = dict(asked.comm)
    proposed = asked.settings(comm)
    report = explain(proposed, world_size, assumptions)
    # What the rules do not grant is taken out again; what the command line fixes is theirs to say.
    tried = ({EP_OVERLAP, *_KEPT} & comm.keys()) - asked.pinned
    refused = [d for d in report.findings if d.knob.rpartition(".")[2] in tried]
    bucket = None
    if comm.get("bucket_size") == AUTO:
        bucket = next((d for d in report.decisions if d.knob == "ddp.bucket_size"), None)
        # The number, so that it can be pasted where "auto" is not known.
        comm["bucket_size"] = report.effective["ddp.bucket_size"]
        if comm["bucket_size"] is None:
            del comm["bucket_size"]
    for name in {d.knob.rpartition(".")[2] for d in refused}:
        comm.pop(name)
    if EP_OVERLAP not in comm and "delay_wgrad_compute" not in asked.pinned:
        comm.pop("delay_wgrad_compute", None)
    if not comm.get("defer_embedding_wgrad_compute"):
        comm.pop("wgrad_deferral_limit", None)
    if comm != asked.comm:
        proposed = asked.settings(comm)
        report = explain(proposed, world_size, assumptions)
    run, _ = make_effective(proposed, world_size, assumptions.software)
    return Proposal(asked, proposed, report, run, tuple(refused), bucket)


def draft(
    settings: Settings, world_size: int, assumptions: Assumptions, *, expert_overlap: bool = True
) -> Draft:
    """What to ask the rules for; arguments as of `propose`."""
    base = without_overlap(settings)
    run = run_in_precision(base, assumptions)
    lora = settings.values.get("peft") is not None
    tensor, preset = _tensor(run, assumptions, lora=lora)
    if tensor.on and states_no_sequence_parallel(settings):
        tensor, preset = _NO_SEQUENCE_PARALLEL, None
    model = run.model
    tp = model.tensor_model_parallel_size or 1
    replicas = world_size // (tp * (model.pipeline_model_parallel_size or 1))
    comm: dict[str, Any] = {"tp_comm_overlap": tensor.on}
    if preset is not None and preset.name is not None:
        comm["tp_comm_overlap_cfg"] = preset.name
    if replicas > 1 and not lora:
        comm |= {"overlap_grad_reduce": True, "overlap_param_gather": True}
        if fsdp_switch(run.ddp) is None:
            # FSDP exchanges unit by unit, and has no buckets.
            comm["bucket_size"] = AUTO
    if expert_overlap and (model.expert_model_parallel_size or 1) > 1:
        comm[EP_OVERLAP] = True
    comm = _kept(settings, expert_overlap=EP_OVERLAP in comm) | comm
    pinned = frozenset(
        key.partition(".")[2] for key in settings.overridden if key.startswith("comm_overlap.")
    )
    fixed = settings.values.get("comm_overlap") or {}
    comm |= {key: fixed[key] for key in pinned if key in fixed}
    if not comm.get("tp_comm_overlap"):
        comm.pop("tp_comm_overlap_cfg", None)

    values = {s: dict(c) if isinstance(c, dict) else c for s, c in base.values.items()}
    if tp > 1 and not states_no_sequence_parallel(settings):
        values["model"] = {**(values.get("model") or {}), "sequence_parallel": True}
    if replicas > 1 and not lora:
        _shard_optimizer(values, settings.overridden)
    precision = linear_precision(model).name
    return Draft(base, values, comm, tensor, preset, precision, pinned)


def asks_for(settings: Settings, knob: str) -> bool:
    """Whether the configuration as it was given switches a knob on."""
    sections = (settings.values.get(name) or {} for name in ("comm_overlap", *_GOVERNED))
    return any(section.get(knob) is True for section in sections)


def _kept(settings: Settings, *, expert_overlap: bool) -> dict[str, Any]:
    """What a plan does not decide about: opt-ins of the configuration stay as they are."""
    kept: dict[str, Any] = {k: True for k in _KEPT if asks_for(settings, k)}
    if not expert_overlap:
        kept.pop("delay_wgrad_compute", None)
    if "defer_embedding_wgrad_compute" in kept:
        for section in ("comm_overlap", "model"):
            limit = (settings.values.get(section) or {}).get("wgrad_deferral_limit")
            if limit is not None:
                return kept | {"wgrad_deferral_limit": limit}
    return kept


_NO_SEQUENCE_PARALLEL = Asked(
    False,
    "model.sequence_parallel is false in the configuration, so layers all-reduce, and there is no "
    "all-gather and reduce-scatter to overlap",
    "set model.sequence_parallel=true: TP overlap comes with it",
)


def states_no_sequence_parallel(settings: Settings) -> bool:
    """Whether the configuration itself says no; what it states of the layout is not changed.

    A value stated for another TP does not count: Megatron-Core demands false with TP 1.
    """
    stated = (settings.values.get("model") or {}).get("sequence_parallel")
    if "model.sequence_parallel" in settings.overridden:
        return stated is False
    return stated is False and "model.tensor_model_parallel_size" not in settings.overridden


def run_in_precision(settings: Settings, assumptions: Assumptions) -> Run:
    """The configurations of a run with mixed precision applied, and nothing else.

    Raises:
        InputError: the precision cannot be.
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
    """The settings without any overlap of their own, nor what mixed precision overwrites anyway."""
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
    return replace(settings, values=values, asked=_asked(values, settings.asked))


def _asked(values: Mapping[str, dict[str, Any] | None], asked: frozenset[str]) -> frozenset[str]:
    there = {f"{s}.{k}" for s, content in values.items() for k in (content or {})}
    return frozenset(key for key in asked if key in there or "." not in key)


def _shard_optimizer(values: dict[str, dict[str, Any] | None], overridden: frozenset[str]) -> None:
    """Turn the distributed optimizer on, without which comm_overlap leaves the gradients alone."""
    name = "use_distributed_optimizer"
    if any(f"{section}.{name}" in overridden for section in ("ddp", "optimizer")):
        return
    for section in ("ddp", "optimizer"):
        values[section] = {**(values.get(section) or {}), name: True}


def _tensor(run: Run, assumptions: Assumptions, *, lora: bool) -> tuple[Asked, PresetChoice | None]:
    m = run.model
    tp = m.tensor_model_parallel_size or 1
    hybrid = any(getattr(m, name, None) for name in _HYBRID)
    if tp < 2:
        return Asked(
            False, "TP is 1: a GPU has whole layers, and nothing to exchange in them"
        ), None
    if m.num_moe_experts and not hybrid:
        return Asked(
            False,
            "userbuffers overlap attention's GEMMs alone in a mixture of experts, not the grouped "
            "GEMMs of the experts, and the SMs that they take are missed there: shipped recipes "
            "for such models leave it off",
        ), None
    precision = linear_precision(m).name
    if precision in NO_USERBUFFERS:
        return Asked(False, NO_USERBUFFERS[precision]), None
    if any(getattr(m, name, None) for name in _ENCODER_DECODER):
        return Asked(
            False,
            "userbuffers have one size, and encoder and decoder sequences have two",
        ), None
    if getattr(m, "variable_seq_lengths", False):
        return Asked(
            False, "userbuffers have one size, and model.variable_seq_lengths changes it"
        ), None
    preset = choose_preset(
        LayerShape(
            gpu=assumptions.gpu_name,
            generation=_generation(assumptions),
            precision=precision,
            hidden_size=m.hidden_size or 0,
            tp=tp,
            cp=m.context_parallel_size or 1,
            micro_batch=run.train.micro_batch_size or 1,
            sequence=m.seq_length or 1024,
            lora=lora,
            transformer=not hybrid,
        )
    )
    if lora and preset.name is None:
        return Asked(
            False,
            "frozen weights have no wgrad GEMM, under which bulk overlap hides a layer's gradient "
            f"exchange, and {preset.reason}",
        ), None
    return Asked(
        True,
        "each layer's all-gathers and reduce-scatters run piece by piece beside their own GEMMs",
    ), preset


def _generation(assumptions: Assumptions) -> str:
    capability = float(assumptions.gpu.compute_capability)
    if capability >= 10:
        return "blackwell"
    return "hopper" if capability >= 9 else "ampere"
