"""From the arguments of a Megatron-LM job to the settings that they mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from overlapkit.config.megatron_lm.flags import (
    CHUNK_LAYERS,
    CHUNKS,
    DEFAULTS,
    FLAGS,
    flag_value,
    known_flag,
    misspelt,
)
from overlapkit.config.shell.values import Field, Unknown
from overlapkit.errors import InputError

MOST_FLAGS = 2000
"""Megatron-LM has some five hundred."""
SWIGLU_MULTIPLE = 64
"""Megatron-LM's default feed-forward size with --swiglu is a multiple of this."""


@dataclass
class Arguments:
    """What a job's arguments set.

    Attributes:
        values: dotted key to requested value.
        defaults: dotted key to a value that is Megatron-LM's default or follows from other flags.
        where: dotted key to ``file:line``.
        flags: every known flag that is given, to its value.
        places: every known flag that is given, to its ``file:line``.
        notes: further remarks for the user.
    """

    values: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class UnknownValue(InputError):
    """A value that matters is not known from the script alone.

    Attributes:
        fact: what is not known, where, and why.
        variable: the variable that it comes from; None where it comes from none.
    """

    def __init__(self, fact: str, variable: str | None) -> None:
        self.fact = fact
        self.variable = variable
        remedy = "write the value in its place, or set a variable from it and give that as"
        super().__init__(
            f"{fact}; {remedy} NAME=value"
            if variable is None
            else f"{fact}; give it as {variable}=value"
        )


def ask_for(unknown: Unknown, what: str, where: str) -> UnknownValue:
    """The error that asks for a value that a script does not state."""
    if unknown.name is None:
        return UnknownValue(f"{where}: {what} has no known value: {unknown.why}", None)
    return UnknownValue(
        f"{where}: {what} takes its value from {unknown.name}, which is not known: {unknown.why}",
        unknown.name,
    )


def read_arguments(fields: Sequence[Field], path: str) -> Arguments:
    """The settings in a job's arguments. Of a flag that is given twice, the last one is used.

    Args:
        fields: the arguments after the name of the training script.
        path: the file that they are in, for messages; lines come from the fields.

    Raises:
        InputError: a flag is misspelt, has no value, one of the wrong kind or one that is not
            known, or flags exclude each other.
    """
    result = Arguments()
    grouped = list(_grouped(fields))
    if len(grouped) > MOST_FLAGS:
        raise InputError(
            f"{path}: starts a program with more than {MOST_FLAGS} flags; is it Megatron-LM?"
        )
    for flag_field, following in grouped:
        where = place(path, flag_field)
        text = flag_field.text
        if text.partition("=")[0] == "--yaml-cfg":
            raise InputError(
                f"{where}: --yaml-cfg: Megatron-LM then takes its settings from that YAML file, "
                "which is not read here; give the settings as flags"
            )
        flag = known_flag(text)
        if flag is None:
            if (meant := misspelt(text)) is not None:
                raise InputError(
                    f"{where}: {text.partition('=')[0]}: unknown flag; did you mean {meant}?"
                )
            continue
        _read_flag(flag, flag_field, following, where, path, result)
    _settle(result)
    return result


def place(path: str, at: Field, line: int = 0) -> str:
    """``file:line`` of a word."""
    return f"{path}:{at.line or line}" if at.line or line else path


def _grouped(fields: Sequence[Field]) -> Iterator[tuple[Field, list[Field]]]:
    """Each flag with the words after it, up to the next flag."""
    flag: Field | None = None
    following: list[Field] = []
    for each in fields:
        if each.text.startswith("--") and len(each.text) > 2:
            if flag is not None:
                yield flag, following
            flag, following = each, []
        else:
            following.append(each)
    if flag is not None:
        yield flag, following


def _read_flag(
    flag: str, at: Field, following: list[Field], where: str, path: str, result: Arguments
) -> None:
    kind = FLAGS[flag].kind
    if "=" in at.text and kind not in ("on", "off"):
        inline = Field(tuple(at.pieces))
        words, taken, rest = [at.text.partition("=")[2]], [inline], following
    else:
        count = 0 if kind in ("on", "off") else len(following) if kind == "names" else 1
        taken, rest = following[:count], following[count:]
        words = [f.text for f in taken]
        if kind in ("on", "off"):
            words = [f.text for f in following[:1]] + (["true"] if "=" in at.text else [])
    for each in taken:
        if each.unknown is not None:
            raise ask_for(each.unknown, flag, where)
    value = flag_value(flag, words, where)
    for stray in rest:
        if stray.unknown is not None and stray.unknown.name:
            text = f"{stray.unknown.name} has no known value: taken as empty"
            result.notes.append(f"{place(path, stray)}: {text}")
        elif stray.text:
            text = f"{stray.text[:40]!r} after {flag} is not an argument of Megatron-LM"
            result.notes.append(f"{place(path, stray)}: {text}")
    if flag in result.flags and result.flags[flag] != value:
        result.notes.append(f"{where}: {flag} is given again; this last one is used")
    result.flags[flag] = value
    result.places[flag] = where
    for key in FLAGS[flag].keys:
        result.values[key] = value
        result.where[key] = where


def _settle(result: Arguments) -> None:
    """Flags that depend on each other, and what Megatron-LM fills in."""
    flags, values, defaults = result.flags, result.values, result.defaults
    defaults.update(DEFAULTS)
    for one, other in ((CHUNK_LAYERS, CHUNKS), ("--bf16", "--fp16")):
        if one in flags and other in flags:
            raise InputError(f"{result.places[other]}: {one} and {other} exclude each other")
    if CHUNK_LAYERS in flags:
        key = "model.virtual_pipeline_model_parallel_size"
        values[key] = _chunks(values, flags[CHUNK_LAYERS], result.places[CHUNK_LAYERS])
        result.where[key] = result.places[CHUNK_LAYERS]
    if "--group-query-attention" not in flags and "--num-query-groups" in flags:
        del values["model.num_query_groups"]
        result.notes.append(
            "--num-query-groups is used only with --group-query-attention, which is not given"
        )
    elif "--group-query-attention" in flags:
        defaults["model.num_query_groups"] = 1
    if "--recompute-activations" in flags:
        values["model.recompute_granularity"] = "selective"
        result.where["model.recompute_granularity"] = result.places["--recompute-activations"]
    if "--use-rotary-position-embeddings" in flags:
        defaults["model.position_embedding_type"] = "rope"
    hidden = values.get("model.hidden_size")
    if "--swiglu" in flags and hidden:
        # Two thirds of 4 x hidden: the three matrices then have as many weights as the usual two.
        defaults["model.ffn_hidden_size"] = (
            int(hidden * 4 * 2 / 3 / SWIGLU_MULTIPLE) * SWIGLU_MULTIPLE
        )
    dtype = "torch.bfloat16" if "--bf16" in flags else "torch.float16" if "--fp16" in flags else ""
    if dtype:
        for key in ("model.params_dtype", "model.pipeline_dtype", "optimizer.params_dtype"):
            defaults[key] = dtype
    if "--use-checkpoint-args" in flags:
        result.notes.append(
            "--use-checkpoint-args: the model's sizes come from the checkpoint, which is not read"
        )


def _chunks(values: dict[str, Any], layers_of_chunk: int, where: str) -> int:
    """The virtual pipeline size: layers of a stage over layers of a chunk.

    Raises:
        InputError: --num-layers is missing, or a stage's layers are not divisible.
    """
    layers = values.get("model.num_layers")
    stages = values.get("model.pipeline_model_parallel_size") or 1
    if not layers or layers_of_chunk < 1 or stages < 1:
        raise InputError(
            f"{where}: {CHUNK_LAYERS} {layers_of_chunk}: needs --num-layers, and sizes above 0"
        )
    given = f"--num-layers {layers}"
    ends = (
        ("model.num_layers_in_first_pipeline_stage", -1),
        ("model.num_layers_in_last_pipeline_stage", -1),
    )
    for key, share in ends:
        if key in values:
            layers, stages = layers - values[key], stages + share
    for key in (
        "model.account_for_embedding_in_pipeline_split",
        "model.account_for_loss_in_pipeline_split",
    ):
        layers += bool(values.get(key))
    if stages < 1 or layers % stages or layers // stages % layers_of_chunk:
        raise InputError(
            f"{where}: {CHUNK_LAYERS} {layers_of_chunk}: does not divide the layers of a stage "
            f"({given} on {stages} stages)"
        )
    return int(layers // stages // layers_of_chunk)
