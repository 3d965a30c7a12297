"""The lab's page of a recorded run: safe, complete, and true to the document."""

from __future__ import annotations

import copy
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from rich.console import Console

from overlapkit.lab.document import LabBlock, LabDocument, lab_document
from overlapkit.lab.page import Bar, bars, lab_page
from overlapkit.lab.scenario import JudgedScenario, Verdict
from overlapkit.lab.tables import show_lab
from overlapkit.lab.timelines import picture
from support import lab_run

VOID = {"meta", "rect", "path", "br"}


class Nesting(HTMLParser):
    """Whether tags close in order; the page's text; the paths in it."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def read(page: str) -> Nesting:
    parser = Nesting()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return lab_run.plain()


@pytest.fixture(scope="module")
def page() -> str:
    return lab_page(lab_run.document(), lab_run.judged())


def bars_of(block: dict[str, Any]) -> list[Bar]:
    return bars(msgspec.convert(block, LabBlock))


def test_it_loads_nothing_and_runs_nothing(page: str) -> None:
    assert "script" not in read(page).tags
    assert not re.search(r"""(?:src|href)\s*=|url\(|https?://|@import|\son\w+=""", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_names_and_sentences_are_escaped(page: str) -> None:
    text = " ".join(read(page).text)
    for name in ("<by hand> & refused", "a recorded run, <small> & real", "<b>It</b> is trained."):
        assert name in text
        assert name not in page


def test_hostile_names_of_a_users_configuration_stay_text(document: dict[str, Any]) -> None:
    hostile = '"><script>alert(1)</script>\x1b[31m\udc80{{ 7*7 }}'
    changed = copy.deepcopy(document)
    (scenario,) = changed["scenarios"]
    scenario["title"] = changed["link"]["reason"] = hostile
    changed["machine"]["device_name"] = changed["machine"]["versions"]["torch"] = hostile
    changed["machine"]["device"] = "cuda"
    for claim in scenario["claims"]:
        claim["claim"] = claim["evidence"] = hostile
    for block in scenario["blocks"]:
        for variant in block["variants"]:
            variant["error" if "error" in variant else "name"] = hostile
            for refused in variant.get("refused", []):
                refused["requested"] = refused["reason"] = refused["rule"] = hostile
    text = lab_page(msgspec.convert(changed, LabDocument), lab_run.judged())
    text.encode("utf-8")
    assert "script" not in read(text).tags
    assert "\x1b" not in text
    assert "7*7" in text


def test_it_shows_every_claim_outcome_and_figure(page: str, document: dict[str, Any]) -> None:
    text = " ".join(" ".join(read(page).text).split())
    (scenario,) = document["scenarios"]
    for claim in scenario["claims"]:
        assert f"{claim['outcome']} {claim['claim']} {claim['evidence']}" in text
    assert "1 claim confirmed" in text
    assert "1 claim not testable here" in text
    assert document["link"]["meaning"] in text
    for block in scenario["blocks"]:
        for variant in block["variants"]:
            assert variant["name"] in text
            if "error" in variant:
                assert f"refused: {variant['error']}" in text
            if "step_ms" in variant:
                assert f"{variant['step_ms']:.0f}" in text
    assert "core.bucket-ignored" in text


def test_a_bar_is_as_long_as_the_profiled_step_and_marks_clock_and_ideal(
    document: dict[str, Any],
) -> None:
    block = document["scenarios"][0]["blocks"][0]
    found = bars_of(block)
    profiles = [variant["profile"] for variant in block["variants"]]
    lengths = [sum(piece.width for piece in bar.pieces) for bar in found]
    ratio = profiles[1]["step_ms"] / profiles[0]["step_ms"]
    assert lengths[1] / lengths[0] == pytest.approx(ratio, rel=0.01)
    scale = lengths[0] / profiles[0]["step_ms"]
    for bar, variant in zip(found, block["variants"], strict=True):
        assert [piece.kind for piece in bar.pieces] == ["compute", "exposed", "idle"]
        exposed = bar.pieces[1].width / scale
        assert exposed == pytest.approx(variant["profile"]["exposed_ms"], rel=0.01)
        (clock, _), (low, high) = [(a, b) for kind, a, b in bar.marks if kind == "clock"]
        assert clock / scale == pytest.approx(variant["step_ms"], rel=0.01)
        assert (high - low) / scale == pytest.approx(2 * variant["spread_ms"], rel=0.05)
        ((ideal, _),) = [(a, b) for kind, a, b in bar.marks if kind == "ideal"]
        assert ideal / scale == pytest.approx(block["ideal_ms"], rel=0.01)
        assert all(0 <= a <= b <= 1000 for _, a, b in bar.marks)


def test_a_variant_without_a_profile_has_a_plain_bar(document: dict[str, Any]) -> None:
    block = copy.deepcopy(document["scenarios"][0]["blocks"][0])
    for variant in block["variants"]:
        del variant["profile"]
    block["ideal_ms"] = None
    found = bars_of(block)
    assert [[piece.kind for piece in bar.pieces] for bar in found] == [["ground"]] * 2
    assert {kind for bar in found for kind, *_ in bar.marks} == {"clock"}


def test_timelines_of_a_block_share_one_axis() -> None:
    (judged,) = lab_run.judged()
    variants = judged.observations.variants("dp")
    found = picture(variants)
    assert found is not None
    assert [strip.name for strip in found.strips] == ["off", "both"]
    lanes = [lane for s in found.strips for rank in (*s.shown, *s.folded) for lane in rank]
    assert found.width == max(lane.start + lane.length for lane in lanes)
    # The places of ticks are those of their milliseconds on that axis.
    for x, label in found.ticks:
        assert x / 1000 * found.width / 1e6 == pytest.approx(float(label), abs=0.1)
    for strip in found.strips:
        assert (len(strip.shown), len(strip.folded)) == (1, 1)
        for rank, report in zip(
            (*strip.shown, *strip.folded), variants[strip.name].reports, strict=True
        ):
            assert report.timeline is not None
            assert {lane.length for lane in rank} == {report.timeline.length}


def test_exposed_communication_lies_inside_communication_and_beside_no_compute() -> None:
    (judged,) = lab_run.judged()
    for block in ("dp", "pp"):
        found = picture(judged.observations.variants(block))
        assert found is not None
        for strip in found.strips:
            for compute, *comms in (*strip.shown, *strip.folded):
                assert compute.label.endswith("compute")
                busy = compute.layers[0][1]
                for lane in comms:
                    assert [kind for kind, _ in lane.layers] == ["comm", "exposed"]
                    (_, comm), (_, exposed) = lane.layers
                    for a, b in exposed:
                        assert any(c <= a and b <= d for c, d in comm)
                        # The recorded compute is merged where its gaps are below a pixel.
                        covered = sum(min(b, d) - max(a, c) for c, d in busy if c < b and a < d)
                        assert covered <= (b - a) * 0.2 + compute.length / 400


def test_stages_of_a_pipeline_are_drawn_by_one_clock() -> None:
    (judged,) = lab_run.judged()
    variants = judged.observations.variants("pp")
    found = picture(variants)
    assert found is not None
    assert found.one_clock
    (strip,) = found.strips
    assert (len(strip.shown), strip.folded) == (2, [])
    starts = [r.timeline.start for r in variants["vpp2"].reports if r.timeline]
    apart = strip.shown[1][0].start - strip.shown[0][0].start
    assert apart == starts[1] - starts[0] != 0
    assert min(rank[0].start for rank in strip.shown) == 0


def test_ranks_whose_clocks_differ_begin_together() -> None:
    (judged,) = lab_run.judged()
    variant = judged.observations.variants("pp")["vpp2"]
    first, second = variant.reports
    assert second.timeline is not None
    hour = 3_600_000_000_000
    late = replace(second, timeline=replace(second.timeline, start=second.timeline.start + hour))
    found = picture({"vpp2": replace(variant, reports=[first, late])})
    assert found is not None
    assert found.one_clock is False
    assert {lane.start for rank in found.strips[0].shown for lane in rank} == {0}
    assert found.width < hour


def _without_profiles(judged: JudgedScenario) -> JudgedScenario:
    blocks = {
        name: replace(
            block,
            rate_mbit=None,
            variants={
                v.name: replace(v, profile=None, reports=[]) for v in block.variants.values()
            },
        )
        for name, block in judged.observations.blocks.items()
    }
    return replace(
        judged,
        observations=replace(judged.observations, blocks=blocks),
        verdicts=[Verdict("C.", "not testable here", "no profile")],
    )


def test_without_profiles_there_are_still_steps() -> None:
    judged = [_without_profiles(one) for one in lab_run.judged()]
    document = lab_document(judged, link=lab_run.link(), device="cpu", seconds=1.0)
    text = " ".join(read(lab_page(document, judged)).text)
    assert "not profiled" in text
    assert "One step of each variant" not in text
    assert "1 claim" not in text.replace("claim not testable here", "")


def test_a_variant_that_was_the_first_may_be_refused() -> None:
    (judged,) = lab_run.judged()
    blocks = judged.observations.blocks
    turned = replace(blocks["pp"], variants=dict(reversed(blocks["pp"].variants.items())))
    observations = replace(judged.observations, blocks={**blocks, "pp": turned})
    judged = replace(judged, observations=observations)
    document = lab_document([judged], link=lab_run.link(), device="cpu", seconds=1.0)
    timed = document.scenarios[0].blocks[1].variants[1]
    assert (timed.name, timed.ratio, timed.of_ideal) == ("vpp2", None, None)
    assert "vpp2" in lab_page(document, [judged])
    show_lab(document, Console(file=io.StringIO(), width=100))
