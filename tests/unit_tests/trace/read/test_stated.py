"""What a user says of kernels and process groups, in `--comm` and `--group`."""

from __future__ import annotations

import pytest

import overlapkit
from overlapkit.errors import InputError
from overlapkit.trace.read.stated import read_stated
from support import tiny_trace as tiny

OWN = "void acme::dispatch_tokens<8>(int*)"


def rank(tmp_path, events, **options):
    path = tiny.write(tmp_path / "t.json", events)
    document = overlapkit.trace(path, **options)
    return document, document.ranks[0]


def collectives(of):
    return {(c.operation, c.dimension, c.confidence) for c in of.exposed_collectives}


def test_an_unknown_kernel_is_listed_with_the_option_that_counts_it(tmp_path):
    document, found = rank(tmp_path, [tiny.kernel(tiny.GEMM, 0, 500), tiny.kernel(OWN, 600, 100)])
    assert [(u.name, u.reason, u.count, u.busy_us) for u in found.unrecognized_kernels] == [
        ("acme::dispatch_tokens", "name", 1, 100.0)
    ]
    assert found.whole.comm_us == 0
    assert any("acme::dispatch_tokens" in w and "--comm" in w for w in document.warnings)


def test_a_fused_kernel_is_listed_as_such(tmp_path):
    document, found = rank(tmp_path, [tiny.kernel("kernel_ag_gemm_persistent", 0, 500)])
    assert [(u.reason, u.busy_us) for u in found.unrecognized_kernels] == [("fused", 500.0)]
    assert any("compute and communicate at once" in w for w in document.warnings)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("acme::", ("dispatch", "other", "unknown")),
        ("acme::=all_to_all", ("all_to_all", "other", "unknown")),
        ("acme::=ALL_TO_ALL:ep", ("all_to_all", "EP", "certain")),
        (r"(?<=acme::)dispatch", ("dispatch", "other", "unknown")),
    ],
)
def test_kernels_that_match_count_as_communication(tmp_path, option, expected):
    events = [tiny.kernel(tiny.GEMM, 0, 500), tiny.kernel(OWN, 600, 100)]
    document, found = rank(tmp_path, events, comm=[option])
    assert collectives(found) == {expected}
    assert found.whole.comm_us == 100.0
    assert found.unrecognized_kernels == []
    assert document.stated == [f"--comm {option}"]
    assert any("as stated" in w for w in document.warnings)


GATHER = {"Process Group Name": "7", "Process Group Description": "weights", "Group size": 8}


@pytest.mark.parametrize("name", ["7", "weights", "WEIGHTS", "size:8"])
def test_a_group_is_told_by_name_description_or_size(tmp_path, name):
    events = [tiny.kernel(tiny.ALL_GATHER, 0, 100, 20, **GATHER)]
    document, found = rank(tmp_path, events, group={name: "dp"})
    assert collectives(found) == {("all_gather", "DP", "certain")}
    assert document.stated == [f"--group {name}=dp"]


def test_what_is_stated_wins_over_a_description(tmp_path):
    described = {**GATHER, "Process Group Description": "mesh_tp"}
    events = [tiny.kernel(tiny.ALL_GATHER, 0, 100, 20, **described)]
    _, found = rank(tmp_path, events, group={"mesh_tp": "CP"})
    assert collectives(found) == {("all_gather", "CP", "certain")}


def test_options_that_match_nothing_are_said(tmp_path):
    events = [tiny.kernel(tiny.ALL_GATHER, 0, 100, 20, **GATHER)]
    document, found = rank(tmp_path, events, comm=["acme"], group={"8": "TP"})
    assert collectives(found) == {("all_gather", "other", "unknown")}
    assert "--comm acme: matches no kernel" in document.warnings
    assert any(w.startswith("--group 8=TP: no ") and "size:8=TP" in w for w in document.warnings)


@pytest.mark.parametrize(
    ("comm", "group", "place"),
    [
        (["a("], [], "--comm a("),
        ([""], [], "--comm"),
        (["a=allreduc"], [], "allreduc"),
        (["a=all_reduce:XP"], [], "XP"),
        ([], ["tp"], "--group tp"),
        ([], ["=TP"], "--group =TP"),
        ([], ["7=data"], "data"),
    ],
)
def test_what_is_not_of_the_form_is_refused_with_its_place(comm, group, place):
    with pytest.raises(InputError) as refused:
        read_stated(comm, group)
    assert place in str(refused.value)
    assert "\n" not in str(refused.value)
