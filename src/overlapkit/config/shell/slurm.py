"""The size of a job from its Slurm batch script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from overlapkit.config.shell.values import Field

_SBATCH = re.compile(r"^#SBATCH[ \t]+(.+)$", re.MULTILINE)


def slurm_variables(text: str, command: Sequence[Field] = ()) -> dict[str, str]:
    """The variables that Slurm sets in the job of a batch script.

    Args:
        text: the script, with its ``#SBATCH`` lines.
        command: words of the ``sbatch`` or ``salloc`` that asks for it; its options win.
    """
    options: dict[str, str] = {}
    rows = []
    for line in _SBATCH.findall(text):
        try:
            rows.append(shlex.split(line, comments=True))
        except ValueError:
            continue
    names = [PurePosixPath(word.text).name for word in command]
    given = [word.text for word in command] if {"sbatch", "salloc"} & set(names) else []
    for words in [*rows, given]:
        for number, word in enumerate(words):
            name, is_set, value = word.partition("=")
            if re.fullmatch(r"-[NnG]\d+", word):
                name, value = word[:2], word[2:]
            elif not is_set and number + 1 < len(words):
                value = words[number + 1]
            options[name] = value
    nodes = options.get("--nodes") or options.get("-N", "")
    tasks = options.get("--ntasks") or options.get("-n", "")
    per_node = options.get("--ntasks-per-node", "")
    gpus = options.get("--gpus-per-node", "") or options.get("--gres", "")
    gpus = gpus.rpartition(":")[2] if gpus else ""
    if not tasks and number_of(nodes) and number_of(per_node):
        tasks = str(int(nodes) * int(per_node))
    named = {
        "SLURM_NNODES": nodes,
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_NTASKS": tasks,
        "SLURM_NPROCS": tasks,
        "SLURM_NTASKS_PER_NODE": per_node,
        "SLURM_GPUS_PER_NODE": gpus,
        "SLURM_GPUS_ON_NODE": gpus,
    }
    return {name: value for name, value in named.items() if number_of(value)}


def number_of(text: str) -> int | None:
    """`text` as a positive whole number; None where it is not one."""
    return int(text) if re.fullmatch(r"\d{1,9}", text) and int(text) > 0 else None
