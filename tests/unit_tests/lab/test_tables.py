"""The lab's tables on terminals of several widths, without colours, and in a pipe."""

from __future__ import annotations

import io
import re
from typing import Any

import msgspec
import pytest
from rich.console import Console

from overlapkit.lab.document import LabDocument
from overlapkit.lab.tables import ASCII, BLOCKS, show_lab
from support import lab_run

WIDTHS = (60, 80, 100, 120, 200)


class Stream(io.StringIO):
    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def shown(
    document: dict[str, Any], width: int = 100, *, encoding: str = "utf-8", **options: Any
) -> str:
    stream = Stream(encoding)
    options = {"highlight": False, "markup": False, "emoji": False} | options
    found = msgspec.convert(document, LabDocument)
    show_lab(found, Console(file=stream, width=width, **options))
    return stream.getvalue()


@pytest.fixture
def document() -> dict[str, Any]:
    return lab_run.plain()


def _row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal(document: dict[str, Any], width: int) -> None:
    for line in shown(document, width).splitlines():
        assert len(line) <= width


@pytest.mark.parametrize("width", (80, 100, 120))
def test_no_name_and_no_figure_is_cut(document: dict[str, Any], width: int) -> None:
    name = "grad-reduce+param-gather"
    document["scenarios"][0]["blocks"][0]["variants"][1]["name"] = name
    text = shown(document, width)
    assert _row(text, name)
    table = text.split("small", 1)[1].split("confirmed", 1)[0]
    assert "…" not in table
    variant = document["scenarios"][0]["blocks"][0]["variants"][1]
    assert f"{variant['ratio']:.2f} x" in _row(text, name)
    assert f"{variant['profile']['overlap_pct']:.0f} %" in _row(text, name)


def test_narrow_terminals_lose_the_least_important_columns_first(
    document: dict[str, Any],
) -> None:
    for width, there, gone in (
        (120, ("peak MB", "hidden", "buckets", "exposed"), ()),
        (66, ("step", "ratio", "exposed", "overlap"), ("peak MB", "hidden")),
    ):
        head = _row(shown(document, width), "ms a step")
        assert all(name in head for name in there), head
        assert not any(name in head for name in gone), head


def test_bars_are_split_as_the_profile_and_as_long_as_the_step(document: dict[str, Any]) -> None:
    block = document["scenarios"][0]["blocks"][0]
    off, both = block["variants"]
    off |= {"step_ms": 400.0, "ratio": 1.0}
    off["profile"] |= {"step_ms": 800.0, "compute_ms": 400.0, "exposed_ms": 300.0}
    both |= {"step_ms": 200.0, "ratio": 0.5}
    both["profile"] |= {"step_ms": 200.0, "compute_ms": 200.0, "exposed_ms": 0.0}
    block["ideal_ms"] = 100.0
    text = shown(document, 200)
    counted = _row(text, "off")
    compute, exposed, other = (counted.count(c) for c in (BLOCKS.compute, BLOCKS.exposed, "·"))
    total = compute + exposed + other
    assert (compute / total, exposed / total, other / total) == (0.5, 0.375, 0.125)
    counted = _row(text, "both")
    assert counted.count(BLOCKS.compute) == total / 2
    assert BLOCKS.exposed not in counted
    ideal = _row(text, "ideal")
    assert ideal.count(BLOCKS.line) + ideal.count(BLOCKS.end) == total / 4
    assert "0.25 x" in ideal


def test_an_encoding_without_blocks_gets_plain_signs(document: dict[str, Any]) -> None:
    text = shown(document, encoding="ascii")
    assert text.isascii()
    assert ASCII.compute * 3 in _row(text, "off")


def test_columns_that_are_the_same_for_all_variants_are_omitted(document: dict[str, Any]) -> None:
    block = document["scenarios"][0]["blocks"][0]
    off, both = block["variants"]
    assert "buckets" in _row(shown(document, 200), "ms a step")
    assert "MB sent" not in _row(shown(document, 200), "ms a step")
    both["buckets"], both["wire_mb"] = off["buckets"], 2 * off["wire_mb"]
    head = _row(shown(document, 200), "ms a step")
    assert "buckets" not in head
    assert "MB sent" in head
    off["wire_mb"] = None
    assert "MB sent" not in _row(shown(document, 200), "ms a step")


def test_colours_are_only_on_terminals_that_want_them(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b[" not in shown(document)
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = shown(document, force_terminal=True, color_system="standard")
    assert "\x1b[32mconfirmed" in coloured
    assert "\x1b[1;31mnot confirmed" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(document, force_terminal=True)
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", plain)


def test_in_a_pipe_no_sentence_is_broken(document: dict[str, Any]) -> None:
    lines = shown(document, 120, soft_wrap=True).splitlines()
    for claim in document["scenarios"][0]["claims"]:
        (place,) = [n for n, line in enumerate(lines) if line.endswith(claim["claim"])]
        assert lines[place].startswith(f"{claim['outcome']}  ")
        assert lines[place + 1].strip() == claim["evidence"]
    assert any(document["link"]["meaning"] in line for line in lines)


def test_on_a_terminal_sentences_wrap_below_themselves(document: dict[str, Any]) -> None:
    text = shown(document, 80)
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("not confirmed"))
    indent = lines[start].index("<b>It</b>")
    assert lines[start + 1].startswith(" " * indent + "OverlapConfigError")
    assert lines[start + 2].startswith(" " * indent) and lines[start + 2].strip()


def test_the_last_line_counts_the_claims(document: dict[str, Any]) -> None:
    last = shown(document).splitlines()[-1]
    assert last == "3 claims: 1 confirmed, 1 not confirmed, 1 not testable here (12 s)"
    claims = document["scenarios"][0]["claims"]
    for claim in claims:
        claim["outcome"] = "confirmed"
    document["confirmed"] = True
    assert shown(document).splitlines()[-1] == "all 3 claims confirmed (12 s)"


def test_a_refused_variant_is_shown_in_one_line(document: dict[str, Any]) -> None:
    text = shown(document, 100)
    (line,) = [one for one in text.splitlines() if one.startswith("<by hand> & refused")]
    assert "refused: OverlapConfigError" in line


def test_many_variants_without_times_are_counted(document: dict[str, Any]) -> None:
    block = document["scenarios"][0]["blocks"][2]
    trained, refused = block["variants"]
    block["variants"] = [{**trained, "name": f"t{n}"} for n in range(40)]
    block["variants"] += [{**refused, "name": f"r{n}"} for n in range(13)]
    lines = shown(document).splitlines()
    assert "40 variants trained" in lines
    assert "13 variants refused" in lines
    assert not any(line.startswith(("t1 ", "r1 ")) for line in lines)


def test_a_loss_that_is_not_finite_is_said_to_be_so(document: dict[str, Any]) -> None:
    trained = document["scenarios"][0]["blocks"][2]["variants"][0]
    assert f"{trained['losses'][-1]:.6f}" in shown(document)
    trained["losses"][-1] = None
    assert "not finite" in _row(shown(document), "vpp1")


def test_markup_in_names_is_text(document: dict[str, Any]) -> None:
    document["scenarios"][0]["title"] = "[red]x[/red] :smile:"
    assert "[red]x[/red] :smile:" in shown(document)
