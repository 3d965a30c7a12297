"""What of a run is kept in the folder that the user named."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from overlapkit.errors import InputError
from overlapkit.lab.document import Told
from overlapkit.lab.measurements import SeenBlock


def empty_folder(out: str) -> Path:
    """--out as a folder that can be written, before an hour is spent.

    Raises:
        InputError: it is a file, holds something already, or cannot be made.
    """
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"--out {out}: exists and is not an empty folder; name a new one")
    if not path.parent.is_dir():
        raise InputError(f"--out {out}: {path.parent} is no folder; make it first")
    return path


def keep(document: dict[str, Any], told: Sequence[Told], out: Path) -> None:
    """Fill the user's folder: whole, or not at all."""
    from overlapkit.lab.page import lab_page

    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for one in told:
            for block in one.seen.blocks.values():
                for variant in block.variants.values():
                    for rank in variant.ranks:
                        if rank.trace is not None:
                            folder = one.seen.folders[_name_of(one, block)]
                            shutil.copy(folder / rank.trace, aside / rank.trace)
        text = msgspec.json.format(msgspec.json.encode(document), indent=2)
        (aside / "results.json").write_bytes(text + b"\n")
        (aside / "report.html").write_text(lab_page(document, told), encoding="utf-8")
        aside.chmod(0o755)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _name_of(told: Told, block: SeenBlock) -> str:
    return next(name for name, one in told.seen.blocks.items() if one is block)
