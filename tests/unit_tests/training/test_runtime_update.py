"""The order in which a run's configurations become effective."""

from __future__ import annotations

import pytest

from megatron.bridge.training.decisions import Outcome, OverlapConfigError
from megatron.bridge.training.runtime_update import (
    compare_with_request,
    data_parallel_size,
    update_runtime,
)
from support.rule_runs import DISTRIBUTED, EVERYTHING, OFF, run_of, section


def test_layout_must_divide_the_world() -> None:
    with pytest.raises(OverlapConfigError, match=r"world size \(6\).*= 4"):
        data_parallel_size(section("model", tensor_model_parallel_size=4), 6)


def test_optimizer_switch_alone_leaves_data_parallel_overlap_off() -> None:
    run = run_of(optimizer=DISTRIBUTED, comm=OFF)
    update_runtime(run, 16, software=EVERYTHING)
    assert run.ddp.use_distributed_optimizer is True
    assert run.ddp.overlap_grad_reduce is False


def test_values_set_by_hand_and_overwritten_are_refusals() -> None:
    run = run_of(ddp={**DISTRIBUTED, "bucket_size": 7}, comm=OFF)
    update = update_runtime(run, 16, software=EVERYTHING)
    asked = {"ddp.bucket_size": 7, "model.elsewhere": True}
    effective = {"ddp.bucket_size": run.ddp.bucket_size, "model.elsewhere": False}
    held = compare_with_request(update.decisions, asked, effective)
    refused = {d.knob: d for d in held if d.outcome is Outcome.REFUSED}
    assert refused["ddp.bucket_size"].requested == 7
    assert refused["ddp.bucket_size"].rule == "dp.bucket-size"
    assert refused["model.elsewhere"].rule == "any.set-by-hand-overwritten"
