"""What a run keeps in the host's memory: optimizer state, and activations of layers."""

from __future__ import annotations

from dataclasses import dataclass

from overlapkit.config.run import Run
from overlapkit.errors import InputError


@dataclass(frozen=True)
class Offload:
    """What is not on the GPU.

    Attributes:
        optimizer: share of the optimizer's state, which the host also updates.
        layers: how many layers' activations of a microbatch are copied to the host in the forward
            and back in the backward.
    """

    optimizer: float = 0.0
    layers: int = 0


def offload_of(run: Run) -> Offload:
    """What a run offloads.

    Raises:
        InputError: an impossible share, or a number of layers below 0.
    """
    share = getattr(run.optimizer, "optimizer_offload_fraction", 0.0) or 0.0
    if not 0 <= share <= 1:
        raise InputError(f"optimizer.optimizer_offload_fraction={share}: must be from 0 to 1")
    layers = getattr(run.model, "cpu_offloading_num_layers", 0) or 0
    if layers < 0:
        raise InputError(f"model.cpu_offloading_num_layers={layers}: must be 0 or more")
    return Offload(
        optimizer=float(share) if getattr(run.optimizer, "optimizer_cpu_offload", False) else 0.0,
        layers=layers if getattr(run.model, "cpu_offloading", False) else 0,
    )
