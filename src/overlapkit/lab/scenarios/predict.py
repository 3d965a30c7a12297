"""The step that `overlapkit plan` predicts for this machine, compared with the measured one."""

from __future__ import annotations

from dataclasses import replace

from megatron.bridge.training.runtime_update import update_runtime
from overlapkit.config.run import build_run, read_settings
from overlapkit.config.yaml_file import Document
from overlapkit.lab.measurements import MeasuredVariant, Observations, disturbed
from overlapkit.lab.protocol import Block, Calibration, Variant
from overlapkit.lab.scenario import (
    DISTRIBUTED_OPTIMIZER,
    NO_OVERLAP,
    NOT_TESTABLE,
    Scenario,
    Setting,
    Verdict,
    variant,
)
from overlapkit.lab.scenarios.dp import BOTH
from overlapkit.lab.timing import timed
from overlapkit.plan.estimate.machine import ALL_RANKS, Link, Machine
from overlapkit.plan.estimate.overlap import overlap_of
from overlapkit.plan.estimate.step_time import estimate
from overlapkit.plan.figure import given
from overlapkit.plan.workload.step import Workload, workload

WITHIN = 0.15
OFF = "Without overlap, the predicted step is within 15 % of the measured one."
ON = "With both overlaps, the predicted step is within 15 % of the measured one."


def blocks(setting: Setting) -> tuple[Block, ...]:
    """A calibration, then DP=2 without and with overlap."""
    rounds, steps = setting.turns(3, 3)
    return (
        Block(
            name="predict",
            ranks=setting.ranks or 2,
            variants=_variants(setting),
            rounds=rounds,
            steps=steps,
            link_of="off",
            calibrate=True,
        ),
    )


def _variants(setting: Setting) -> tuple[Variant, Variant]:
    return (
        variant("off", setting, DISTRIBUTED_OPTIMIZER, NO_OVERLAP),
        variant("on", setting, DISTRIBUTED_OPTIMIZER, BOTH),
    )


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """Prediction against measurement, without and with overlap."""
    block = observed.blocks["predict"]
    if block.calibration is None or not setting.shaped:
        why = "without a slow link, communication takes no time that could be predicted"
        return [Verdict(claim, NOT_TESTABLE, why) for claim in (OFF, ON)]
    ranks = len(next(iter(block.variants.values())).ranks)
    return [
        _against(
            claim,
            block.variants[one.name],
            predicted(one, ranks, block.calibration),
            block.calibration,
        )
        for claim, one in zip((OFF, ON), _variants(setting), strict=True)
    ]


def _calibrated(one: Calibration) -> str:
    return (
        f"compute {one.compute * 1e3:.0f} ms; collectives {one.pair * 1e3:.0f} ms, including "
        f"{one.small * 1e3:.1f} ms of latency; they slow compute by {100 * one.slowed:.0f} %"
    )


def _against(
    claim: str, measured: MeasuredVariant, seconds: float, calibration: Calibration
) -> Verdict:
    error = seconds / measured.step - 1
    evidence = (
        f"{measured.name}: predicted {seconds * 1e3:.0f} ms, measured {measured.step * 1e3:.0f} ms "
        f"(+/- {measured.spread * 1e3:.0f}): {100 * error:+.0f} %; "
        f"calibration: {_calibrated(calibration)}"
    )
    if disturbed(calibration.others, measured.ranks[0].cores, len(measured.ranks)):
        why = "other programs disturbed the calibration"
        return Verdict(claim, NOT_TESTABLE, f"the machine was not quiet enough: {why}; {evidence}")
    beyond = abs(seconds - measured.step) - WITHIN * measured.step
    return timed(claim, evidence, (measured,), holds=beyond <= 0, refuted=beyond > measured.spread)


def predicted(variant: Variant, ranks: int, calibration: Calibration) -> float:
    """Seconds of a variant's step, as `overlapkit plan` estimates it for a calibrated machine."""
    settings = read_settings(Document(f"variant {variant.name}", variant.settings))
    run = build_run(settings)
    update_runtime(run, ranks)
    work = _over_gloo(workload(run, ranks))
    return estimate(work, machine_of(calibration, ranks), overlap_of(run)).step.value


def _over_gloo(work: Workload) -> Workload:
    """The workload with reduce-scatters as gloo does them: as all-reduces, with twice the bytes."""
    chunks = tuple(
        tuple(
            replace(
                chunk,
                gradients=tuple(
                    replace(one, kind="all-reduce") if one.kind == "reduce-scatter" else one
                    for one in chunk.gradients
                ),
            )
            for chunk in row
        )
        for row in work.exchange.chunks
    )
    return replace(work, exchange=replace(work.exchange, chunks=chunks))


def machine_of(calibration: Calibration, ranks: int) -> Machine:
    """The calibrated machine; its compute is known only as the time of a step."""
    source = "measured here"
    # gloo's reduce-scatter sends as much as an all-reduce: twice all but a rank's own part.
    sent = 3 * calibration.payload_bytes * (ranks - 1) / ranks
    # The modelled compute is scaled to the measured one, so only its proportions matter.
    rate = given("rate", 1e9, "FLOP/s", source)
    return Machine(
        name="this machine",
        rates={"fp32": rate, "bf16": rate},
        attention_forward=rate,
        attention_backward=rate,
        memory_bandwidth=given("memory bandwidth", 1e9, "B/s", source),
        memory=given("memory", float("inf"), "B", source),
        links=(
            Link(
                "the lab's link",
                ALL_RANKS,
                given("bandwidth", sent / (calibration.pair - calibration.small), "B/s", source),
                given("hop", calibration.small / 3 / (ranks - 1), "s", source),
            ),
        ),
        # The share of the time with communication that compute loses.
        communication_share=given(
            "slowing of compute", calibration.slowed / (1 + calibration.slowed), "", source
        ),
        kernel=given("kernel start", 0.0, "s", source),
        step_compute=given("compute of a step", calibration.compute, "s", source),
    )


SCENARIO = Scenario(
    name="predict",
    title="the step that overlapkit plan predicts for this machine, compared with the measured one",
    ranks=2,
    blocks=blocks,
    judge=judge,
    flexible=True,
)
