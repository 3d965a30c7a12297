"""What is an anchor on a page, and what only looks like one."""

from __future__ import annotations

import pytest

from overlapkit.skill.check.markdown import read_page
from overlapkit.skill.check.references import references


def found(text: str) -> list[tuple[str, int, int]]:
    page = read_page(text)
    return [(r.path, r.start, r.end) for r in references(page, lambda name: name == "Makefile")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```3:5:src/a.py\nx\n```", ("src/a.py", 3, 5)),
        ("```python 3:5:src/a.py\nx\n```", ("src/a.py", 3, 5)),
        ("~~~3:5:src/a.py\nx\n~~~", ("src/a.py", 3, 5)),
        ("- item\n\n  ```3:5:src/a.py\n  x\n  ```", ("src/a.py", 3, 5)),
        ("```python title=src/a.py:3-5\nx\n```", ("src/a.py", 3, 5)),
        ("at `src/a.py:7`", ("src/a.py", 7, 7)),
        ("at src/a.py:7.", ("src/a.py", 7, 7)),
        ("(a.py:7-9)", ("a.py", 7, 9)),
        ("a.py:7:13: says ruff", ("a.py", 7, 7)),
        ("[x](../src/a.cu#L10-L20)", ("../src/a.cu", 10, 20)),
        ("src/a.py#L10", ("src/a.py", 10, 10)),
        ("src/a.py#L10-20", ("src/a.py", 10, 20)),
        ("see Makefile:12", ("Makefile", 12, 12)),
        ("<https://github.com/a/b/blob/main/a.py#L10>", ("main/a.py", 10, 10)),
        ("[x](https://github.com/a/b/blob/v1/c/a.py?plain=1#L3-L5)", ("v1/c/a.py", 3, 5)),
        ("The gate\n    in a.py:3 decides", ("a.py", 3, 3)),
        ("- The gate\n\n    in a.py:3 decides", ("a.py", 3, 3)),
        ("10. The gate\n\n    in a.py:3 decides", ("a.py", 3, 3)),
        ("- one\n  - two\n\n    in a.py:3 it decides", ("a.py", 3, 3)),
        ("It says\n\n    error\n\nin a.py:3", ("a.py", 3, 3)),
    ],
)
def test_forms(text: str, expected: tuple[str, int, int]) -> None:
    assert found(text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "localhost:8080 and example.com:443",
        "nvcr.io/nvidia/pytorch:25.04",
        "https://example.com/a/b/blob/main/a.py#L10",
        "https://github.com/a/b/tree/main/a.py#L10 or https://github.com/a/b/blob/main/a.py",
        "from 12:30 to 13:00",
        "a.py::test_x and b.py:name",
        "```text\na.py:12: error\n```",
        "It says\n\n    a.py:12: error\n\n    b.py:13: error\n",
        "It says\n\n\ta.py:12: error\n",
        "- It says\n\n      a.py:12: error\n",
        "<!-- a.py:12 -->",
        "---\nsource: a.py:12\n---\n",
        "version 1.2:3",
        "```text 12:30:45\nx\n```",
        "```a.py:12``` is code, a.py",
    ],
)
def test_no_anchor(text: str) -> None:
    assert found(text) == [] or text.endswith("is code, a.py")


def test_a_block_right_after_an_anchor_shows_its_lines() -> None:
    page = read_page("The gate, `a.py:3-4`:\n\n```python\nx = 1\ny = 2\n```\n")
    (reference,) = references(page, lambda name: False)
    assert reference.quote == ("x = 1", "y = 2") and not reference.surely


@pytest.mark.parametrize("indent", ["    ", "\t"])
def test_indented_code_right_after_an_anchor_shows_its_lines(indent: str) -> None:
    lines = f"{indent}if x:\n{indent}    y = 2\n\n{indent}z = 3\n"
    page = read_page(f"The gate, `a.py:3-4`:\n\n{lines}\nText\n")
    (reference,) = references(page, lambda name: False)
    assert reference.quote == ("if x:", "    y = 2", "", "z = 3") and not reference.surely


def test_indented_code_of_a_list_is_indented_further() -> None:
    page = read_page("1. The gate, `a.py:3`:\n\n       x = 1\n\n   More `b.py:4`.\n")
    first, second = references(page, lambda name: False)
    assert first.quote == ("x = 1",)
    assert (second.path, second.quote) == ("b.py", None)


def test_a_block_after_other_text_does_not() -> None:
    page = read_page("`a.py:3-4` decides. Try this:\n\n```python\nx = 1\n```\n")
    (reference,) = references(page, lambda name: False)
    assert reference.quote is None


def test_each_form_keeps_its_form() -> None:
    page = read_page("a.py:3 b.py:3-4 c.py#L3 d.py#L3-L4\n")
    texts = [
        r.write(r.path, 7, 9 if r.end > r.start else 7) for r in references(page, lambda n: False)
    ]
    assert texts == ["a.py:7", "b.py:7-9", "c.py#L7", "d.py#L7-L9"]
