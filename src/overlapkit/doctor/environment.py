"""Environment variables that disable all overlap, whatever the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from megatron.bridge.recipes.launch_env import LAYERNORM_MARGINS
from megatron.bridge.recipes.launch_queues import CONNECTIONS, CONNECTIONS_RANGE
from overlapkit.doctor.finding import Evidence, Finding
from overlapkit.output.console import encodable

SHOWN = (
    CONNECTIONS,
    *LAYERNORM_MARGINS,
    "CUDA_LAUNCH_BLOCKING",
    "TORCH_NCCL_BLOCKING_WAIT",
    "NCCL_BLOCKING_WAIT",
    "NCCL_P2P_DISABLE",
    "NCCL_IB_DISABLE",
    "NCCL_MAX_CTAS",
    "UB_SKIPMC",
)
"""Variables that are listed where they are set."""

_ON = frozenset({"1", "true", "yes", "on"})

# CUDA programming guide: with 1 every launch waits until its kernel has finished. PyTorch's
# documentation of torch.distributed: with a blocking wait, wait() blocks the host.
_BLOCKING = {
    "CUDA_LAUNCH_BLOCKING": "every kernel launch waits until the kernel has finished, so no two "
    "kernels ever run at the same time",
    "TORCH_NCCL_BLOCKING_WAIT": "the host blocks at every wait for a collective, and launches no "
    "compute that could hide it",
    "NCCL_BLOCKING_WAIT": "the host blocks at every wait for a collective, and launches no compute "
    "that could hide it",
}


def shown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of interest that are set; values are cut to 80 characters."""
    return {n: encodable(environment[n])[:80] for n in SHOWN if n in environment}


def environment_findings(
    environment: Mapping[str, str], source: str, *, configured: bool
) -> Iterator[Finding]:
    """Findings that do not depend on the configuration.

    Args:
        environment: the job's environment, or the current one.
        source: where it comes from, as the user sees it.
        configured: whether there is a configuration, whose rules check CUDA_DEVICE_MAX_CONNECTIONS.
    """
    for name, harm in _BLOCKING.items():
        value = environment.get(name, "").strip().lower()
        if value in _ON:
            yield _finding(name, value, source, harm, f"unset {name}")
    queues = environment.get(CONNECTIONS)
    if queues is not None and not configured:
        text = queues.strip()
        valid = text.isascii() and text.isdecimal() and len(text) < 4
        if not valid or int(text) not in CONNECTIONS_RANGE:
            harm = "CUDA takes an integer from 1 to 32"
            yield _finding(CONNECTIONS, encodable(text)[:40], source, harm, f"unset {CONNECTIONS}")


def _finding(name: str, value: str, source: str, harm: str, remedy: str) -> Finding:
    return Finding(
        f"environment.{name}",
        "environment",
        f"{name}={value}: {harm}",
        (Evidence("environment", f"{source} sets {name}={value}"),),
        remedy,
        knobs=(f"env.{name}",),
    )
