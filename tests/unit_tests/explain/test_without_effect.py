"""Keys of two runs that differ without effect are listed with the reason."""

from __future__ import annotations

import json
from typing import Any

CONFIG = "examples/llama3_70b_64xh100.yaml"


def listed(overlapkit: Any, *changes: str) -> dict[str, dict[str, Any]]:
    given = [f"b:{change}" for change in changes]
    done = overlapkit("explain", CONFIG, *given, "--world-size", "64", "--gpu", "h100", "--json")
    return {row["key"]: row for row in json.loads(done.out)["without_effect"]}


def test_a_value_that_mixed_precision_overwrites(overlapkit: Any) -> None:
    rows = listed(overlapkit, "ddp.grad_reduce_in_fp32=true")
    row = rows["ddp.grad_reduce_in_fp32"]
    assert (row["before"], row["after"]) == (False, True)
    assert "mixed_precision.grad_reduce_in_fp32=True was copied" in row["reason"]


def test_another_size_of_the_same_buckets(overlapkit: Any) -> None:
    rows = listed(overlapkit, "comm_overlap.bucket_size=134217000")
    assert rows["comm_overlap.bucket_size"]["reason"].startswith("the same ")
    rows = listed(overlapkit, "comm_overlap.bucket_size=1000000000")
    assert "comm_overlap.bucket_size" not in rows


def test_what_has_an_effect_is_not_listed(overlapkit: Any) -> None:
    assert not listed(overlapkit, "model.sequence_parallel=false")


def test_the_text_and_the_page_show_them(overlapkit: Any, tmp_path: Any) -> None:
    page = tmp_path / "d.html"
    done = overlapkit(
        "explain", CONFIG, "b:ddp.grad_reduce_in_fp32=true", "--world-size", "64",
        "--html", str(page),
    )  # fmt: skip
    lines = done.out.splitlines()
    at = lines.index("Changed without effect on the overlap:")
    assert lines[at + 1].startswith("  ddp.grad_reduce_in_fp32 off -> on: ")
    assert "Changed without effect" in page.read_text()
