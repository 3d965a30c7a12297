"""Tables and items of the terminal: columns without a border, two spaces between them."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text


def borderless(*, header: bool = True, gap: int = 0) -> Table:
    """An empty table; add its columns.

    Args:
        header: whether the columns' names are shown, dimmed.
        gap: empty lines after each row.
    """
    return Table(
        box=None,
        padding=(0, 2, gap, 0),
        show_edge=False,
        show_header=header,
        header_style="dim",
    )


def add_numbers(table: Table, *names: str) -> None:
    """Add columns of numbers: right-aligned, never broken."""
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def shorten_first(table: Table, console: Console, *, most: int) -> None:
    """Give the first column the width that the others leave, at most `most` characters.

    Its texts stay on one line and end in an ellipsis where they do not fit. Without this, a narrow
    terminal takes width from every column, and numbers lose digits.
    """
    gap = 2
    others = sum(
        max(cell_len(str(cell)) for cell in (column.header, *column.cells)) + gap
        for column in table.columns[1:]
    )
    first = table.columns[0]
    first.no_wrap, first.overflow = True, "ellipsis"
    first.max_width = max(8, min(most, console.width - others - gap))


def print_item(console: Console, lead: str, text: Text) -> None:
    """Print a text after its lead, with its further lines indented under the first.

    Where lines are not broken, as in a pipe, it is one line.
    """
    if console.soft_wrap:
        console.print(Text.assemble((lead, text.style), text))
        return
    indent = cell_len(lead)
    for number, line in enumerate(text.wrap(console, max(20, console.width - indent))):
        start = lead if number == 0 else " " * indent
        console.print(Text.assemble((start, text.style), line))
