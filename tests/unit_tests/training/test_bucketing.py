"""How parameters are cut into gradient buckets; real ones are compared in functional_tests."""

from __future__ import annotations

from itertools import chain
from math import lcm
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.bridge.models.parameter_count import (
    ParameterTensor,
    UncountableModel,
    chunk_parameters,
)
from megatron.bridge.training.bucketing import (
    Bucket,
    bucketing,
    count_buckets,
    cut_buckets,
    default_bucket_size,
)

TENSOR = st.builds(
    ParameterTensor,
    name=st.just("weight"),
    numel=st.integers(1, 5000),
    expert=st.booleans(),
    shared_embedding=st.booleans(),
    fp8=st.booleans(),
)
TENSORS = st.lists(TENSOR, max_size=40)
RANKS = st.integers(1, 48)


def plain(*numels: int) -> list[ParameterTensor]:
    return [ParameterTensor(f"p{n}", numel) for n, numel in enumerate(numels)]


@given(TENSORS, st.none() | st.integers(1, 20_000), RANKS, RANKS, st.booleans(), st.booleans())
def test_every_parameter_is_in_exactly_one_bucket_of_its_kind(
    tensors: list[ParameterTensor],
    bucket_size: int | None,
    ranks: int,
    expert_ranks: int,
    sharded: bool,
    busbw: bool,
) -> None:
    buckets = cut_buckets(
        tensors,
        bucket_size,
        data_parallel_size=ranks,
        expert_data_parallel_size=expert_ranks,
        use_distributed_optimizer=sharded,
        pad_for_busbw=busbw,
    )
    held = list(chain.from_iterable(bucket.tensors for bucket in buckets))
    assert sorted(held) == list(range(len(tensors)))
    for bucket in buckets:
        members = [tensors[position] for position in bucket.tensors]
        assert {(t.expert, t.fp8) for t in members} == {(bucket.expert, bucket.fp8)}
        assert list(bucket.tensors) == sorted(bucket.tensors, reverse=True)
        assert bucket.parameters == sum(t.numel for t in members)
        assert bucket.size >= bucket.parameters
        assert len(members) == 1 or not (sharded and any(t.shared_embedding for t in members))
        if sharded:
            assert bucket.size % lcm(expert_ranks if bucket.expert else ranks, 128) == 0
            assert not busbw or bucket.size % 2**16 == 0
        else:
            assert bucket.size == bucket.parameters


@given(TENSORS, st.integers(1, 20_000), st.booleans())
def test_buckets_are_ordered_by_their_last_gradient(
    tensors: list[ParameterTensor], bucket_size: int, sharded: bool
) -> None:
    buckets = cut_buckets(
        tensors, bucket_size, data_parallel_size=2, use_distributed_optimizer=sharded
    )
    ready = [min(bucket.tensors) for bucket in buckets]
    assert ready == sorted(ready, reverse=True)


@given(TENSORS, st.lists(st.integers(1, 30_000), min_size=2), RANKS, st.booleans())
def test_larger_buckets_are_never_more(
    tensors: list[ParameterTensor], bucket_sizes: list[int], ranks: int, sharded: bool
) -> None:
    counts = [
        len(
            count_buckets(
                tensors, size, data_parallel_size=ranks, use_distributed_optimizer=sharded
            )
        )
        for size in [*sorted(bucket_sizes), None]
    ]
    assert counts == sorted(counts, reverse=True)


@given(st.lists(st.integers(1, 5000), max_size=60), st.integers(1, 30_000))
def test_without_sharding_the_buckets_sum_up_to_the_parameters(
    numels: list[int], bucket_size: int
) -> None:
    reduced = {"use_distributed_optimizer": False}
    assert sum(sizes(*numels, bucket_size=bucket_size, **reduced)) == sum(numels)
    assert sizes(*numels, bucket_size=None, **reduced) == ([sum(numels)] if numels else [])


def sizes(*numels: int, bucket_size: int | None, ranks: int = 1, **options: Any) -> list[int]:
    return count_buckets(
        plain(*numels),
        bucket_size,
        data_parallel_size=ranks,
        **({"use_distributed_optimizer": True} | options),
    )


def test_a_bucket_is_closed_by_the_tensor_that_fills_it() -> None:
    reduced = {"use_distributed_optimizer": False}
    assert sizes(7, 100, 40, 60, bucket_size=100, **reduced) == [100, 100, 7]
    assert sizes(7, 100, 40, 60, bucket_size=101, **reduced) == [200, 7]


def test_alignment_inside_a_bucket_counts_towards_its_size() -> None:
    """Tensors of 1 element start 64 apart, so that the third one reaches element 129."""
    assert sizes(1, 1, 1, 1, bucket_size=129) == [256, 128]
    assert sizes(1, 1, 1, 1, bucket_size=130) == [256]


def test_a_bucket_can_be_divided_over_its_ranks() -> None:
    assert sizes(1, bucket_size=None, ranks=3) == [384]
    assert sizes(1, bucket_size=None, ranks=48) == [384]
    assert sizes(1, bucket_size=None, ranks=48, pad_for_busbw=True) == [3 * 2**16]


def test_a_shared_embedding_has_its_own_bucket_only_where_gradients_are_sharded() -> None:
    word = ParameterTensor("embedding", 1000, shared_embedding=True)
    for sharded, expected in ((True, [384, 1024, 384]), (False, [1600])):
        buckets = count_buckets(
            [*plain(300), word, *plain(300)],
            None,
            data_parallel_size=1,
            use_distributed_optimizer=sharded,
        )
        assert buckets == expected


MODEL: dict[str, Any] = {
    "num_layers": 8,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "vocab_size": 512,
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
}
MOE = MODEL | {"num_moe_experts": 8, "moe_grouped_gemm": True, "expert_model_parallel_size": 4}
DDP = {"overlap_grad_reduce": True, "use_distributed_optimizer": True, "bucket_size": 60_000}


def told(
    model: dict[str, Any] = MODEL, ddp: dict[str, Any] | None = None, **options: Any
) -> list[Any]:
    options = {"data_parallel_size": 4} | options
    return bucketing(SimpleNamespace(**model), SimpleNamespace(**(DDP | (ddp or {}))), **options)


PIPELINE = MODEL | {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}


def test_only_the_first_chunk_of_the_first_stage_is_cut() -> None:
    chunks = told(PIPELINE)
    assert [(chunk.pp_rank, chunk.vp_stage) for chunk in chunks] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [chunk.bucket_size for chunk in chunks] == [60_000, None, None, None]
    assert [len(chunk.buckets) for chunk in chunks] == [2, 1, 1, 1]
    assert "stage" in chunks[1].uncut_because
    assert "chunk" in chunks[2].uncut_because


def test_with_the_optimizer_step_nothing_is_cut() -> None:
    chunks = told(PIPELINE, overlap_param_gather_with_optimizer_step=True)
    assert {chunk.bucket_size for chunk in chunks} == {None}
    assert "overlap_param_gather_with_optimizer_step" in chunks[0].uncut_because


def test_without_overlap_the_bucket_size_is_ignored() -> None:
    (chunk,) = told(ddp={"overlap_grad_reduce": False})
    assert (chunk.bucket_size, len(chunk.buckets)) == (None, 1)
    assert chunk.uncut_because == "overlap_grad_reduce is off"


@pytest.mark.parametrize(("ranks", "size"), [(4, 40_000_000), (48, 48_000_000)])
def test_the_default_bucket_size_leaves_context_parallelism_out(ranks: int, size: int) -> None:
    model = MODEL | {"context_parallel_size": 8}
    (chunk,) = told(model, {"bucket_size": None}, data_parallel_size=ranks)
    assert chunk.bucket_size == size == default_bucket_size(ranks)


def test_padding_takes_context_parallelism_in() -> None:
    (chunk,) = told(MODEL | {"context_parallel_size": 3})
    assert {bucket.size % (3 * 128) for bucket in chunk.buckets} == {0}


def test_optimizer_instances_shard_within_themselves() -> None:
    (whole,) = told(data_parallel_size=9)
    (parts,) = told(data_parallel_size=9, ddp={"num_distributed_optimizer_instances": 9})
    assert all(bucket.size % (9 * 128) == 0 for bucket in whole.buckets)
    assert any(bucket.size % (9 * 128) for bucket in parts.buckets)


def test_experts_have_buckets_of_their_own() -> None:
    (chunk,) = told(MOE)
    kinds = {bucket.expert for bucket in chunk.buckets}
    assert kinds == {False, True}
    assert chunk.collectives == len(chunk.buckets)
    assert chunk.parameters == sum(t.numel for t in chunk_parameters(SimpleNamespace(**MOE)))


@pytest.mark.parametrize(
    ("options", "divisor"),
    [({}, 3), ({"expert_data_parallel_size": 5}, 5)],
    ids=["computed", "given"],
)
def test_expert_buckets_are_padded_for_the_expert_group(
    options: dict[str, int], divisor: int
) -> None:
    """DP 12 over EP 4 leaves 3 ranks."""
    (chunk,) = told(MOE, data_parallel_size=12, **options)
    experts = [bucket for bucket in chunk.buckets if bucket.expert]
    assert all(bucket.size % (divisor * 128) == 0 for bucket in experts)


def test_expert_parallelism_must_fit_the_ranks() -> None:
    with pytest.raises(UncountableModel, match="6 cannot be divided by 4"):
        told(MOE, data_parallel_size=6)


def test_buckets_with_other_than_fp8_weights_travel_with_the_last_fp8_bucket() -> None:
    (chunk,) = told(MODEL | {"fp8": "hybrid", "fp8_param": True}, {"bucket_size": 30_000})
    fp8 = [bucket for bucket in chunk.buckets if bucket.fp8]
    assert 1 < len(fp8) < len(chunk.buckets)
    assert chunk.collectives == len(fp8)


def test_tied_embeddings_travel_with_the_rest_of_a_later_chunk() -> None:
    tied = PIPELINE | {"share_embeddings_and_output_weights": True}
    first, last_stage, _, last = told(tied)
    assert len(first.buckets) == first.collectives == 3
    assert len(last_stage.buckets) == last_stage.collectives == 1
    assert (len(last.buckets), last.collectives) == (2, 1)


def test_fsdp_has_no_buckets() -> None:
    with pytest.raises(UncountableModel, match="use_megatron_fsdp"):
        told(ddp={"use_megatron_fsdp": True})


def test_a_bucket_names_its_tensors_by_position() -> None:
    (bucket,) = cut_buckets(
        plain(5, 6), None, data_parallel_size=1, use_distributed_optimizer=False
    )
    assert bucket == Bucket(
        (1, 0), parameters=11, size=11, expert=False, fp8=False, end=11, ranks=1
    )
