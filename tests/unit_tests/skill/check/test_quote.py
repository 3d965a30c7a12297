"""Quotations are found with lines left out, and the nearest place where they were edited."""

from __future__ import annotations

import pytest

from overlapkit.skill.check.quote import Span, nearest, places, quote_of, source_of

FILE = source_of(
    """\
def setup(config):
    if config.overlap is True:
        assert config.size > 1, (
            "size must be above 1"
        )
        assert config.bf16 or config.fp16

        raise ValueError(
            f"not with {config}"
        )
    helper = Helper(
        model=config.model,
        seed=1,
    )
    return helper
"""
)


@pytest.mark.parametrize(
    ("quote", "span"),
    [
        (["if config.overlap is True:", "    assert config.size > 1, ("], (2, 3)),
        (["    if config.overlap is True:", "...", "    helper = Helper("], (2, 11)),
        (["if config.overlap is True:", "# ... the checks ...", "return helper"], (2, 15)),
        (["if config.overlap is True:", "    …", "return helper", "..."], (2, 15)),
        (["helper = Helper(", "    ...", "    seed=1,", ")"], (11, 14)),
        (["return   helper"], (15, 15)),
    ],
)
def test_found(quote: list[str], span: tuple[int, int]) -> None:
    assert Span(*span) in places(quote_of(quote), FILE)


@pytest.mark.parametrize(
    ("quote", "span"),
    [
        (["assert config.size > 1, ...", "assert config.bf16 or config.fp16"], (3, 6)),
        (["assert config.size > 1, …", "assert config.bf16 or config.fp16"], (3, 6)),
        (["assert config.bf16 or config.fp16", "raise ValueError(...)"], (6, 10)),
        (["helper = Helper(...)", "return helper"], (11, 15)),
        (["def setup(config): ..."], (1, 1)),
        (["if config.overlap ..."], (2, 2)),
        (["... is True:", "assert config.size ... ("], (2, 3)),
        (["if ... is True:", "...", "return ..."], (2, 15)),
    ],
)
def test_a_line_with_dots_stands_for_its_statement(quote: list[str], span: tuple[int, int]) -> None:
    assert Span(*span) in places(quote_of(quote), FILE)
    assert places(quote_of(quote), FILE, literal=True) == []


@pytest.mark.parametrize(
    "quote",
    [
        ["assert config.width > 1, ..."],
        ["return helper", "raise ValueError(...)"],
        ["helper = Helper(...).start()"],
        ["(...)"],
        ["config ..."],
    ],
)
def test_dots_do_not_stand_for_other_lines(quote: list[str]) -> None:
    assert places(quote_of(quote), FILE) == []


def test_dots_of_the_file_itself_come_first() -> None:
    code = source_of("def first(self) -> int: return 1\n\ndef first(self) -> int: ...\n")
    assert places(quote_of(["def first(self) -> int: ..."]), code) == [Span(3, 3)]


@pytest.mark.parametrize(
    "quote",
    [
        ["if config.overlap is True:", "    helper = Helper("],
        ["return helper", "...", "helper = Helper("],
        ["if config.overlap is False:"],
        ["..."],
    ],
)
def test_not_found(quote: list[str]) -> None:
    assert places(quote_of(quote), FILE) == []


def test_a_page_is_quoted_without_its_fences() -> None:
    page = source_of("Set it:\n\n```python\nx = 1\ny = 2\n```\n")
    assert places(quote_of(["Set it:", "x = 1", "y = 2"]), page) == [Span(1, 5)]


def test_nearest_is_where_most_lines_are_alike() -> None:
    quote = quote_of(["helper = Helper(", "    model=config.network,", "    seed=2,", ")"])
    near = nearest(quote, FILE, 1)
    assert near is not None
    assert near.span == Span(11, 14)
    assert near.is_near and 0.8 < near.similarity < 1


def test_a_definition_is_known_by_its_name() -> None:
    near = nearest(
        quote_of(["def setup(one, two, three): -> SomeResult", "    # what it does"]), FILE, 9
    )
    assert near is not None and near.kept and near.span.start == 1


def test_nothing_alike_is_not_near() -> None:
    near = nearest(quote_of(["import zlib", "print(zlib.crc32(b''))"]), FILE, 1)
    assert near is not None and not near.is_near


def test_an_empty_file_has_no_nearest_place() -> None:
    assert nearest(quote_of(["x = 1"]), source_of(""), 1) is None
