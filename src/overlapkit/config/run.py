"""From a file and overrides to the run that they describe, with defaults filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.decisions import OverlapConfigError
from megatron.bridge.training.megatron_lm.request import PassedFlag
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig, mixed_precision_recipe
from megatron.bridge.training.near_names import nearest
from megatron.bridge.training.rules.context import Launcher
from megatron.bridge.training.tp_overlap_presets import PRESETS
from megatron.bridge.training.versions import NEWEST, Stack
from overlapkit.config.gaps import Gap
from overlapkit.config.keys import (
    READ_SECTIONS,
    check_unknown_key,
    check_unknown_section,
    is_unknown,
    unknown_sections,
)
from overlapkit.config.launchers.origin import Origin
from overlapkit.config.overrides import BY_NAME, NAMED_SECTIONS, Override, apply_overrides
from overlapkit.config.places import Place, in_messages
from overlapkit.config.provider_defaults import PROVIDER_CHOICES, bridge_default
from overlapkit.config.reading import Reading, StackBasis, StackSource
from overlapkit.config.schema import (
    KINDS,
    check_kind,
    known_keys,
    section_fields,
    shown,
)
from overlapkit.config.shapes import (
    FILLED_IN_BY_SETUP,
    TRANSFORMER,
    flatten_model,
    plain,
    plain_override,
    setup_was_for,
    unnested,
)
from overlapkit.config.sizes import check_sizes
from overlapkit.config.versions import is_lacking, stacks_of_dump
from overlapkit.config.yaml_file import Document
from overlapkit.errors import InputError, NoConfiguration

Framework = Literal["megatron-bridge", "megatron-lm"]
"""The framework whose rules make the settings effective."""


@dataclass(frozen=True)
class Launch:
    """What a launch script says besides a run's settings.

    Attributes:
        environment: variables that it exports to the job.
        source: the script; None where only the arguments were given.
        world_size: GPUs that it starts the job on; None where that is not known.
        world_size_unknown: why that is not known, and how to give it.
        notes: what was assumed in reading it, and what the settings do not show.
        flags: its flags that some versions of Megatron-LM do not know.
        launcher: the program that starts the job's processes; None where that is not known.
        unread: its flags that no known version has.
        passed: its flags that Megatron-LM has, with the place of each.
        environment_source: what `environment` comes from, as a sentence names it; None: `source`.
        unknown: variables that may be set, to a value that is not known.
        whole: whether a variable that is in neither is certainly not set.
        gaps: what of the script is not known, and may add flags or variables.
        origins: what sets those of `environment` and `fallback` that the launcher sets by itself.
        fallback: variables that the launcher sets where nothing else does.
        others: its flags that no setting holds, each with its words as a shell reads them.
        underscores: whether its flags are spelt with underscores, as some forks spell them.
    """

    environment: dict[str, str]
    source: str | None = None
    world_size: int | None = None
    world_size_unknown: str = ""
    notes: tuple[str, ...] = ()
    flags: tuple[PassedFlag, ...] = ()
    launcher: Launcher | None = None
    unread: tuple[str, ...] = ()
    passed: dict[str, Place] = field(default_factory=dict)
    environment_source: str | None = None
    unknown: frozenset[str] = frozenset()
    whole: bool = True
    gaps: tuple[Gap, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)
    fallback: dict[str, str] = field(default_factory=dict)
    others: tuple[tuple[str, ...], ...] = ()
    underscores: bool = False


@dataclass(frozen=True)
class Settings:
    """A run's settings as written: checked, with nothing filled in.

    Attributes:
        source: the file, as the user named it.
        values: section to its keys and values, enums and dtypes as plain names; a section that
            is null or absent is None.
        asked: dotted keys that count as requested: all keys of a file that a user wrote, and every
            override. A file that Megatron-Bridge wrote has every field; of those, the keys that
            differ from Megatron-Core's default.
        where: dotted key to the place where the user set it; ``env.NAME`` for a variable that the
            launch script hands to the job.
        overridden: dotted keys that an override set.
        framework: whose defaults and checks apply to them.
        launch: what the launch script says; None for a file of settings.
        passed_over: sections, and dotted keys of sections that rules read, that no known version
            has; they have no effect on an answer.
        stacks: the versions that the settings may be for, oldest first: those whose fields a file
            that Megatron-Bridge wrote has, or the one that the user gave; empty where they are not
            known.
        written_by: the versions whose fields the file has; empty where nothing shows them.
        is_dump: whether Megatron-Bridge wrote the file, with every field.
        after_setup: the data-parallel size for which Megatron-Bridge made the settings effective
            before it wrote the file; None where it did not. What it filled in is not `asked`.
        stack_given: whether the user gave one of them as --core or --bridge.
        stack_path: the checkout or installation that they were read from; None without one.
        stack_overridden: versions at `stack_path` for which the user gave others.
        origin: the launcher whose configuration it is; None where it is the framework's own.
    """

    source: str
    values: dict[str, dict[str, Any] | None]
    asked: frozenset[str]
    where: dict[str, Place] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()
    framework: Framework = "megatron-bridge"
    launch: Launch | None = None
    passed_over: tuple[str, ...] = ()
    stacks: tuple[Stack, ...] = ()
    written_by: tuple[Stack, ...] = ()
    is_dump: bool = False
    after_setup: int | None = None
    stack_given: bool = False
    stack_path: str | None = None
    stack_overridden: Stack | None = None
    origin: Origin | None = None

    @property
    def stack(self) -> Stack:
        """The newest stack that the settings may be for; the newest known where none is known."""
        return self.stacks[-1] if self.stacks else NEWEST

    @property
    def basis(self) -> StackBasis:
        """The versions whose rules are applied, and how they are known."""
        of_megatron_lm = self.framework == "megatron-lm"

        def spoken_of(stack: Stack) -> Stack:
            # A run of Megatron-LM has no Megatron-Bridge.
            return Stack(stack.core) if of_megatron_lm else stack

        how: StackSource = "fields" if self.stacks else "unknown"
        if self.stack_given or self.stack_path is not None:
            how = "given" if self.stack_given else "path"
        return StackBasis(
            spoken_of(self.stack),
            how,
            tuple(spoken_of(stack) for stack in self.stacks),
            self.stack_path,
            self.stack_overridden,
        )

    @property
    def is_partly_read(self) -> bool:
        """Whether there is something that decides on the run, and that no rule looks at."""
        flags = self.launch is not None and self.launch.unread
        return bool(self.passed_over or flags or (self.origin is not None and self.origin.unread))

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What of the launch script is not known."""
        return () if self.launch is None else self.launch.gaps

    def flat(self) -> dict[str, Any]:
        """Dotted key to value; a section that is null is its bare name with None."""
        result: dict[str, Any] = {}
        for section, content in self.values.items():
            if content is None:
                result[section] = None
            else:
                result.update(
                    {
                        section if key == BY_NAME else f"{section}.{key}": value
                        for key, value in content.items()
                    }
                )
        return result


@dataclass
class Run:
    """The configurations of a run, with every field that the rules may read."""

    model: Any
    optimizer: Any
    ddp: Any
    train: Any
    mixed_precision: MixedPrecisionConfig | None
    comm_overlap: CommOverlapConfig | None
    dist: Any = None
    rerun_state_machine: Any = None
    dataset: Any = None
    env_vars: dict[str, Any] | None = None


def read_settings(
    document: Document, overrides: Iterable[Override] = (), reading: Reading | None = None
) -> Settings:
    """The checked settings in a file, with overrides applied.

    Args:
        document: the file.
        overrides: what is on top of it.
        reading: for which versions and how strictly it is read; by default for those that it shows.

    Raises:
        InputError: a key, kind or size that no run can have; a misspelt or misplaced knob.
    """
    overrides = list(overrides)
    reading = reading or Reading()
    dumped = "_target_" in document.data
    strict = not (dumped or reading.allow_unknown)
    data = {
        section: plain(content)
        for section, content in document.data.items()
        if not section.startswith("_")
    }
    for section in NAMED_SECTIONS:
        if isinstance(data.get(section), dict):
            data[section].pop(BY_NAME, None)
    _check_sections(document, data, strict=strict)
    nested = flatten_model(document, data)
    stacks = stacks_of_dump(data, nested=bool(nested)) if dumped else ()
    overrides = [unnested(o) for o in overrides] if nested else overrides
    values = apply_overrides(data, [plain_override(o) for o in overrides])
    for section in NAMED_SECTIONS:
        if isinstance(values.get(section), str):
            values[section] = {BY_NAME: values[section]}

    where = {".".join(keys): place for keys, place in document.places.items() if len(keys) <= 2}
    where |= {f"model.{key}": document.place("model", TRANSFORMER, key) for key in nested}
    overridden = {key: Place(None, argument=text) for key, text in _overridden(overrides)}
    where |= overridden
    for section, content in values.items():
        if section in (*READ_SECTIONS, "env_vars") and not isinstance(content, dict | None):
            place = in_messages(where, section, document.path)
            raise InputError(
                f"{place}: {section} must be a section with keys, not {shown(content)}"
            )
    settings = {s: c for s, c in values.items() if isinstance(c, dict) or c is None}
    for section, content in settings.items():
        for key, value in (content or {}).items():
            place = in_messages(where, f"{section}.{key}", document.path)
            check_kind(section, key, value, place)
            if strict and key not in known_keys(section):
                check_unknown_key(section, key, place)
    check_sizes(settings, where, document.path)
    asked = frozenset(
        dotted
        for section, content in settings.items()
        for key, value in (content or {}).items()
        if (dotted := f"{section}.{key}") in overridden
        or not (dumped and _is_default(section, key, value, stacks))
    )
    after_setup = setup_was_for(data) if dumped else None
    if after_setup is not None:
        asked -= FILLED_IN_BY_SETUP - overridden.keys()
    read = Settings(
        document.path,
        settings,
        asked,
        where,
        frozenset(overridden),
        passed_over=tuple(_passed_over(values)),
        stacks=tuple(stacks),
        written_by=tuple(stacks),
        is_dump=dumped,
        after_setup=after_setup,
    )
    return reading.dated(read)


def _passed_over(values: Mapping[str, Any]) -> Iterator[str]:
    """The sections and keys that no known version has, but for those without a value."""
    for section in unknown_sections(values):
        if values[section] is not None:
            yield section
    for section, content in values.items():
        for key, value in content.items() if isinstance(content, dict) else ():
            if value is not None and is_unknown(section, key):
                yield f"{section}.{key}"


def _overridden(overrides: Iterable[Override]) -> Iterator[tuple[str, str]]:
    """Each dotted key that an override sets, with two parts at most, and that override."""
    for override in overrides:
        if override.key is not None:
            yield f"{override.section}.{override.key.partition('.')[0]}", override.text
            continue
        yield override.section, override.text
        if isinstance(override.value, dict):
            yield from ((f"{override.section}.{key}", override.text) for key in override.value)


def _is_default(section: str, key: str, value: Any, stacks: tuple[Stack, ...]) -> bool:
    """Whether this is the value that a field has where nobody set it."""
    stack = stacks[-1] if stacks else None
    known = section_fields(section, stack).get(key)
    return known is not None and bridge_default(section, key, known.default) == value


def _check_sections(document: Document, data: dict[str, Any], *, strict: bool) -> None:
    """Refuse a file that is no run configuration, and with `strict` misspelt sections."""
    known = any(section in data for section in ("model", "ddp", "comm_overlap"))
    # Another program's configuration has sections that resemble these two.
    present = data if known else {**data, "train": None, "dist": None}
    for section in unknown_sections(data) if strict else ():
        check_unknown_section(section, present, document.where(section))
    if not known:
        names = [shown(section).strip("'") for section in list(data)[:4]]
        its = f" (it has {', '.join(names)})" if names else " (it is empty)"
        raise NoConfiguration(
            f"{document.path}: not a run configuration that is known here{its}: Megatron-Bridge's "
            "has at least one, and this none of the sections model, ddp and comm_overlap; those of "
            "NeMo-RL, verl and NeMo 1, and launch scripts, are read too"
        )


def build_run(settings: Settings) -> Run:
    """A new run with these settings; changing it changes no other.

    Raises:
        InputError: an unknown mixed-precision recipe or userbuffers preset, or contradicting values
            of fp8_param and fp8_param_gather.
    """
    values = settings.values
    train = {name: known.default for name, known in section_fields("train").items()}
    model = _section("model", values, settings)
    tokenizer_vocab = (values.get("tokenizer") or {}).get("vocab_size")
    if model.vocab_size is None and isinstance(tokenizer_vocab, int):
        # Megatron-Bridge does the same when it builds the model.
        model.vocab_size, model.should_pad_vocab = tokenizer_vocab, True
    return Run(
        model=model,
        optimizer=_section("optimizer", values, settings),
        ddp=_section("ddp", values, settings),
        train=SimpleNamespace(**(train | (values.get("train") or {}) | _steps(values))),
        mixed_precision=_mixed_precision(settings),
        comm_overlap=_comm_overlap(settings),
        dist=_section("dist", values, settings),
        rerun_state_machine=_section("rerun_state_machine", values, settings),
        dataset=SimpleNamespace(**(values.get("dataset") or {})),
        env_vars=values.get("env_vars"),
    )


_OF_CHECKPOINTS = (
    "save",
    "save_interval",
    "save_optim",
    "ckpt_format",
    "dist_ckpt_optim_fully_reshardable",
)
"""What rules read of the section checkpoint."""


def _steps(values: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """What happens between the steps of a run: evaluations and checkpoints.

    Megatron-Bridge evaluates 100 batches every 1000 steps by default. Since 0.4.2 the section
    validation says so; before, and where train still has the old keys, train does.
    """
    found: dict[str, Any] = {"eval_iters": 100, "eval_interval": 1000}
    for section, keys in (
        ("validation", ("eval_iters", "eval_interval")),
        ("checkpoint", _OF_CHECKPOINTS),
    ):
        content = values.get(section) or {}
        found |= {key: content[key] for key in keys if key in content}
    old = values.get("train") or {}
    return found | {
        key: old[key] for key in ("eval_iters", "eval_interval") if old.get(key) is not None
    }


_NULL_STAYS = frozenset({"moe_flex_dispatcher_backend"})
"""Keys that Megatron-Core declares without None, and that mean something else where they are null
than where they are not set."""


def _section(
    section: str, values: Mapping[str, dict[str, Any] | None], settings: Settings
) -> SimpleNamespace:
    stack = settings.stack
    fields = section_fields(section, stack)
    defaults = {name: known.default for name, known in fields.items()}
    if section == "model" and settings.framework == "megatron-bridge":
        defaults |= PROVIDER_CHOICES
    given = values.get(section) or {}
    # null is None where Megatron-Core allows it, and "not set" for a plain number or switch.
    plain = {k for k, known in fields.items() if known.kind in KINDS and k not in _NULL_STAYS}
    content = {
        key: value
        for key, value in given.items()
        if (value is not None or key not in plain) and not is_lacking(section, key, stack)
    }
    return SimpleNamespace(**(defaults | content))


def _mixed_precision(settings: Settings) -> MixedPrecisionConfig | None:
    content = settings.values.get("mixed_precision")
    if content is None:
        return None
    fields = {f.name for f in dataclasses.fields(MixedPrecisionConfig)}
    given = {k: v for k, v in content.items() if k in fields}
    place = in_messages(settings.where, "mixed_precision", settings.source)
    try:
        # An override comes after what it overrides, so fp8_param and its twin take its value.
        late = {k for k in given if f"mixed_precision.{k}" in settings.overridden}
        early = {k: v for k, v in given.items() if k not in late}
        if BY_NAME in content:
            early = mixed_precision_recipe(content[BY_NAME], settings.stack) | early
        config = MixedPrecisionConfig(**early)
        for name in late:
            setattr(config, name, given[name])
        return config
    except OverlapConfigError as error:
        raise InputError(f"{place}: {error}") from None


def _comm_overlap(settings: Settings) -> CommOverlapConfig | None:
    content = settings.values.get("comm_overlap")
    if content is None:
        return None
    fields = {f.name for f in dataclasses.fields(CommOverlapConfig)}
    given = {k: v for k, v in content.items() if k in fields}
    key = "comm_overlap.tp_comm_overlap_cfg"
    preset = given.get("tp_comm_overlap_cfg")
    if isinstance(preset, str):
        name = preset.rpartition(".")[2]
        if name not in PRESETS:
            near = nearest(name, PRESETS)
            hint = f"did you mean {near}?" if near else "give a preset, or a mapping of GEMMs"
            place = in_messages(settings.where, key, settings.source)
            raise InputError(f"{place}: {key}: unknown preset {shown(preset)}; {hint}")
        given["tp_comm_overlap_cfg"] = PRESETS[name]
    elif preset is not None and not isinstance(preset, dict):
        place = in_messages(settings.where, key, settings.source)
        raise InputError(
            f"{place}: {key} must be a preset's name, a mapping of GEMMs or null, "
            f"not {shown(preset)}"
        )
    return CommOverlapConfig(**given)
