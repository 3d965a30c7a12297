"""A global batch that must divide into microbatches, and microbatches that must fill a pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.training.decisions import Decision, Dimension, rule
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.sizes.near import divisors, nearest, would_do

_GLOBAL = "train.global_batch_size"
_MICRO = "train.micro_batch_size"
_GROUP = "model.microbatch_group_size_per_vp_stage"

BATCH_DIVIDES = rule(
    "core.batch-divides",
    Dimension.ANY,
    claim="Megatron-Core refuses a global batch that is not a multiple of the micro-batch times "
    "the data-parallel size, and a ramp-up whose first batch or increment is not, unless "
    "decrease_batch_size_if_needed makes it smaller.",
    remedy="use a global batch that is a multiple of micro-batch x data-parallel size",
    source="Megatron-Core's num_microbatches_calculator",
)
MICROBATCHES_FILL = rule(
    "core.microbatches-fill-pipeline",
    Dimension.PP,
    claim="The interleaved schedule sends microbatches in groups of "
    "microbatch_group_size_per_vp_stage (by default the number of stages). It refuses a group "
    "smaller than the number of stages or larger than the number of microbatches, and a last "
    "group that is not whole and smaller than the number of stages.",
    remedy="use a global batch with a multiple of as many microbatches as there are stages",
    source="Megatron-Core's forward_backward_pipelining_with_interleaving",
)


def batch_checks(c: Context) -> Iterator[Decision]:
    """Whether the batch divides into microbatches, and these into groups."""
    micro, batch = (getattr(c.batch, f"{name}_batch_size", None) for name in ("micro", "global"))
    if not micro:
        return
    unit = micro * (c.data_parallel_size or 1)
    decreases = bool(getattr(c.batch, "decrease_batch_size_if_needed", False))
    ramp = _ramp_up(c)
    if not decreases:
        yield from _ramp_divides(c, ramp, unit)
    # Megatron-LM's default is one microbatch for each rank.
    batch = batch or (unit if not c.of_megatron_bridge else None)
    if not batch:
        return
    if batch % unit and not decreases:
        yield _another_batch(c, batch, micro, unit)
    elif c.pipeline_size > 1 and c.virtual_pipeline_size > 1 and not ramp:
        yield from _groups(c, batch // unit, unit)


def _ramp_up(c: Context) -> list[int]:
    """The first batch, the increment and the samples of a ramp-up; empty without one."""
    given = getattr(c.batch, "rampup_batch_size", None)
    try:
        numbers = [int(each) for each in given or ()]
    except (TypeError, ValueError):
        return []
    return numbers if len(numbers) == 3 else []


def _ramp_divides(c: Context, ramp: list[int], unit: int) -> Iterator[Decision]:
    wrong = [n for n in ramp[:2] if n % unit]
    if wrong:
        fit = [max(unit, round(n / unit) * unit) for n in ramp[:2]]
        yield BATCH_DIVIDES.error(
            "train.rampup_batch_size",
            ramp,
            f"its first batch and its increment, {ramp[0]} and {ramp[1]}, are no multiples of "
            f"{unit}, micro-batch x data-parallel size: an assertion stops the job",
            edits=(Edit("train.rampup_batch_size", [*fit, ramp[2]]),),
        )


def _multiples(near: int, of: int) -> list[int]:
    """The multiples next to a number, the nearer first."""
    below = near // of * of
    return nearest(near, (n for n in (below, below + of) if n))


def _another_batch(c: Context, batch: int, micro: int, unit: int) -> Decision:
    values = _multiples(batch, unit)
    edits = (Edit(_GLOBAL, values[0]),)
    remedy = in_words(edits)
    dp = c.data_parallel_size or 1
    smaller = [n for n in divisors(batch // dp) if n < micro] if batch % dp == 0 else []
    if smaller:
        remedy += f", or {_MICRO}={smaller[-1]}"
    return BATCH_DIVIDES.error(
        _GLOBAL,
        batch,
        f"{batch} is no multiple of {unit}, micro-batch {micro} x data-parallel size {dp}: an "
        f"assertion stops the job at start{would_do(values, '')}",
        remedy,
        edits,
    )


def _groups(c: Context, count: int, unit: int) -> Iterator[Decision]:
    pp = c.pipeline_size
    group = c.of_model("microbatch_group_size_per_vp_stage") or pp
    if group < pp:
        yield MICROBATCHES_FILL.error(
            _GROUP,
            group,
            f"it is smaller than the {pp} stages: the schedule raises a ValueError",
            edits=(Edit(_GROUP, pp),),
        )
        return
    if fills_pipeline(count, group, pp):
        return
    below = next((n for n in range(count, 0, -1) if fills_pipeline(n, group, pp)), 0)
    above = next(n for n in range(count + 1, count + group + 2) if fills_pipeline(n, group, pp))
    values = nearest(count * unit, (n * unit for n in (below, above) if n))
    edits = (Edit(_GLOBAL, values[0]),)
    yield MICROBATCHES_FILL.error(
        _GLOBAL,
        count * unit,
        f"{count} microbatches do not fill an interleaved pipeline of {pp} stages in groups of "
        f"{group}: the "
        f"schedule raises an error at the first step{would_do(values, '')}",
        f"{in_words(edits)}, or use no virtual pipeline",
        edits,
    )


def fills_pipeline(count: int, group: int, pp: int) -> bool:
    """Whether the interleaved schedule accepts this number of microbatches.

    Args:
        count: microbatches of a step.
        group: microbatch_group_size_per_vp_stage.
        pp: pipeline stages.
    """
    rest = count % group
    return count >= group and (rest == 0 or rest >= pp)
