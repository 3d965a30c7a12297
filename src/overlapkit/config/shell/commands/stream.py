"""What commands of a shell read."""

from __future__ import annotations

from dataclasses import dataclass

from overlapkit.config.shell.values import EMPTY, Field, Piece, part_of


@dataclass
class Stream:
    """The input of commands: what is left to read; None where it is not known."""

    text: Field | None

    def line(self, delimiter: str = "\n", most: int | None = None) -> Field | None:
        """Read up to a delimiter; None at the end, or where the text is not known.

        Args:
            delimiter: what ends it; empty for the end of the text.
            most: characters that are read at most; None for any number.
        """
        if self.text is None or not self.text.pieces:
            return None
        at = self.text.text.find(delimiter) if delimiter else -1
        end = len(self.text.text) if at < 0 else at
        if most is not None and most < end:
            row, self.text = part_of(self.text, 0, most), part_of(self.text, most)
            return row
        row = part_of(self.text, 0, end)
        self.text = part_of(self.text, end + len(delimiter)) if at >= 0 else EMPTY
        return row


def with_end(value: Field) -> Field:
    """The text of a heredoc, or of ``<<<``, which gets a line's end."""
    if value.text.endswith("\n"):
        return value
    return Field((*value.pieces, Piece("\n", value.line)))
