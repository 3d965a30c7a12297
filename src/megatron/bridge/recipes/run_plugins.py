"""nemo_run plugins: the launch-time environment for overlap, and two profilers.

nemo_run is optional. Without it this module can be imported, and each plugin's `setup()` raises an
ImportError that says how to install it. A plugin sets on the executor what must be set before the
process starts, and passes everything else to the training script as Hydra-style overrides, appended
to `task.args`.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from megatron.bridge.recipes.launch_env import EnvironmentVariable, launch_environment
from megatron.bridge.recipes.launch_queues import CONNECTIONS, PERF_ENV_PLUGIN
from megatron.bridge.recipes.launch_settings import LaunchSettings, require_int
from megatron.bridge.training.decisions import OverlapConfigError

HAVE_NEMO_RUN = True
_IMPORT_ERROR: ImportError | None = None
try:
    import nemo_run as run
except ImportError as error:  # also where a dependency of nemo_run is missing
    HAVE_NEMO_RUN = False
    _IMPORT_ERROR = error

if TYPE_CHECKING:  # nemo_run is untyped, and may be missing
    Plugin = object
elif HAVE_NEMO_RUN:
    Plugin = run.Plugin
else:
    Plugin = object

logger = logging.getLogger(__name__)


@dataclass
class PerfEnvPluginScriptArgs:
    """What `PerfEnvPlugin` passes to its converter.

    Attributes:
        enable_manual_gc: always true: without manual garbage collection nothing is converted.
        manual_gc_interval: training steps between collections.
    """

    enable_manual_gc: bool
    manual_gc_interval: int


@dataclass
class NsysPluginScriptArgs:
    """What `NsysPlugin` passes to its converter: its fields of the same names."""

    profile_step_start: int
    profile_step_end: int
    profile_ranks: list[int]
    record_shapes: bool


@dataclass
class PyTorchProfilerPluginScriptArgs:
    """What `PyTorchProfilerPlugin` passes to its converter: its fields of the same names."""

    profile_step_start: int
    profile_step_end: int
    profile_ranks: list[int]
    record_memory_history: bool
    memory_snapshot_path: str
    record_shapes: bool


_NSYS_FILE_ON_SLURM = "profile_job%q{SLURM_JOB_ID}_rank%q{SLURM_PROCID}_%p"
"""nsys fills in variables (%q) and the process id (%p). nemo_run's own name has only the process
id, so two nodes of one job can overwrite each other's profile."""


@dataclass(kw_only=True)
class PerfEnvPlugin(Plugin):
    """Sets the environment that overlap needs, manual garbage collection and vboost.

    Attributes:
        enable_layernorm_sm_margin: whether LayerNorm leaves SMs to data-parallel collectives.
        layernorm_sm_margin: how many SMs it leaves.
        enable_vboost: whether to give the tensor cores more of the power budget; Slurm only, and
            it needs sudo for nvidia-smi on the nodes.
        nccl_pp_comm_chunksize: bytes per NCCL chunk of a pipeline send; None leaves it to NCCL.
        gpu_sm100_or_newer: Blackwell or newer.
        enable_manual_gc: whether all ranks collect garbage at the same steps, so that no rank makes
            the others wait at another step.
        manual_gc_interval: training steps between collections.
        tp_size: tensor-parallel size.
        cp_size: context-parallel size.
        pp_size: pipeline-parallel size.
        script_args_converter_fn: turns `PerfEnvPluginScriptArgs` into the script's own arguments;
            None makes Hydra-style overrides.
        num_gpus: GPUs in the whole job.
        moe_flex_dispatcher_backend: "deepep" or "hybridep" where the flex dispatcher is in use.
        a2a_overlap: whether the expert all-to-all overlaps another micro-batch's compute.
        dp_size: data-parallel size, num_gpus // (TP x CP x PP); set by `setup`.
    """

    enable_layernorm_sm_margin: bool = True
    layernorm_sm_margin: int = 16
    enable_vboost: bool = False
    nccl_pp_comm_chunksize: int | None = None
    gpu_sm100_or_newer: bool = False
    enable_manual_gc: bool = True
    manual_gc_interval: int = 100
    tp_size: int = 1
    cp_size: int = 1
    pp_size: int = 1
    script_args_converter_fn: Callable[[PerfEnvPluginScriptArgs], list[str]] | None = None
    num_gpus: int = 8
    moe_flex_dispatcher_backend: str | None = None
    a2a_overlap: bool = False
    dp_size: int = field(init=False, repr=False, compare=False)

    def setup(self, task: Any, executor: Any) -> None:
        """Write the environment to `executor` and append the overrides to `task.args`.

        A variable that `executor.env_vars` already sets to another value is replaced, with a
        warning. Nothing is changed where an error is raised.

        Raises:
            ImportError: nemo_run is not installed.
            NotImplementedError: `task` is not a `nemo_run.Script`.
            OverlapConfigError: a size, the margin, the chunk size or the interval is out of range.
        """
        _require_script(self, task)
        require_int("layernorm_sm_margin", self.layernorm_sm_margin, at_least=0)
        variables = launch_environment(self._launch_settings(), PERF_ENV_PLUGIN)
        if self.enable_manual_gc:
            require_int("manual_gc_interval", self.manual_gc_interval, at_least=0)

        self._set_num_cuda_device_max_connections(task, executor)
        for variable in variables:
            _set(executor, variable)
        if self.enable_manual_gc:
            convert = self.script_args_converter_fn or _perf_env_overrides
            _append(task, convert(PerfEnvPluginScriptArgs(True, self.manual_gc_interval)))
        if self.enable_vboost:
            self._add_vboost(executor)

    def get_vboost_srun_cmd(self, nodes: int, job_dir: str) -> str:
        """The shell line that turns vboost on, once on each of `nodes` nodes.

        Its output goes to ``vboost.out`` and ``vboost.err`` in `job_dir`, a folder on the cluster.
        """
        folder = PurePosixPath(job_dir)
        return shlex.join(
            [
                "srun",
                f"--ntasks={nodes}",
                "--output",
                str(folder / "vboost.out"),
                "--error",
                str(folder / "vboost.err"),
                *("bash", "-c", "sudo nvidia-smi boost-slider --vboost 1"),
            ]
        )

    def _set_num_cuda_device_max_connections(self, task: Any, executor: Any) -> None:
        """Set the number of hardware queues alone; subclasses of Megatron-Bridge's plugin call it.

        Raises:
            OverlapConfigError: as `setup`.
        """
        settings = self._launch_settings()
        self.dp_size = settings.dp_size
        if self.num_gpus % settings.model_parallel_size:
            # Only a warning: callers leave the default on jobs of any size.
            logger.warning(
                "num_gpus=%d is not a multiple of tp_size=%d x cp_size=%d x pp_size=%d: set it to "
                "the GPUs of the whole job. Continuing with dp_size=%d.",
                self.num_gpus,
                self.tp_size,
                self.cp_size,
                self.pp_size,
                settings.dp_size,
            )
        for variable in launch_environment(settings, PERF_ENV_PLUGIN):
            if variable.name == CONNECTIONS:
                _set(executor, variable)

    def _launch_settings(self) -> LaunchSettings:
        return LaunchSettings(
            gpu_sm100_or_newer=self.gpu_sm100_or_newer,
            tp_size=self.tp_size,
            cp_size=self.cp_size,
            pp_size=self.pp_size,
            num_gpus=self.num_gpus,
            moe_flex_dispatcher_backend=self.moe_flex_dispatcher_backend,
            a2a_overlap=self.a2a_overlap,
            enable_layernorm_sm_margin=self.enable_layernorm_sm_margin,
            layernorm_sm_margin=self.layernorm_sm_margin,
            nccl_pp_comm_chunksize=self.nccl_pp_comm_chunksize,
        )

    def _add_vboost(self, executor: Any) -> None:
        if not isinstance(executor, run.SlurmExecutor):
            logger.warning(
                "enable_vboost=True has no effect on %s: only a SlurmExecutor runs setup lines.",
                type(executor).__name__,
            )
            return
        line = self.get_vboost_srun_cmd(executor.nodes, executor.tunnel.job_dir)
        lines = executor.setup_lines or ""
        # In a job group nemo_run sets up each task on the same executor.
        if line not in lines:
            separator = "\n" if lines and not lines.endswith("\n") else ""
            executor.setup_lines = f"{lines}{separator}{line}"


@dataclass(kw_only=True)
class NsysPlugin(Plugin):
    """Profiles steps of the run with Nsight Systems.

    Attributes:
        profile_step_start: first step to profile, from 0.
        profile_step_end: the step at which profiling stops.
        profile_ranks: global ranks to profile; None or empty means rank 0.
        nsys_trace: what nsys traces; None means nvtx and cuda.
        record_shapes: whether to record the tensors' shapes.
        nsys_gpu_metrics: whether to sample GPU metrics; nemo_run does so on Slurm only, on the
            nodes in the environment variable GPU_METRICS_NODES.
        script_args_converter_fn: turns `NsysPluginScriptArgs` into the script's own arguments;
            None makes Hydra-style overrides.
    """

    profile_step_start: int
    profile_step_end: int
    profile_ranks: list[int] | None = None
    nsys_trace: list[str] | None = None
    record_shapes: bool = False
    nsys_gpu_metrics: bool = False
    script_args_converter_fn: Callable[[NsysPluginScriptArgs], list[str]] | None = None

    def setup(self, task: Any, executor: Any) -> None:
        """Set the launcher of `executor` to run nsys and append the overrides to `task.args`.

        Raises:
            ImportError: nemo_run is not installed.
            NotImplementedError: `task` is not a `nemo_run.Script`.
            OverlapConfigError: the steps or the ranks are out of range.
        """
        _require_script(self, task)
        ranks = _profiled_ranks(self.profile_step_start, self.profile_step_end, self.profile_ranks)

        launcher = executor.get_launcher()
        launcher.nsys_profile = True
        launcher.nsys_trace = list(self.nsys_trace or ("nvtx", "cuda"))
        if isinstance(executor, run.SlurmExecutor):
            launcher.nsys_filename = _NSYS_FILE_ON_SLURM
        if self.nsys_gpu_metrics:
            launcher.nsys_gpu_metrics = True
            if not isinstance(executor, run.SlurmExecutor):
                logger.warning(
                    "nsys_gpu_metrics=True has no effect on %s: nemo_run samples GPU metrics only "
                    "through a SlurmExecutor.",
                    type(executor).__name__,
                )
        convert = self.script_args_converter_fn or _nsys_overrides
        args = NsysPluginScriptArgs(
            profile_step_start=self.profile_step_start,
            profile_step_end=self.profile_step_end,
            profile_ranks=ranks,
            record_shapes=self.record_shapes,
        )
        _append(task, convert(args))


@dataclass(kw_only=True)
class PyTorchProfilerPlugin(Plugin):
    """Profiles steps of the run with torch.profiler.

    Attributes:
        profile_step_start: first step to profile, from 0.
        profile_step_end: the step at which profiling stops.
        profile_ranks: global ranks to profile; None or empty means rank 0.
        record_memory_history: whether to record CUDA allocations as well.
        memory_snapshot_path: file for that record.
        record_shapes: whether to record the tensors' shapes.
        script_args_converter_fn: turns `PyTorchProfilerPluginScriptArgs` into the script's own
            arguments; None makes Hydra-style overrides.
    """

    profile_step_start: int
    profile_step_end: int
    profile_ranks: list[int] | None = None
    record_memory_history: bool = False
    memory_snapshot_path: str = "snapshot.pickle"
    record_shapes: bool = False
    script_args_converter_fn: Callable[[PyTorchProfilerPluginScriptArgs], list[str]] | None = None

    def setup(self, task: Any, executor: Any) -> None:
        """Append the overrides to `task.args`; `executor` is not changed.

        Raises:
            ImportError: nemo_run is not installed.
            NotImplementedError: `task` is not a `nemo_run.Script`.
            OverlapConfigError: the steps or the ranks are out of range.
        """
        _require_script(self, task)
        ranks = _profiled_ranks(self.profile_step_start, self.profile_step_end, self.profile_ranks)

        convert = self.script_args_converter_fn or _pytorch_profiler_overrides
        args = PyTorchProfilerPluginScriptArgs(
            profile_step_start=self.profile_step_start,
            profile_step_end=self.profile_step_end,
            profile_ranks=ranks,
            record_memory_history=self.record_memory_history,
            memory_snapshot_path=self.memory_snapshot_path,
            record_shapes=self.record_shapes,
        )
        _append(task, convert(args))


def _set(executor: Any, variable: EnvironmentVariable) -> None:
    """Set a variable of an executor's job; another value that is there is replaced."""
    if executor.env_vars is None:
        executor.env_vars = {}
    before = executor.env_vars.get(variable.name, variable.value)
    if str(before).strip() != variable.value:
        logger.warning(
            "executor.env_vars sets %s=%s; PerfEnvPlugin replaces it with %s. %s",
            variable.name,
            before,
            variable.value,
            variable.reason,
        )
    executor.env_vars[variable.name] = variable.value


def _perf_env_overrides(args: PerfEnvPluginScriptArgs) -> list[str]:
    return [
        f"train.manual_gc={_hydra(args.enable_manual_gc)}",
        f"train.manual_gc_interval={args.manual_gc_interval}",
    ]


def _nsys_overrides(args: NsysPluginScriptArgs) -> list[str]:
    return ["profiling.use_nsys_profiler=true", *_profiling_overrides(args)]


def _pytorch_profiler_overrides(args: PyTorchProfilerPluginScriptArgs) -> list[str]:
    return ["profiling.use_pytorch_profiler=true", *_profiling_overrides(args)]


def _profiling_overrides(args: NsysPluginScriptArgs | PyTorchProfilerPluginScriptArgs) -> list[str]:
    """The override of each field: Bridge's profiling section uses the same names."""
    return [f"profiling.{name}={_hydra(value)}" for name, value in vars(args).items()]


def _hydra(value: object) -> str:
    """A value as in a Hydra override; lists have no spaces, so that they stay one shell word."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_hydra(item) for item in value)}]"
    return str(value)


def _append(task: Any, args: Iterable[str]) -> None:
    if task.args is None:
        task.args = []
    task.args.extend(args)


def _require_script(plugin: object, task: object) -> None:
    """Refuse to run without nemo_run, and on tasks that take no command-line arguments."""
    name = type(plugin).__name__
    if not HAVE_NEMO_RUN:
        cause = f" ({_IMPORT_ERROR})" if _IMPORT_ERROR else ""
        raise ImportError(
            f"{name} needs nemo_run, which cannot be imported{cause}: `pip install nemo-run`, or "
            "install this package with its `nemo-run` extra."
        ) from _IMPORT_ERROR
    if not isinstance(task, run.Script):
        raise NotImplementedError(
            f"{name} supports nemo_run.Script tasks, not {type(task).__name__}: its settings "
            "become command-line overrides. Wrap the training entry point in a run.Script."
        )


def _profiled_ranks(start: int, end: int, ranks: list[int] | None) -> list[int]:
    """The ranks to profile, after checking them and the steps.

    Raises:
        OverlapConfigError: a step or rank is negative or not an integer, or there are no steps.
    """
    require_int("profile_step_start", start, at_least=0)
    require_int("profile_step_end", end, at_least=0)
    if end <= start:
        raise OverlapConfigError(
            f"profile_step_end={end} is not after profile_step_start={start}: nothing would be "
            "profiled; set it to a later step."
        )
    for rank in ranks or ():
        require_int("profile_ranks", rank, at_least=0)
    return list(ranks or [0])
