"""The sets of queries: for our own source, for Megatron-Bridge and for Megatron-LM.

Where NVIDIA's code decides was looked up in Megatron-Bridge 0.2.0 to main of 2026-08, in its
revisions before 0.2.0, and in Megatron-LM core 0.8 to 0.19.
"""

from __future__ import annotations

from dataclasses import dataclass

from overlapkit.skill.anchors.predicates import (
    Predicate,
    assigns,
    begins,
    branch_on,
    demands,
    sets_variable,
    tests,
    uses,
)


@dataclass(frozen=True)
class Where:
    """A place by its structure.

    Attributes:
        path: of the file, as a checkout has it.
        symbol: dotted name of a function, a class or an assigned name; empty for the whole file.
        statement: which statement in it; None for all of it.
        note: what to say where this place answers instead of an earlier one.
    """

    path: str
    symbol: str
    statement: Predicate | None = None
    note: str = ""


@dataclass(frozen=True)
class Query:
    """What is looked for, and the places where versions have it.

    Attributes:
        label: what is decided there.
        places: the first that a checkout has is the answer.
        main: whether SKILL.md shows it; else only the page of all anchors.
        effects_first: whether what it assigns says more than the branches in it.
        always: whether a checkout without it is told so; else only some versions have it.
    """

    label: str
    places: tuple[Where, ...]
    main: bool = True
    effects_first: bool = False
    always: bool = True


TP = "TP gating"
PP = "PP selection"
DP = "DP defaults"
LAUNCH = "Launch-time environment"
_VARIABLE = "CUDA_DEVICE_MAX_CONNECTIONS"

_RULES = "src/megatron/bridge/training/rules"
OWN = (
    Query(TP, (Where(f"{_RULES}/tensor.py", "decide_tp_overlap", begins("for broken in unmet")),)),
    Query(PP, (Where(f"{_RULES}/pipeline.py", "select_p2p", branch_on("vpp", above=1)),)),
    Query(DP, (Where(f"{_RULES}/data_parallel.py", "decide_dp", begins("defaults = {")),)),
    Query(
        LAUNCH,
        (
            Where(
                "src/megatron/bridge/recipes/launch_queues.py",
                "max_connections",
                assigns("chosen"),
            ),
        ),
    ),
    Query(
        "EP gating",
        (Where(f"{_RULES}/expert.py", "_decide_gated", assigns("broken")),),
        main=False,
    ),
    Query(
        "Bucket size of auto",
        (
            Where(
                "src/megatron/bridge/training/bucket_size.py",
                "auto_bucket_size",
                begins("return min("),
            ),
        ),
        main=False,
    ),
)

_OVERLAP = "src/megatron/bridge/training/comm_overlap.py"
_MODEL = "CommOverlapConfig._get_model_comm_overlap_cfgs"
_OPTIMIZER = "CommOverlapConfig._get_optimizer_overlap_cfgs"
_CONFIG = "src/megatron/bridge/training/config.py"
BRIDGE = (
    Query(TP, (Where(_OVERLAP, _MODEL, branch_on("user_comm_overlap_cfg.tp_comm_overlap")),)),
    Query(
        PP,
        (Where(_OVERLAP, _MODEL, branch_on("pipeline_model_parallel_size", above=1)),),
    ),
    Query(
        DP,
        (Where(_OVERLAP, _OPTIMIZER, branch_on("data_parallel_size", above=1)),),
        effects_first=True,
    ),
    Query(
        LAUNCH,
        (
            Where(
                "src/megatron/bridge/recipes/run_plugins.py",
                "PerfEnvPlugin",
                sets_variable(_VARIABLE),
            ),
            Where(
                _OVERLAP,
                "CommOverlapConfig._set_num_cuda_device_max_connections",
                sets_variable(_VARIABLE),
                "before PerfEnvPlugin did, CommOverlapConfig set it",
            ),
            Where(
                _CONFIG,
                "ConfigContainer.env_vars",
                None,
                "since Megatron-Bridge 0.6.0 no plugin sets it: recipes do, in env_vars, with the "
                "values of perf_recipes/",
            ),
        ),
    ),
    Query(
        "EP gating",
        (
            Where(
                _OVERLAP,
                _MODEL,
                branch_on("user_comm_overlap_cfg.overlap_moe_expert_parallel_comm"),
            ),
        ),
        main=False,
    ),
    Query(
        "Delayed weight gradients",
        (Where(_OVERLAP, _MODEL, branch_on("user_comm_overlap_cfg.delay_wgrad_compute")),),
        main=False,
    ),
    Query(
        "Bucket size",
        (Where(_OVERLAP, _OPTIMIZER, assigns("bucket_size", but=(None,))),),
        main=False,
    ),
    Query(
        "Userbuffers applied",
        (Where(_OVERLAP, "CommOverlapConfig.setup", branch_on("model_config.tp_comm_overlap")),),
        main=False,
    ),
    Query(
        "Environment of the recipe applied",
        (Where(_CONFIG, "", uses("env_vars")),),
        main=False,
        always=False,
    ),
)

_ARGUMENTS = "megatron/training/arguments.py"
_DDP = "megatron/core/distributed/distributed_data_parallel.py"
_SCHEDULES = "megatron/core/pipeline_parallel/schedules.py"
MEGATRON_LM = (
    Query(TP, (Where(_ARGUMENTS, "validate_args", branch_on("args.tp_comm_overlap")),)),
    Query(
        PP,
        (Where(_ARGUMENTS, "validate_args", assigns("overlap_p2p_comm")),),
    ),
    Query(DP, (Where(_ARGUMENTS, "validate_args", branch_on("args.overlap_param_gather")),)),
    Query(
        LAUNCH,
        (
            Where(_ARGUMENTS, "validate_args", demands(_VARIABLE, "1")),
            Where(_ARGUMENTS, "validate_args", tests(_VARIABLE)),
        ),
    ),
    Query(
        "EP gating",
        (Where(_ARGUMENTS, "validate_args", branch_on("args.overlap_moe_expert_parallel_comm")),),
        main=False,
    ),
    Query(
        "Bucket size",
        (Where(_DDP, "DistributedDataParallel.__init__", assigns("bucket_size", but=(None,))),),
        main=False,
    ),
    Query(
        "One bucket in later stages and chunks",
        (Where(_DDP, "DistributedDataParallel.__init__", branch_on("disable_bucketing")),),
        main=False,
        always=False,
    ),
    Query(
        "Overlapped p2p excludes batched p2p",
        (
            Where(
                _SCHEDULES,
                "forward_backward_pipelining_with_interleaving",
                branch_on("overlap_p2p_comm", "batch_p2p_comm"),
            ),
        ),
        main=False,
        always=False,
    ),
)
