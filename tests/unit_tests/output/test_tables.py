"""Tables keep their numbers on a narrow terminal; items are indented; names can be broken."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from overlapkit.output.html import breakable
from overlapkit.output.tables import add_numbers, borderless, print_item, shorten_first


def printed(width: int, *, soft_wrap: bool = False) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=width, soft_wrap=soft_wrap, highlight=False), stream


@pytest.mark.parametrize(
    ("width", "name"), [(30, "ncclDevKernel…"), (60, "ncclDevKernel_AllGather_RING_LL")]
)
def test_only_the_first_column_is_shortened(width, name):
    console, stream = printed(width)
    table = borderless()
    table.add_column("kernel")
    add_numbers(table, "step", "idle")
    table.add_row(Text("ncclDevKernel_AllGather_RING_LL"), "12.34", "0.205")
    shorten_first(table, console, most=44)
    console.print(table)
    header, row = stream.getvalue().splitlines()
    assert header.split() == ["kernel", "step", "idle"]
    assert row.split() == [name, "12.34", "0.205"]
    assert len(row) <= width


def test_the_first_column_has_a_largest_width():
    console, stream = printed(120)
    table = borderless()
    table.add_column("kernel")
    add_numbers(table, "step")
    table.add_row("x" * 100, "12.34")
    shorten_first(table, console, most=44)
    console.print(table)
    assert stream.getvalue().splitlines()[1].split() == ["x" * 43 + "…", "12.34"]


def test_further_lines_of_an_item_are_indented():
    console, stream = printed(40)
    print_item(console, "note: ", Text("word " * 20 + "end", "yellow"))
    first, *others = stream.getvalue().splitlines()
    assert first.startswith("note: word") and len(others) >= 2
    assert all(line.startswith("      word") or line == "      end" for line in others)
    assert all(len(line) <= 40 for line in (first, *others))


def test_an_item_in_a_pipe_is_one_line():
    console, stream = printed(40, soft_wrap=True)
    print_item(console, "- ", Text("word " * 20 + "end"))
    assert stream.getvalue() == "- " + "word " * 20 + "end\n"


def test_a_name_can_be_broken_between_its_parts():
    assert breakable("a::b_c/<d>") == "a::<wbr>b_<wbr>c/<wbr>&lt;d&gt;"
