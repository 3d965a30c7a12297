"""What becomes of the requests of a CommOverlapConfig, one by one and drawn at random."""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.bridge.training.comm_overlap import CommOverlapConfig, _CommOverlapConfig
from megatron.bridge.training.decisions import Outcome, OverlapConfigError
from support.property_tests import examples
from support.rule_runs import DELAY, DISTRIBUTED, EP, EVERYTHING, MOE, run_of, section


def test_finalize_records_the_request_once() -> None:
    config = CommOverlapConfig(tp_comm_overlap=True, bucket_size=5)
    config.finalize()
    config.bucket_size = 6
    config.finalize()
    assert config.user_comm_overlap_cfg is not None
    assert config.user_comm_overlap_cfg.bucket_size == 5


def test_knobs_of_request_and_resolution_agree() -> None:
    asked = {f.name for f in fields(CommOverlapConfig)} - {"data_parallel_size"}
    assert asked == {f.name for f in fields(_CommOverlapConfig)}


def test_keyword_only() -> None:
    with pytest.raises(TypeError):
        CommOverlapConfig(True)  # type: ignore[misc]


def test_apply_leaves_unset_knobs_alone() -> None:
    config = CommOverlapConfig(tp_comm_overlap=False)
    target = SimpleNamespace(overlap_p2p_comm=True, bucket_size=7, tp_comm_overlap_cfg={"a": 1})
    config._apply_cfgs(_CommOverlapConfig(), target)
    assert target == SimpleNamespace(
        overlap_p2p_comm=True, bucket_size=None, tp_comm_overlap_cfg=None
    )


def test_data_parallel_size_is_required() -> None:
    config = CommOverlapConfig(tp_comm_overlap=False)
    with pytest.raises(OverlapConfigError, match="data_parallel_size"):
        config._get_optimizer_overlap_cfgs(section("model"))


def test_setup_refuses_before_it_changes_anything() -> None:
    config = CommOverlapConfig(data_parallel_size=4, **EP)
    model, ddp = section("model"), section("ddp", **DISTRIBUTED)
    before = (dict(vars(model)), dict(vars(ddp)))
    with pytest.raises(OverlapConfigError):
        config.setup(model, section("optimizer"), ddp)
    assert (dict(vars(model)), dict(vars(ddp))) == before
    assert any(d.outcome is Outcome.ERROR for d in config.decisions)


def test_a_refusal_is_logged_with_its_remedy(caplog: pytest.LogCaptureFixture) -> None:
    config = CommOverlapConfig(tp_comm_overlap=True, data_parallel_size=4)
    with caplog.at_level(logging.WARNING):
        config.setup(section("model"), section("optimizer"), section("ddp"))
    assert "tp.needs-tensor-parallel" in caplog.text
    assert "tensor_model_parallel_size to 2" in caplog.text


def test_delayed_wgrad_reaches_ddp() -> None:
    config = CommOverlapConfig(data_parallel_size=4, **DELAY)
    model, ddp = section("model", **MOE), section("ddp", **DISTRIBUTED)
    config.apply(config.resolve(model, ddp, EVERYTHING), model, section("optimizer"), ddp)
    assert model.delay_wgrad_compute is True
    assert ddp.delay_wgrad_compute is True


KNOBS = {
    f.name: st.none() | st.booleans()
    for f in fields(CommOverlapConfig)
    if "bool" in str(f.type) and f.name != "tp_comm_overlap"
}
RANDOM_COMM = st.fixed_dictionaries(
    {
        "tp_comm_overlap": st.booleans(),
        "bucket_size": st.none() | st.just("auto") | st.integers(1, 10**9),
        "wgrad_deferral_limit": st.none() | st.integers(-1, 8),
        **KNOBS,
    }
)
RANDOM_MODEL = st.fixed_dictionaries(
    {
        "tensor_model_parallel_size": st.sampled_from([1, 2]),
        "sequence_parallel": st.booleans(),
        "pipeline_model_parallel_size": st.sampled_from([1, 2, 4]),
        "virtual_pipeline_model_parallel_size": st.sampled_from([None, 1, 2]),
        "context_parallel_size": st.sampled_from([1, 2]),
        "bf16": st.booleans(),
        "num_moe_experts": st.sampled_from([None, 8]),
        "expert_model_parallel_size": st.sampled_from([1, 2]),
        "moe_token_dispatcher_type": st.sampled_from(["allgather", "alltoall", "flex"]),
    }
)
RANDOM_DDP = st.fixed_dictionaries(
    {
        "use_distributed_optimizer": st.booleans(),
        "overlap_grad_reduce": st.booleans(),
        "overlap_param_gather": st.booleans(),
        "bucket_size": st.none() | st.integers(1, 10**9),
    }
)


class TestAnyRequest:
    @examples(75, 1500)
    @given(comm=RANDOM_COMM, model=RANDOM_MODEL, ddp=RANDOM_DDP)
    def test_setup_twice_equals_once(
        self, comm: dict[str, Any], model: dict[str, Any], ddp: dict[str, Any]
    ) -> None:
        run = run_of(model=model, ddp=ddp, comm=comm)
        config = run.comm_overlap
        config.data_parallel_size = 4

        def apply() -> Any:
            resolution = config.resolve(run.model, run.ddp, EVERYTHING)
            config.apply(resolution, run.model, run.optimizer, run.ddp)
            return {name: dict(vars(getattr(run, name))) for name in ("model", "optimizer", "ddp")}

        request = asdict(config)
        assert apply() == apply()
        assert asdict(config) == request

    @examples(75, 1500)
    @given(comm=RANDOM_COMM, model=RANDOM_MODEL)
    def test_user_values_win_unless_a_decision_says_why_not(
        self, comm: dict[str, Any], model: dict[str, Any]
    ) -> None:
        run = run_of(model=model, ddp=DISTRIBUTED, comm=comm)
        run.comm_overlap.data_parallel_size = 4
        resolution = run.comm_overlap.resolve(run.model, run.ddp, EVERYTHING)
        told = {d.knob.rpartition(".")[2] for d in resolution.decisions if d.is_finding}
        run.comm_overlap.apply(resolution, run.model, run.optimizer, run.ddp)
        for knob, asked in comm.items():
            if asked is None or knob in told or asked == "auto":
                continue
            holders = [s for s in (run.model, run.ddp, run.optimizer) if hasattr(s, knob)]
            assert holders
            assert all(getattr(holder, knob) == asked for holder in holders), knob
