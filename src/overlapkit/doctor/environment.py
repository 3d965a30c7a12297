"""Environment variables that disable all overlap, whatever the configuration."""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.recipes.launch_env import LAYERNORM_MARGINS, PRIORITY
from megatron.bridge.recipes.launch_queues import CONNECTIONS, CONNECTIONS_RANGE
from megatron.bridge.training.job_environment import JobEnvironment
from overlapkit.doctor.finding import Evidence, Finding
from overlapkit.output.console import encodable

SHOWN = (
    CONNECTIONS,
    *LAYERNORM_MARGINS,
    PRIORITY,
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


def shown_variables(environment: JobEnvironment) -> dict[str, str]:
    """The variables of interest that are set; values are cut to 80 characters."""
    known = environment.variables
    return {n: encodable(known[n])[:80] for n in SHOWN if n in known}


def environment_findings(environment: JobEnvironment, *, configured: bool) -> Iterator[Finding]:
    """Findings that do not depend on the configuration.

    Args:
        environment: what is known of the job's environment.
        configured: whether there is a configuration, whose rules check CUDA_DEVICE_MAX_CONNECTIONS.
    """
    for name, harm in _BLOCKING.items():
        value = (environment.get(name) or "").strip().lower()
        if value in _ON:
            yield _finding(name, value, environment, harm)
    queues = environment.get(CONNECTIONS)
    if queues is not None and not configured:
        text = queues.strip()
        valid = text.isascii() and text.isdecimal() and len(text) < 4
        if not valid or int(text) not in CONNECTIONS_RANGE:
            harm = "CUDA takes an integer from 1 to 32"
            yield _finding(CONNECTIONS, encodable(text)[:40], environment, harm)


def _finding(name: str, value: str, environment: JobEnvironment, harm: str) -> Finding:
    return Finding(
        f"environment.{name}",
        "environment",
        f"{name}={value}: {harm}",
        (Evidence("environment", f"{environment.origin(name)} sets {name}={value}"),),
        f"unset {name}",
        knobs=(f"env.{name}",),
    )
