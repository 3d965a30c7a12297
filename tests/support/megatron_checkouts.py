"""Small checkouts with the structure of NVIDIA's repositories over their versions.

The names of files, classes, methods and knobs are NVIDIA's; the code between them is not.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

PACKAGE = """\
MAJOR, PRE_RELEASE = 0, ""
MAJOR = {0}
MINOR = {1}
PATCH = {2}
"""
VARIABLE = "CUDA_DEVICE_MAX_CONNECTIONS"

_TP_AND_PP = """\
def _get_model_comm_overlap_cfgs(self, model_cfg, ddp_config=None):
    cfg = _CommOverlapConfig()
    vp_size = model_cfg.virtual_pipeline_model_parallel_size or 1
    if self.user_comm_overlap_cfg.tp_comm_overlap is True:
        if model_cfg.tensor_model_parallel_size < 2:
            self.user_comm_overlap_cfg.tp_comm_overlap = False
        elif not model_cfg.sequence_parallel:
            self.user_comm_overlap_cfg.tp_comm_overlap = False
        elif not HAVE_TE:
            self.user_comm_overlap_cfg.tp_comm_overlap = False
    if model_cfg.pipeline_model_parallel_size > 1:
        if vp_size > 1:
            cfg.overlap_p2p_comm = True
            cfg.batch_p2p_comm = False
        else:
            cfg.overlap_p2p_comm = False
            cfg.batch_p2p_comm = True
    else:
        cfg.overlap_p2p_comm = False
"""
_EP = """\
    if self.user_comm_overlap_cfg.overlap_moe_expert_parallel_comm is True:
        assert model_cfg.expert_model_parallel_size > 1, (
            "EP"
        )
        if model_cfg.pipeline_model_parallel_size > 1:
            assert model_cfg.virtual_pipeline_model_parallel_size is not None
    if self.user_comm_overlap_cfg.delay_wgrad_compute is True:
        assert model_cfg.overlap_moe_expert_parallel_comm
"""
_DP = """\
def _get_optimizer_overlap_cfgs(self, model_cfg):
    cfg = _CommOverlapConfig()
    cfg.bucket_size = None
    if self.data_parallel_size > 1:
        cfg.bucket_size = 128 * 1024 * 1024
        cfg.overlap_grad_reduce = True
        cfg.overlap_param_gather = True
        if model_cfg.pipeline_model_parallel_size > 1:
            cfg.align_param_gather = True
    return cfg

def setup(self, model_config, optimizer_config, ddp_config):
    if model_config.tp_comm_overlap:
        model_config.tp_comm_overlap_cfg = asdict(self.tp_comm_overlap_cfg)
"""
_CONNECTIONS = f"""\
def _set_num_cuda_device_max_connections(self, model_cfg):
    if model_cfg.tensor_model_parallel_size > 1:
        os.environ["{VARIABLE}"] = "1"
    elif "{VARIABLE}" in os.environ:
        os.environ.pop("{VARIABLE}")
"""
_PLUGIN = f"""\
    class PerfEnvPlugin(Plugin):
        def _set_num_cuda_device_max_connections(self, task, executor):
            connections = 8
            if self.tp_size > 1:
                connections = 1
            executor.env_vars["{VARIABLE}"] = str(connections)
            logger.info(f"Set {VARIABLE} to {{connections}}")
"""


def _overlap(*methods: str) -> str:
    head = "@dataclass(kw_only=True)\nclass CommOverlapConfig:\n    tp_comm_overlap: bool\n\n"
    return "import os\n\n\n" + head + "\n".join(indent(each, "    ") for each in methods)


def bridge(root: Path, generation: str) -> Path:
    """A checkout of Megatron-Bridge.

    Args:
        root: the folder, made if it is not there.
        generation: "early": before PerfEnvPlugin and under another package name; "plugin": 0.2 to
            0.5; "moved": the same, with the plugin among the scripts; "env_vars": since 0.6.
    """
    package = "src/megatron/hub" if generation == "early" else "src/megatron/bridge"
    ep = "" if generation == "early" else _EP
    files = {
        "training/comm_overlap.py": _overlap(
            *([_TP_AND_PP + ep, _DP] + ([_CONNECTIONS] if generation == "early" else []))
        ),
        "training/config.py": "class ConfigContainer:\n    train: TrainingConfig\n",
    }
    plugin = "if HAVE_NEMO_RUN:\n" + _PLUGIN
    if generation == "plugin":
        files["recipes/run_plugins.py"] = plugin
        files["package_info.py"] = PACKAGE.format(0, 3, 1)
    if generation == "moved":
        write(root, "scripts/performance/perf_plugins.py", plugin)
    if generation == "env_vars":
        without = plugin.replace("executor.env_vars[", "values[").replace(f'"{VARIABLE}"', "'X'")
        write(root, "scripts/performance/perf_plugins.py", without)
        files["training/config.py"] = dedent(
            """\
            class ConfigContainer:
                env_vars: dict[str, str] = field(default_factory=dict)
                train: TrainingConfig


            def runtime_config_update(cfg):
                for name, value in cfg.env_vars.items():
                    os.environ.setdefault(name, str(value))
            """
        )
        files["package_info.py"] = PACKAGE.format(0, 6, 0)
    for name, text in files.items():
        write(root, f"{package}/{name}", text)
    # Neither is source of the checkout's own.
    write(root, "tests/unit_tests/test_overlap.py", files["training/comm_overlap.py"])
    return root


_ARGUMENTS = f"""\
def validate_args(args, defaults=None):
    if args.num_layers_per_virtual_pipeline_stage is not None:
        assert args.pipeline_model_parallel_size > 1
    else:
        args.overlap_p2p_comm = False
    if args.overlap_param_gather:
        assert args.use_distributed_optimizer
    if args.tp_comm_overlap:
        assert args.sequence_parallel == True
    if args.use_torch_fsdp2:
        assert os.environ.get("{VARIABLE}") != "1"
    if args.tensor_model_parallel_size > 1:
        if args.overlap_moe_expert_parallel_comm:
            warn("larger")
        else:
            assert os.environ.get('{VARIABLE}') == "1", \\
                "required"
"""
_BUCKETS = """\
class DistributedDataParallel:
    def __init__(self, config, ddp_config, module):
        if ddp_config.bucket_size is None:
            ddp_config.bucket_size = max(40000000, 1000000 * dp_size)
        if not ddp_config.overlap_grad_reduce:
            ddp_config.bucket_size = None
        if disable_bucketing or pp_rank > 0:
            self.bucket_size = None
"""
_SCHEDULES = """\
def forward_backward_pipelining_with_interleaving(config):
    if config.overlap_p2p_comm and config.batch_p2p_comm:
        raise ValueError("Can not use both overlap_p2p_comm and batch_p2p_comm")
"""


def megatron_lm(root: Path, *, old: bool = False) -> Path:
    """A checkout of Megatron-LM; an old one has the arguments beside the packages."""
    write(root, "megatron/arguments.py" if old else "megatron/training/arguments.py", _ARGUMENTS)
    write(root, "megatron/core/package_info.py", PACKAGE.format(0, 17, 1))
    write(root, "megatron/core/distributed/distributed_data_parallel.py", _BUCKETS)
    write(root, "megatron/core/pipeline_parallel/schedules.py", _SCHEDULES)
    return root


def write(root: Path, path: str, text: str) -> None:
    """A file below a folder, with the folders that it needs."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
