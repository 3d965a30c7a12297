"""The page of `overlapkit compare`."""

from __future__ import annotations

from typing import Any

from overlapkit.trace.compare.tables import headline
from overlapkit.trace.page import _bars, _render


def compare_page(document: dict[str, Any]) -> str:
    """The page of `overlapkit compare`: both steps as bars, what moved, decisions."""
    rows = [
        (
            f"{side}: {document[side]['name']}",
            {
                "step_us": document[side]["step_us"],
                **{f"{part['part']}_us": part[f"{side}_us"] for part in document["parts"]},
            },
        )
        for side in ("base", "new")
    ]
    return _render(
        "compare.html",
        document=document,
        headline=headline(document),
        bars=_bars(rows),
    )
