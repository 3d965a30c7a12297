"""What a machine and a launcher must have for tensor-parallel overlap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron.bridge.recipes.launch_env import launch_environment
from megatron.bridge.recipes.launch_settings import LaunchSettings
from megatron.bridge.training.decisions import Decision, Outcome
from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.rules.context import Gpu, Launcher
from support.machine_cases import A100, BROKEN, EXPANDABLE, GB200, H100, OVERLAP, TORCHRUN
from support.rule_runs import OFF, TP4, decisions_of

WIDE = {"tensor_model_parallel_size": 16, "sequence_parallel": True}
TP8 = {"tensor_model_parallel_size": 8, "sequence_parallel": True}


def found(rule: str, **case: Any) -> list[Decision]:
    return [d for d in decisions_of(**case) if d.rule == rule]


@pytest.mark.parametrize(
    ("model", "gpu", "launcher", "fits"),
    [
        (TP8, H100, None, True),
        (TP8, H100, TORCHRUN, True),
        (TP8, H100, Launcher("torchrun", 4), False),
        (WIDE, H100, TORCHRUN, False),
        (WIDE, replace(H100, nvlink_domain=None), None, True),
        (WIDE, None, None, True),
        (WIDE, None, Launcher("torchrun", 8), False),
        # Multi-node NVLink: four GPUs on a node, 72 in the domain.
        (TP8, GB200, Launcher("torchrun", 4), True),
        ({**WIDE, "tensor_model_parallel_size": 80}, GB200, None, False),
        # A group of 3 begins on one node and ends on another.
        ({"tensor_model_parallel_size": 3, "sequence_parallel": True}, H100, None, False),
    ],
)
def test_a_group_is_in_one_nvlink_domain(
    model: dict[str, Any], gpu: Gpu | None, launcher: Launcher | None, fits: bool
) -> None:
    size = model["tensor_model_parallel_size"]
    told = found(
        "tp.one-nvlink-domain",
        model=model,
        comm=OVERLAP,
        gpu=gpu,
        launcher=launcher,
        world_size=2 * size,
    )
    assert not told if fits else len(told) == 1


def test_only_a_gpu_that_was_named_makes_a_finding() -> None:
    for gpu, outcome in ((H100, Outcome.ERROR), (replace(H100, given=False), Outcome.NOTE)):
        (told,) = found("tp.one-nvlink-domain", model=WIDE, comm=OVERLAP, gpu=gpu)
        assert told.outcome is outcome
        assert ("--gpu" in (told.remedy or "")) is not gpu.given


def test_without_overlap_a_wide_group_is_slow_and_starts() -> None:
    (told,) = found("tp.one-nvlink-domain", model=WIDE, comm=OFF, gpu=H100)
    assert told.outcome is Outcome.NOTE
    assert told.knob == "model.tensor_model_parallel_size"
    assert "waits for the network" in told.reason


@pytest.mark.parametrize(
    ("environment", "outcome"),
    [
        (JobEnvironment({}, True, "job.env"), Outcome.ERROR),
        (JobEnvironment({"UB_SKIPMC": "0"}), Outcome.ERROR),
        (JobEnvironment({}), Outcome.NOTE),
        (JobEnvironment({"UB_SKIPMC": "1"}), None),
    ],
)
def test_multicast(environment: JobEnvironment, outcome: Outcome | None) -> None:
    told = found("tp.multicast-needs", model=TP4, comm=OVERLAP, gpu=A100, environment=environment)
    assert [d.outcome for d in told] == ([] if outcome is None else [outcome])
    assert not found(
        "tp.multicast-needs", model=TP4, comm=OVERLAP, gpu=H100, environment=environment
    )


@pytest.mark.parametrize(
    ("userbuffers", "multicast", "needed"),
    [(True, False, True), (True, True, False), (False, False, False)],
)
def test_the_launch_environment_names_the_variable(
    userbuffers: bool, multicast: bool, needed: bool
) -> None:
    settings = LaunchSettings(False, tp_size=4, userbuffers=userbuffers, multicast=multicast)
    values = {v.name: v.value for v in launch_environment(settings)}
    assert values.get("UB_SKIPMC") == ("1" if needed else None)


@pytest.mark.parametrize(
    ("launcher", "outcome"),
    [
        (TORCHRUN, Outcome.ERROR),
        (Launcher("srun", 8), Outcome.NOTE),
        (None, Outcome.NOTE),
        (Launcher("srun", 8, has_mpi=True), None),
    ],
)
@pytest.mark.parametrize("rule", ["tp.bootstrap-needs-mpi", "tp.old-te-bootstraps-with-mpi"])
def test_mpi(rule: str, launcher: Launcher | None, outcome: Outcome | None) -> None:
    told = found(rule, **{**BROKEN[rule], "launcher": launcher})
    assert [d.outcome for d in told] == ([] if outcome is None else [outcome])


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        ({"packed_sequence_specs": {"packed_sequence_size": 4096}}, True),
        (
            {
                "packed_sequence_specs": {"packed_sequence_size": 4096},
                "dataset_kwargs": {"pad_to_max_length": True},
            },
            False,
        ),
        ({"packed_sequence_specs": None}, False),
        ({}, False),
    ],
)
def test_packs_that_nothing_pads(dataset: dict[str, Any], told: bool) -> None:
    notes = found("tp.userbuffers-fixed-length", model=TP4, comm=OVERLAP, dataset=dataset)
    assert [d.outcome for d in notes] == ([Outcome.NOTE] if told else [])


def test_variable_lengths_without_userbuffers_are_fine() -> None:
    model = {**TP4, "variable_seq_lengths": True}
    assert not found("tp.userbuffers-fixed-length", model=model, comm=OFF)


@pytest.mark.parametrize(
    ("gpu", "more", "outcome"),
    [
        (H100, {}, Outcome.ERROR),
        (H100, {"NCCL_GRAPH_REGISTER": "1"}, Outcome.ERROR),
        (H100, {"NCCL_GRAPH_REGISTER": "0"}, None),
        (GB200, {}, None),
        (replace(H100, given=False), {}, None),
    ],
)
def test_graphs_with_segments_that_grow(
    gpu: Gpu, more: dict[str, str], outcome: Outcome | None
) -> None:
    environment = replace(EXPANDABLE, variables={**EXPANDABLE.variables, **more})
    case = {**BROKEN["core.graphs-expandable"], "gpu": gpu, "environment": environment}
    told = found("core.graphs-expandable", **case)
    assert [d.outcome for d in told] == ([] if outcome is None else [outcome])
