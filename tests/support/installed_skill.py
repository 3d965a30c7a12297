"""The skill as it is in a user's repository, and what is true of every such copy."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)\)")
START = "uv run -s .*/skills/*/scripts/overlapkit "


def missing_links(folder: Path) -> list[str]:
    """Relative links of its pages that lead nowhere, or out of the folder."""
    return [
        f"{page.name}: {link}"
        for page in [folder / "SKILL.md", *(folder / "references").iterdir()]
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link and not _inside(page.parent / link, folder)
    ]


def _inside(target: Path, folder: Path) -> bool:
    return target.is_file() and target.resolve().is_relative_to(folder.resolve())


def commands(folder: Path, values: dict[str, str]) -> list[str]:
    """The commands of SKILL.md as they stand, with values for the words in capitals."""
    text = (folder / "SKILL.md").read_text(encoding="utf-8")
    found = re.findall(rf"`({re.escape(START)}[^`]+)`", text)
    return [" ".join(values.get(word, word) for word in line.split()) for line in found]


def run(command: str, repository: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """A line of a shell, run in a repository; what is compiled goes to `cache`."""
    gone = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=repository,
        env={**environment, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
