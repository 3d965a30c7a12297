"""Names that were probably meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.bridge.training.near_names import (
    did_you_mean,
    edits,
    near_names,
    nearest,
    typo_of,
)

KNOWN = ("overlap_grad_reduce", "overlap_param_gather", "bucket_size", "bucket")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("overlap_grad_reduction", "overlap_grad_reduce"),
        ("bucket_siz", "bucket_size"),
        ("buck", "bucket"),
        ("overlap_p", "overlap_param_gather"),
        ("zzz", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_a_typing_error_or_a_beginning(name: str, meant: str | None) -> None:
    assert nearest(name, KNOWN) == meant


def test_a_beginning_counts_from_a_length_on() -> None:
    assert nearest("over", KNOWN, cutoff=0.9) == "overlap_grad_reduce"
    assert nearest("over", KNOWN, cutoff=0.9, shortest_prefix=5) is None


def test_as_many_near_names_as_there_are() -> None:
    assert near_names("overlap_gather", KNOWN, most=3)[0] == "overlap_param_gather"
    assert len(near_names("overlap_gather", KNOWN, most=1)) == 1


def test_the_hint_is_empty_where_nothing_is_near() -> None:
    assert did_you_mean("bucket_siz", KNOWN) == " (did you mean 'bucket_size'?)"
    assert did_you_mean("zzz", KNOWN) == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("--overlap-grad-reduec", "--overlap-grad-reduce"),
        ("--overlap-grad-redcue", "--overlap-grad-reduce"),
        ("--overlp-grad-reduc", "--overlap-grad-reduce"),
        ("--overlap-grad-reduction", None),
        ("--overlap-param-reduce", None),
        ("--bg16", "--bf16"),
        ("--bf18", None),
        ("--bg18", None),
        ("-b16", None),
    ],
)
def test_a_typing_error_is_one_or_two_letters(name: str, meant: str | None) -> None:
    assert typo_of(name, ["--overlap-grad-reduce", "--bf16"]) == meant


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_edits_are_counted_alike_in_both_directions(a: str, b: str) -> None:
    assert edits(a, b, 7) == edits(b, a, 7)
    assert (edits(a, b, 7) == 0) == (a == b)
    few = edits(a, b, 2)
    assert few is None or few == edits(a, b, 7)
    assert edits(a, a[:2] + "d" + a[2:], 1) == 1
