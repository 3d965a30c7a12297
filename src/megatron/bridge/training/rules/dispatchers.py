"""The token dispatcher's flexible back ends: which one a run gets, and what refuses it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.remedies import Edits, without
from megatron.bridge.training.rules.context import Context, Gpu
from megatron.bridge.training.rules.refusal import Refusal, override
from megatron.bridge.training.versions import MAIN, Range

_SOURCE = "Megatron-Bridge 067f987df"
_DISPATCHER = "model.moe_token_dispatcher_type"
_ALLTOALL = (Edit(_DISPATCHER, "alltoall"),)
_BACKEND = "model.moe_flex_dispatcher_backend"

FALLS_BACK = rule(
    "bridge.flex-falls-back",
    Dimension.EP,
    claim="moe_token_dispatcher_type flex without a moe_flex_dispatcher_backend becomes alltoall.",
    remedy="set model.moe_flex_dispatcher_backend to one that the GPU has, deepep or hybridep",
    versions=(Range("bridge", since=MAIN),),
    source=_SOURCE,
)
SERIALISED = rule(
    "core.ncclep-serialised",
    Dimension.EP,
    claim="The flexible back end ncclep overlaps nothing without moe_ncclep_static_shape: each "
    "exchange waits for its sizes.",
    remedy="set model.moe_ncclep_static_shape=true",
    edits=(Edit("model.moe_ncclep_static_shape", True),),
    versions=(Range("core", since="0.19.0", until="0.20.0"),),
    source="Megatron-LM 2d7060f44f, 8971d19dda",
)


def _backend(c: Context) -> str | None:
    """The back end of the flexible dispatcher; None where another dispatcher is used."""
    flexible = c.of_model("num_moe_experts") and c.of_model("moe_token_dispatcher_type") == "flex"
    return c.of_model("moe_flex_dispatcher_backend") if flexible else None


def _without_backend(c: Context) -> bool:
    return bool(
        c.of_model("num_moe_experts")
        and c.of_model("moe_token_dispatcher_type") == "flex"
        and c.of_model("moe_flex_dispatcher_backend") is None
    )


def update_dispatcher(c: Context) -> Iterator[Decision]:
    """The dispatcher that a version takes instead of the requested one, in place."""
    if _without_backend(c):
        reason = "moe_flex_dispatcher_backend is null"
        for decision in override(c, FALLS_BACK, _DISPATCHER, "alltoall", reason):
            edits = _with_backend(c)
            yield replace(decision, edits=edits, remedy=in_words(edits))


def dispatcher_consequences(c: Context) -> Iterator[Decision]:
    """Overlap that a back end does not give."""
    overlaps = c.of_model("overlap_moe_expert_parallel_comm")
    if _backend(c) == "ncclep" and overlaps and not c.of_model("moe_ncclep_static_shape"):
        yield SERIALISED.decide(
            "model.overlap_moe_expert_parallel_comm",
            requested=True,
            effective=False,
            reason="moe_flex_dispatcher_backend is ncclep and moe_ncclep_static_shape is off",
            outcome=Outcome.REFUSED,
        )


def _sm_counts(c: Context) -> str:
    """The former knobs that contradict each other; empty where they do not."""
    if c.of_model("moe_flex_dispatcher_num_sms") is not None:
        return ""
    former = {name: c.of_model(name) for name in ("moe_deepep_num_sms", "moe_hybridep_num_sms")}
    given = {name: value for name, value in former.items() if value is not None}
    first = next(iter(given.values()), None)
    if all(value == first for value in given.values()):
        return ""
    return " and ".join(f"{name} is {value}" for name, value in given.items())


def _unknown_to_deepep(gpu: Gpu) -> bool:
    return int(gpu.capability) not in (8, 9) and gpu.name not in ("b200", "b300")


def _unknown_to_hybridep(gpu: Gpu) -> bool:
    return int(gpu.capability) not in (8, 9, 10)


def _with_backend(c: Context) -> Edits:
    """A back end of the flexible dispatcher that the GPU has; another dispatcher without one."""
    for name, is_unknown in (("deepep", _unknown_to_deepep), ("hybridep", _unknown_to_hybridep)):
        if c.gpu is None or not is_unknown(c.gpu):
            return (Edit(_BACKEND, name),)
    return _ALLTOALL


def _one_sm_count(c: Context) -> Edits:
    """The number of the back end in use under the new name; DeepEP's where none is used."""
    former = "moe_hybridep_num_sms" if _backend(c) == "hybridep" else "moe_deepep_num_sms"
    return (
        Edit("model.moe_flex_dispatcher_num_sms", c.of_model(former)),
        Edit("model.moe_deepep_num_sms", None),
        Edit("model.moe_hybridep_num_sms", None),
    )


def _not_offloaded(c: Context) -> Edits:
    edit = without("model.offload_modules", c.of_model("offload_modules"), "expert_fc1")
    # Megatron-Core refuses offloading without a module.
    return (edit,) if edit.value else (Edit("model.fine_grained_activation_offloading", False),)


DISPATCHER_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        rule(
            "bridge.flex-needs-backend",
            Dimension.EP,
            claim="moe_token_dispatcher_type flex is kept without a moe_flex_dispatcher_backend, "
            "and Megatron-Core stops when it builds the model.",
            remedy="set model.moe_flex_dispatcher_backend to one that the GPU has, deepep or "
            "hybridep, or model.moe_token_dispatcher_type=alltoall",
            versions=(Range("bridge", until=MAIN),),
            source=_SOURCE,
        ),
        _BACKEND,
        lambda c: "moe_flex_dispatcher_backend is null" if _without_backend(c) else "",
        lambda c: _with_backend(c),
        "model.moe_token_dispatcher_type=alltoall",
    ),
    Refusal(
        rule(
            "bridge.deepep-gpu",
            Dimension.EP,
            claim="DeepEP is refused on GPUs other than Ampere, Hopper, B200 and B300.",
            remedy="set model.moe_flex_dispatcher_backend=hybridep, or "
            "model.moe_token_dispatcher_type=alltoall",
            source="Megatron-Bridge src/megatron/bridge/training/flex_dispatcher_backend.py",
        ),
        _BACKEND,
        lambda c: (
            f"the GPU is {c.gpu.name}"
            if _backend(c) == "deepep" and c.gpu is not None and _unknown_to_deepep(c.gpu)
            else ""
        ),
        lambda c: _with_backend(c),
    ),
    Refusal(
        rule(
            "bridge.hybridep-gpu",
            Dimension.EP,
            claim="HybridEP is refused on GPUs whose compute capability is not 8, 9 or 10.",
            remedy="set model.moe_token_dispatcher_type=alltoall",
            edits=_ALLTOALL,
            source="Megatron-Bridge src/megatron/bridge/training/flex_dispatcher_backend.py",
        ),
        _BACKEND,
        lambda c: (
            f"the GPU is {c.gpu.name}, of compute capability {c.gpu.capability}"
            if _backend(c) == "hybridep" and c.gpu is not None and _unknown_to_hybridep(c.gpu)
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.flex-sm-counts",
            Dimension.EP,
            claim="moe_deepep_num_sms and moe_hybridep_num_sms, the former names of "
            "moe_flex_dispatcher_num_sms, are refused where both are set and differ, whatever the "
            "dispatcher.",
            remedy="set model.moe_flex_dispatcher_num_sms, and both former names to null",
            versions=(Range("core", since="0.19.0"),),
            source="Megatron-LM megatron/core/transformer/transformer_config.py",
        ),
        "model.moe_flex_dispatcher_num_sms",
        _sm_counts,
        lambda c: _one_sm_count(c),
    ),
    Refusal(
        rule(
            "core.ncclep-needs-flex",
            Dimension.EP,
            claim="The back end ncclep needs moe_token_dispatcher_type flex.",
            remedy="set model.moe_token_dispatcher_type=flex",
            edits=(Edit(_DISPATCHER, "flex"),),
            versions=(Range("core", since="0.19.0"),),
            source="Megatron-LM 2d7060f44f",
        ),
        _BACKEND,
        lambda c: (
            f"moe_token_dispatcher_type is {c.of_model('moe_token_dispatcher_type')}"
            if c.of_model("moe_flex_dispatcher_backend") == "ncclep"
            and c.of_model("moe_token_dispatcher_type") != "flex"
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.ep-overlap-ncclep-offload",
            Dimension.EP,
            claim="overlap_moe_expert_parallel_comm with the back end ncclep is refused where the "
            "activations of expert_fc1 are offloaded.",
            remedy="remove expert_fc1 from model.offload_modules",
            versions=(Range("core", since="0.19.0"),),
            source="Megatron-LM 2d7060f44f",
        ),
        "model.offload_modules",
        lambda c: (
            "moe_flex_dispatcher_backend is ncclep and offload_modules has expert_fc1"
            if _backend(c) == "ncclep"
            and c.of_model("overlap_moe_expert_parallel_comm")
            and c.of_model("fine_grained_activation_offloading")
            and "expert_fc1" in (c.of_model("offload_modules") or ())
            else ""
        ),
        lambda c: _not_offloaded(c),
    ),
)
"""In the order in which they are reported."""
