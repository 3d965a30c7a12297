"""Which kind of configuration a file is, by its name, and else by how it begins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

FileKind = Literal["yaml", "script"]

SCRIPTS = (".sh", ".bash", ".slurm", ".sbatch")
"""How the names of launch scripts end."""
_YAML = (".yaml", ".yml", ".json")
_FIRST = 4096
"""Characters that show what a file is."""
_KEY = re.compile(r"[A-Za-z_]\w*:(\s|$)")


def without_line(name: str) -> str:
    """A file's name without the line of a launch: ``run.sh:12`` is ``run.sh``."""
    file, _, line = name.rpartition(":")
    return file if file and line.isdecimal() else name


def is_script(name: str) -> bool:
    """Whether a file's name, with or without the line of a launch, is that of a launch script."""
    return without_line(name).endswith(SCRIPTS)


def kind_of(name: str, otherwise: FileKind) -> FileKind:
    """Which kind of configuration a file is.

    Args:
        name: the file, with or without the line of a launch.
        otherwise: the kind where neither its name nor its first lines show it.
    """
    if is_script(name):
        return "script"
    if without_line(name).endswith(_YAML):
        return "yaml"
    try:
        path = Path(without_line(name))
        # A pipe can be read only once, by whoever reads the configuration.
        if not path.is_file():
            return otherwise
        with path.open(encoding="utf-8") as file:
            first = file.read(_FIRST)
    except (OSError, ValueError):
        # What reads the file says what is wrong with it.
        return otherwise
    if first.startswith("#!"):
        return "script"
    lines = (line for line in first.splitlines() if line.strip() and line[0] not in "#%")
    content = next((line for line in lines if not line.startswith("---")), "")
    return "yaml" if _KEY.match(content) else otherwise
