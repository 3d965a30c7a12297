"""What the user requests with `overlapkit lab`, checked and turned into scenarios and a setting."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from overlapkit.errors import InputError
from overlapkit.lab.corpus import read_text
from overlapkit.lab.scenario import Scenario, Setting
from overlapkit.lab.scenarios import DEFAULT, OWN, SCENARIOS, find
from overlapkit.lab.user_config import UserConfig, read

LEAST_MBIT, MOST_MBIT = 0.1, 1e6


@dataclass(frozen=True, kw_only=True)
class LabRequest:
    """The arguments and options of the command; see `overlapkit lab --help`."""

    scenarios: tuple[str, ...] = ()
    config: str | None = None
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

    def given(self) -> list[str]:
        """Names of the fields that differ from their defaults."""
        return [each.name for each in fields(self) if getattr(self, each.name) != each.default]


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
    names = request.scenarios or ((OWN,) if request.config else DEFAULT)
    if "all" in names:
        names = tuple(name for name in SCENARIOS if name != OWN or request.config)
    if OWN in names and request.config is None:
        raise InputError(f"scenario {OWN}: give the configuration with --config FILE")
    return [find(name) for name in dict.fromkeys(names)]


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
    user = None if request.config is None else read(request.config)
    if request.device == "cuda" and not gpus:
        raise InputError("--device cuda: no CUDA GPU is visible; omit --device to run on the CPU")
    return Setting(
        device=request.device,
        ranks=request.ranks,
        steps=request.steps,
        base=_base(user),
        user=user,
        shaped=request.device == "cpu" and request.link != "none" and request.executor is None,
        te=installed("transformer_engine"),
        compute_capability=compute_capability,
        gpus=gpus,
    )


def _base(user: UserConfig | None) -> dict[str, dict[str, Any]]:
    """The part of a configuration for scenarios that have a layout and an overlap of their own."""
    if user is None:
        return {}
    own = ("parallel", "overlap", "p2p")
    model = {k: v for k, v in user.settings["model"].items() if not any(w in k for w in own)}
    base = {"model": model}
    if "mixed_precision" in user.settings:
        base["mixed_precision"] = user.settings["mixed_precision"]
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
