"""The GPUs of this machine and the links between them, where they are visible."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

LIMIT_S = 5.0
"""How long nvidia-smi can take: a hung driver must not delay the answer."""

_NVLINK = re.compile(r"\bNV\d+\b")


@dataclass(frozen=True)
class Machine:
    """What nvidia-smi reports.

    Attributes:
        gpus: names of the GPUs, in order; empty where none is visible.
        driver: the driver's version; None where none is visible.
        nvlink: whether NVLink connects every two GPUs; None for a single GPU, and where it is not
            known.
        summary: what was found, in one sentence.
    """

    gpus: tuple[str, ...] = ()
    driver: str | None = None
    nvlink: bool | None = None
    summary: str = ""


def look_at_machine() -> Machine:
    """The GPUs that nvidia-smi reports within `LIMIT_S` seconds; none without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Machine(summary="no GPU is visible here: nvidia-smi was not found")
    listed, why = _ask(program, "--query-gpu=name,driver_version", "--format=csv,noheader")
    if listed is None:
        return Machine(summary=f"no GPU is visible here: nvidia-smi {why}")
    rows = [line.rpartition(",") for line in listed.splitlines() if "," in line]
    names = tuple(name.strip() for name, _, _ in rows)
    if not names:
        return Machine(summary="no GPU is visible here: nvidia-smi lists none")
    driver = rows[0][2].strip()
    nvlink = None
    if len(names) > 1:
        topology, _ = _ask(program, "topo", "-m")
        nvlink = None if topology is None else all_connected(topology, len(names))
    links = {True: ", connected by NVLink", False: ", not all connected by NVLink", None: ""}[
        nvlink
    ]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return Machine(names, driver, nvlink, f"{kinds}{links}, driver {driver}")


def all_connected(topology: str, gpus: int) -> bool | None:
    """Whether NVLink connects every two GPUs; None where ``nvidia-smi topo -m`` does not say."""
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
