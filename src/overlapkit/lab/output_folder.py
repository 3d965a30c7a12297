"""Keeps a run's results, profiles and page in the folder of ``--out``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from overlapkit.errors import InputError
from overlapkit.lab.document import RESULTS_FILE, LabDocument
from overlapkit.lab.scenario import JudgedScenario


def empty_folder(out: str) -> Path:
    """The folder of ``--out``, checked before the run.

    Raises:
        InputError: it is a file, it is not empty, or it cannot be created.
    """
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"--out {out}: exists and is not an empty folder; name a new one")
    if not path.parent.is_dir():
        raise InputError(f"--out {out}: {path.parent} is not a folder; create it first")
    return path


def keep(document: LabDocument, judged: Sequence[JudgedScenario], out: Path) -> None:
    """Fill the user's folder completely, or not at all."""
    from overlapkit.lab.page import lab_page

    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for one in judged:
            for name, block in one.observations.blocks.items():
                for variant in block.variants.values():
                    for rank in variant.ranks:
                        if rank.trace is not None:
                            folder = one.observations.folders[name]
                            shutil.copy(folder / rank.trace, aside / rank.trace)
        text = msgspec.json.format(msgspec.json.encode(document), indent=2)
        (aside / RESULTS_FILE).write_bytes(text + b"\n")
        (aside / "report.html").write_text(lab_page(document, judged), encoding="utf-8")
        aside.chmod(0o755)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
