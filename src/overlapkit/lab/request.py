"""What the user requests with `overlapkit lab`, checked and turned into scenarios and a setting."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from overlapkit.config.file_kind import is_script, without_line
from overlapkit.config.overrides import is_override
from overlapkit.config.reading import Reading
from overlapkit.config.sources import Source, name_sources
from overlapkit.config.text_file import exists
from overlapkit.errors import InputError
from overlapkit.lab.corpus import read_text
from overlapkit.lab.own.own_run import OwnOptions, OwnRun, read_own
from overlapkit.lab.own.shrink import RANKS
from overlapkit.lab.scenario import Scenario, Setting
from overlapkit.lab.scenarios import DEFAULT, OWN, SCENARIOS, find

LEAST_MBIT, MOST_MBIT = 0.1, 1e6
_NAMES = frozenset((*SCENARIOS, "all"))


@dataclass(frozen=True, kw_only=True)
class LabRequest:
    """The arguments and options of the command; see `overlapkit lab --help`."""

    arguments: tuple[str, ...] = ()
    config: str | None = None
    from_megatron_lm: bool = False
    as_written: bool = False
    world_size: int | None = None
    gpu: str | None = None
    te: str | None = None
    env_file: str | None = None
    reading: Reading = field(default_factory=Reading)
    ranks: int | None = None
    link: str | None = None
    device: str = "cpu"
    steps: int | None = None
    corpus: str | None = None
    out: str | None = None
    as_json: bool = False
    executor: str | None = None
    slurm: tuple[str, ...] = ()
    dry_run: bool = False
    collect: str | None = None
    debug: bool = False

    @cached_property
    def named(self) -> Named:
        """What the arguments name.

        Raises:
            InputError: as `named`.
        """
        return named(self)

    def given(self) -> list[str]:
        """Names of the fields that differ from their defaults, except that of --debug."""
        default = LabRequest()
        names = [each.name for each in fields(self) if each.name != "debug"]
        return [name for name in names if getattr(self, name) != getattr(default, name)]


def installed(module: str) -> bool:
    """Whether a module can be imported; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def need_megatron() -> None:
    """Check that ranks can train here.

    Raises:
        InputError: torch or Megatron-Core is not installed.
    """
    missing = [name for name in ("torch", "megatron.core") if not installed(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"overlapkit lab needs {' and '.join(missing)}, which {verb} not installed; install "
            "overlapkit[megatron]"
        )


def chosen_scenarios(request: LabRequest) -> list[Scenario]:
    """The scenarios to run, each once.

    Raises:
        InputError: a name is unknown, or the configuration is missing.
    """
    named = request.named
    names = named.scenarios or ((OWN,) if named.source else DEFAULT)
    if "all" in names:
        names = tuple(name for name in SCENARIOS if name != OWN or named.source)
    if OWN in names and named.source is None:
        raise InputError(f"scenario {OWN}: name the configuration: overlapkit lab CONFIG")
    return [find(name) for name in dict.fromkeys(names)]


@dataclass(frozen=True)
class Named:
    """What the arguments of the command name.

    Attributes:
        scenarios: names of scenarios.
        source: the configuration; None where none is named.
    """

    scenarios: tuple[str, ...]
    source: Source | None


def named(request: LabRequest) -> Named:
    """What the arguments name: names of scenarios, or a configuration with its overrides.

    Raises:
        InputError: a name is neither, or as `config.sources.name_sources`.
    """
    arguments = list(request.arguments)
    scenarios = [] if request.from_megatron_lm else [a for a in arguments if a in _NAMES]
    rest = [text for text in arguments if text not in scenarios]
    if request.config is not None:
        rest = [request.config, *rest]
    elif rest and not request.from_megatron_lm and not _is_configuration(rest[0]):
        if is_override(rest[0]):
            raise InputError(f"{rest[0]}: an override comes after the configuration file")
        if not rest[0].startswith("-"):
            find(rest[0])
    sources = name_sources(rest, command="lab", from_megatron_lm=request.from_megatron_lm)
    if not sources:
        options = ("as_written", "world_size", "gpu", "te", "env_file")
        for name in options:
            if getattr(request, name):
                option = name.replace("_", "-")
                raise InputError(f"--{option}: is about a configuration, and none is named")
    return Named(tuple(scenarios), sources[0] if sources else None)


def _is_configuration(text: str) -> bool:
    """Whether an argument names a file, or has a path's form."""
    path = without_line(text)
    return path.endswith((".yaml", ".yml")) or is_script(text) or os.sep in path or exists(path)


def make_setting(
    request: LabRequest,
    scenarios: Sequence[Scenario],
    *,
    gpus: int,
    compute_capability: str | None,
) -> Setting:
    """What the scenarios build their variants from.

    Args:
        request: the user's.
        scenarios: those to run.
        gpus: number of GPUs.
        compute_capability: of the GPUs, such as "9.0"; None without one.

    Raises:
        InputError: an option has a value that cannot be used here.
    """
    if request.steps is not None and request.steps < 1:
        raise InputError(f"--steps {request.steps}: give at least 1")
    if request.ranks is not None:
        if request.ranks < 2:
            raise InputError(f"--ranks {request.ranks}: overlap needs at least 2")
        fixed = [scenario.name for scenario in scenarios if not scenario.flexible]
        if fixed:
            flexible = ", ".join(name for name, each in SCENARIOS.items() if each.flexible)
            have = "has" if len(fixed) == 1 else "have"
            raise InputError(
                f"--ranks {request.ranks}: {', '.join(fixed)} {have} a fixed layout; --ranks "
                f"applies to {flexible}"
            )
    if request.corpus is not None:
        read_text(request.corpus)
    own = (
        None if request.named.source is None else read_own(request.named.source, _options(request))
    )
    if request.device == "cuda" and not gpus:
        raise InputError("--device cuda: no CUDA GPU is visible; omit --device to run on the CPU")
    return Setting(
        device=request.device,
        ranks=request.ranks,
        steps=request.steps,
        base=_base(own),
        own=own,
        shaped=request.device == "cpu" and request.link != "none" and request.executor is None,
        te=installed("transformer_engine"),
        compute_capability=compute_capability,
        gpus=gpus,
    )


def _options(request: LabRequest) -> OwnOptions:
    return OwnOptions(
        ranks=request.ranks or RANKS,
        world_size=request.world_size,
        gpu=request.gpu,
        te=request.te,
        env_file=request.env_file,
        reading=request.reading,
        as_written=request.as_written,
    )


_BASE = (
    "normalization",
    "position_embedding_type",
    "add_bias_linear",
    "add_qkv_bias",
    "gated_linear_unit",
    "activation_func",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
)
"""Keys of a user's model that scenarios with a layout and sizes of their own keep."""


def _base(own: OwnRun | None) -> dict[str, dict[str, Any]]:
    """The part of a configuration for scenarios that have a layout and an overlap of their own."""
    if own is None or own.reduced is None:
        return {}
    settings = own.reduced.settings
    base = {"model": {k: v for k, v in settings.get("model", {}).items() if k in _BASE}}
    if settings.get("mixed_precision"):
        base["mixed_precision"] = settings["mixed_precision"]
    return base


def visible_gpus() -> tuple[int, str | None]:
    """The number of GPUs, and the compute capability of the first."""
    import torch

    if not torch.cuda.is_available():
        return 0, None
    major, minor = torch.cuda.get_device_capability(0)
    return torch.cuda.device_count(), f"{major}.{minor}"


def link_rate(link: str | None) -> float | str | None:
    """The rate of ``--link`` in Mbit/s; "auto" without the option, None for "none".

    Raises:
        InputError: it is not a rate.
    """
    if link is None:
        return "auto"
    if link == "none":
        return None
    text = link.lower().removesuffix("bit")
    scale = {"k": 1e-3, "m": 1.0, "g": 1e3}.get(text[-1:])
    try:
        rate = float(text[:-1]) * scale if scale else float(text)
    except ValueError:
        rate = 0.0
    if not LEAST_MBIT <= rate <= MOST_MBIT:
        raise InputError(
            f"--link {link}: give a rate from 0.1mbit to 1000gbit, such as 400mbit, or none"
        )
    return rate
