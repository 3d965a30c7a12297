"""Environment variables that take all overlap away, whatever the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from megatron.bridge.recipes.launch_env import CONNECTIONS, CONNECTIONS_RANGE, LAYERNORM_MARGINS
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
"""Variables that are told where they are set."""

_ON = frozenset({"1", "true", "yes", "on"})

# CUDA programming guide: with 1 every launch waits until its kernel is done. PyTorch's
# documentation of torch.distributed: blocking wait makes wait() hold the host up.
_BLOCKING = {
    "CUDA_LAUNCH_BLOCKING": "every kernel launch waits until the kernel is done, so that nothing "
    "ever runs beside anything else",
    "TORCH_NCCL_BLOCKING_WAIT": "the host stands still at every wait for a collective, and "
    "launches nothing for it to hide under",
    "NCCL_BLOCKING_WAIT": "the host stands still at every wait for a collective, and launches "
    "nothing for it to hide under",
}


def shown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of interest that are set, their values cut to what a sound one has."""
    return {n: encodable(environment[n])[:80] for n in SHOWN if n in environment}


def environment_findings(
    environment: Mapping[str, str], source: str, *, configured: bool
) -> Iterator[Finding]:
    """What holds without knowing the configuration.

    Args:
        environment: the job's, or the present one.
        source: where it comes from, for the reader.
        configured: whether a configuration's rules look at CUDA_DEVICE_MAX_CONNECTIONS themselves.
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
            harm = "CUDA takes a whole number from 1 to 32"
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
