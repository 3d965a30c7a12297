"""The lab's document of a recorded run: its figures, and that docs/json-lab.md names each field."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest

from overlapkit.lab.document import ideal, lab_json
from overlapkit.lab.link.kind import LinkUsed
from overlapkit.lab.measurements import Measured
from support import lab_run

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "json-lab.md").read_text(encoding="utf-8")
KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "list": (list,),
    "null": (type(None),),
    "any": (object,),
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return lab_run.document()


@pytest.fixture(scope="module")
def blocks(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (scenario,) = document["scenarios"]
    return {block["name"]: block for block in scenario["blocks"]}


def section(heading: str) -> dict[str, str]:
    """Key to type in the table below a heading of the page."""
    text = re.split(rf"^#+ {re.escape(heading)}\n", PAGE, flags=re.MULTILINE)[1]
    text = text.split("\n#", 1)[0]
    found = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, flags=re.MULTILINE))
    assert found, heading
    return found


def check(item: dict[str, Any], *headings: str) -> None:
    table = {key: told for heading in headings for key, told in section(heading).items()}
    assert list(item) == list(table), headings
    for key, told in table.items():
        kinds = [kind.split()[0] for kind in told.split(" or ")]
        fits = [
            isinstance(item[key], KINDS[kind])
            and (kind not in ("integer", "number") or not isinstance(item[key], bool))
            for kind in kinds
        ]
        assert any(fits), (key, told, item[key])


def test_the_page_names_every_field_with_its_type(document: dict[str, Any]) -> None:
    check(document, "`overlapkit/lab/v1`")
    check(document["machine"], "Machine")
    check(document["link"], "Link")
    seen = set()
    for scenario in document["scenarios"]:
        check(scenario, "Scenario")
        for claim in scenario["claims"]:
            check(claim, "Claim")
        for block in scenario["blocks"]:
            check(block, "Block")
            for variant in block["variants"]:
                if "error" in variant:
                    assert list(variant) == ["name", "error"]
                    seen.add("error")
                    continue
                headings = ("Variant", "A timed variant") if block["timed"] else ("Variant",)
                check(variant, *headings)
                seen.add(headings)
                for refused in variant["refused"]:
                    check(refused, "Refused")
                    seen.add("refused")
                if block["timed"]:
                    check(variant["profile"], "Profile")
    assert seen == {"error", "refused", ("Variant",), ("Variant", "A timed variant")}


def test_the_page_names_every_outcome_and_kind_of_link(document: dict[str, Any]) -> None:
    told = PAGE.split("### Claim", 1)[1].split("\n#", 1)[0]
    for claim in document["scenarios"][0]["claims"]:
        assert f"`{claim['outcome']}`" in told
    told = PAGE.split("### Link", 1)[1].split("\n#", 1)[0]
    for kind in ("kernel", "paced", "unshaped"):
        assert list(LinkUsed(kind, "tree").document()) == list(document["link"])
        assert f"`{kind}`" in told


def test_it_is_json_without_nan(document: dict[str, Any]) -> None:
    assert json.loads(msgspec.json.encode(document)) == document
    json.dumps(document, allow_nan=False)


def test_the_parts_of_a_profile_add_up(blocks: dict[str, dict[str, Any]]) -> None:
    for block in (blocks["dp"], blocks["pp"]):
        for profile in (v["profile"] for v in block["variants"] if "profile" in v):
            parts = profile["compute_ms"] + profile["exposed_ms"] + profile["other_ms"]
            assert parts == pytest.approx(profile["step_ms"], abs=0.03)
            both = profile["exposed_ms"] + profile["hidden_ms"]
            assert both == pytest.approx(profile["comm_ms"], abs=0.02)
            share = 100 * profile["hidden_ms"] / profile["comm_ms"]
            assert share == pytest.approx(profile["overlap_pct"], abs=0.1)
            assert len(profile["traces"]) == block["ranks"]
            assert all((lab_run.FOLDER / name).is_file() for name in profile["traces"])


def test_steps_are_the_slowest_ranks_and_the_median_is_theirs(
    blocks: dict[str, dict[str, Any]],
) -> None:
    ranks = [
        msgspec.json.decode((lab_run.FOLDER / f"block0.rank{rank}.json").read_bytes())
        for rank in range(2)
    ]
    for place, variant in enumerate(blocks["dp"]["variants"]):
        turns = [list(chain(*rank["variants"][place]["turns"])) for rank in ranks]
        slowest = [1e3 * max(pair) for pair in zip(*turns, strict=True)]
        assert variant["steps_ms"] == pytest.approx(slowest, abs=0.01)
        assert variant["step_ms"] == pytest.approx(statistics.median(slowest), abs=0.01)
        assert len(slowest) == blocks["dp"]["counted_steps"]
        inside = [s for s in slowest if abs(s - variant["step_ms"]) <= 4 * variant["spread_ms"]]
        assert len(inside) >= len(slowest) / 2


def test_ratios_are_to_the_first_variant_and_to_the_ideal(
    blocks: dict[str, dict[str, Any]],
) -> None:
    off, both = blocks["dp"]["variants"]
    assert off["ratio"] == 1.0
    assert both["ratio"] == pytest.approx(both["step_ms"] / off["step_ms"], abs=1e-3)
    alone = off["step_ms"] - off["profile"]["exposed_ms"]
    best = max(alone, off["profile"]["comm_ms"])
    assert blocks["dp"]["ideal_ms"] == pytest.approx(best, abs=0.02)
    assert both["of_ideal"] == pytest.approx(both["step_ms"] / best, abs=2e-3)


def test_what_was_only_trained_has_numbers_and_no_times(
    blocks: dict[str, dict[str, Any]],
) -> None:
    block = blocks["numbers"]
    trained, refused = block["variants"]
    assert (block["timed"], block["ideal_ms"], block["profiled_steps"]) == (False, None, 0)
    assert "step_ms" not in trained
    assert len(trained["losses"]) == 3
    assert len(set(trained["weights"])) == 2  # two stages hold different layers
    assert "batch_p2p_comm" in refused["error"]


def test_equal_weights_have_equal_hashes(blocks: dict[str, dict[str, Any]]) -> None:
    off, both = blocks["dp"]["variants"]
    assert off["weights"] == both["weights"]
    assert off["losses"] == both["losses"]
    assert off["effective"]["ddp.overlap_grad_reduce"] is False
    assert both["effective"]["ddp.overlap_grad_reduce"] is True
    assert both["buckets"] > off["buckets"] == [1]


def test_confirmed_means_that_no_claim_failed(document: dict[str, Any]) -> None:
    (told,) = lab_run.told()
    assert document["confirmed"] is False
    passed = [v for v in told.verdicts if v.outcome != "not confirmed"]
    told = type(told)(told.scenario, told.blocks, told.seen, passed)
    again = lab_json([told], document["link"], "cpu", 1.0)
    assert {v.outcome for v in passed} == {"confirmed", "not testable here"}
    assert again["confirmed"] is True


def test_nothing_is_ideal_without_a_profile() -> None:
    (told,) = lab_run.told()
    off = told.seen.variants("dp")["off"]
    assert ideal(Measured("off", off.ranks)) is None
    refused = told.seen.variants("pp")["<by hand> & refused"]
    assert ideal(refused) is None
    assert math.isnan(refused.step)


def test_a_profile_that_contradicts_the_clock_tells_no_ideal() -> None:
    (told,) = lab_run.told()
    off = told.seen.variants("dp")["off"]
    assert off.profile is not None
    assert ideal(off) is not None
    longer = replace(off.profile, comm=1.01 * off.step, step=2 * off.step)
    assert ideal(replace(off, profile=longer)) is None
