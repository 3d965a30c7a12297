"""When tensor-parallel communication overlaps, and which userbuffers settings it gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Need, Outcome, rule, unmet
from megatron.bridge.training.edits import Edit, either
from megatron.bridge.training.remedies import TP_OVERLAP, Edits, off
from megatron.bridge.training.rules.context import OPT_IN_REASON, Context, choose
from megatron.bridge.training.tp_overlap_presets import (
    PRESETS,
    PresetKey,
    parse_preset_name,
    presets_like,
)

TP_OFF_UNLESS_ASKED = rule(
    "tp.off-unless-asked",
    Dimension.TP,
    claim="tp_comm_overlap is on only where it is requested.",
    remedy="set comm_overlap.tp_comm_overlap=true",
    opt_in=True,
)

# The first unmet need is the reason that the user sees.
TP_GATE: tuple[Need[Context], ...] = (
    Need(
        rule(
            "tp.needs-tensor-parallel",
            Dimension.TP,
            claim="tp_comm_overlap is switched off while tensor_model_parallel_size < 2.",
            remedy="set tp_comm_overlap=false, or model.tensor_model_parallel_size to 2 or more, "
            "within one NVLink domain",
        ),
        met=lambda c: (c.model.tensor_model_parallel_size or 1) >= 2,
        found=lambda c: (
            f"tensor_model_parallel_size is {c.model.tensor_model_parallel_size}, "
            "so there is no tensor-parallel communication to hide"
        ),
        edits=off(TP_OVERLAP),
        otherwise="model.tensor_model_parallel_size to 2 or more, within one NVLink domain",
    ),
    Need(
        rule(
            "tp.needs-sequence-parallel",
            Dimension.TP,
            claim="tp_comm_overlap is switched off while sequence_parallel is off.",
            remedy="set model.sequence_parallel=true",
            edits=(Edit("model.sequence_parallel", True),),
        ),
        met=lambda c: bool(c.model.sequence_parallel),
        found=lambda c: (
            "sequence_parallel is off, so the layers all-reduce; userbuffers overlap only "
            "the all-gathers and reduce-scatters of sequence parallelism"
        ),
    ),
    Need(
        rule(
            "tp.needs-transformer-engine",
            Dimension.TP,
            claim="tp_comm_overlap is switched off where Transformer Engine cannot be imported.",
            remedy="set tp_comm_overlap=false, or install a Transformer Engine built for this "
            "torch and CUDA",
        ),
        met=lambda c: c.software.have_te(),
        found=lambda c: "Transformer Engine cannot be imported, and its userbuffers do the overlap",
        edits=off(TP_OVERLAP),
        otherwise="install a Transformer Engine built for this torch and CUDA",
    ),
)

TP_USERBUFFERS_DEFAULT = rule(
    "tp.userbuffers-default",
    Dimension.TP,
    claim="TP overlap without a tp_comm_overlap_cfg runs with Transformer Engine's own settings.",
    remedy="set comm_overlap.tp_comm_overlap_cfg to a preset for your GPU, sizes and precision",
)
TP_PRESET_FIT = rule(
    "tp.preset-fit",
    Dimension.TP,
    claim="A userbuffers preset is tuned for one precision, hidden size and tensor-parallel size.",
    remedy="use the preset for these sizes, or compare profiles with and without this one",
)
TP_BOOTSTRAP = rule(
    "tp.bootstrap-backend",
    Dimension.TP,
    claim="comm_overlap's tp_comm_bootstrap_backend (default nccl) is set on the model.",
    opt_in=True,
)


def decide_tp_overlap(c: Context) -> Decision:
    """TP overlap: as requested, unless a need of `TP_GATE` is not met."""
    knob, asked = "model.tp_comm_overlap", c.request.tp_comm_overlap
    if not asked:
        return choose(TP_OFF_UNLESS_ASKED, knob, False, None, OPT_IN_REASON)
    for broken in unmet(TP_GATE, c):
        return broken.decide(knob, requested=True, effective=False, outcome=Outcome.REFUSED)
    reason = "requested, and tensor and sequence parallelism and Transformer Engine are available"
    return TP_OFF_UNLESS_ASKED.decide(
        knob, requested=True, effective=True, reason=reason, outcome=Outcome.GRANTED
    )


def _run_sizes(c: Context) -> tuple[str, int | None, int]:
    """What a preset must fit: the precision of the GEMMs, hidden size, tensor-parallel size."""
    precision = "fp8" if c.of_model("fp8") else "bf16"
    return precision, c.of_model("hidden_size"), c.model.tensor_model_parallel_size


def _preset_sizes(key: PresetKey) -> tuple[str, int, int]:
    return key.precision, key.hidden_size, key.tensor_parallel_size


def _fitting_presets(c: Context) -> tuple[str, Edits]:
    """A remedy with the presets for this run's precision and sizes, and its first as an edit.

    Both are empty where there is none. Those for the run's GPU come first, where it is known. For
    Megatron-LM there is no edit: it takes a file, not a name.
    """
    keys = {name: parse_preset_name(name) for name in PRESETS}
    names = [name for name, key in keys.items() if _preset_sizes(key) == _run_sizes(c)]
    gpu = c.gpu.name if c.gpu is not None else ""
    names.sort(key=lambda name: (keys[name].gpu != gpu, keys[name].lora))
    if not names:
        return "", ()
    if not c.of_megatron_bridge:
        return f"set comm_overlap.tp_comm_overlap_cfg to {' or '.join(names)}", ()
    edits = (Edit(c.key("model.tp_comm_overlap_cfg"), names[0]),)
    return either(edits, " or ".join(names[1:])), edits


def _decide_preset_fit(c: Context, knob: str, given: Any) -> Iterator[Decision]:
    try:
        tuned_for = [_preset_sizes(key) for key in presets_like(given)]
    except TypeError:
        return
    if tuned_for and _run_sizes(c) not in tuned_for:
        remedy, edits = _fitting_presets(c)
        sizes = "precision {}, hidden size {}, TP {}"
        yield TP_PRESET_FIT.decide(
            knob,
            requested=given,
            effective=given,
            reason=f"it is a preset for {sizes.format(*tuned_for[0])}, but this run has "
            + sizes.format(*_run_sizes(c)),
            outcome=Outcome.NOTE,
            remedy=remedy or TP_PRESET_FIT.remedy,
            edits=edits,
        )


def decide_tp(c: Context) -> Iterator[Decision]:
    """Every tensor-parallel knob of comm_overlap, and whether a preset fits this run."""
    overlap = decide_tp_overlap(c)
    yield overlap
    knob, given = "model.tp_comm_overlap_cfg", c.request.tp_comm_overlap_cfg
    if overlap.effective and given is None:
        remedy, edits = _fitting_presets(c)
        yield TP_USERBUFFERS_DEFAULT.decide(
            knob,
            requested=None,
            effective=None,
            reason="no userbuffers configuration was given, so Transformer Engine's defaults are "
            "used; they are not tuned for these sizes",
            outcome=Outcome.NOTE,
            remedy=remedy or TP_USERBUFFERS_DEFAULT.remedy,
            edits=edits,
        )
    elif overlap.effective:
        yield TP_USERBUFFERS_DEFAULT.decide(
            knob,
            requested=given,
            effective=given,
            reason="comm_overlap sets this userbuffers configuration",
            outcome=Outcome.GRANTED,
        )
        yield from _decide_preset_fit(c, knob, given)
    # The request's own default is nccl: the user did not ask for it.
    backend = c.request.tp_comm_bootstrap_backend
    yield choose(
        TP_BOOTSTRAP,
        "model.tp_comm_bootstrap_backend",
        "nccl",
        None if backend == "nccl" else backend,
        "the ranks of a node connect through it before userbuffers take over",
    )
