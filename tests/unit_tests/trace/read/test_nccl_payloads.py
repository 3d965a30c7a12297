"""Communicator and message size, from the payloads of NCCL's NVTX ranges."""

from __future__ import annotations

import pytest

from overlapkit.trace.read.nccl_payloads import NcclRange, Payloads, calls_of
from overlapkit.trace.read.recorded import Call
from support.field import nsight, nsight_programs
from support.field.nsight_programs import DP, PP, TP
from support.trace_answers import trace_of

ID, SIZE, RANKS = "NCCL communicator ID", "Message size [bytes]", "No. of ranks"


def layouts() -> Payloads:
    found = Payloads()
    for kind, name, offset in ((18, ID, None), (22, SIZE, 8), (4242, "Reduction operation", 16)):
        found.add(7, 102, kind, name, offset)
    return found


def test_a_payload_is_read_by_its_layout():
    body = (5).to_bytes(8, "little") + (1 << 20).to_bytes(8, "little") + bytes(8)
    assert layouts().read(nsight.payload(102, body)) == {ID: 5, SIZE: 1 << 20}


@pytest.mark.parametrize(
    "data",
    [None, b"", "text", nsight.payload(999, bytes(24)), nsight.payload(102, b"")[:20]],
    ids=["none", "empty", "text", "unknown schema", "short"],
)
def test_what_has_no_known_layout_says_nothing(data):
    assert layouts().read(data) == {}


def test_a_field_beyond_the_end_is_left_out():
    assert layouts().read(nsight.payload(102, (5).to_bytes(8, "little"))) == {ID: 5}


def rows(*given: tuple[str, dict[str, int]]) -> list[NcclRange]:
    return [NcclRange(name, 1, start, payload) for start, (name, payload) in enumerate(given)]


def test_sizes_are_known_from_the_initialization():
    init = ("ncclCommInitRankConfig", {ID: 255, RANKS: 8})
    _, reduce, gather = calls_of(
        rows(init, ("ncclAllReduce", {ID: 255, SIZE: 100}), ("ncclAllGather", {ID: 255, SIZE: 100}))
    )
    assert reduce == Call(elements_in=100, dtype="byte", group_size=8, group="communicator ff")
    # A gather's message is what each rank contributes.
    assert gather is not None and gather.elements_in == 800


def test_without_it_a_gathers_size_is_unknown():
    (gather,) = calls_of(rows(("ncclAllGather", {ID: 1, SIZE: 100})))
    assert gather == Call(group="communicator 1")


def test_a_group_says_what_its_calls_have_in_common():
    inside = [("ncclSend", {ID: 1, SIZE: 10}), ("ncclRecv", {ID: 1, SIZE: 30})]
    start, end = ("ncclGroupStart", {}), ("ncclGroupEnd", {})
    assert calls_of(rows(start, *inside, end))[-1] == Call(group="communicator 1")
    assert calls_of(rows(start, inside[0], end))[-1] == Call(
        elements_in=10, dtype="byte", group="communicator 1"
    )
    other = ("ncclSend", {ID: 2, SIZE: 10})
    assert calls_of(rows(start, inside[0], other, end))[-1] is None
    assert calls_of(rows(start, end))[-1] is None


def test_groups_can_be_named_by_their_size(tmp_path):
    path = nsight.write(nsight_programs.megatron(), tmp_path / "t.sqlite", (TP, DP, PP))
    answer = trace_of(path, group=["size:8=TP", "size:4=DP"])
    (rank,) = answer.document["ranks"]
    assert rank["dimension_confidence"] == {"TP": "certain", "DP": "certain", "PP": "likely"}
    assert answer.document["doubts"] == []
    found = {(c["dimension"], c["operation"]): c for c in rank["exposed_collectives"]}
    # 16 MiB of each of 4 ranks in 500 us: 64 MiB, of which three quarters cross the link.
    assert found["DP", "reduce_scatter"]["bus_gb_per_s"] == pytest.approx(
        (64 << 20) * 0.75 / 500e3, rel=0.01
    )


def test_without_payloads_the_same_export_is_read(tmp_path):
    path = nsight.write(nsight_programs.megatron(), tmp_path / "t.sqlite", ())
    (rank,) = trace_of(path).document["ranks"]
    assert rank["dimension_confidence"] == {"PP": "likely", "other": "unknown"}
