"""Numbers as text: the digits that matter, whatever the unit they come in."""

from __future__ import annotations

import pytest

from overlapkit.output.numbers import (
    binary_bytes,
    ms_of_ms,
    ms_of_s,
    ms_of_us,
    percent,
    setting_text,
    thousands,
    us_of_ns,
)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0.0, "0.000"),
        (335.0, "0.335"),
        (9_999.0, "9.999"),
        (26_380.0, "26.38"),
        (121_500.0, "121.5"),
        (1_234_560.0, "1,234.6"),
        (-6_122.0, "-6.122"),
        (None, "-"),
    ],
)
def test_microseconds(us: float | None, text: str) -> None:
    assert ms_of_us(us) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0699, "69.9"), (0.14, "140"), (2.959, "2,959"), (0.00012, "0.12")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert ms_of_s(seconds) == text


@pytest.mark.parametrize(("ms", "text"), [(5.31, "5.3"), (61.2, "61"), (1174.4, "1,174")])
def test_milliseconds(ms: float, text: str) -> None:
    assert ms_of_ms(ms) == text


def test_an_unknown_figure_is_a_dash() -> None:
    unknown = [f(None) for f in (ms_of_us, ms_of_s, ms_of_ms, percent, binary_bytes, thousands)]
    assert unknown == ["-"] * 6


def test_a_figure_that_is_not_finite_is_shown_as_such() -> None:
    assert [ms_of_s(float(text)) for text in ("inf", "-inf", "nan")] == ["inf", "-inf", "nan"]


def test_bytes_percentages_and_thousands() -> None:
    assert binary_bytes(1023) == "1023 B"
    assert binary_bytes(3 << 29) == "1.5 GiB"
    assert binary_bytes(5 << 40) == "5.0 TiB"
    assert percent(41.96) == "42.0 %"
    assert thousands(1234567) == "1,234,567"
    assert us_of_ns(1234.5678) == 1.235


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "on"), (False, "off"), (None, "none"), (40_000_000, "40,000,000"), ([1], "given")],
)
def test_a_setting(value: object, text: str) -> None:
    assert setting_text(value) == text
