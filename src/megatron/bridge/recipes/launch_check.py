"""What is lost where a job's environment is not the one that its overlap needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from megatron.bridge.recipes.launch_env import (
    LAYERNORM_MARGINS,
    P2P_CHUNK,
    PRIORITY,
    EnvironmentVariable,
)
from megatron.bridge.recipes.launch_queues import CONNECTIONS, CONNECTIONS_RANGE
from megatron.bridge.training.decisions import Decision, Dimension, Outcome, Rule, rule
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.near_names import near_names

NEEDED, ADVISED = "needed", "advised"
"""How a value is called: where another one loses overlap, and where it does not."""

ORDER_LOST = rule(
    "launch.env-order-lost",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is not 1 where launch.queue-hopper-order needs 1: a tensor- or "
    "context-parallel collective may start after the GEMM that should hide it.",
    remedy=f"set {CONNECTIONS}=1",
)
ONE_QUEUE = rule(
    "launch.env-one-queue",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS}=1 where nothing needs launch order, as with TP = CP = 1: overlap "
    "quietly stops working, because collectives and compute start only in launch order.",
    remedy=f"set {CONNECTIONS} to the number of queues that the run needs, or unset it",
)
FEWER_QUEUES = rule(
    "launch.env-fewer-queues",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is above 1 but below what the run needs: streams that share a hardware "
    "queue wait for each other.",
    remedy=f"set {CONNECTIONS} to the number of queues that the run needs",
)
SMALLER_MARGIN = rule(
    "launch.env-smaller-margin",
    Dimension.LAUNCH,
    claim="The LayerNorm SM margin is below the requested one: LayerNorm claims SMs that a "
    "data-parallel collective uses, and waits until it has ended.",
    remedy="set both NVTE_*_LAYERNORM_SM_MARGIN to the requested margin",
)
ENV_DIFFERS = rule(
    "launch.env-differs",
    Dimension.LAUNCH,
    claim="A variable differs from the value that the run needs. It is a finding where the value "
    "is invalid or replaces a requested one, and a note where no overlap is lost.",
    remedy="set the variable to the value that the run needs, or unset it",
)


def contradictions(
    required: Iterable[EnvironmentVariable], actual: JobEnvironment
) -> list[Decision]:
    """Each required variable that an environment sets to another value.

    Names are compared exactly, and values as text without surrounding white space. A variable that
    `actual` does not set is not a contradiction.

    Args:
        required: the result of `launch_environment`.
        actual: the environment to check.

    Returns:
        One decision per difference, with knob ``env.NAME``. `requested` is the value that the
        settings need, and `effective` the value in `actual`, which a run started there would use.
        The outcome is REFUSED where overlap or a requested value is lost, and a NOTE where the
        difference costs no overlap.
    """
    return [
        _contradiction(variable, found.strip(), actual)
        for variable in required
        if (found := actual.get(variable.name)) is not None and found.strip() != variable.value
    ]


_DEFAULTS = {CONNECTIONS: "8", **dict.fromkeys(LAYERNORM_MARGINS, "0"), PRIORITY: "0"}
"""The values where a variable is not set: the defaults of CUDA, Transformer Engine and torch."""


def omissions(required: Iterable[EnvironmentVariable], actual: JobEnvironment) -> list[Decision]:
    """Each required variable that a job's environment does not set, and whose default differs.

    None where the environment is neither complete nor written down in the configuration: then a
    missing variable means nothing.

    Args:
        required, actual: as for `contradictions`.

    Returns:
        One decision per omission, with knob and values as of `contradictions`. A missing LayerNorm
        margin is a NOTE, since launch plugins commonly set it.
    """
    decisions = []
    for variable in required:
        default = _DEFAULTS.get(variable.name)
        known = actual.complete or actual.declared
        unset = known and not {variable.name} & ({*actual.variables} | actual.unknown)
        if not unset or default is None or default == variable.value:
            continue
        of_default = _contradiction(variable, default, actual)
        queues = variable.name == CONNECTIONS
        _, needed, harm = re.split(f" is ({NEEDED}|{ADVISED}): ", of_default.reason, maxsplit=1)
        where = actual.says_unset(variable.name) + _meant(variable.name, actual.variables)
        unless = "" if actual.complete else "unless the job's launcher sets it, "
        decisions.append(
            replace(
                of_default,
                outcome=of_default.outcome if queues else Outcome.NOTE,
                reason=f"{where}, so {unless}the default of {default} applies where "
                f"{variable.value} is {needed}: {harm}",
            )
        )
    return decisions


def _meant(name: str, actual: Mapping[str, str]) -> str:
    """A variable in `actual` that is probably a misspelling of `name`."""
    near = near_names(name, actual, most=1, cutoff=0.85)
    known = {*_DEFAULTS, P2P_CHUNK}
    return f" (it sets {near[0]}, which nothing reads)" if near and near[0] not in known else ""


def _contradiction(variable: EnvironmentVariable, found: str, actual: JobEnvironment) -> Decision:
    """What setting `variable` to `found` does to a run, as a decision."""
    source = actual.origin(variable.name)
    if variable.name == CONNECTIONS:
        decided_by, outcome, harm = _queue_harm(variable, found)
    elif variable.name in LAYERNORM_MARGINS:
        decided_by, outcome, harm = _margin_harm(variable, found)
    elif variable.name == PRIORITY:
        decided_by, outcome, harm = _priority_harm(found)
    else:
        decided_by, outcome = ENV_DIFFERS, Outcome.REFUSED
        harm = f"it replaces the requested {variable.value}"
    edits = () if outcome is Outcome.NOTE else (Edit(f"env.{variable.name}", variable.value),)
    return decided_by.decide(
        f"env.{variable.name}",
        requested=variable.value,
        effective=found,
        reason=f"{source} sets {variable.name}={found} where {variable.value} is "
        f"{ADVISED if outcome is Outcome.NOTE else NEEDED}: {harm}.",
        outcome=outcome,
        remedy=f"{in_words(edits)} {actual.place_to_set(variable.name)}" if edits else None,
        edits=edits,
    )


def _queue_harm(variable: EnvironmentVariable, found: str) -> tuple[Rule, Outcome, str]:
    """What `found` hardware queues break: the rule, the outcome, the clause of the reason."""
    queues, needed = _whole_number(found), int(variable.value)
    if queues is None or queues not in CONNECTIONS_RANGE:
        return ENV_DIFFERS, Outcome.REFUSED, "CUDA takes a whole number from 1 to 32"
    if queues == needed:
        return ENV_DIFFERS, Outcome.NOTE, "it is the same number, written differently"
    if needed == 1:
        return (
            ORDER_LOST,
            Outcome.REFUSED,
            f"with {queues} hardware queues kernels need not start in launch order, so a tensor- "
            "or context-parallel collective that was launched before a GEMM can start after it, "
            "when the GEMM occupies the SMs, and is then exposed",
        )
    if queues == 1 and variable.least == 1:
        return (
            ENV_DIFFERS,
            Outcome.NOTE,
            "no communication of this run that is known here is meant to run beside compute, so "
            "one hardware queue loses no overlap",
        )
    if queues == 1:
        return (
            ONE_QUEUE,
            Outcome.REFUSED,
            "with one hardware queue kernels start only in launch order: a collective waits for "
            "compute launched before it, a collective that waits for an earlier one delays all "
            "compute launched after it, and data-parallel and pipeline overlap quietly stops "
            "working",
        )
    if queues >= (variable.least or needed) and queues < needed:
        return (
            ENV_DIFFERS,
            Outcome.NOTE,
            f"{queues} lose no overlap that is known here; more leave a queue of its own "
            "to every stream",
        )
    if queues < needed:
        return (
            FEWER_QUEUES,
            Outcome.REFUSED,
            f"streams beyond {queues} share a hardware queue with others, so communication can "
            "wait for compute that it does not depend on",
        )
    return ENV_DIFFERS, Outcome.NOTE, "more hardware queues than needed cost no overlap"


def _margin_harm(variable: EnvironmentVariable, found: str) -> tuple[Rule, Outcome, str]:
    """What a LayerNorm margin of `found` SMs breaks, as `_queue_harm` does."""
    margin, needed = _whole_number(found), int(variable.value)
    least = needed if variable.least is None else variable.least
    if margin is None:
        return ENV_DIFFERS, Outcome.REFUSED, "Transformer Engine takes a whole number of SMs"
    if margin == needed:
        return ENV_DIFFERS, Outcome.NOTE, "it is the same number, written differently"
    if least <= margin < needed:
        return ENV_DIFFERS, Outcome.NOTE, f"a margin of {least} loses no overlap that is known here"
    if margin < needed:
        return (
            SMALLER_MARGIN,
            Outcome.REFUSED,
            f"LayerNorm claims {needed - margin} more SMs, waits while a data-parallel collective "
            "uses any of them, and delays every kernel after it",
        )
    return (
        ENV_DIFFERS,
        Outcome.NOTE,
        f"LayerNorm leaves {margin - needed} more SMs idle, which costs its own speed but no "
        "overlap",
    )


def _priority_harm(found: str) -> tuple[Rule, Outcome, str]:
    """What another value than 1 means to torch, as `_queue_harm` does."""
    if found.lower() in ("t", "true", "y", "yes"):
        return ENV_DIFFERS, Outcome.NOTE, "it means the same to torch"
    return (
        ENV_DIFFERS,
        Outcome.NOTE,
        "NCCL's kernels then get no SMs ahead of compute kernels that already wait, and a "
        "collective may start later",
    )


def _whole_number(text: str) -> int | None:
    """`text` as a non-negative integer; None where it is not one."""
    # No valid value has ten digits, and Python refuses to convert thousands of them.
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
