"""The answers for several versions on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from overlapkit.explain.text import header, layout_text
from overlapkit.explain.versions.matrix import Matrix
from overlapkit.explain.versions.text import matrix_lines, version_line


def show_matrix(matrix: Matrix, console: Console) -> None:
    """The plain lines, with those of the versions in color."""
    report = matrix.any_report
    styles = {header(report): "bold", layout_text(report): ""}
    for version in matrix.versions:
        bad = "yellow" if version.starts else "bold red"
        styles[version_line(matrix, version)] = bad if version.fails else "green"
    for line in matrix_lines(matrix):
        console.print(Text(line, styles.get(line, "")))
