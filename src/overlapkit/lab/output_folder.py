"""Keeps a run's results, profiles and page in the folder of ``--out``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import msgspec

from overlapkit.lab.document import RESULTS_FILE, LabDocument
from overlapkit.lab.scenario import JudgedScenario
from overlapkit.output.files import OutputFolder


def keep(document: LabDocument, judged: Sequence[JudgedScenario], out: OutputFolder) -> None:
    """Fill the user's folder, completely or not at all.

    Raises:
        InputError: it cannot be written.
    """
    from overlapkit.lab.page import lab_page

    with out.filled() as aside:
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
