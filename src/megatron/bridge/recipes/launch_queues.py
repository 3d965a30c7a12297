"""CUDA_DEVICE_MAX_CONNECTIONS: how many hardware queues a run needs, by Megatron-Bridge version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron.bridge.recipes.launch_settings import FLEX_BACKENDS, HYBRIDEP, LaunchSettings
from megatron.bridge.training.decisions import Dimension, Rule, rule
from megatron.bridge.training.versions import KNOWN, Range, Stack

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
CONNECTIONS_RANGE = range(1, 33)
"""The valid values by CUDA's programming guide (environment variables); the default is 8."""

PERF_ENV_PLUGIN = KNOWN[0]
"""The stack whose launch rules `PerfEnvPlugin` follows: Megatron-Bridge 0.3.1's, unchanged until
0.6.0 removed the plugin."""

PLUGIN = (Range("bridge", until="0.6.0"),)
RECIPES = (Range("bridge", since="0.6.0"),)
PLUGIN_SOURCE = "Megatron-Bridge 0.3.1 to 0.5.1, recipes/run_plugins.py: PerfEnvPlugin"
RECIPES_SOURCE = "Megatron-Bridge cce495373: env_vars of perf_recipes, 431 on main of 2026-08-22"

QUEUE_DEFAULT = rule(
    "launch.queue-default",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 8, CUDA's own default, where no other rule needs another number of "
    "hardware queues.",
    versions=PLUGIN,
    source=PLUGIN_SOURCE,
)
QUEUE_FLEX_DISPATCHER = rule(
    "launch.queue-flex-dispatcher",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 32 with moe_flex_dispatcher_backend {' or '.join(FLEX_BACKENDS)}, "
    "unless launch.queue-hopper-order applies.",
    versions=PLUGIN,
    source=PLUGIN_SOURCE,
)
QUEUE_BLACKWELL = rule(
    "launch.queue-blackwell",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 32 on Blackwell or newer with TP or CP > 1 together with DP or PP > "
    "1 (scripts/performance of the same versions: always).",
    versions=PLUGIN,
    source=PLUGIN_SOURCE,
)
QUEUE_HOPPER_ORDER = rule(
    "launch.queue-hopper-order",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 1 on Hopper or older with TP or CP > 1 and without expert all-to-all "
    "overlap, whatever the dispatcher.",
    source=f"{PLUGIN_SOURCE}; 24 of 58 performance recipes of H100 on main",
)
QUEUE_FSDP = rule(
    "launch.queue-fsdp",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 8 with FSDP and TP or CP > 1 on Hopper or older (32 with "
    f"{' or '.join(FLEX_BACKENDS)}): its gathers and reductions run beside compute, which one "
    "queue would prevent. No recipe of Megatron-Bridge has this layout; Megatron-LM, and "
    "Megatron-Bridge since 0.5.1, refuse 1 with FSDP.",
)
QUEUE_RECIPES_BLACKWELL = rule(
    "launch.queue-recipes-blackwell",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 32 on Blackwell or newer, whatever the layout.",
    versions=RECIPES,
    source=f"{RECIPES_SOURCE}: all 373 of Blackwell and Rubin",
)
QUEUE_RECIPES_HYBRIDEP = rule(
    "launch.queue-recipes-hybridep",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 32 on Hopper or older with TP or CP > 1, expert all-to-all overlap "
    "and moe_flex_dispatcher_backend hybridep.",
    versions=RECIPES,
    source=RECIPES_SOURCE,
)
QUEUE_RECIPES_EXPERT_OVERLAP = rule(
    "launch.queue-recipes-expert-overlap",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 8 on Hopper or older with TP or CP > 1 and expert all-to-all overlap, "
    "with every dispatcher but hybridep.",
    versions=RECIPES,
    source=f"{RECIPES_SOURCE}: 3 of 58 of H100",
)
QUEUE_RECIPES_UNSPLIT = rule(
    "launch.queue-recipes-unsplit",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 32 on Hopper or older with TP = CP = 1. Fewer lose no overlap where 8 "
    "were enough before 0.6.0.",
    versions=RECIPES,
    source=f"{RECIPES_SOURCE}: 31 of 58 of H100",
)


@dataclass(frozen=True)
class _Queues:
    """A number of hardware queues, and the layouts that get it."""

    rule: Rule
    number: int
    applies: Callable[[LaunchSettings], bool]
    why: Callable[[LaunchSettings], str]


def max_connections(s: LaunchSettings, stack: Stack) -> tuple[int, Rule]:
    """CUDA_DEVICE_MAX_CONNECTIONS, the number of hardware queues, and the rule that chose it."""
    chosen = next(q for q in _QUEUES if q.rule.holds(stack) and q.applies(s))
    return chosen.number, chosen.rule


def why(s: LaunchSettings, stack: Stack) -> str:
    """Why that many, in one sentence with the settings that it depends on."""
    return next(q for q in _QUEUES if q.rule.holds(stack) and q.applies(s)).why(s)


def _sizes(s: LaunchSettings) -> str:
    return f"tp_size={s.tp_size}, cp_size={s.cp_size}"


def _all_sizes(s: LaunchSettings) -> str:
    return f"{_sizes(s)}, dp_size={s.dp_size}, pp_size={s.pp_size}"


def _generation(s: LaunchSettings) -> str:
    return "Blackwell or newer" if s.gpu_sm100_or_newer else "Hopper or older"


def _why_default(s: LaunchSettings) -> str:
    if not s.splits_layers:
        return (
            f"{_sizes(s)}: there is no collective between a layer's GEMMs, so launch order is not "
            "needed, and separate queues let data- and pipeline-parallel communication run beside "
            "compute."
        )
    if s.gpu_sm100_or_newer:
        return (
            f"{_all_sizes(s)} on {_generation(s)}: launch order is not needed there, and no data- "
            "or pipeline-parallel streams need more queues."
        )
    return _why_expert_overlap(s)


def _why_expert_overlap(s: LaunchSettings) -> str:
    return (
        f"{_sizes(s)}, a2a_overlap={s.a2a_overlap} on {_generation(s)}: the expert all-to-all and "
        "another micro-batch's compute must run at the same time, which one queue would prevent."
    )


def _why_flex(s: LaunchSettings) -> str:
    return (
        f"moe_flex_dispatcher_backend={s.moe_flex_dispatcher_backend!r} with {_sizes(s)} on "
        f"{_generation(s)}: its dispatch and combine run on communication streams, which need "
        "hardware queues separate from compute's."
    )


def _sharded_on_hopper(s: LaunchSettings) -> bool:
    return not s.gpu_sm100_or_newer and s.splits_layers and s.fsdp


# Megatron-Core's `tensor_parallel/layers.py` documents that tensor-parallel collectives rely on
# launch order.
_QUEUES = (
    _Queues(
        QUEUE_HOPPER_ORDER,
        1,
        lambda s: not s.gpu_sm100_or_newer and s.splits_layers and not s.fsdp and not s.a2a_overlap,
        lambda s: (
            f"{_sizes(s)}, a2a_overlap=False on {_generation(s)}: with one hardware queue kernels "
            "start in the order of their launch, so a communication kernel launched before a GEMM "
            "does not wait for it."
        ),
    ),
    _Queues(QUEUE_FSDP, 32, lambda s: _sharded_on_hopper(s) and s.flex, _why_flex),
    _Queues(
        QUEUE_FSDP,
        8,
        _sharded_on_hopper,
        lambda s: (
            f"{_sizes(s)} with FSDP on {_generation(s)}: its gathers and reductions must run "
            "beside compute, which one queue would prevent."
        ),
    ),
    # Until Megatron-Bridge 0.6.0.
    _Queues(
        QUEUE_BLACKWELL,
        32,
        lambda s: s.gpu_sm100_or_newer and s.splits_layers and (s.dp_size > 1 or s.pp_size > 1),
        lambda s: (
            f"{_all_sizes(s)} on {_generation(s)}: launch order is not needed there, and one queue "
            "would serialise the streams of these parallel dimensions."
        ),
    ),
    _Queues(QUEUE_FLEX_DISPATCHER, 32, lambda s: s.flex, _why_flex),
    _Queues(QUEUE_DEFAULT, 8, lambda s: True, _why_default),
    # Since Megatron-Bridge 0.6.0.
    _Queues(
        QUEUE_RECIPES_BLACKWELL,
        32,
        lambda s: s.gpu_sm100_or_newer,
        lambda s: (
            f"{_generation(s)}: launch order is not needed there, and with 32 hardware queues no "
            "stream of communication shares one with compute."
        ),
    ),
    _Queues(
        QUEUE_RECIPES_UNSPLIT,
        32,
        lambda s: not s.splits_layers,
        lambda s: (
            f"{_sizes(s)} on {_generation(s)}: there is no collective between a layer's GEMMs, so "
            "launch order is not needed, and with 32 hardware queues no stream of communication "
            "shares one with compute."
        ),
    ),
    _Queues(
        QUEUE_RECIPES_HYBRIDEP, 32, lambda s: s.moe_flex_dispatcher_backend == HYBRIDEP, _why_flex
    ),
    _Queues(QUEUE_RECIPES_EXPERT_OVERLAP, 8, lambda s: True, _why_expert_overlap),
)
"""In the order in which they are asked: the first that holds for the versions and the layout."""
