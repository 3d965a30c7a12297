"""The GPUs of this machine and the links between them, where they can be seen."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

LIMIT_S = 5.0
"""How long nvidia-smi may take: a stuck driver must not hold the answer up."""

_NVLINK = re.compile(r"\bNV\d+\b")


@dataclass(frozen=True)
class Machine:
    """What nvidia-smi tells.

    Attributes:
        gpus: names of the GPUs, in order; empty where none is visible.
        driver: the driver's version; None where none is visible.
        nvlink: whether every two GPUs are joined by NVLink; None for a single GPU, or unknown.
        told: what could be seen, in one sentence.
    """

    gpus: tuple[str, ...] = ()
    driver: str | None = None
    nvlink: bool | None = None
    told: str = ""


def look_at_machine() -> Machine:
    """Ask nvidia-smi, within `LIMIT_S`; a machine without it is described as that."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Machine(told="no GPU is visible here: there is no nvidia-smi")
    listed, why = _ask(program, "--query-gpu=name,driver_version", "--format=csv,noheader")
    if listed is None:
        return Machine(told=f"no GPU is visible here: nvidia-smi {why}")
    rows = [line.rpartition(",") for line in listed.splitlines() if "," in line]
    names = tuple(name.strip() for name, _, _ in rows)
    if not names:
        return Machine(told="no GPU is visible here: nvidia-smi lists none")
    driver = rows[0][2].strip()
    nvlink = None
    if len(names) > 1:
        topology, _ = _ask(program, "topo", "-m")
        nvlink = None if topology is None else all_joined(topology, len(names))
    links = {True: ", joined by NVLink", False: ", not all joined by NVLink", None: ""}[nvlink]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return Machine(names, driver, nvlink, f"{kinds}{links}, driver {driver}")


def all_joined(topology: str, gpus: int) -> bool | None:
    """Whether NVLink joins every two GPUs, by the table of ``nvidia-smi topo -m``."""
    rows = [line.split() for line in topology.splitlines() if re.match(r"\s*GPU\d+\s", line)]
    rows = [row[1 : gpus + 1] for row in rows if "X" in row[: gpus + 2]]
    if len(rows) != gpus or any(len(row) != gpus for row in rows):
        return None
    return all(
        _NVLINK.fullmatch(cell) is not None
        for number, row in enumerate(rows)
        for other, cell in enumerate(row)
        if other != number
    )


def _ask(program: str, *arguments: str) -> tuple[str | None, str]:
    """nvidia-smi's answer, or why there is none."""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"did not answer within {LIMIT_S:.0f} s"
    except OSError as error:
        return None, f"cannot be started: {error.strerror}"
    if done.returncode:
        words = done.stderr.decode(errors="replace").split() or ["failed"]
        words = words if done.stderr.strip() else done.stdout.decode(errors="replace").split()
        return None, " ".join(["failed:", *words])[:160]
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode(errors="replace")), ""
