"""What one hardware queue costs where launch order is needed, and what breaks its overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron.bridge.recipes.launch_queues import CONNECTIONS, max_connections
from megatron.bridge.recipes.launch_settings import LaunchSettings
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import ENV, REMOVED, Edit
from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.versions import Stack

PRICE = rule(
    "launch.one-queue-price",
    Dimension.LAUNCH,
    claim=f"With {CONNECTIONS}=1, which TP or CP > 1 needs on Hopper or older, data-parallel and "
    "pipeline communication pays: a collective starts only after the compute that was launched "
    "before it, and delays what was launched after it.",
    remedy=f"compare profiles with {CONNECTIONS}=1 and with 2 to 8",
    source="Megatron-LM megatron/core/tensor_parallel/layers.py; CUDA programming guide",
)
TIMING = rule(
    "launch.nccl-timing-one-queue",
    Dimension.LAUNCH,
    claim=f"With {CONNECTIONS}=1, TORCH_NCCL_ENABLE_TIMING=1 (and TORCH_NCCL_DESYNC_DEBUG=1, which "
    "turns the timing on) ends the overlap of NCCL's kernels with compute: torch then records one "
    "more event before every collective.",
    remedy="unset the variable",
    source="pytorch issue 143890 and Transformer Engine issue 1353, reproduced there; torch's "
    "ProcessGroupNCCL",
)
TIMING_VARIABLES = ("TORCH_NCCL_ENABLE_TIMING", "NCCL_ENABLE_TIMING", "TORCH_NCCL_DESYNC_DEBUG")
"""Each makes torch record when a collective starts; the second is a former name of the first."""

_TRUE = ("1", "t", "true", "y", "yes")
"""What torch takes for true, in any case."""


@dataclass(frozen=True)
class Overlapped:
    """What communication of a run overlaps with compute, outside its layers.

    Attributes:
        gradients: whether gradients are reduced, or parameters gathered, while the model computes.
        sends: whether pipeline stages send while they compute.
    """

    gradients: bool
    sends: bool

    def __str__(self) -> str:
        """As a sentence names it."""
        kinds = ["data-parallel"] if self.gradients else []
        kinds += ["pipeline"] if self.sends else []
        return " and ".join(kinds)


def one_queue_consequences(
    needs: LaunchSettings,
    overlapped: Overlapped,
    environment: JobEnvironment,
    stack: Stack,
    *,
    demanded: bool,
) -> Iterator[Decision]:
    """The price of one queue, and what makes it useless.

    Args:
        needs: the layout.
        overlapped: what else than the layers' own communication overlaps.
        environment: what is known of the job's environment.
        stack: the versions of the run.
        demanded: whether the framework refuses to start with more than one queue.
    """
    needed, _ = max_connections(needs, stack)
    found = environment.get(CONNECTIONS)
    number = found.strip() if found is not None else None
    known = environment.knows(CONNECTIONS) or environment.declared
    if number == "1" or (needed == 1 and not known):
        if needed == 1 and str(overlapped):
            yield _price(needs, overlapped, demanded=demanded)
        if needs.splits_layers or str(overlapped):
            yield from _timing(environment, certain=number == "1")


def _price(needs: LaunchSettings, overlapped: Overlapped, *, demanded: bool) -> Decision:
    sizes = {"TP": needs.tp_size, "CP": needs.cp_size}
    splits = " and ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
    how = (
        f"use {' = '.join(sizes)} = 1, if the model fits so, or Blackwell, where several queues "
        "hide both; with another value Megatron-LM does not start here"
        if demanded
        else f"if a profile shows that the communication of {splits} is hidden and the "
        f"{overlapped} communication is not, try {CONNECTIONS}=2 to 8, and keep it only if both "
        "stay hidden"
    )
    return PRICE.decide(
        f"{ENV}{CONNECTIONS}",
        requested=None,
        effective="1",
        reason=f"{splits} on Hopper or older needs one hardware queue, and {overlapped} overlap "
        "pays for it: its collectives start only after the compute that was launched before them, "
        "and what was launched after them waits",
        outcome=Outcome.NOTE,
        remedy=how,
    )


def _timing(environment: JobEnvironment, *, certain: bool) -> Iterator[Decision]:
    for name in TIMING_VARIABLES:
        value = environment.get(name)
        if value is None or value.strip().lower() not in _TRUE:
            continue
        queue = f"{CONNECTIONS} is 1" if certain else f"the layout needs {CONNECTIONS}=1"
        edits = (Edit(f"{ENV}{name}", REMOVED),)
        yield TIMING.decide(
            f"{ENV}{name}",
            requested=None,
            effective=value,
            reason=f"{environment.origin(name)} sets {name}={value.strip()}, and {queue}: torch "
            "records one more event before every collective, and NCCL's kernels were seen to run "
            "beside no compute then",
            outcome=Outcome.REFUSED if certain else Outcome.NOTE,
            remedy=f"unset {name}",
            edits=edits,
        )
