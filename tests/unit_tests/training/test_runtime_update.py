"""The order in which a run's configurations become effective."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron.bridge.training.decisions import Outcome, OverlapConfigError
from megatron.bridge.training.runtime_update import (
    compare_with_request,
    data_parallel_size,
    update_runtime,
)
from megatron.bridge.training.versions import KNOWN, NEWEST
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


@pytest.mark.parametrize(
    ("ddp", "optimizer", "outcome"),
    [
        ({"overlap_grad_reduce": True, "overlap_param_gather": True}, {}, Outcome.NOTE),
        ({}, {"overlap_param_gather": True}, Outcome.REFUSED),
        ({"use_megatron_fsdp": True}, {"overlap_param_gather": True}, None),
        ({}, {}, None),
    ],
)
def test_gathers_that_differ_are_told_until_they_are_kept_equal(
    ddp: dict[str, object], optimizer: dict[str, object], outcome: Outcome | None
) -> None:
    old, new = (replace(EVERYTHING, stack=each) for each in (KNOWN[1], NEWEST))
    for software, expected in ((old, outcome), (new, None)):
        run = run_of(ddp={**DISTRIBUTED, **ddp}, optimizer={**DISTRIBUTED, **optimizer})
        update = update_runtime(run, 16, software=software, strict=False)
        told = {d.rule: d.outcome for d in update.decisions}
        assert told.get("dp.param-gather-differs") is expected
