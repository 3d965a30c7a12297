"""The launch environment by version: PerfEnvPlugin's, and that of the performance recipes since."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from megatron.bridge.recipes.launch_check import contradictions, omissions
from megatron.bridge.recipes.launch_env import launch_environment
from megatron.bridge.recipes.launch_settings import LaunchSettings
from megatron.bridge.training.decisions import RULES, Outcome
from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.versions import KNOWN, NEWEST, Stack

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
MARGIN = "NVTE_FWD_LAYERNORM_SM_MARGIN"
PRIORITY = "TORCH_NCCL_HIGH_PRIORITY"
SINCE = Stack("0.19.0", "0.6.0")
UNTIL = Stack("0.18.2", "0.5.1")


def expected_of_recipes(
    *, blackwell: bool, split: bool, expert_overlap: bool, backend: str | None
) -> int:
    """The number of queues in NVIDIA's performance recipes, as it was observed.

    Megatron-Bridge 0.6.0 and main of 2026-08-22, perf_recipes/*/GPU/*.py: b200, b300, gb200, gb300,
    vr200 and r100 always 32 (373 recipes). h100 (58 recipes): TP or CP > 1 without EP overlap 1,
    HybridEP or not (24); TP or CP > 1 with EP overlap 8, with HybridEP 32; TP = CP = 1: 32.
    """
    if blackwell or not split:
        return 32
    if not expert_overlap:
        return 1
    return 32 if backend == "hybridep" else 8


SIZES = [(1, 1), (2, 1), (1, 2), (8, 4)]
BACKENDS = (None, "deepep", "hybridep", "ncclep")
LAYOUTS = list(itertools.product((False, True), SIZES, SIZES, (False, True), BACKENDS))


@pytest.mark.parametrize("stack", KNOWN[3:])
@pytest.mark.parametrize(
    ("blackwell", "tp_cp", "dp_pp", "expert_overlap", "backend"),
    LAYOUTS,
)
def test_queues_of_every_layout_are_those_of_the_performance_recipes(
    stack: Stack,
    blackwell: bool,
    tp_cp: tuple[int, int],
    dp_pp: tuple[int, int],
    expert_overlap: bool,
    backend: str | None,
) -> None:
    (tp, cp), (dp, pp) = tp_cp, dp_pp
    settings = LaunchSettings(
        blackwell,
        tp_size=tp,
        cp_size=cp,
        pp_size=pp,
        num_gpus=tp * cp * dp * pp,
        moe_flex_dispatcher_backend=backend,
        a2a_overlap=expert_overlap,
    )
    [queues] = [v for v in launch_environment(settings, stack) if v.name == CONNECTIONS]
    wanted = expected_of_recipes(
        blackwell=blackwell, split=tp * cp > 1, expert_overlap=expert_overlap, backend=backend
    )
    assert int(queues.value) == wanted
    assert queues.least is not None and queues.least <= wanted
    assert RULES[queues.rule].holds(stack)
    assert RULES[queues.rule].source


@pytest.mark.parametrize("stack", KNOWN)
def test_margin_and_priority_follow_the_version(stack: Stack) -> None:
    values = {v.name: v.value for v in launch_environment(LaunchSettings(False), stack)}
    new = stack in KNOWN[3:]
    assert values[MARGIN] == values["NVTE_BWD_LAYERNORM_SM_MARGIN"] == ("20" if new else "16")
    assert values.get(PRIORITY) == ("1" if new else None)


def test_a_version_that_is_not_known_gets_the_newest_rules() -> None:
    settings = LaunchSettings(True)
    assert launch_environment(settings) == launch_environment(settings, NEWEST)


@pytest.mark.parametrize("blackwell", [False, True])
@pytest.mark.parametrize("backend", [None, "deepep", "hybridep"])
@pytest.mark.parametrize("stack", KNOWN)
def test_an_fsdp_never_gets_one_queue(stack: Stack, backend: str | None, blackwell: bool) -> None:
    settings = LaunchSettings(
        blackwell, tp_size=2, num_gpus=8, fsdp=True, moe_flex_dispatcher_backend=backend
    )
    [queues] = [v for v in launch_environment(settings, stack) if v.name == CONNECTIONS]
    assert int(queues.value) == (32 if blackwell or backend else 8)


def found(variables: dict[str, str], stack: Stack, **settings: Any) -> dict[str, Outcome]:
    """What is said of these variables of a job that has no others."""
    wanted = launch_environment(LaunchSettings(**{"gpu_sm100_or_newer": False, **settings}), stack)
    job = JobEnvironment(variables, True, "job.env")
    return {d.knob[4:]: d.outcome for d in [*contradictions(wanted, job), *omissions(wanted, job)]}


@pytest.mark.parametrize(
    ("settings", "queues", "outcome"),
    [
        # The plugin set 8 for these layouts: fewer than the recipes' 32 lose no overlap.
        ({}, "8", Outcome.NOTE),
        ({}, "7", Outcome.REFUSED),
        ({"gpu_sm100_or_newer": True}, "8", Outcome.NOTE),
        ({"gpu_sm100_or_newer": True, "tp_size": 2}, "8", Outcome.REFUSED),
        ({"moe_flex_dispatcher_backend": "hybridep"}, "8", Outcome.REFUSED),
        ({"tp_size": 2, "a2a_overlap": True}, "4", Outcome.REFUSED),
        ({"tp_size": 2}, "32", Outcome.REFUSED),
        ({}, "1", Outcome.REFUSED),
    ],
)
def test_only_what_loses_overlap_is_a_finding(
    settings: dict[str, Any], queues: str, outcome: Outcome
) -> None:
    assert found({CONNECTIONS: queues}, SINCE, **settings)[CONNECTIONS] is outcome


def test_an_older_margin_loses_nothing_and_none_is_a_note() -> None:
    margins = {MARGIN: "16", "NVTE_BWD_LAYERNORM_SM_MARGIN": "10"}
    said = found(margins, SINCE)
    assert said[MARGIN] is Outcome.NOTE
    assert said["NVTE_BWD_LAYERNORM_SM_MARGIN"] is Outcome.REFUSED
    assert MARGIN not in found(margins, UNTIL)


@pytest.mark.parametrize("value", ["0", "true", None])
def test_priority_is_a_note_and_only_since_its_version(value: str | None) -> None:
    variables = {} if value is None else {PRIORITY: value}
    assert found(variables, SINCE)[PRIORITY] is Outcome.NOTE
    assert PRIORITY not in found(variables, UNTIL)
