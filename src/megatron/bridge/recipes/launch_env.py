"""The process environment that a run's overlap needs, as a pure function of its settings.

CUDA, Transformer Engine and NCCL read these variables once, when the process starts or the library
is first used. A configuration object is too late to set them: they belong to the launch.
`PerfEnvPlugin` sets what `launch_environment` returns, `explain` and `plan` show it, and
`launch_check` compares it with an existing environment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron.bridge.recipes.launch_queues import (
    CONNECTIONS,
    PERF_ENV_PLUGIN,
    PLUGIN,
    PLUGIN_SOURCE,
    RECIPES,
    RECIPES_SOURCE,
    max_connections,
    why,
)
from megatron.bridge.recipes.launch_settings import LaunchSettings
from megatron.bridge.training.decisions import Dimension, rule
from megatron.bridge.training.rules.machine import MULTICAST, MULTICAST_CAPABILITY, SKIP_MULTICAST
from megatron.bridge.training.versions import NEWEST, Stack

LAYERNORM_MARGINS = ("NVTE_FWD_LAYERNORM_SM_MARGIN", "NVTE_BWD_LAYERNORM_SM_MARGIN")
P2P_CHUNK = "NCCL_P2P_NET_CHUNKSIZE"
PRIORITY = "TORCH_NCCL_HIGH_PRIORITY"

_MARGIN = "NVTE_FWD_LAYERNORM_SM_MARGIN and NVTE_BWD_LAYERNORM_SM_MARGIN keep Transformer Engine's "
LAYERNORM_MARGIN = rule(
    "launch.layernorm-margin",
    Dimension.LAUNCH,
    claim=f"{_MARGIN}LayerNorm kernels off 16 SMs (or layernorm_sm_margin), unless "
    "enable_layernorm_sm_margin is off.",
    versions=PLUGIN,
    source=PLUGIN_SOURCE,
)
LAYERNORM_MARGIN_RECIPES = rule(
    "launch.layernorm-margin-recipes",
    Dimension.LAUNCH,
    claim=f"{_MARGIN}LayerNorm kernels off 20 SMs. A few recipes set another margin for the same "
    "layout (16 in 7 of B200's; 16, 10 or 0 in 6 of H100's), which nothing in their configuration "
    "predicts: 16 lose no overlap.",
    versions=RECIPES,
    source=f"{RECIPES_SOURCE}: 418 of 431",
)
HIGH_PRIORITY = rule(
    "launch.nccl-high-priority",
    Dimension.LAUNCH,
    claim=f"{PRIORITY} is 1: torch launches NCCL's kernels on streams of high priority, so that "
    "they get the next free SMs, before compute kernels that already wait.",
    versions=RECIPES,
    source=f"{RECIPES_SOURCE}: all 431, and every other recipe; torch.distributed's documentation",
)
NCCL_P2P_CHUNK = rule(
    "launch.nccl-p2p-chunk",
    Dimension.LAUNCH,
    claim=f"{P2P_CHUNK} is nccl_pp_comm_chunksize, in bytes, with PP > 1; otherwise it is not set.",
    source=f"{PLUGIN_SOURCE}; 2097152 in main's recipes with PP > 1",
)


NOT_ADVISED = {
    "NCCL_NVLS_ENABLE": "0 in 415 of 431 recipes: memory of NVLink SHARP, which overlap does not "
    "need",
    "TORCH_NCCL_AVOID_RECORD_STREAMS": "1, but 0 with full-iteration CUDA graphs: when memory is "
    "freed",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True: fragmentation",
    "NCCL_GRAPH_REGISTER": "0: buffers in CUDA graphs",
    "NVLINK_DOMAIN_SIZE": "8 or 72: the reach of HybridEP's kernels, with USE_MNNVL and "
    "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN",
    "NCCL_P2P_NET_CHUNKSIZE": "2097152 with PP > 1: the rate of pipeline sends; asked for only "
    "where a size is given",
    "NCCL_IGNORE_CPU_AFFINITY": "1 on B300: where NCCL's threads run",
}
"""Variables of Megatron-Bridge's performance recipes that do not decide about overlap, and why.

Values and counts: main of 2026-08-22.
"""


@dataclass(frozen=True)
class EnvironmentVariable:
    """One variable to set before the process starts.

    Attributes:
        name: its name.
        value: its value, as text.
        reason: why, in one sentence with the settings that it depends on.
        rule: id of the rule that chose the value.
        least: the smallest number that loses no overlap; None where only the value itself does.
    """

    name: str
    value: str
    reason: str
    rule: str
    least: int | None = None


def launch_environment(
    settings: LaunchSettings, stack: Stack = NEWEST
) -> tuple[EnvironmentVariable, ...]:
    """The variables that a run with these settings needs, in a fixed order.

    Args:
        settings: the layout and what else they depend on.
        stack: the versions whose rules apply: PerfEnvPlugin's until Megatron-Bridge 0.6.0, since
            then those of its performance recipes.
    """
    number, chosen_by = max_connections(settings, stack)
    before, _ = max_connections(settings, PERF_ENV_PLUGIN)
    variables = [
        EnvironmentVariable(
            CONNECTIONS,
            str(number),
            why(settings, stack),
            chosen_by.id,
            min(number, before) if settings.overlaps else 1,
        )
    ]
    if settings.enable_layernorm_sm_margin:
        variables += _margins(settings, stack)
    if HIGH_PRIORITY.holds(stack):
        reason = (
            "NCCL's kernels run on streams of high priority: they get the next free SMs, before "
            "the compute kernels that already wait."
        )
        variables.append(EnvironmentVariable(PRIORITY, "1", reason, HIGH_PRIORITY.id))
    if settings.userbuffers and not settings.multicast:
        reason = (
            "these GPUs have no NVLink multicast (compute capability below "
            f"{MULTICAST_CAPABILITY}): without it userbuffers stop the job when they are set up."
        )
        variables.append(EnvironmentVariable(SKIP_MULTICAST, "1", reason, MULTICAST.id))
    if settings.pp_size > 1 and settings.nccl_pp_comm_chunksize is not None:
        size = settings.nccl_pp_comm_chunksize
        reason = (
            f"pp_size={settings.pp_size} and nccl_pp_comm_chunksize={size}: NCCL sends each "
            f"activation and gradient to another pipeline stage in chunks of {size} bytes."
        )
        variables.append(EnvironmentVariable(P2P_CHUNK, str(size), reason, NCCL_P2P_CHUNK.id))
    return tuple(variables)


def _margins(settings: LaunchSettings, stack: Stack) -> Iterator[EnvironmentVariable]:
    """The LayerNorm margins: the requested number of SMs, or the one of the version's rule."""
    number, chosen_by = next((n, r) for n, r in _LAYERNORM_MARGINS if r.holds(stack))
    least = min(number for number, _ in _LAYERNORM_MARGINS)
    if settings.layernorm_sm_margin is not None:
        number = least = settings.layernorm_sm_margin
    reason = (
        f"layernorm_sm_margin={number}: Transformer Engine's LayerNorm kernels wait until all "
        "the SMs that they claim are free. A kernel that claimed every SM would wait for a "
        "data-parallel collective that uses a few, and all later kernels would wait for it."
    )
    for name in LAYERNORM_MARGINS:
        yield EnvironmentVariable(name, str(number), reason, chosen_by.id, least)


_LAYERNORM_MARGINS = ((16, LAYERNORM_MARGIN), (20, LAYERNORM_MARGIN_RECIPES))
