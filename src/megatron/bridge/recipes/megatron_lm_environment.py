"""What Megatron-LM itself checks of the environment when a job starts, by version.

Facts of megatron/training/arguments.py at the tags of each rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron.bridge.recipes.launch_queues import CONNECTIONS
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, Rule, rule
from megatron.bridge.training.edits import Edit
from megatron.bridge.training.rules.context import fsdp_switch
from megatron.bridge.training.versions import NEWEST, Range, Stack

CONNECTIONS_DEMANDED = rule(
    "lm.env-connections",
    Dimension.LAUNCH,
    claim="With TP or CP > 1 on Hopper or older, Megatron-LM refuses to start unless "
    f"{CONNECTIONS} is 1 (with expert overlap or FSDP it only warns). With FSDP it refuses to "
    "start where it is 1, on every GPU. With TP = CP = 1 it does not check, although 1 disables "
    "data-parallel overlap.",
    remedy=f"set {CONNECTIONS} to the value that the layout needs",
    source="Megatron-LM 50d847514d, 7ef4f90386",
)
CONNECTIONS_DEMANDED_EVERYWHERE = rule(
    "lm.env-connections-every-gpu",
    Dimension.LAUNCH,
    claim=f"With TP or CP > 1, Megatron-LM refuses to start unless {CONNECTIONS} is 1, on every "
    "GPU.",
    remedy=f"set {CONNECTIONS}=1",
    versions=(Range("core", until="0.12.0"),),
    source="ended by Megatron-LM 50d847514d",
)
CONNECTIONS_WEIGHED = rule(
    "lm.env-connections-weighed",
    Dimension.LAUNCH,
    claim=f"With TP or CP > 1 on Hopper or older, Megatron-LM only warns about {CONNECTIONS} where "
    "expert overlap or FSDP wants another value than 1: 1 favors the overlap of TP and CP, 32 that "
    "of the experts.",
    versions=(Range("core", since="0.12.0"),),
    source="Megatron-LM 7ef4f90386",
)
PRIORITY_STREAMS = rule(
    "lm.high-priority-streams",
    Dimension.DP,
    claim="Megatron-LM gives the communication of FSDP streams of high priority: dp_cp, and ep_dp "
    "with expert parallelism. Torch's FSDP2 gets them on every GPU, Megatron-FSDP on Blackwell and "
    "newer.",
)
PRIORITY_STREAMS_OF_SHARDS = rule(
    "lm.high-priority-streams-shards",
    Dimension.TP,
    claim="With --tensor-parallel-num-weight-shards above the tensor-parallel size on Blackwell "
    "and newer, Megatron-LM gives the gathers of the weights streams of high priority (gtp_remat).",
    versions=(Range("core", since="0.19.0"),),
    source="Megatron-LM c5ff22b7f1",
)


def environment_refusals(
    run: Any,
    environment: Mapping[str, str],
    source: str,
    *,
    sm100_or_newer: bool,
    complete: bool,
    stack: Stack = NEWEST,
) -> list[Decision]:
    """What Megatron-LM itself checks of the environment at start, as errors.

    Args:
        run: its effective configurations.
        environment: variables that the job starts with.
        source: where they come from, for messages.
        sm100_or_newer: compute capability 10.0 or above, where launch order is not needed.
        complete: whether a variable that is missing in `environment` is certainly not set.
        stack: the versions of the run.
    """
    found = environment.get(CONNECTIONS)
    fsdp = fsdp_switch(run.ddp)
    is_one = found is not None and found.strip() == "1"
    state = f"{source} sets {CONNECTIONS}={found}"
    if found is None:
        state = f"{source} does not set {CONNECTIONS}"
    if fsdp is not None and is_one:
        reason = f"{state}, and FSDP ({fsdp}) needs another value"
        return [_stops(CONNECTIONS_DEMANDED, reason, found, "8")]
    splits = _splits(run)
    if not splits or is_one or (found is None and not complete):
        return []
    reason = f"{state}, and {' and '.join(splits)}"
    if CONNECTIONS_DEMANDED_EVERYWHERE.holds(stack):
        reason += f" needs 1 with Megatron-LM {stack.core} on every GPU"
        return [_stops(CONNECTIONS_DEMANDED_EVERYWHERE, reason, found, "1")]
    if sm100_or_newer or run.model.overlap_moe_expert_parallel_comm or fsdp is not None:
        return []
    return [_stops(CONNECTIONS_DEMANDED, f"{reason} on Hopper or older needs 1", found, "1")]


def environment_notes(
    run: Any, *, sm100_or_newer: bool, groups: tuple[str, ...] = (), stack: Stack = NEWEST
) -> Iterator[Decision]:
    """What Megatron-LM only warns of, and the streams of high priority that it sets.

    Args:
        run: its effective configurations.
        sm100_or_newer: compute capability 10.0 or above.
        groups: --high-priority-stream-groups.
        stack: the versions of the run.
    """
    model, fsdp = run.model, fsdp_switch(run.ddp)
    splits = _splits(run)
    wants_more = "expert overlap" if model.overlap_moe_expert_parallel_comm else None
    wants_more = f"FSDP ({fsdp})" if fsdp is not None else wants_more
    if splits and wants_more and not sm100_or_newer and CONNECTIONS_WEIGHED.holds(stack):
        yield CONNECTIONS_WEIGHED.decide(
            f"env.{CONNECTIONS}",
            requested=None,
            effective=None,
            reason=f"{' and '.join(splits)} on Hopper or older want 1, {wants_more} wants more: "
            "Megatron-LM only warns",
            outcome=Outcome.NOTE,
        )
    added = []
    if fsdp == "use_torch_fsdp2" or (fsdp is not None and sm100_or_newer):
        added += ["dp_cp", *(["ep_dp"] if (model.expert_model_parallel_size or 1) > 1 else [])]
    yield from _streams(PRIORITY_STREAMS, added, groups, f"FSDP ({fsdp})")
    shards = getattr(model, "tensor_parallel_num_weight_shards", None) or 1
    sharded = shards > (model.tensor_model_parallel_size or 1)
    if sharded and sm100_or_newer and PRIORITY_STREAMS_OF_SHARDS.holds(stack):
        why = f"{shards} weight shards"
        yield from _streams(PRIORITY_STREAMS_OF_SHARDS, ["gtp_remat"], groups, why)


def _streams(
    decided_by: Rule, added: list[str], groups: tuple[str, ...], why: str
) -> Iterator[Decision]:
    new = [group for group in added if group not in groups]
    if new:
        yield decided_by.decide(
            "dist.high_priority_stream_groups",
            requested=list(groups) or None,
            effective=[*groups, *new],
            reason=f"{why}: Megatron-LM adds {' and '.join(new)}",
            outcome=Outcome.NOTE,
        )


def _splits(run: Any) -> list[str]:
    """The kinds of parallelism that want one hardware queue, with their sizes."""
    sizes = {
        "TP": run.model.tensor_model_parallel_size,
        "CP": run.model.context_parallel_size,
    }
    return [f"{name}={size}" for name, size in sizes.items() if (size or 1) > 1]


def _stops(decided_by: Rule, reason: str, found: str | None, needed: str) -> Decision:
    return decided_by.decide(
        f"env.{CONNECTIONS}",
        requested=needed,
        effective=found,
        reason=f"{reason}: Megatron-LM stops at start",
        outcome=Outcome.ERROR,
        remedy=f"export {CONNECTIONS}={needed} before the processes start",
        edits=(Edit(f"env.{CONNECTIONS}", needed),),
    )
