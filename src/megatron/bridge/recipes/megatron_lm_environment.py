"""What Megatron-LM itself checks of the environment when a job starts.

Facts of Megatron-LM's main branch, August 2026 (megatron/training/arguments.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.bridge.recipes.launch_queues import CONNECTIONS
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.rules.context import fsdp_switch

CONNECTIONS_DEMANDED = rule(
    "lm.env-connections",
    Dimension.LAUNCH,
    claim="With TP or CP > 1 on Hopper or older, Megatron-LM refuses to start unless "
    f"{CONNECTIONS} is 1 (with expert overlap or FSDP it only warns). With FSDP it refuses to "
    "start where it is 1. With TP = CP = 1 it does not check, although 1 disables data-parallel "
    "overlap.",
    remedy=f"set {CONNECTIONS} to the value that the layout needs",
)


def environment_refusals(
    run: Any, environment: Mapping[str, str], source: str, *, sm100_or_newer: bool, complete: bool
) -> list[Decision]:
    """What Megatron-LM itself checks of the environment at start, as errors.

    Args:
        run: its effective configurations.
        environment: variables that the job starts with.
        source: where they come from, for messages.
        sm100_or_newer: compute capability 10.0 or above, where launch order is not needed.
        complete: whether a variable that is missing in `environment` is certainly not set.
    """
    found = environment.get(CONNECTIONS)
    model, fsdp = run.model, fsdp_switch(run.ddp)
    sizes = {"TP": model.tensor_model_parallel_size, "CP": model.context_parallel_size}
    state = f"{source} sets {CONNECTIONS}={found}"
    if found is None:
        state = f"{source} does not set {CONNECTIONS}"
    if fsdp is not None:
        if found is None or found.strip() != "1":
            return []
        needed, reason = "8", f"{state}, and FSDP ({fsdp}) needs another value"
    else:
        splits = [f"{name}={size}" for name, size in sizes.items() if (size or 1) > 1]
        exempt = sm100_or_newer or model.overlap_moe_expert_parallel_comm
        set_right = found is not None and found.strip() == "1"
        if not splits or exempt or set_right or (found is None and not complete):
            return []
        needed = "1"
        reason = f"{state}, and {' and '.join(splits)} on Hopper or older needs 1"
    return [
        CONNECTIONS_DEMANDED.decide(
            f"env.{CONNECTIONS}",
            requested=needed,
            effective=found,
            reason=f"{reason}: Megatron-LM stops at start",
            outcome=Outcome.ERROR,
            remedy=f"export {CONNECTIONS}={needed} before the processes start",
        )
    ]
