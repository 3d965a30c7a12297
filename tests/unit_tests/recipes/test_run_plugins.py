"""The plugins on real nemo_run tasks and executors."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest

from support.late import Late, needs

if TYPE_CHECKING:
    import nemo_run as run

    from megatron.bridge.recipes import run_plugins as plugins
else:
    run = Late("nemo_run")
    plugins = Late("megatron.bridge.recipes.run_plugins")

pytestmark = needs("nemo_run")

MARGINS = {"NVTE_FWD_LAYERNORM_SM_MARGIN": "16", "NVTE_BWD_LAYERNORM_SM_MARGIN": "16"}
MANUAL_GC = ["train.manual_gc=true", "train.manual_gc_interval=100"]


def _script(*args: str) -> run.Script:
    return run.Script(path="train.py", entrypoint="python", args=list(args))


def _slurm(**fields: Any) -> run.SlurmExecutor:
    fields = {"account": "team", "nodes": 4, "tunnel": run.LocalTunnel(job_dir="/lustre/e/1")} | (
        fields
    )
    return run.SlurmExecutor(**fields)


def _ssh() -> run.SSHTunnel:
    return run.SSHTunnel(host="cluster", user="me", job_dir="/lustre/e/1")


def _perf_env(**fields: Any) -> dict[str, str]:
    executor = run.LocalExecutor()
    plugins.PerfEnvPlugin(**fields).setup(_script(), executor)
    return executor.env_vars


EXECUTORS = pytest.mark.parametrize(
    "new_executor",
    [lambda: run.LocalExecutor(), _slurm, lambda: _slurm(tunnel=_ssh())],
    ids=["local", "slurm", "slurm-ssh"],
)


def test_the_plugins_are_nemo_run_plugins() -> None:
    assert plugins.HAVE_NEMO_RUN is True
    for plugin in (plugins.PerfEnvPlugin, plugins.NsysPlugin, plugins.PyTorchProfilerPlugin):
        assert issubclass(plugin, run.Plugin)


def test_fields_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        plugins.PerfEnvPlugin(True)  # type: ignore[misc]
    with pytest.raises(TypeError):
        plugins.NsysPlugin(1, 2)  # type: ignore[misc]
    with pytest.raises(TypeError):
        plugins.PyTorchProfilerPlugin(1, 2)  # type: ignore[misc]


@EXECUTORS
def test_defaults(new_executor: Callable[[], Any]) -> None:
    task, executor = _script("model=llama"), new_executor()
    plugins.PerfEnvPlugin().setup(task, executor)

    assert executor.env_vars == {"CUDA_DEVICE_MAX_CONNECTIONS": "8", **MARGINS}
    assert task.args == ["model=llama", *MANUAL_GC]
    assert getattr(executor, "setup_lines", None) is None


@pytest.mark.parametrize(
    ("fields", "connections"),
    [
        ({"tp_size": 2}, "1"),
        ({"cp_size": 2}, "1"),
        ({"pp_size": 2}, "8"),
        ({"tp_size": 2, "a2a_overlap": True}, "8"),
        ({"moe_flex_dispatcher_backend": "hybridep"}, "32"),
        ({"moe_flex_dispatcher_backend": "deepep", "tp_size": 2}, "1"),
        ({"tp_size": 2, "gpu_sm100_or_newer": True}, "32"),
        ({"tp_size": 8, "gpu_sm100_or_newer": True}, "8"),
        ({"tp_size": 8, "gpu_sm100_or_newer": True, "num_gpus": 16}, "32"),
        ({"tp_size": 4, "pp_size": 2, "gpu_sm100_or_newer": True}, "32"),
    ],
)
def test_each_field_reaches_the_number_of_queues(fields: dict[str, Any], connections: str) -> None:
    assert _perf_env(**fields)["CUDA_DEVICE_MAX_CONNECTIONS"] == connections


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 8),
        ({"num_gpus": 64, "tp_size": 2, "cp_size": 2, "pp_size": 4}, 4),
        ({"tp_size": 16}, 0),
        ({"tp_size": 3}, 2),
    ],
)
def test_setup_sets_the_data_parallel_size(fields: dict[str, Any], size: int) -> None:
    plugin = plugins.PerfEnvPlugin(**fields)
    assert not hasattr(plugin, "dp_size")
    plugin.setup(_script(), run.LocalExecutor())
    assert plugin.dp_size == size


def test_a_field_that_changes_after_setup_counts_at_the_next() -> None:
    plugin, executor = (
        plugins.PerfEnvPlugin(tp_size=8, gpu_sm100_or_newer=True),
        run.LocalExecutor(),
    )
    plugin.setup(_script(), executor)
    assert (plugin.dp_size, executor.env_vars["CUDA_DEVICE_MAX_CONNECTIONS"]) == (1, "8")
    plugin.num_gpus = 16
    plugin.setup(_script(), executor)
    assert (plugin.dp_size, executor.env_vars["CUDA_DEVICE_MAX_CONNECTIONS"]) == (2, "32")


def test_the_number_of_queues_alone_as_subclasses_set_it() -> None:
    plugin, executor = plugins.PerfEnvPlugin(cp_size=2), run.LocalExecutor()
    plugin._set_num_cuda_device_max_connections(_script(), executor)
    assert executor.env_vars == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert plugin.dp_size == 4


def test_margins_and_chunk_size_are_strings_and_can_be_left_out() -> None:
    environment = _perf_env(layernorm_sm_margin=20, pp_size=2, nccl_pp_comm_chunksize=2097152)
    assert environment["NVTE_FWD_LAYERNORM_SM_MARGIN"] == "20"
    assert environment["NVTE_BWD_LAYERNORM_SM_MARGIN"] == "20"
    assert environment["NCCL_P2P_NET_CHUNKSIZE"] == "2097152"

    assert "NCCL_P2P_NET_CHUNKSIZE" not in _perf_env(nccl_pp_comm_chunksize=2097152)
    assert set(_perf_env(enable_layernorm_sm_margin=False)) == {"CUDA_DEVICE_MAX_CONNECTIONS"}


def test_a_callers_own_variable_is_replaced_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    executor = run.LocalExecutor(env_vars={"CUDA_DEVICE_MAX_CONNECTIONS": "1", "MINE": "kept"})
    with caplog.at_level(logging.WARNING):
        plugins.PerfEnvPlugin().setup(_script(), executor)

    assert executor.env_vars == {"CUDA_DEVICE_MAX_CONNECTIONS": "8", "MINE": "kept", **MARGINS}
    assert "CUDA_DEVICE_MAX_CONNECTIONS=1" in caplog.text

    caplog.clear()
    plugins.PerfEnvPlugin().setup(_script(), executor)
    assert caplog.text == ""


def test_missing_args_and_env_vars_are_created() -> None:
    task, executor = _script(), run.LocalExecutor(env_vars=None)  # type: ignore[arg-type]
    task.args = None  # type: ignore[assignment]
    plugins.PerfEnvPlugin().setup(task, executor)

    assert task.args == MANUAL_GC
    assert executor.env_vars["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"


def test_manual_gc_interval_and_switch() -> None:
    task = _script()
    plugins.PerfEnvPlugin(manual_gc_interval=5).setup(task, run.LocalExecutor())
    assert task.args == ["train.manual_gc=true", "train.manual_gc_interval=5"]

    task = _script()
    plugins.PerfEnvPlugin(enable_manual_gc=False).setup(task, run.LocalExecutor())
    assert task.args == []


def test_the_callers_converter_replaces_the_overrides() -> None:
    seen: list[object] = []

    def convert(args: Any) -> list[str]:
        seen.append(args)
        return ["--mine"]

    steps = {"profile_step_start": 3, "profile_step_end": 5, "profile_ranks": [1]}
    all_plugins = [
        plugins.PerfEnvPlugin(manual_gc_interval=7, script_args_converter_fn=convert),
        plugins.NsysPlugin(**steps, record_shapes=True, script_args_converter_fn=convert),
        plugins.PyTorchProfilerPlugin(
            **steps,
            record_memory_history=True,
            memory_snapshot_path="/m.pickle",
            script_args_converter_fn=convert,
        ),
    ]
    task = _script()
    for plugin in all_plugins:
        plugin.setup(task, run.LocalExecutor())

    assert task.args == ["--mine"] * 3
    assert seen == [
        plugins.PerfEnvPluginScriptArgs(enable_manual_gc=True, manual_gc_interval=7),
        plugins.NsysPluginScriptArgs(**steps, record_shapes=True),
        plugins.PyTorchProfilerPluginScriptArgs(
            **steps,
            record_memory_history=True,
            memory_snapshot_path="/m.pickle",
            record_shapes=False,
        ),
    ]


def test_vboost_runs_once_per_node_and_logs_to_the_job_folder() -> None:
    words = shlex.split(
        plugins.PerfEnvPlugin().get_vboost_srun_cmd(nodes=16, job_dir="/jobs/my run")
    )

    assert words[:2] == ["srun", "--ntasks=16"]
    assert words[words.index("--output") + 1] == "/jobs/my run/vboost.out"
    assert words[words.index("--error") + 1] == "/jobs/my run/vboost.err"
    assert words[-3:] == ["bash", "-c", "sudo nvidia-smi boost-slider --vboost 1"]


@pytest.mark.parametrize("new_tunnel", [lambda: run.LocalTunnel(job_dir="/lustre/e/1"), _ssh])
@pytest.mark.parametrize("existing", [None, "", "module load cuda", "module load cuda\n"])
def test_vboost_is_added_after_existing_setup_lines_and_only_once(
    existing: str | None, new_tunnel: Callable[[], Any]
) -> None:
    executor = _slurm(setup_lines=existing, tunnel=new_tunnel())
    plugin = plugins.PerfEnvPlugin(enable_vboost=True)
    plugin.setup(_script(), executor)
    plugin.setup(_script(), executor)

    line = plugin.get_vboost_srun_cmd(4, "/lustre/e/1")
    kept = ["module load cuda"] if existing else []
    assert executor.setup_lines is not None
    assert executor.setup_lines.splitlines() == [*kept, line]


def test_vboost_is_off_by_default_and_warns_without_slurm(caplog: pytest.LogCaptureFixture) -> None:
    executor = _slurm(setup_lines="module load cuda")
    plugins.PerfEnvPlugin().setup(_script(), executor)
    assert executor.setup_lines == "module load cuda"

    plugins.PerfEnvPlugin(enable_vboost=True).setup(_script(), run.LocalExecutor())
    assert "enable_vboost=True has no effect on LocalExecutor" in caplog.text


@EXECUTORS
@pytest.mark.parametrize("launcher", [None, "torchrun"])
def test_nsys_sets_the_launcher_and_the_overrides(
    new_executor: Callable[[], Any], launcher: str | None
) -> None:
    task, executor = _script("model=llama"), new_executor()
    executor.launcher = launcher
    plugins.NsysPlugin(profile_step_start=10, profile_step_end=12).setup(task, executor)

    assert executor.get_launcher().nsys_profile is True
    assert executor.get_launcher().nsys_trace == ["nvtx", "cuda"]
    assert executor.get_launcher().nsys_gpu_metrics is False
    assert executor.get_launcher().get_nsys_prefix("/out")[:5] == [
        *("profile", "-s", "none", "-t", "nvtx,cuda")
    ]
    assert task.args == [
        "model=llama",
        "profiling.use_nsys_profiler=true",
        "profiling.profile_step_start=10",
        "profiling.profile_step_end=12",
        "profiling.profile_ranks=[0]",
        "profiling.record_shapes=false",
    ]


def test_nsys_names_a_file_per_rank_on_slurm() -> None:
    executor = _slurm()
    plugins.NsysPlugin(profile_step_start=0, profile_step_end=1).setup(_script(), executor)
    prefix = " ".join(executor.get_launcher().get_nsys_prefix("/out"))
    assert "%q{SLURM_JOB_ID}" in prefix
    assert "%q{SLURM_PROCID}" in prefix


def test_nsys_options(caplog: pytest.LogCaptureFixture) -> None:
    task, executor = _script(), _slurm()
    plugins.NsysPlugin(
        profile_step_start=0,
        profile_step_end=1,
        profile_ranks=[0, 3],
        nsys_trace=["cuda", "osrt"],
        record_shapes=True,
        nsys_gpu_metrics=True,
    ).setup(task, executor)

    assert executor.get_launcher().nsys_trace == ["cuda", "osrt"]
    assert "$GPU_METRICS_FLAG" in executor.get_launcher_prefix()
    assert "profiling.profile_ranks=[0,3]" in task.args
    assert "profiling.record_shapes=true" in task.args
    assert caplog.text == ""


def test_nsys_gpu_metrics_warn_where_nemo_run_ignores_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plugin = plugins.NsysPlugin(profile_step_start=0, profile_step_end=1, nsys_gpu_metrics=True)
    plugin.setup(_script(), run.LocalExecutor())

    assert "nsys_gpu_metrics=True has no effect on LocalExecutor" in caplog.text


@EXECUTORS
def test_pytorch_profiler_sets_the_overrides_only(new_executor: Callable[[], Any]) -> None:
    task, executor = _script(), new_executor()
    plugins.PyTorchProfilerPlugin(profile_step_start=10, profile_step_end=12).setup(task, executor)

    assert task.args == [
        "profiling.use_pytorch_profiler=true",
        "profiling.profile_step_start=10",
        "profiling.profile_step_end=12",
        "profiling.profile_ranks=[0]",
        "profiling.record_memory_history=false",
        "profiling.memory_snapshot_path=snapshot.pickle",
        "profiling.record_shapes=false",
    ]
    assert executor == new_executor()


def test_pytorch_profiler_options() -> None:
    task = _script()
    plugins.PyTorchProfilerPlugin(
        profile_step_start=1,
        profile_step_end=4,
        profile_ranks=[0, 3],
        record_memory_history=True,
        memory_snapshot_path="/out/memory.pickle",
        record_shapes=True,
    ).setup(task, run.LocalExecutor())

    assert task.args[1:] == [
        "profiling.profile_step_start=1",
        "profiling.profile_step_end=4",
        "profiling.profile_ranks=[0,3]",
        "profiling.record_memory_history=true",
        "profiling.memory_snapshot_path=/out/memory.pickle",
        "profiling.record_shapes=true",
    ]


@pytest.mark.parametrize(
    ("new_plugin", "named"),
    [
        (lambda: plugins.PerfEnvPlugin(layernorm_sm_margin=-1), "layernorm_sm_margin=-1"),
        (
            lambda: plugins.PerfEnvPlugin(pp_size=2, nccl_pp_comm_chunksize=1),
            "nccl_pp_comm_chunksize=1",
        ),
        (
            lambda: plugins.PerfEnvPlugin(pp_size=2, nccl_pp_comm_chunksize=2.5),
            "nccl_pp_comm_chunksize=2.5",
        ),  # type: ignore[arg-type]
        (lambda: plugins.PerfEnvPlugin(manual_gc_interval=-1), "manual_gc_interval=-1"),
        (lambda: plugins.PerfEnvPlugin(tp_size=0), "tp_size=0"),
        (
            lambda: plugins.NsysPlugin(profile_step_start=5, profile_step_end=5),
            "profile_step_end=5",
        ),
        (
            lambda: plugins.NsysPlugin(profile_step_start=-1, profile_step_end=5),
            "profile_step_start=-1",
        ),
        (
            lambda: plugins.PyTorchProfilerPlugin(profile_step_start=5, profile_step_end=4),
            "profile_step_end=4",
        ),
        (
            lambda: plugins.PyTorchProfilerPlugin(
                profile_step_start=0, profile_step_end=4, profile_ranks=[-1]
            ),
            "profile_ranks=-1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_values_are_named_and_change_nothing(new_plugin: Callable[[], Any], named: str) -> None:
    task, executor = _script(), _slurm()
    with pytest.raises(ValueError, match=named):
        new_plugin().setup(task, executor)

    assert task.args == []
    assert executor == _slurm()


def test_the_default_num_gpus_may_be_smaller_than_the_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert _perf_env(tp_size=8, pp_size=4)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert "num_gpus=8 is not a multiple of" in caplog.text
    assert _perf_env(tp_size=4, num_gpus=6)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert "num_gpus=6 is not a multiple of" in caplog.text


@pytest.mark.parametrize(
    "new_plugin",
    [
        lambda: plugins.PerfEnvPlugin(enable_manual_gc=False),
        lambda: plugins.NsysPlugin(profile_step_start=0, profile_step_end=1),
        lambda: plugins.PyTorchProfilerPlugin(profile_step_start=0, profile_step_end=1),
    ],
    ids=["perf", "nsys", "pytorch"],
)
def test_other_tasks_than_scripts_are_refused(new_plugin: Callable[[], Any]) -> None:
    executor = run.LocalExecutor()
    with pytest.raises(NotImplementedError, match=r"supports nemo_run\.Script tasks, not Partial"):
        # Not print: Python 3.10 knows no signature of it.
        new_plugin().setup(run.Partial(_perf_env, tp_size=1), executor)

    assert executor == run.LocalExecutor()


def test_mocks_that_follow_nemo_runs_classes_are_accepted() -> None:
    """Megatron-Bridge's callers test their recipes with such mocks."""
    task, executor = MagicMock(spec=run.Script), MagicMock(spec=run.SlurmExecutor)
    task.args, executor.env_vars, executor.setup_lines = [], {}, None
    executor.nodes, executor.tunnel = 2, MagicMock(job_dir="/job")
    plugins.PerfEnvPlugin(enable_vboost=True).setup(task, executor)
    plugins.NsysPlugin(profile_step_start=0, profile_step_end=1).setup(task, executor)

    assert task.args[:2] == MANUAL_GC
    assert executor.env_vars["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"
    assert "--ntasks=2" in executor.setup_lines
    assert executor.get_launcher.return_value.nsys_profile is True


@pytest.mark.functional
def test_a_launched_process_gets_the_environment_and_the_arguments(tmp_path: Path) -> None:
    """Through a whole nemo_run experiment, in a process of its own: nemo_run keeps its home."""
    (tmp_path / "train.py").write_text(
        "import json, os, pathlib, sys\n"
        f"out = pathlib.Path({str(tmp_path / 'seen.json')!r})\n"
        "out.write_text(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    )
    launch = f"""
import sys
import nemo_run as run
from megatron.bridge.recipes.run_plugins import PerfEnvPlugin
task = run.Script({str(tmp_path / "train.py")!r}, entrypoint=sys.executable, args=["a=b"])
with run.Experiment("overlap", executor=run.LocalExecutor()) as experiment:
    experiment.add(task, plugins=[PerfEnvPlugin(tp_size=2, pp_size=2, nccl_pp_comm_chunksize=4096)])
    experiment.run()
"""
    home = {"NEMORUN_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", launch],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith(("NVTE_", "CUDA_"))} | home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    args, environment = json.loads((tmp_path / "seen.json").read_text())

    assert args == ["a=b", *MANUAL_GC]
    assert environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert environment["NCCL_P2P_NET_CHUNKSIZE"] == "4096"
    assert {name: environment[name] for name in MARGINS} == MARGINS
