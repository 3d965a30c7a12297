"""A run's settings as Megatron-LM's flags, checked by reading them again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from megatron.bridge.training.decisions import STOPS, Decision, OverlapConfigError
from megatron.bridge.training.rules.context import fsdp_switch
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import MAIN
from megatron.bridge.utils.cuda_graph import captured_names
from overlapkit.config.effective import (
    EFFECTIVE_KNOBS,
    knob_value,
    make_effective,
    megatron_lm_request,
)
from overlapkit.config.emit.scope import Emitted, LeftOut
from overlapkit.config.megatron_lm.flag_versions import versions_of
from overlapkit.config.megatron_lm.flags import CHUNK_LAYERS, CHUNKS, DEFAULTS, FLAGS, LM
from overlapkit.config.megatron_lm.script import read_megatron_lm_arguments
from overlapkit.config.run import Run, Settings
from overlapkit.config.schema import section_fields
from overlapkit.errors import InputError

GRAPH_SCOPE, GRAPH_MODULES = "--cuda-graph-scope", "--cuda-graph-modules"
"""The old and the new name of the parts of a layer that CUDA graphs capture."""
USERBUFFERS_FILE = "tp_comm_overlap.yaml"
"""Megatron-LM takes userbuffers settings only from a file."""

# Flags with own rules below, or other names of flags.
_SPECIAL = frozenset(
    {
        *(flag for flag in FLAGS if flag.startswith("--no-tp-comm-")),
        CHUNK_LAYERS,
        CHUNKS,
        "--group-query-attention",
        "--use-custom-fsdp",
        GRAPH_SCOPE,
        GRAPH_MODULES,
        "--no-overlap-p2p-communication",
        "--no-align-param-gather",
        "--accumulate-allreduce-grads-in-fp32",
        "--tp-comm-overlap-cfg",
        "--wgrad-deferral-limit",
        "--swiglu",
    }
)
# They follow from other flags, or from the run alone.
_FOLLOWS = frozenset(
    {
        "activation_func",
        "autocast_dtype",
        "batch_p2p_comm",
        "data_parallel_size",
        "enable_autocast",
        "main_grads_dtype",
        "params_dtype",
        "pipeline_dtype",
        "should_pad_vocab",
        "transformer_layer_spec",
        "use_cpu_initialization",
        "vocab_size",
    }
)
# Where a configuration does not set it, Megatron-Bridge turns it on if its kernels are available.
_WHERE_AVAILABLE = "model.gradient_accumulation_fusion"
_ONLY_WITH_FP8 = "fp8_"
_ONLY_WITH_EXPERTS = "moe_"


def emit_megatron_lm(
    settings: Settings,
    environment: Mapping[str, str],
    world_size: int | None,
    *,
    others: Iterable[Sequence[str]] = (),
    carried: frozenset[str] = frozenset(),
) -> Emitted:
    """Exports, a userbuffers file where there is one, and the flags in an array.

    Args:
        settings: of either framework; only flags that the Megatron-LM of its versions has are
            written, those of the newest known one where they are not known.
        environment: variables that the job's processes must start with.
        world_size: GPUs of the job; None takes a data-parallel size of 2, which gives the same
            data-parallel overlap as any larger size.
        others: further flags, each with its words, quoted for a shell.
        carried: dotted keys that `others` express.

    Raises:
        InputError: the layout does not divide the world size.
    """
    size = world_size or _smallest_job(settings)
    software = AssumedSoftware()
    try:
        run, update = make_effective(settings, size, software)
    except OverlapConfigError as error:
        raise InputError(f"{settings.source}: {error}") from None
    version = settings.stack.core or MAIN
    every = list(_flags(settings, run))
    flags = [flag for flag in every if _has(version, flag[0])]
    words = [word for flag in flags for word in flag]
    left_out = [
        *_unexpressed(settings, carried),
        *_of_other_versions(version, every),
        *_differences(settings, words, run, size, update.decisions),
    ]
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    if isinstance(run.model.tp_comm_overlap_cfg, Mapping):
        content = yaml.safe_dump(_plain(run.model.tp_comm_overlap_cfg), sort_keys=False)
        lines += [f"cat > {USERBUFFERS_FILE} <<'EOF'", *content.splitlines(), "EOF"]
    if world_size is None:
        lines.append("# For a data-parallel size above 1.")
    lines.append("MEGATRON_ARGS=(")
    lines += [f"    {' '.join(map(shlex.quote, flag))}" for flag in flags]
    lines += [f"    {' '.join(flag)}" for flag in others]
    lines.append(")")
    return Emitted("\n".join(lines) + "\n", left_out)


def _has(version: str, flag: str) -> bool:
    """Whether the Megatron-LM of this version has a flag, as far as that is known."""
    known = versions_of(flag)
    return known is None or known.versions.contains(version)


def _of_other_versions(version: str, flags: Iterable[list[str]]) -> Iterator[LeftOut]:
    for flag, *_ in flags:
        if not _has(version, flag) and (keys := FLAGS[flag].keys):
            yield LeftOut(keys[0], f"Megatron-LM {version} has no {flag}")


def _smallest_job(settings: Settings) -> int:
    model = settings.values.get("model") or {}
    size = 2
    for name in ("tensor", "pipeline"):
        size *= model.get(f"{name}_model_parallel_size") or 1
    size *= model.get("context_parallel_size") or 1
    # Expert parallelism must divide the ranks of a stage: take enough replicas for that.
    return size * (model.get("expert_model_parallel_size") or 1)


def _flags(settings: Settings, run: Run) -> Iterator[list[str]]:
    """Each flag with its words: those of the table in its order, then those with own rules."""
    for flag in FLAGS:
        if flag not in _SPECIAL and (words := _table_words(flag, settings, run)) is not None:
            yield [flag, *words]
    yield from _pipeline_flags(run)
    yield from _precision_flags(run)
    yield from _tensor_flags(run)
    yield from _job_flags(settings, run)


def _table_words(flag: str, settings: Settings, run: Run) -> list[str] | None:
    """The words after a flag of the table; None where the flag is not needed."""
    declared = FLAGS[flag]
    if not declared.keys or declared.keys[0].startswith(LM):
        return None
    dotted = declared.keys[0]
    value = knob_value(run, dotted) if dotted in EFFECTIVE_KNOBS else _field(run, dotted)
    if value is None or _has_no_effect(dotted, run):
        return None
    if dotted == _WHERE_AVAILABLE and dotted not in settings.asked:
        return None
    if declared.kind in ("on", "off"):
        needed = bool(value) == (declared.kind == "on") and value != _default(dotted)
        return [] if needed else None
    return _words(value) if value != _default(dotted) and _is_word(value) else None


def _pipeline_flags(run: Run) -> Iterator[list[str]]:
    model = run.model
    if (model.virtual_pipeline_model_parallel_size or 1) <= 1:
        return
    if not model.pipeline_model_parallel_layout:
        yield [CHUNKS, str(model.virtual_pipeline_model_parallel_size)]
    if not model.overlap_p2p_comm:
        yield ["--no-overlap-p2p-communication"]
    if not run.ddp.align_param_gather:
        yield ["--no-align-param-gather"]


def _precision_flags(run: Run) -> Iterator[list[str]]:
    if run.ddp.grad_reduce_in_fp32:
        yield ["--accumulate-allreduce-grads-in-fp32"]
    elif run.model.bf16:
        yield ["--grad-reduce-in-bf16"]


def _tensor_flags(run: Run) -> Iterator[list[str]]:
    model = run.model
    if model.num_query_groups is not None:
        yield ["--group-query-attention"]
    if model.tp_comm_overlap_cfg is not None and model.tp_comm_overlap:
        name = model.tp_comm_overlap_cfg
        yield ["--tp-comm-overlap-cfg", name if isinstance(name, str) else USERBUFFERS_FILE]
    if model.defer_embedding_wgrad_compute and model.wgrad_deferral_limit:
        yield ["--wgrad-deferral-limit", str(model.wgrad_deferral_limit)]
    if model.gated_linear_unit and not _other_activation(model.activation_func):
        yield ["--swiglu"]


def _job_flags(settings: Settings, run: Run) -> Iterator[list[str]]:
    checkpoint = megatron_lm_request(settings).ckpt_format
    switch = fsdp_switch(run.ddp)
    if switch == "use_torch_fsdp2":
        yield ["--use-torch-fsdp2"]
    captured = captured_names(run.model)
    if captured and (run.model.cuda_graph_impl or "none") != "none":
        newest = _has(settings.stack.core or MAIN, GRAPH_MODULES)
        yield [GRAPH_MODULES if newest else GRAPH_SCOPE, *captured]
    if switch in ("use_megatron_fsdp", "use_custom_fsdp"):
        # Megatron-LM refuses it with any other format.
        yield ["--ckpt-format", "fsdp_dtensor"]
    elif checkpoint != "torch_dist":
        yield ["--ckpt-format", checkpoint]
    elif run.optimizer.overlap_param_gather_with_optimizer_step:
        # Megatron-LM refuses it with the default, a distributed checkpoint.
        yield ["--ckpt-format", "torch"]


def _field(run: Run, dotted: str) -> Any:
    section, _, name = dotted.partition(".")
    return getattr(getattr(run, section), name, None)


def _default(dotted: str) -> Any:
    section, _, name = dotted.partition(".")
    known = section_fields(section).get(name)
    # Where Megatron-Core declares a size as 0, it means "not set".
    return DEFAULTS.get(dotted, known.default if known is not None else None)


def _has_no_effect(dotted: str, run: Run) -> bool:
    """Whether a value that is not the default has no effect in this run."""
    name = dotted.partition(".")[2]
    return (
        (name.startswith(_ONLY_WITH_FP8) and not run.model.fp8)
        or (name.startswith(_ONLY_WITH_EXPERTS) and not run.model.num_moe_experts)
        or (name.endswith("_in_bf16") and not run.model.first_last_layers_bf16)
    )


def _is_word(value: Any) -> bool:
    """Whether a value can follow a flag: it is not empty and not a flag itself."""
    return all(word and not word.startswith("--") for word in _words(value))


def _words(value: Any) -> list[str]:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    return [str(value)]


def _other_activation(name: Any) -> bool:
    """Whether this is the name of an activation other than SiLU."""
    return isinstance(name, str) and "silu" not in name.lower()


def _unexpressed(settings: Settings, carried: frozenset[str]) -> Iterator[LeftOut]:
    """Requested settings without a flag here."""
    covered = {key for flag in FLAGS.values() for key in flag.keys}
    others = []
    for section in ("model", "ddp", "optimizer", "train"):
        for key, value in (settings.values.get(section) or {}).items():
            dotted = f"{section}.{key}"
            known = section_fields(section).get(key)
            if known is None or dotted not in settings.asked or dotted in carried:
                continue
            if dotted in covered:
                if isinstance(value, (str, list)) and value and not _is_word(value):
                    yield LeftOut(dotted, f"{str(value)[:40]!r} cannot follow a flag")
                continue
            if value in (None, known.default) or key in _FOLLOWS or key.startswith("tp_comm_"):
                continue
            if section == "model" and key in section_fields("mixed_precision"):
                continue
            others.append(dotted)
    if others:
        yield LeftOut(", ".join(others), "not part of overlap: no flag is written for it")
    model = settings.values.get("model") or {}
    if model.get("gated_linear_unit") and _other_activation(model.get("activation_func")):
        yield LeftOut("model.activation_func", "--swiglu means SiLU; others need their own flag")


def _differences(
    settings: Settings, words: list[str], wanted: Run, world_size: int, before: list[Decision]
) -> Iterator[LeftOut]:
    """Knobs with another value in Megatron-LM, determined by reading the flags again."""
    read = read_megatron_lm_arguments(words or ["--tensor-model-parallel-size", "1"])
    dated = replace(read, stacks=(settings.stack,), stack_given=True)
    got, update = make_effective(dated, world_size, AssumedSoftware())
    reasons = {d.knob: d.reason for d in update.decisions}
    reported = set()
    known_errors = {(d.knob, d.reason) for d in before if d.outcome in STOPS}
    for decision in update.decisions:
        new = (decision.knob, decision.reason) not in known_errors
        if decision.outcome in STOPS and new:
            reported.add(decision.knob)
            yield LeftOut(decision.knob, decision.reason)
    for knob in EFFECTIVE_KNOBS:
        mine, theirs = knob_value(wanted, knob), knob_value(got, knob)
        if knob in reported or same_in_effect(knob, wanted, mine, theirs):
            continue
        why = f"it is {theirs!r} in Megatron-LM"
        yield LeftOut(
            knob, f"{why}: {reasons[knob]}" if knob in reasons else f"{why}, not {mine!r}"
        )


def same_in_effect(knob: str, wanted: Run, mine: Any, theirs: Any) -> bool:
    """Whether two values of a knob mean the same in this run."""
    model = wanted.model
    if knob == "model.tp_comm_overlap_cfg" and isinstance(mine, Mapping):
        # The emitted file does not exist yet.
        return theirs == USERBUFFERS_FILE or not model.tp_comm_overlap
    if knob == "model.virtual_pipeline_model_parallel_size":
        return (mine or 1) == (theirs or 1)
    if knob == "model.moe_shared_expert_overlap":
        return mine == theirs or not model.num_moe_experts
    if knob == "model.wgrad_deferral_limit":
        return mine == theirs or not model.defer_embedding_wgrad_compute
    if knob == "model.batch_p2p_comm":
        # Without a pipeline nothing is sent, batched or not.
        return bool(mine) == bool(theirs) or (model.pipeline_model_parallel_size or 1) == 1
    return bool(mine == theirs)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
