"""Which numbers are bucket sizes, and which one "auto" stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.bridge.training.bucket_size import (
    BRIDGE_BUCKET_SIZE,
    SMALLEST_BUCKET,
    auto_bucket_size,
    is_bucket_size,
)
from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.decisions import OverlapConfigError
from support.rule_runs import DISTRIBUTED, section


class TestAutoBucketSize:
    @given(st.integers(1, 2**40), st.integers(1, 20_000))
    def test_bounds(self, parameters: int, ranks: int) -> None:
        assert SMALLEST_BUCKET <= auto_bucket_size(parameters, ranks) <= BRIDGE_BUCKET_SIZE

    @given(st.integers(4 * SMALLEST_BUCKET, 2**40), st.integers(1, 20_000))
    def test_several_buckets_for_every_model_that_is_not_trivial(
        self, parameters: int, ranks: int
    ) -> None:
        assert parameters / auto_bucket_size(parameters, ranks) > 3.99

    def test_few_ranks_get_sixteen_and_many_get_larger_buckets(self) -> None:
        assert auto_bucket_size(160_000_000, 2) == 10_000_000
        assert auto_bucket_size(160_000_000, 256) > 30_000_000


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "40", [1]])
def test_what_is_no_size_is_refused_by_the_rules(size: object) -> None:
    assert not is_bucket_size(size)
    config = CommOverlapConfig(tp_comm_overlap=False, data_parallel_size=4, bucket_size=size)  # type: ignore[arg-type]
    with pytest.raises(OverlapConfigError, match="bucket_size"):
        config.setup(section("model"), section("optimizer"), section("ddp", **DISTRIBUTED))


@pytest.mark.parametrize("size", [1, 40_000_000, 10**12])
def test_a_size_is_taken_as_it_is(size: int) -> None:
    assert is_bucket_size(size)
    ddp = section("ddp", **DISTRIBUTED)
    config = CommOverlapConfig(tp_comm_overlap=False, data_parallel_size=4, bucket_size=size)
    config.setup(section("model"), section("optimizer"), ddp)
    assert ddp.bucket_size == size
