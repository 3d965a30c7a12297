"""What a translation does not express, as plain lines."""

from __future__ import annotations

from collections.abc import Iterator

from overlapkit.output.printable import printable
from overlapkit.translate.translation import Translation


def remark_lines(translation: Translation) -> Iterator[str]:
    """One line for each setting that is not expressed, and for each thing that differs."""
    for key, why in translation.left_out:
        yield printable(f"not expressed: {key}: {why}")
    for each in translation.disagreements:
        yield printable(f"differs: {each.sentence}")
