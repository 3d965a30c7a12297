"""The launch-time environment: every branch, its reasons, and what contradicts it."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import pytest

from megatron.bridge.recipes.launch_check import contradictions, omissions
from megatron.bridge.recipes.launch_env import EnvironmentVariable, launch_environment
from megatron.bridge.recipes.launch_queues import PERF_ENV_PLUGIN
from megatron.bridge.recipes.launch_settings import LaunchSettings
from megatron.bridge.training.decisions import RULES, Decision, Outcome
from megatron.bridge.training.job_environment import JobEnvironment

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
FORWARD_MARGIN = "NVTE_FWD_LAYERNORM_SM_MARGIN"
BACKWARD_MARGIN = "NVTE_BWD_LAYERNORM_SM_MARGIN"
CHUNK = "NCCL_P2P_NET_CHUNKSIZE"

# Keys: generation, TP or CP > 1, DP or PP > 1.
# Values: plain, with a2a overlap, with a flex dispatcher, with both.
QUEUES = {
    ("hopper", False, False): (8, 8, 32, 32),
    ("hopper", False, True): (8, 8, 32, 32),
    ("hopper", True, False): (1, 8, 1, 32),
    ("hopper", True, True): (1, 8, 1, 32),
    ("blackwell", False, False): (8, 8, 32, 32),
    ("blackwell", False, True): (8, 8, 32, 32),
    ("blackwell", True, False): (8, 8, 32, 32),
    ("blackwell", True, True): (32, 32, 32, 32),
}
TP_CP = [(1, 1), (2, 1), (1, 2), (4, 2)]
DP_PP = [(1, 1), (2, 1), (1, 2), (4, 4)]
CASES = list(
    itertools.product(
        ("hopper", "blackwell"), TP_CP, DP_PP, (None, "deepep", "hybridep"), (False, True)
    )
)


def _settings(
    generation: str = "hopper",
    tp_cp: tuple[int, int] = (1, 1),
    dp_pp: tuple[int, int] = (8, 1),
    dispatcher: str | None = None,
    a2a_overlap: bool = False,
) -> LaunchSettings:
    (tp, cp), (dp, pp) = tp_cp, dp_pp
    return LaunchSettings(
        gpu_sm100_or_newer=generation == "blackwell",
        tp_size=tp,
        cp_size=cp,
        pp_size=pp,
        num_gpus=tp * cp * dp * pp,
        moe_flex_dispatcher_backend=dispatcher,
        a2a_overlap=a2a_overlap,
    )


def plugin_environment(settings: LaunchSettings) -> tuple[EnvironmentVariable, ...]:
    """The environment that Megatron-Bridge's PerfEnvPlugin sets, until 0.6.0."""
    return launch_environment(settings, PERF_ENV_PLUGIN)


def _job(variables: dict[str, str], source: str) -> JobEnvironment:
    return JobEnvironment(variables, True, source)


def _values(settings: LaunchSettings) -> dict[str, str]:
    return {variable.name: variable.value for variable in plugin_environment(settings)}


def _connections(settings: LaunchSettings) -> EnvironmentVariable:
    (variable,) = (v for v in plugin_environment(settings) if v.name == CONNECTIONS)
    return variable


@pytest.mark.parametrize(("generation", "tp_cp", "dp_pp", "dispatcher", "a2a"), CASES)
def test_number_of_hardware_queues(
    generation: str,
    tp_cp: tuple[int, int],
    dp_pp: tuple[int, int],
    dispatcher: str | None,
    a2a: bool,
) -> None:
    row = QUEUES[generation, max(tp_cp) > 1, max(dp_pp) > 1]
    expected = row[2 * (dispatcher is not None) + a2a]

    assert _connections(_settings(generation, tp_cp, dp_pp, dispatcher, a2a)).value == str(expected)


@pytest.mark.parametrize("case", CASES)
def test_what_is_needed_never_contradicts_itself(
    case: tuple[str, tuple[int, int], tuple[int, int], str | None, bool],
) -> None:
    settings = _settings(*case)

    assert contradictions(plugin_environment(settings), _job(_values(settings), "here")) == []


@pytest.mark.parametrize(
    ("settings", "rule", "named"),
    [
        (_settings(), "launch.queue-default", ["tp_size=1", "cp_size=1"]),
        (
            _settings(tp_cp=(2, 1), a2a_overlap=True),
            "launch.queue-default",
            ["tp_size=2", "a2a_overlap=True", "Hopper"],
        ),
        (
            _settings("blackwell", tp_cp=(1, 2), dp_pp=(1, 1)),
            "launch.queue-default",
            ["cp_size=2", "dp_size=1", "pp_size=1", "Blackwell"],
        ),
        (
            _settings(dispatcher="deepep"),
            "launch.queue-flex-dispatcher",
            ["moe_flex_dispatcher_backend='deepep'"],
        ),
        (
            _settings(tp_cp=(1, 2), dispatcher="deepep"),
            "launch.queue-hopper-order",
            ["cp_size=2", "a2a_overlap=False", "Hopper", "order of their launch"],
        ),
        (
            _settings("blackwell", tp_cp=(2, 1), dp_pp=(4, 2)),
            "launch.queue-blackwell",
            ["tp_size=2", "dp_size=4", "pp_size=2", "Blackwell", "serialise"],
        ),
    ],
)
def test_the_reason_names_what_the_queues_depend_on(
    settings: LaunchSettings, rule: str, named: list[str]
) -> None:
    variable = _connections(settings)

    assert variable.rule == rule
    assert [words for words in named if words not in variable.reason] == []


@pytest.mark.parametrize(("blackwell", "queues"), [(False, "8"), (True, "32")])
def test_an_fsdp_never_gets_one_queue(blackwell: bool, queues: str) -> None:
    settings = LaunchSettings(gpu_sm100_or_newer=blackwell, tp_size=2, num_gpus=8, fsdp=True)
    variable = _connections(settings)

    assert variable.value == queues
    assert variable.rule == ("launch.queue-blackwell" if blackwell else "launch.queue-fsdp")
    if not blackwell:
        assert "FSDP" in variable.reason


def test_an_unknown_dispatcher_backend_asks_for_no_queues() -> None:
    assert _connections(_settings(dispatcher="DeepEP")).value == "8"


def test_data_parallel_size_is_rounded_down_to_zero_where_no_copy_fits() -> None:
    settings = LaunchSettings(gpu_sm100_or_newer=True, tp_size=16, num_gpus=8)

    assert settings.dp_size == 0
    assert _connections(settings).value == "8"


def test_layernorm_margins_are_sixteen_unless_given_or_off() -> None:
    def margins(**changed: object) -> tuple[str | None, str | None]:
        values = _values(LaunchSettings(gpu_sm100_or_newer=False, **changed))  # type: ignore[arg-type]
        return values.get(FORWARD_MARGIN), values.get(BACKWARD_MARGIN)

    assert margins() == ("16", "16")
    assert margins(layernorm_sm_margin=0) == ("0", "0")
    assert margins(layernorm_sm_margin=20) == ("20", "20")
    assert margins(enable_layernorm_sm_margin=False) == (None, None)


@pytest.mark.parametrize(
    ("pp", "size", "expected"), [(2, 2097152, "2097152"), (1, 2097152, None), (2, None, None)]
)
def test_p2p_chunk_needs_pipeline_stages_and_a_size(
    pp: int, size: int | None, expected: str | None
) -> None:
    settings = LaunchSettings(gpu_sm100_or_newer=False, pp_size=pp, nccl_pp_comm_chunksize=size)

    assert _values(settings).get(CHUNK) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tp_size", 0),
        ("cp_size", -1),
        ("pp_size", 2.0),
        ("num_gpus", 0),
        ("num_gpus", "8"),
        ("layernorm_sm_margin", -1),
        ("nccl_pp_comm_chunksize", 1),
        ("nccl_pp_comm_chunksize", True),
        ("nccl_pp_comm_chunksize", "2097152"),
    ],
)
def test_bad_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError) as refused:
        LaunchSettings(**{"gpu_sm100_or_newer": False, field: value})  # type: ignore[arg-type]

    assert f"{field}={value!r}" in str(refused.value)
    assert isinstance(refused.value, AssertionError), "callers of Megatron-Bridge catch that"


def test_every_variable_and_contradiction_cites_a_launch_rule() -> None:
    settings = LaunchSettings(
        gpu_sm100_or_newer=False, tp_size=2, pp_size=2, nccl_pp_comm_chunksize=4096
    )
    variables = plugin_environment(settings)
    found = contradictions(variables, _job({v.name: "5" for v in variables}, "here"))

    assert len(variables) == len(found) == 4
    for rule in [v.rule for v in variables] + [d.rule for d in found]:
        assert RULES[rule].dimension == "launch"
        assert RULES[rule].path.startswith("megatron/bridge/recipes/launch_")


def _one_contradiction(settings: LaunchSettings, name: str, value: str) -> Decision:
    (decision,) = contradictions(plugin_environment(settings), _job({name: value}, "job.env"))
    return decision


def test_one_queue_without_tensor_parallelism_stops_data_parallel_overlap() -> None:
    decision = _one_contradiction(_settings(), CONNECTIONS, "1")

    assert decision.knob == f"env.{CONNECTIONS}"
    assert (decision.requested, decision.effective) == ("8", "1")
    assert decision.outcome is Outcome.REFUSED
    assert decision.rule == "launch.env-one-queue"
    assert "job.env" in decision.reason
    assert "data-parallel and pipeline overlap quietly stops working" in decision.reason
    assert decision.remedy is not None
    assert f"{CONNECTIONS}=8" in decision.remedy


def test_one_queue_is_no_finding_where_nothing_runs_beside_compute() -> None:
    settings = dataclasses.replace(_settings(), overlaps=False)
    for value, said in (("1", "one hardware queue loses no overlap"), ("4", "4 lose no overlap")):
        decision = _one_contradiction(settings, CONNECTIONS, value)
        assert (decision.outcome, decision.rule) == (Outcome.NOTE, "launch.env-differs")
        assert said in decision.reason and decision.remedy is None


def test_more_than_one_queue_on_hopper_loses_the_order_of_tensor_parallel_kernels() -> None:
    decision = _one_contradiction(_settings(tp_cp=(2, 1)), CONNECTIONS, "8")

    assert (decision.requested, decision.effective) == ("1", "8")
    assert decision.outcome is Outcome.REFUSED
    assert [str(edit) for edit in decision.edits] == [f"{CONNECTIONS}=1"]
    assert decision.rule == "launch.env-order-lost"
    assert "launched before a GEMM can start after it" in decision.reason


BLACKWELL_TP = _settings("blackwell", tp_cp=(2, 1))


@pytest.mark.parametrize(
    ("settings", "name", "value", "rule", "is_finding"),
    [
        (BLACKWELL_TP, CONNECTIONS, "1", "launch.env-one-queue", True),
        (BLACKWELL_TP, CONNECTIONS, "8", "launch.env-fewer-queues", True),
        (_settings(), CONNECTIONS, "32", "launch.env-differs", False),
        (_settings(), CONNECTIONS, "08", "launch.env-differs", False),
        (_settings(), CONNECTIONS, "33", "launch.env-differs", True),
        (_settings(), CONNECTIONS, "0", "launch.env-differs", True),
        (_settings(), CONNECTIONS, "", "launch.env-differs", True),
        (_settings(), CONNECTIONS, "many", "launch.env-differs", True),
        (_settings(), FORWARD_MARGIN, "0", "launch.env-smaller-margin", True),
        (_settings(), BACKWARD_MARGIN, "20", "launch.env-differs", False),
        (_settings(), BACKWARD_MARGIN, "-1", "launch.env-differs", True),
    ],
)
def test_only_differences_that_cost_overlap_are_findings(
    settings: LaunchSettings, name: str, value: str, rule: str, is_finding: bool
) -> None:
    decision = _one_contradiction(settings, name, value)

    assert (decision.rule, decision.is_finding) == (rule, is_finding)
    assert decision.effective == value
    assert (decision.remedy is not None) == is_finding


def test_another_chunk_size_than_the_one_asked_for_is_a_finding() -> None:
    settings = LaunchSettings(gpu_sm100_or_newer=False, pp_size=2, nccl_pp_comm_chunksize=2097152)

    assert _one_contradiction(settings, CHUNK, "131072").is_finding


def test_names_are_exact_values_are_stripped_and_absence_is_no_contradiction() -> None:
    needed = plugin_environment(_settings(tp_cp=(2, 1)))

    assert contradictions(needed, _job({}, "here")) == []
    assert contradictions(needed, _job({CONNECTIONS.lower(): "8", "PATH": "/bin"}, "here")) == []
    assert contradictions(needed, _job({CONNECTIONS: " 1\n"}, "here")) == []
    assert [d.effective for d in contradictions(needed, _job({CONNECTIONS: " 4 "}, "here"))] == [
        "4"
    ]


def test_importing_it_loads_no_torch() -> None:
    script = (
        "import sys, megatron.bridge.recipes.launch_env\n"
        "heavy = {'torch', 'megatron.core', 'nemo_run'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_omissions_are_judged_by_the_default_that_then_holds() -> None:
    needs_one = plugin_environment(LaunchSettings(gpu_sm100_or_newer=False, tp_size=2))
    told = {d.knob: d for d in omissions(needs_one, _job({}, "job.env"))}
    queues = told["env.CUDA_DEVICE_MAX_CONNECTIONS"]
    assert (queues.requested, queues.effective, queues.outcome) == ("1", "8", Outcome.REFUSED)
    assert "job.env does not set CUDA_DEVICE_MAX_CONNECTIONS" in queues.reason
    assert told["env.NVTE_FWD_LAYERNORM_SM_MARGIN"].outcome is Outcome.NOTE

    misspelt = {"CUDA_DEVICE_MAX_CONECTIONS": "1"}
    [queues, *_] = omissions(needs_one, _job(misspelt, "job.env"))
    assert "it sets CUDA_DEVICE_MAX_CONECTIONS, which nothing reads" in queues.reason


def test_an_omission_whose_default_will_do_is_none() -> None:
    needs_eight = plugin_environment(LaunchSettings(gpu_sm100_or_newer=False))
    margins = {v.name: v.value for v in needs_eight if "MARGIN" in v.name}
    assert omissions(needs_eight, _job(margins, "job.env")) == []
