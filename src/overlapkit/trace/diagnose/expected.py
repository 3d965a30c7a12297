"""What a configuration makes of the communication, to compare with what a profile shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from overlapkit.errors import InputError
from overlapkit.output.numbers import plain
from overlapkit.trace.diagnose.diagnosis import Diagnosis
from overlapkit.trace.diagnose.gradients import GATHER_OFF, ONE_BUCKET, REDUCE_OFF

if TYPE_CHECKING:
    from overlapkit.config.run import Run, Settings
    from overlapkit.explain.report import Report

KNOBS = {
    "single-bucket": "ddp.overlap_grad_reduce",
    "grad-reduce-after-backward": "ddp.overlap_grad_reduce",
    "param-gather-exposed": "ddp.overlap_param_gather",
    "tp-overlap-off": "model.tp_comm_overlap",
    "pipeline-exposed": "model.overlap_p2p_comm",
    "expert-exchange-exposed": "model.overlap_moe_expert_parallel_comm",
}
"""Diagnoses, and the setting that hides the communication that each is about."""

_BUCKETS_BY_KEY = 'set comm_overlap.bucket_size="auto", or to much less'
_BUCKETS_BY_FLAG = "pass --ddp-bucket-size with much less"

_SUSPECTED = (REDUCE_OFF, GATHER_OFF, ONE_BUCKET)


class Decided(Struct, frozen=True, kw_only=True):
    """What a rule of `overlapkit explain` decided about a setting."""

    reason: Annotated[str, Meta(description="why, in one sentence")]
    rule: Annotated[str, Meta(description="id of the rule")]
    remedy: Annotated[
        str | None, Meta(description="how to get the other outcome; `null` where there is no way")
    ]


class Expected(Struct, frozen=True, kw_only=True):
    """The settings in effect, as far as communication depends on them."""

    world_size: Annotated[int, Meta(description="number of ranks of the job")]
    stated_world_size: Annotated[
        int | None,
        Meta(description="what the configuration itself states; `null` where it does not"),
    ]
    data_parallel_size: Annotated[int, Meta(description="world size / (TP x PP x CP)")]
    fully_sharded: Annotated[
        bool, Meta(description="FSDP shards the model: the settings of DDP do not apply")
    ]
    values: Annotated[
        dict[str, Any], Meta(description="each setting, dotted, and its effective value")
    ]
    flags: Annotated[
        dict[str, str],
        Meta(
            description="of a run of Megatron-LM: settings that hide communication, and the flag "
            "that turns each on; empty for other runs"
        ),
    ] = {}
    decided: Annotated[
        dict[str, Decided],
        Meta(description="settings that hide communication, and what decided on them"),
    ]

    @property
    def takes_flags(self) -> bool:
        """Whether the configuration is one of Megatron-LM."""
        return bool(self.flags)

    def size(self, dimension: str) -> int:
        """The size of a parallel dimension."""
        return int(self.values.get(_SIZES[dimension]) or 1)

    def model(self, name: str) -> Any:
        """A setting of the model."""
        return self.values.get(f"model.{name}")


_SIZES = {
    "TP": "model.tensor_model_parallel_size",
    "PP": "model.pipeline_model_parallel_size",
    "CP": "model.context_parallel_size",
    "EP": "model.expert_model_parallel_size",
}
_ALSO = ("moe_token_dispatcher_type", "moe_flex_dispatcher_backend", "cp_comm_type")


def expected_of(settings: Settings, world_size: int | None) -> tuple[Expected | None, str | None]:
    """What a configuration makes effective; or None, and why that is not known.

    Args:
        settings: the configuration.
        world_size: ranks of the job, as the profile states it; None where it does not.
    """
    from overlapkit.explain.assumptions import assume
    from overlapkit.explain.report import explain

    stated = settings.launch.world_size if settings.launch is not None else None
    size = world_size or stated
    if size is None:
        return None, (
            "neither the profile nor the configuration states the number of ranks: what the "
            "configuration makes effective is not compared with the profile"
        )
    try:
        report = explain(
            settings, size, assume(None, None, None, variables={}), other_versions=False
        )
    except InputError as error:
        return None, f"the configuration is not compared with the profile: {error}"
    return _expected(report, stated), None


def _expected(report: Report, stated: int | None) -> Expected:
    run: Run = report.run
    values = dict(report.effective)
    values |= {f"model.{name}": getattr(run.model, name, None) for name in _ALSO}
    sections = [getattr(run, name, None) for name in ("ddp", "dist")]
    sharded = any(
        getattr(section, name, False)
        for section in sections
        for name in ("use_megatron_fsdp", "use_custom_fsdp", "use_torch_fsdp2")
    )
    hiding = set(KNOBS.values())
    return Expected(
        world_size=report.world_size,
        stated_world_size=stated,
        data_parallel_size=report.data_parallel_size,
        fully_sharded=sharded,
        values={knob: plain(value) for knob, value in values.items()},
        flags={
            knob: shown
            for knob in sorted(hiding)
            if (shown := report.words.short(knob)).startswith("--")
        },
        decided={
            d.knob: Decided(reason=d.reason, rule=d.rule, remedy=d.remedy)
            for d in report.decisions
            if d.knob in hiding
        },
    )


def tied(diagnoses: Sequence[Diagnosis], expected: Expected | None) -> list[Diagnosis]:
    """The diagnoses, with what the configuration says of the setting that each is about."""
    if expected is None:
        return list(diagnoses)
    found = spoken(diagnoses, expected)
    return found if expected.fully_sharded else [_tied(d, expected) for d in found]


def spoken(diagnoses: Sequence[Diagnosis], expected: Expected | None) -> list[Diagnosis]:
    """The diagnoses, with remedies that name settings as the configuration does."""
    if expected is None:
        return list(diagnoses)
    return [
        replace(d, remedy=d.flags if expected.takes_flags and d.flags else d.remedy, flags="")
        for d in diagnoses
    ]


def _tied(diagnosis: Diagnosis, expected: Expected) -> Diagnosis:
    knob = KNOBS.get(diagnosis.id)
    if knob is None or knob not in expected.values:
        return diagnosis
    seen = diagnosis.message.rstrip(".")
    for suspected in _SUSPECTED:
        seen = seen.removesuffix(suspected)
    if diagnosis.id == "tp-overlap-off":
        seen = "Tensor-parallel collectives run through NCCL and are exposed"
    if diagnosis.id == "pipeline-exposed":
        seen = seen.partition(",")[0].partition(":")[0]
    if expected.values[knob]:
        return _although_on(diagnosis, knob, seen, expected)
    name = expected.flags.get(knob, knob)
    decided = expected.decided.get(knob)
    why = f": {decided.reason.rstrip('.')}" if decided is not None else ""
    return replace(
        diagnosis,
        message=f"{seen}. The configuration has {name} off{why}.",
        rule=decided.rule if decided is not None else diagnosis.rule,
        remedy=(decided.remedy if decided is not None else None) or diagnosis.remedy,
    )


def _although_on(diagnosis: Diagnosis, knob: str, seen: str, expected: Expected) -> Diagnosis:
    """What is not hidden although the configuration hides it."""
    message = f"{seen}, although the configuration has {expected.flags.get(knob, knob)} on."
    if diagnosis.id in ("single-bucket", "param-gather-exposed"):
        # It can be on and hide nothing: with few buckets no compute is left beside the last.
        return replace(
            diagnosis,
            message=message,
            rule="core.single-bucket",
            remedy=f"{_BUCKETS_BY_FLAG if expected.takes_flags else _BUCKETS_BY_KEY} than the "
            "number of parameters per rank; and check that the profile is of this configuration",
        )
    if diagnosis.id == "pipeline-exposed":
        return replace(
            diagnosis,
            message=message,
            remedy="look for stages of different length"
            # Megatron-LM turns it off itself where transfers overlap.
            + ", and set batch_p2p_comm=false" * (not expected.takes_flags)
            + "; and check that the profile is of this configuration",
        )
    return replace(
        diagnosis,
        message=message,
        rule=None,
        remedy="check that the profile is of this configuration, with the versions that it is for",
    )
