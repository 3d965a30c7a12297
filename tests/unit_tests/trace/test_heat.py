"""Many ranks are shown as heat, and any of them in detail."""

from __future__ import annotations

import re

import pytest

from support.trace_generator import SCENARIOS, write_kineto

LATE = 7


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    scenario = SCENARIOS["late rank"].but(
        noise=0, steps=2, tp=2, dp=10, ranks=20, late_rank=LATE, layers=2
    )
    write_kineto(scenario, folder)
    return folder


def test_the_heat_map_has_each_rank_by_its_exposed_time(overlapkit, many):
    document = overlapkit("trace", many, "--json").document
    exposed = {r["rank"]: r["median"]["exposed_comm_us"] for r in document["ranks"]}
    out = overlapkit("trace", many).out
    (row,) = re.findall(r"^all: .*\n +0 ([\d ]+)$", out, re.MULTILINE)
    levels = [int(digit) for digit in row.replace(" ", "")]
    assert levels == [round(9 * us / max(exposed.values())) for us in exposed.values()]
    assert levels.index(min(levels)) == LATE
    assert f"(rank {LATE}) to" in out


def test_of_many_ranks_the_extremes_have_a_row(overlapkit, many):
    out = overlapkit("trace", many, "--rank", "3").out
    rows = re.findall(r"^rank (\d+), median", out, re.MULTILINE)
    assert len(rows) < 20 and "3" in rows
    assert f"{20 - len(rows)} more, between these" in out


def test_any_rank_is_described_in_detail(overlapkit, many, tmp_path):
    page = tmp_path / "page.html"
    out = overlapkit("trace", many, "--rank", "3", "--html", page).out
    assert "Communication by dimension, rank 3 (ms)" in out
    text = page.read_text()
    assert "details of rank 3" in text and "rank 3, the slowest" not in text
    assert text.count('title="rank 19: ') >= 1
    result = overlapkit("trace", many, "--rank", "20")
    assert result.status == 2 and "they are of ranks 0 to 19" in result.err


def test_few_ranks_have_no_heat_map(overlapkit, tmp_path):
    write_kineto(SCENARIOS["late rank"].but(noise=0, steps=2), tmp_path)
    assert "by rank" not in overlapkit("trace", tmp_path).out
