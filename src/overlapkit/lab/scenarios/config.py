"""The user's own run, made small: are its numbers right, is its overlap in effect, does it hide?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from overlapkit.lab.measurements import MeasuredVariant, Observations
from overlapkit.lab.own.effect import in_effect, overlaps
from overlapkit.lab.own.numbers import Compared, Models, compare, numbers_verdict
from overlapkit.lab.own.own_run import TIMED_RANKS, OwnRun
from overlapkit.lab.own.reduced import Reduced
from overlapkit.lab.own.whole import (
    adds_in_another_order,
    half_precision,
    in_fp32,
    partitioned,
    unpartitioned,
    without_overlap,
)
from overlapkit.lab.protocol import CHECKPOINT, EVALUATE, STEP, Block, Variant
from overlapkit.lab.scenario import (
    CONFIRMED,
    MODEL,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Settings,
    Verdict,
    identical,
    layered,
)
from overlapkit.lab.timing import exposes_less

STARTS = "The rules let the run start."
EQUAL = "The numbers equal those of the unpartitioned model in one process."
RESTORED = "A checkpoint brings back every weight and optimizer state."
AS_WRITTEN = "As written, the numbers equal those of the unpartitioned model."
WITH_REMEDY = "With the remedy, the numbers equal those of the unpartitioned model."
IN_EFFECT = "The overlap that the run asks for is in effect."
SAME = "Overlap changes no bit of the results."
EXPOSED = "The overlap hides communication."

EMPTY_BUCKET = "empty bucket encountered"
"""Part of Megatron-Core's message (0.16, optimizer/distrib_optimizer.py)."""

ACTIONS = (STEP, STEP, EVALUATE, STEP, CHECKPOINT, STEP, EVALUATE, STEP)
"""What is compared: steps, with evaluations and a checkpoint in between."""

WHOLE_BLOCK, WHOLE, HALF = "own-whole", "unpartitioned", "unpartitioned-half"
RUN, FULL_RUN = "run", "run-in-fp32"
"""The run, and beside one in half precision the same in fp32: its distance from the unpartitioned
model is rounding of 6e-8 and no more, while half precision can hide a wrong number."""

AGAIN, WHOLE_AGAIN = "run-in-fp32-again", "unpartitioned-again"
"""A run with experts is also compared on other data. Two experts whose scores for a token are
within rounding can be chosen otherwise, and all that follows differs: on one part of the data, for
a run that is right."""

NUMBERS, TIMES, BYPASSED, REMEDIED = "own-numbers", "own-times", "own-as-written", "own-remedied"


_ADAM: Settings = {"optimizer": {"lr": MODEL["optimizer"]["lr"]}}
"""What a timed step updates weights with, where the run does not say it."""

_NO_CLIPPING: Settings = {"optimizer": {"clip_grad": 0.0}}
"""Overlap has other buckets, and so other shards of the gradients, whose norm is added up in
another order."""


def blocks(setting: Setting) -> tuple[Block, ...]:
    """The unpartitioned model, the run, and for its times the same without overlap."""
    own = setting.own
    assert own is not None
    small = own.reduced
    if small is None or not own.is_trained:
        return ()
    if own.is_bypassed:
        found = [_whole(small), _numbers(BYPASSED, small, bypass=True)]
        if own.remedied is not None:
            found += [_numbers(REMEDIED, own.remedied)]
            if unpartitioned(own.remedied.settings) != unpartitioned(small.settings):
                found += [_whole(own.remedied, of=REMEDIED)]
        return tuple(found)
    found = [_whole(small), _numbers(NUMBERS, small)]
    if overlaps(own.effective) and own.timed is not None:
        found.append(_times(own.timed, setting))
    return tuple(found)


def _whole(small: Reduced, of: str = "") -> Block:
    """The unpartitioned model in fp32 and, where the run has one, in its half precision."""
    settings = unpartitioned(small.settings)
    variants = [_compared(WHOLE, in_fp32(settings))]
    if half_precision(settings):
        variants.append(_compared(HALF, settings))
    if _has_experts(settings):
        variants.append(_compared(WHOLE_AGAIN, in_fp32(settings), data=1))
    return _untimed(WHOLE_BLOCK + (f"-{of}" if of else ""), 1, *variants)


def _numbers(name: str, small: Reduced, *, bypass: bool = False) -> Block:
    settings = partitioned(small.settings)
    variants = [_compared(RUN, settings, bypass=bypass)]
    if half_precision(settings):
        variants.append(_compared(FULL_RUN, in_fp32(settings), bypass=bypass))
    if _has_experts(settings):
        variants.append(_compared(AGAIN, in_fp32(settings), bypass=bypass, data=1))
    return _untimed(name, small.ranks, *variants)


def _has_experts(settings: Settings) -> bool:
    return bool(settings.get("model", {}).get("num_moe_experts"))


def _compared(name: str, settings: Settings, *, bypass: bool = False, data: int = 0) -> Variant:
    return Variant(
        name=name,
        settings=settings,
        bypass=bypass,
        weights=True,
        actions=ACTIONS,
        every_step=True,
        data=data,
    )


def _untimed(name: str, ranks: int, *variants: Variant) -> Block:
    return Block(
        name=name,
        ranks=ranks,
        variants=variants,
        rounds=0,
        warmup=0,
        steps=ACTIONS.count(STEP),
        alone=name,
    )


def _times(small: Reduced, setting: Setting) -> Block:
    rounds, steps = setting.turns(3, 2)
    on = layered(_ADAM, small.settings, _NO_CLIPPING)
    off = layered(_ADAM, without_overlap(small.settings), _NO_CLIPPING)
    return Block(
        name=TIMES,
        ranks=small.ranks,
        variants=(
            Variant(name="no-overlap", settings=off),
            Variant(name="as-configured", settings=on),
        ),
        rounds=rounds,
        steps=steps,
        link_of="no-overlap",
        alone=NUMBERS,
    )


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """What the rules say, and what the ranks showed."""
    own = setting.own
    assert own is not None
    return [*_started(own), *_shown(observed, own, setting)]


def _started(own: OwnRun) -> Iterator[Verdict]:
    if own.stopping:
        evidence = "; ".join(finding.sentence for finding in own.stopping)
        yield Verdict(STARTS, NOT_CONFIRMED, evidence)
        return
    if own.not_known:
        yield Verdict(STARTS, NOT_TESTABLE, f"no rule refuses what was read; {own.not_known}")
    else:
        yield Verdict(STARTS, CONFIRMED, "no rule refuses it")
    if own.here:
        evidence = "; ".join(finding.sentence for finding in own.here)
        why = f"with the versions installed here, the rules refuse the small run: {evidence}"
        yield Verdict(EQUAL, NOT_TESTABLE, why)


def _shown(observed: Observations, own: OwnRun, setting: Setting) -> Iterator[Verdict]:
    if own.reduced is None or not own.is_trained:
        return
    if own.is_bypassed:
        if own.here:
            yield from _equal(observed, own.reduced, BYPASSED, AS_WRITTEN)
        else:
            why = "the small run does not have what the rules refuse, which a CPU cannot run"
            yield Verdict(AS_WRITTEN, NOT_TESTABLE, why)
        if own.remedied is not None:
            changed = f"with {', '.join(own.remedies)}: "
            yield from _equal(observed, own.remedied, REMEDIED, WITH_REMEDY, changed)
        else:
            why = "no change of settings is known that ends what stops the run"
            yield Verdict(WITH_REMEDY, NOT_TESTABLE, why)
        return
    yield from _equal(observed, own.reduced, NUMBERS, EQUAL)
    yield in_effect(own, observed.variants(NUMBERS)[RUN], IN_EFFECT)
    if TIMES in observed.blocks:
        yield from _hides(observed, setting)
    elif overlaps(own.effective):
        why = f"its layout does not fit {TIMED_RANKS} ranks, and more would wait for the cores"
        yield Verdict(EXPOSED, NOT_TESTABLE, why)
    else:
        yield Verdict(EXPOSED, NOT_TESTABLE, "the run asks for no overlap: nothing can hide")


def _equal(
    observed: Observations, small: Reduced, block: str, claim: str, before: str = ""
) -> Iterator[Verdict]:
    """Whether a run's numbers are right, and where it saved a checkpoint, whether that was."""
    broken = next((v for v in _of_whole(observed, block) if v.error), None)
    if broken is not None:
        why = f"the unpartitioned model is not trained here: {broken.error}"
        yield Verdict(claim, NOT_TESTABLE, why)
        return
    if error := observed.variants(block)[RUN].error:
        yield Verdict(claim, NOT_CONFIRMED, before + error)
        return
    compared = compared_run(observed, small, block)
    verdict = numbers_verdict(
        claim,
        compared,
        full=_in_fp32(observed, small, block, FULL_RUN),
        again=_in_fp32(observed, small, block, AGAIN),
        untrained=_untrained(observed, block),
    )
    yield replace(verdict, evidence=before + verdict.evidence)
    lost = compared.unrestored
    if unsaved := observed.variants(block)[RUN].unsaved:
        yield _unsaved(unsaved, before)
    elif lost:
        yield Verdict(RESTORED, NOT_CONFIRMED, f"{before}not the same: {', '.join(lost)}")
    elif block == NUMBERS:
        yield Verdict(RESTORED, CONFIRMED, "all are the same in every bit")


def _in_fp32(observed: Observations, small: Reduced, block: str, name: str) -> Compared | None:
    """The same run in fp32 beside the unpartitioned model; None where it was not trained."""
    variant = observed.variants(block).get(name)
    if variant is None or variant.error:
        return None
    return compared_run(observed, small, block, name)


def _untrained(observed: Observations, block: str) -> str:
    """Why the same run in fp32 was not trained; empty where it was, or the run is in fp32."""
    variant = observed.variants(block).get(FULL_RUN)
    return "" if variant is None else variant.error or ""


def _unsaved(error: str, before: str) -> Verdict:
    """Megatron-Core did not write a checkpoint."""
    why = f"{before}Megatron-Core writes no checkpoint of the small run: {error}"
    if EMPTY_BUCKET not in error:
        return Verdict(RESTORED, NOT_CONFIRMED, why)
    more = "a rank's share of a bucket is padding alone, which happens with tiny buckets"
    return Verdict(RESTORED, NOT_TESTABLE, f"{why}; {more}")


def comparisons(observed: Observations, setting: Setting) -> dict[str, Compared]:
    """Block to its run's numbers beside those of the unpartitioned model, where both trained."""
    own = setting.own
    if own is None:
        return {}
    found = {}
    for block, small in (
        (NUMBERS, own.reduced),
        (BYPASSED, own.reduced),
        (REMEDIED, own.remedied),
    ):
        if small is not None and block in observed.blocks:
            variants = [*observed.variants(block).values(), *_of_whole(observed, block)]
            if not any(variant.error for variant in variants):
                for name in observed.variants(block):
                    place = block if name == RUN else f"{block} {name}"
                    found[place] = compared_run(observed, small, block, name)
    return found


def _of_whole(observed: Observations, block: str) -> list[MeasuredVariant]:
    """The unpartitioned models that a block is compared with."""
    return list(observed.variants(_whole_of(observed, block)).values())


def _whole_of(observed: Observations, block: str) -> str:
    own = f"{WHOLE_BLOCK}-{block}"
    return own if own in observed.blocks else WHOLE_BLOCK


def compared_run(
    observed: Observations, small: Reduced, block: str, variant: str = RUN
) -> Compared:
    """A run's numbers beside those of the unpartitioned model."""
    whole = _whole_of(observed, block)
    reference = WHOLE_AGAIN if variant == AGAIN else WHOLE
    half = (whole, HALF) if half_precision(small.settings) and variant == RUN else None
    exact = not adds_in_another_order(small.settings, small.ranks)
    return compare(Models(observed, (whole, reference), half, exact), block, variant)


def _hides(observed: Observations, setting: Setting) -> Iterator[Verdict]:
    off, on = observed.variants(TIMES).values()
    failed = next((one for one in (off, on) if one.error), None)
    if failed is not None:
        yield Verdict(EXPOSED, NOT_TESTABLE, f"{failed.name}: {failed.error}")
        return
    yield identical([off, on], SAME)
    yield _exposed(off, on, setting)


def _exposed(off: MeasuredVariant, on: MeasuredVariant, setting: Setting) -> Verdict:
    if off.profile is None or on.profile is None:
        return Verdict(EXPOSED, NOT_TESTABLE, "no step was profiled")
    if not setting.shaped:
        return Verdict(
            EXPOSED,
            NOT_TESTABLE,
            "the ranks communicate through memory, which is too fast to be worth hiding",
        )
    return exposes_less([off, on], EXPOSED)


SCENARIO = Scenario(
    name="config",
    title="your own run, made small",
    ranks=2,
    blocks=blocks,
    judge=judge,
    flexible=True,
)
