"""The one table of the terminal: columns without a border, two spaces between them."""

from __future__ import annotations

from rich.table import Table


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
