"""`--slurm KEY=VALUE`: the options of a Slurm job."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overlapkit.errors import InputError
from overlapkit.hardware import find_gpu

_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
"""Forms of sbatch's --time: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""


@dataclass(frozen=True)
class SlurmOptions:
    """A Slurm job.

    Attributes:
        nodes: number of nodes.
        per_node: ranks on each node.
        fields: of nemo_run's SlurmExecutor.
        setup: shell lines that run before the ranks start.
        compute_capability: of the GPU given with `gpu`; None without.
    """

    nodes: int
    per_node: int
    fields: dict[str, Any] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    compute_capability: str | None = None

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return self.nodes * self.per_node


def _count(key: str, value: str) -> int:
    if not value.isascii() or not value.isdecimal() or len(value) > 6 or int(value) < 1:
        raise InputError(f"--slurm {key}={value}: give a whole number of 1 or more")
    return int(value)


def _text(key: str, value: str) -> str:
    if not value:
        raise InputError(f"--slurm {key}=: give a value, or omit the option")
    return value


def _time(key: str, value: str) -> str:
    if not _TIME.fullmatch(value):
        raise InputError(f"--slurm {key}={value}: write it as sbatch does, such as 00:30:00")
    return value


def _switch(key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise InputError(f"--slurm {key}={value}: give true or false")
    return value == "true"


def _listed(key: str, value: str) -> list[str]:
    return _text(key, value).split(",")


_FIELDS: dict[str, Callable[[str, str], Any]] = {
    "account": _text,
    "partition": _text,
    "nodes": _count,
    "gpus_per_node": _count,
    "cpus_per_task": _count,
    "time": _time,
    "qos": _text,
    "mem": _text,
    "constraint": _text,
    "gres": _text,
    "exclude": _text,
    "exclusive": _switch,
    "comment": _text,
    "network": _text,
    "container_image": _text,
    "container_mounts": _listed,
}
"""Keys that are fields of nemo_run's SlurmExecutor, by the same names."""

_OWN = ("ranks_per_node", "reservation", "gpu", "setup")
REQUIRED = "account"


def slurm_options(pairs: Sequence[str], folder: Path) -> SlurmOptions:
    """The job that the user's KEY=VALUE pairs describe.

    Args:
        pairs: as on the command line; `setup` may occur several times.
        folder: the run's, which a container must see under the same path.

    Raises:
        InputError: an unknown key, a value of the wrong kind, or something missing.
    """
    given, setup = _parse(pairs)
    if REQUIRED not in given:
        raise InputError("--executor slurm: give the account with --slurm account=NAME")
    fields = {key: _FIELDS[key](key, value) for key, value in given.items() if key in _FIELDS}
    per_node = fields.get("gpus_per_node")
    if "ranks_per_node" in given:
        per_node = _count("ranks_per_node", given["ranks_per_node"])
    if per_node is None:
        raise InputError(
            "--executor slurm: give --slurm gpus_per_node=N, or --slurm ranks_per_node=N on a "
            "cluster that does not accept requests for GPUs"
        )
    fields["torchrun_nproc_per_node"] = per_node
    if fields.get("exclusive") is False:
        del fields["exclusive"]
    if "reservation" in given:
        fields["additional_parameters"] = {
            "reservation": _text("reservation", given["reservation"])
        }
    if "container_image" in fields:
        fields["container_mounts"] = [*fields.get("container_mounts", []), f"{folder}:{folder}"]
    elif "container_mounts" in fields:
        raise InputError("--slurm container_mounts=…: needs --slurm container_image=IMAGE")
    else:
        # The nodes see the current installation, just as they see the folder.
        quoted = str(Path(sys.executable).parent).replace("'", "'\\''")
        setup = [*setup, f"export PATH='{quoted}':\"$PATH\""]
    gpu = find_gpu(given["gpu"])[1] if "gpu" in given else None
    return SlurmOptions(
        nodes=fields.get("nodes", 1),
        per_node=per_node,
        fields=fields,
        setup=tuple(setup),
        compute_capability=None if gpu is None else gpu.least_capability,
    )


def _parse(pairs: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    given: dict[str, str] = {}
    setup: list[str] = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or "\n" in pair:
            raise InputError(f"--slurm {pair}: write KEY=VALUE, such as partition=batch")
        if key == "setup":
            setup.append(_text(key, value))
        elif key in given:
            raise InputError(f"--slurm {key}: given twice, {given[key]} and {value}; keep one")
        elif key in _FIELDS or key in _OWN:
            given[key] = value
        else:
            known = ", ".join(sorted((*_FIELDS, *_OWN)))
            raise InputError(f"--slurm {pair}: unknown key {key}; choose from {known}")
    return given, setup
