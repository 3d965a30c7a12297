"""Changes of settings that several remedies share, with the keys and values that a run needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from megatron.bridge.training.decisions import RULES
from megatron.bridge.training.edits import REMOVED, Edit
from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.rules.context import Context

EP_OVERLAP = "model.overlap_moe_expert_parallel_comm"
DELAYED = "model.delay_wgrad_compute"
EARLY_RELEASE = "model.ep_overlap_early_attn_memory_release"
TP_OVERLAP = "model.tp_comm_overlap"
WITH_STEP = "optimizer.overlap_param_gather_with_optimizer_step"
DISTRIBUTED = "ddp.use_distributed_optimizer"

Edits = tuple[Edit, ...]

TWINS = {"fp8_param": "fp8_param_gather", "fp4_param": "fp4_param_gather"}
"""Parameters and their gather in a format: one switch of mixed_precision under two names."""


def off(*knobs: str) -> Callable[[Context], Edits]:
    """Knobs that comm_overlap has, switched off where the run sets them."""
    return lambda c: tuple(Edit(c.key(knob), False) for knob in knobs)


def in_effect(c: Context, knob: str) -> bool:
    """Whether a switch of the model is requested in comm_overlap, or else is on in the model."""
    name = knob.partition(".")[2]
    requested = getattr(c.request, name, None)
    return bool(c.of_model(name) if requested is None else requested)


def ep_overlap_off(c: Context) -> Edits:
    """Expert-parallel overlap off, with what needs it."""
    edits = [Edit(c.key(EP_OVERLAP), False)]
    if in_effect(c, DELAYED):
        edits.append(Edit(c.key(DELAYED), False))
    if c.of_model("ep_overlap_early_attn_memory_release"):
        edits.append(Edit(EARLY_RELEASE, False))
    return tuple(edits)


def precision(c: Context, *keys: str, value: Any) -> Edits:
    """Fields of mixed precision, where the run sets them: in that section, or where they stand.

    Args:
        c: the run.
        keys: the fields' dotted names outside mixed_precision: ``ddp.fp8_param_gather``.
        value: their new value.
    """
    if c.mixed_precision is None:
        return tuple(Edit(key, value) for key in keys)
    given: frozenset[str] = getattr(c.mixed_precision, "given", frozenset())
    names = dict.fromkeys(key.partition(".")[2] for key in keys)
    # A parameter and its gather are one switch there: only those that are written are changed.
    written = [name for name in names if name not in TWINS or name in given]
    return tuple(Edit(f"mixed_precision.{name}", value) for name in written)


def parameters_not_in(c: Context, kind: str) -> Edits:
    """Parameters neither stored nor gathered in a format, ``fp8`` or ``fp4``."""
    keys = [f"ddp.{kind}_param_gather", f"model.{kind}_param"]
    if c.mixed_precision is None:
        keys = [key for key in keys if _is_on(c, key)]
    edits = precision(c, *keys, value=False)
    reused = _is_on(c, "ddp.reuse_grad_buf_for_mxfp8_param_ag")
    return edits + (reused_buffer(c, on=False) if kind == "fp8" and reused else ())


def reused_buffer(c: Context, *, on: bool) -> Edits:
    """MXFP8 parameters gathered through the gradient buffer, or through one of their own."""
    name = "reuse_grad_buf_for_mxfp8_param_ag"
    keys = [f"{section}.{name}" for section in ("ddp", "optimizer")]
    if c.mixed_precision is None and not on:
        keys = [key for key in keys if _is_on(c, key)]
    return precision(c, *keys, value=on)


def distributed_optimizer(c: Context) -> Edits:
    """The distributed optimizer on; without FP8 parameters where the version would then gather them
    wrongly (wrong.fp8-forced-gather)."""
    edits = (Edit(DISTRIBUTED, True),)
    gathers = c.of_ddp("fp8_param_gather") and c.of_ddp("overlap_param_gather")
    wrong = gathers and RULES["wrong.fp8-forced-gather"].holds(c.stack) and between_steps(c.train)
    return edits + parameters_not_in(c, "fp8") if wrong else edits


def overlapped_reduction(c: Context) -> Edits:
    """The reduction overlapped; with one optimizer instance where the version would then reduce
    wrongly (wrong.optimizer-instances)."""
    edits = (Edit(c.key("ddp.overlap_grad_reduce"), True),)
    several = (c.of_ddp("num_distributed_optimizer_instances") or 1) > 1
    wrong = several and RULES["wrong.optimizer-instances"].holds(c.stack)
    return edits + (Edit("ddp.num_distributed_optimizer_instances", 1),) * wrong


def between_steps(train: Any) -> str:
    """What happens between steps and needs gathered parameters; empty where nothing is known to."""
    steps = getattr(train, "train_iters", None)
    events = []
    for what, interval, on in (
        ("an evaluation", "eval_interval", bool(getattr(train, "eval_iters", None))),
        ("a checkpoint", "save_interval", bool(getattr(train, "save", None))),
    ):
        every = getattr(train, interval, None)
        if on and every and (not steps or every < steps):
            events.append(f"{what} every {every} steps")
    return " and ".join(events)


def half_precision(c: Context) -> Edits:
    """bf16: by the name of Megatron-Bridge's recipe, or by Megatron-LM's flag."""
    if c.of_megatron_bridge:
        return (Edit("mixed_precision", "bf16_mixed"),)
    return (Edit("model.bf16", True),)


def set_here(config: Any, name: str, value: Any) -> tuple[Edit, ...]:
    """A field set in mixed_precision, with the other name of its switch and what excludes it."""
    twin = (TWINS | {gather: param for param, gather in TWINS.items()}).get(name)
    edits = [Edit(f"mixed_precision.{name}", _named(value))]
    if twin is not None and twin in config.given:
        edits.append(Edit(f"mixed_precision.{twin}", value))
    reuse = "reuse_grad_buf_for_mxfp8_param_ag"
    gathers = name in ("fp8_param", "fp8_param_gather")
    if gathers and not value and config.reuse_grad_buf_for_mxfp8_param_ag:
        edits.append(Edit(f"mixed_precision.{reuse}", False))
    if gathers and value and config.fp8_recipe == "mxfp8":
        edits.append(Edit(f"mixed_precision.{reuse}", True))
    return tuple(edits)


def _named(value: Any) -> Any:
    """A value as a file has it: a dtype by its name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value).rpartition(".")[2]


def without_fp4(config: Any) -> tuple[Edit, ...]:
    """No FP4, and no parameters in it."""
    names = [n for n in ("fp4_param", "fp4_param_gather") if n in config.given]
    gathers = [Edit(f"mixed_precision.{n}", False) for n in names if getattr(config, n)]
    return (Edit("mixed_precision.fp4", None), *gathers)


def virtual_size(c: Context) -> int | None:
    """The smallest virtual pipeline size above 1 that divides the layers of every stage.

    The embedding and the loss count as layers where the model says so. None where no size does, or
    where a layout or uneven stages are given.
    """
    uneven = (
        "pipeline_model_parallel_layout",
        "num_layers_in_first_pipeline_stage",
        "num_layers_in_last_pipeline_stage",
    )
    layers = c.of_model("num_layers")
    if c.pipeline_size < 2 or not layers or any(c.of_model(name) for name in uneven):
        return None
    layers += bool(c.of_model("account_for_embedding_in_pipeline_split"))
    layers += bool(c.of_model("account_for_loss_in_pipeline_split"))
    each, left = divmod(layers, c.pipeline_size)
    return None if left else next((n for n in range(2, each + 1) if each % n == 0), None)


def interleaved(c: Context) -> Edits:
    """An interleaved schedule, with the point-to-point mode that it needs; empty without a size."""
    size = virtual_size(c)
    if size is None:
        return ()
    edits = (Edit("model.virtual_pipeline_model_parallel_size", size),)
    # comm_overlap and Megatron-LM choose the mode by themselves, where nothing else is requested.
    given = c.request.batch_p2p_comm or c.request.overlap_p2p_comm is False
    as_written = c.of_megatron_bridge and not c.has_comm_overlap and c.of_model("batch_p2p_comm")
    return edits + (overlapped_p2p(c) if given or as_written else ())


def overlapped_p2p(c: Context) -> Edits:
    """Pipeline sends overlapped with another chunk's compute, not batched."""
    return (
        Edit(c.key("model.overlap_p2p_comm"), True),
        Edit(c.key("model.batch_p2p_comm"), False),
    )


def without(key: str, names: Iterable[str], unwanted: str) -> Edit:
    """A list of names without one of them."""
    return Edit(key, [name for name in names if name != unwanted])


def variable_without(environment: JobEnvironment, name: str, item: str) -> Edit:
    """A variable of comma-separated settings without one of them; unset where it has no other."""
    items = [each.strip() for each in (environment.get(name) or "").split(",")]
    kept = [each for each in items if each and each.partition(":")[0].strip() != item]
    return Edit(f"env.{name}", ",".join(kept) if kept else REMOVED)


def _is_on(c: Context, key: str) -> bool:
    section, _, name = key.partition(".")
    return bool(getattr(getattr(c, section), name, False))
