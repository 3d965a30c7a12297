"""The lab's document of a recorded run: its keys and figures, and what is said of a damaged one."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from overlapkit.errors import InputError
from overlapkit.lab.document import (
    RESULTS_FILE,
    LabDocument,
    LabLink,
    lab_document,
    lab_link,
    read_results,
)
from overlapkit.lab.link.kind import LinkKind, LinkUsed
from overlapkit.lab.measurements import MeasuredVariant
from overlapkit.lab.variant_document import ideal
from overlapkit.output.schema import json_schema
from support import lab_run


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return lab_run.plain()


@pytest.fixture(scope="module")
def blocks(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (scenario,) = document["scenarios"]
    return {block["name"]: block for block in scenario["blocks"]}


def test_it_follows_its_schema_and_is_read_as_it_was_written(document: dict[str, Any]) -> None:
    Draft202012Validator(json_schema("lab")).validate(document)
    json.dumps(document, allow_nan=False)
    written = msgspec.json.encode(lab_run.document())
    assert msgspec.json.encode(msgspec.json.decode(written, type=LabDocument)) == written


def test_variants_have_the_keys_of_what_was_done_with_them(
    blocks: dict[str, dict[str, Any]],
) -> None:
    trained = (
        *("name", "layout", "effective", "refused", "buckets", "parameters", "peak_mb"),
        *("wire_mb", "losses", "weights"),
    )
    timed = (*trained, "step_ms", "spread_ms", "disturbed_turns", "ratio", "of_ideal", "steps_ms")
    timed = (*timed, "profile")
    keys = {
        (block["name"], variant["name"]): tuple(variant)
        for block in blocks.values()
        for variant in block["variants"]
    }
    assert keys == {
        ("dp", "off"): timed,
        ("dp", "both"): timed,
        ("pp", "vpp2"): timed,
        ("pp", "<by hand> & refused"): ("name", "error"),
        ("numbers", "vpp1"): trained,
        ("numbers", "refused"): ("name", "error"),
    }


@pytest.mark.parametrize("kind", ["kernel", "paced", "unshaped"])
def test_every_link_of_the_launcher_has_a_place_in_the_document(kind: LinkKind) -> None:
    link = lab_link(LinkUsed(kind, "tree"))
    assert link.kind == kind
    assert msgspec.convert(msgspec.to_builtins(link), LabLink) == link


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


def test_what_was_only_trained_has_results_and_no_times(
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
    (judged,) = lab_run.judged()
    assert document["confirmed"] is False
    passed = [v for v in judged.verdicts if v.outcome != "not confirmed"]
    assert {v.outcome for v in passed} == {"confirmed", "not testable here"}
    again = lab_document(
        [replace(judged, verdicts=passed)], link=lab_run.link(), device="cpu", seconds=1.0
    )
    assert again.confirmed is True


def test_nothing_is_ideal_without_a_profile() -> None:
    (judged,) = lab_run.judged()
    off = judged.observations.variants("dp")["off"]
    assert ideal(MeasuredVariant("off", off.ranks)) is None
    refused = judged.observations.variants("pp")["<by hand> & refused"]
    assert ideal(refused) is None
    assert math.isnan(refused.step)


def test_a_profile_that_contradicts_the_clock_gives_no_ideal() -> None:
    (judged,) = lab_run.judged()
    off = judged.observations.variants("dp")["off"]
    assert off.profile is not None
    assert ideal(off) is not None
    longer = replace(off.profile, comm=1.01 * off.step, step=2 * off.step)
    assert ideal(replace(off, profile=longer)) is None


def test_kept_results_are_read_back(tmp_path: Path) -> None:
    (tmp_path / RESULTS_FILE).write_bytes(msgspec.json.encode(lab_run.document()))
    assert read_results(tmp_path) == lab_run.document()


VARIANT = ("scenarios", 0, "blocks", 0, "variants", 0)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("schema",), "overlapkit/lab/v9", "$.schema"),
        (("machine", "cores"), "two", "$.machine.cores"),
        (("scenarios", 0, "claims", 0, "outcome"), "perhaps", "$.scenarios[0].claims[0].outcome"),
        ((*VARIANT, "losses"), None, "$.scenarios[0].blocks[0].variants[0].losses"),
        ((*VARIANT, "error"), "refused", "variant off: has `error` and results"),
        ((*VARIANT, "profile", "step_ms"), "long", "variants[0].profile.step_ms"),
    ],
)
def test_a_damaged_value_is_named_with_its_place(
    tmp_path: Path, document: dict[str, Any], place: tuple[str | int, ...], value: Any, said: str
) -> None:
    damaged = json.loads(json.dumps(document))
    inner = damaged
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert said in damaged_line(tmp_path, json.dumps(damaged).encode())


@pytest.mark.parametrize("key", ["layout", "weights", "step_ms", "steps_ms"])
def test_a_key_that_is_missing_among_others_is_damage(
    tmp_path: Path, document: dict[str, Any], key: str
) -> None:
    damaged = json.loads(json.dumps(document))
    del damaged["scenarios"][0]["blocks"][0]["variants"][1][key]
    assert "variant both" in damaged_line(tmp_path, json.dumps(damaged).encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b"null", b'{"schema":"overlapkit/lab/v1"}', b"[" * 100_000],
    ids=["empty", "cut", "list", "not UTF-8", "null", "keys missing", "deep"],
)
def test_a_file_that_is_not_the_document_is_one_line(tmp_path: Path, content: bytes) -> None:
    damaged_line(tmp_path, content)


def damaged_line(folder: Path, content: bytes) -> str:
    """What is said of a results file with this content: one line with its path and a remedy."""
    (folder / RESULTS_FILE).write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_results(folder)
    line = str(raised.value)
    assert line.startswith(f"{folder / RESULTS_FILE}: damaged: ")
    assert line.endswith("; run the lab again")
    assert "\n" not in line
    return line


def test_a_folder_without_results_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=RESULTS_FILE):
        read_results(tmp_path)
