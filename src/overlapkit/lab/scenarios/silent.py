"""Silent fallbacks: asked for, refused with a reason, and the step is that of not asking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from overlapkit.lab.measurements import Measured, Seen
from overlapkit.lab.protocol import Block, Variant
from overlapkit.lab.scenario import (
    CONFIRMED,
    DISTRIBUTED_OPTIMIZER,
    NOT_CONFIRMED,
    NOT_TESTABLE,
    TINY,
    Scenario,
    Setting,
    Settings,
    Verdict,
    layered,
)

RANKS = 2
SMALL: Settings = {
    "optimizer": {"optimizer": "adam", "lr": 1e-3, "clip_grad": 0.0},
    "train": {"micro_batch_size": 1, "global_batch_size": 8},
}
DEFAULTS: Settings = {"comm_overlap": {"tp_comm_overlap": False}}
SHARDS: Settings = {"model": {"tensor_model_parallel_size": 2}}
SEQUENCE: Settings = layered(SHARDS, {"model": {"sequence_parallel": True}})
STAGES: Settings = {"model": {"pipeline_model_parallel_size": 2}}
INTERLEAVED: Settings = layered(STAGES, {"model": {"virtual_pipeline_model_parallel_size": 2}})
REPLICAS = layered(DISTRIBUTED_OPTIMIZER, DEFAULTS)
UNHIDDEN: Settings = {"comm_overlap": {"overlap_grad_reduce": False, "overlap_param_gather": False}}
BF16: Settings = {
    "mixed_precision": {"bf16": True, "params_dtype": "bfloat16", "pipeline_dtype": "bfloat16"}
}


PACKETS, PACKETS_BYTES = 0.02, 4096
"""Of the bytes on the wire, and in bytes: packets have headers, and ranks meet in a barrier."""


@dataclass(frozen=True)
class Case:
    """One way to ask for what a rule refuses.

    Attributes:
        rule: the rule's id.
        base: the twin that does not ask.
        section, key, value: what is asked for, on top of it.
        knob: what is refused; None: what is asked for.
        why: what tells this case from another one of the same rule.
    """

    rule: str
    base: Settings
    section: str
    key: str
    value: object = True
    knob: str | None = None
    why: str = ""

    @property
    def name(self) -> str:
        """Of its variant; unique."""
        return self.rule + (f".{self.why}" if self.why else "")

    @property
    def twin(self) -> str:
        """Name of the variant that does not ask."""
        return f"{self.name}.unasked"

    @property
    def layout(self) -> str:
        """Names the layout, which variants that take turns share."""
        model = self.base.get("model", {})
        if "pipeline_model_parallel_size" in model:
            return "pp"
        return "tp" if "tensor_model_parallel_size" in model else "dp"

    @property
    def refused(self) -> str:
        """The dotted knob that is refused."""
        return self.knob or f"{self.section}.{self.key}"

    @property
    def asked(self) -> str:
        """As an override on the command line of `overlapkit explain`."""
        return f"{self.section}.{self.key}={str(self.value).lower()}"

    def settings(self, *, asks: bool) -> Settings:
        """Of the variant that asks, or of its twin."""
        more = {self.section: {self.key: self.value}} if asks else {}
        return layered(TINY, SMALL, self.base, more)


TP_ASKED = ("comm_overlap", "tp_comm_overlap", True, "model.tp_comm_overlap")

CASES = (
    Case("tp.off-unless-asked", layered(SEQUENCE, DEFAULTS), "model", "tp_comm_overlap"),
    Case("tp.needs-tensor-parallel", REPLICAS, *TP_ASKED),
    Case("tp.needs-sequence-parallel", layered(SHARDS, DEFAULTS), *TP_ASKED),
    Case("tp.needs-transformer-engine", layered(SEQUENCE, DEFAULTS), *TP_ASKED),
    Case(
        "tp.bootstrap-backend",
        layered(SEQUENCE, DEFAULTS),
        "model",
        "tp_comm_bootstrap_backend",
        "mpi",
    ),
    Case(
        "dp.needs-distributed-optimizer",
        DEFAULTS,
        "comm_overlap",
        "overlap_grad_reduce",
        knob="ddp.overlap_grad_reduce",
    ),
    Case("dp.size-1", layered(REPLICAS, SEQUENCE), "ddp", "overlap_grad_reduce"),
    Case("dp.defaults", REPLICAS, "ddp", "overlap_grad_reduce", False),
    Case("dp.bucket-size", REPLICAS, "ddp", "bucket_size", 20_000),
    Case("dp.align-param-gather", REPLICAS, "ddp", "align_param_gather"),
    Case(
        "dp.param-gather-with-optimizer-step",
        REPLICAS,
        "optimizer",
        "overlap_param_gather_with_optimizer_step",
    ),
    Case("pp.none", DEFAULTS, "model", "batch_p2p_comm"),
    Case("pp.interleaved", layered(INTERLEAVED, DEFAULTS), "model", "batch_p2p_comm"),
    Case("pp.not-interleaved", layered(STAGES, DEFAULTS), "model", "overlap_p2p_comm"),
    Case("pp.wgrad-deferral", layered(STAGES, DEFAULTS), "model", "defer_embedding_wgrad_compute"),
    Case("ep.off-unless-asked", DEFAULTS, "model", "overlap_moe_expert_parallel_comm"),
    Case("any.user-wins", layered(REPLICAS, UNHIDDEN), "ddp", "overlap_grad_reduce"),
    Case(
        "any.set-by-hand-overwritten",
        layered(DEFAULTS, {"optimizer": {"use_distributed_optimizer": True}}),
        "ddp",
        "use_distributed_optimizer",
        False,
    ),
    Case("precision.overwrites", layered(REPLICAS, BF16), "ddp", "grad_reduce_in_fp32", False),
    Case(
        "precision.fp8_param_is_fp8_param_gather",
        layered(REPLICAS, BF16, {"mixed_precision": {"fp8_param_gather": False}}),
        "mixed_precision",
        "fp8_param",
    ),
    Case(
        "core.param-gather-needs",
        {"ddp": {"overlap_grad_reduce": True}},
        "ddp",
        "overlap_param_gather",
        why="no-distributed-optimizer",
    ),
    Case(
        "core.param-gather-needs",
        layered(DISTRIBUTED_OPTIMIZER, {"ddp": {"overlap_grad_reduce": False}}),
        "ddp",
        "overlap_param_gather",
        why="no-grad-reduce",
    ),
    Case(
        "core.param-gather-with-optimizer-step-needs",
        layered(REPLICAS, INTERLEAVED, {"comm_overlap": {"overlap_param_gather": False}}),
        "comm_overlap",
        "overlap_param_gather_with_optimizer_step",
        knob="optimizer.overlap_param_gather_with_optimizer_step",
    ),
    Case(
        "core.bucket-ignored",
        layered(REPLICAS, UNHIDDEN),
        "comm_overlap",
        "bucket_size",
        20_000,
        knob="ddp.bucket_size",
    ),
)
"""Every silent fallback that two ranks can show."""

ELSEWHERE: Mapping[str, str] = {
    "ub.*": "Transformer Engine reads these settings, where it sets up userbuffers on GPUs",
    "launch.*": "what CUDA, NCCL and Transformer Engine read from the environment is for GPUs",
    "lm.*": "a rule of Megatron-LM's own argument parser; what it refuses, it stops at",
}
"""Patterns of rules whose refusals these ranks cannot show, and why."""

NOT_SILENT: Mapping[str, tuple[str, ...]] = {
    "the run stops with an error": (
        "dp.bucket-size-value",
        "ep.needs-*",
        "ep.no-*",
        "ep.one-mtp-layer",
        "ep.delay-*",
        "pp.same-peer-hazard",
        "precision.mxfp8_gather_reuses_grad_buffer",
        "precision.fp4_*",
        "core.sequence-parallel",
        "core.p2p-*",
        "core.defer-embedding-wgrad",
        "core.reuse-grad-buf-needs",
        "core.fp8-param-needs",
        "core.expert-parallel-needs-experts",
        "core.ep-overlap-needs",
        "core.delay-wgrad-needs",
        "core.shared-expert-overlap-needs",
    ),
    "it tells what follows from the settings, and refuses nothing": (
        "any.no-comm-overlap",
        "tp.userbuffers-default",
        "tp.preset-fit",
        "dp.distributed-optimizer-sync",
        "core.layout-sets-vpp",
        "core.sent-then-freed",
        "core.no-replica",
        "core.fsdp",
        "core.bucket-default",
        "core.bucket-count",
        "core.single-bucket",
        "core.first-chunk-only",
    ),
}
"""Why the other rules' refusals, if any, are not silent: patterns of ids."""

TE_IS_HERE = "Transformer Engine can be imported here, so that this need is met"


def cases(setting: Setting) -> tuple[Case, ...]:
    """Those that can be shown with what is installed."""
    return tuple(c for c in CASES if not (setting.te and c.rule == "tp.needs-transformer-engine"))


def blocks(setting: Setting) -> tuple[Block, ...]:
    """For each layout its cases, each beside its twin."""
    rounds, steps = setting.turns(3, 1)
    layouts: dict[str, list[Variant]] = {}
    for case in cases(setting):
        layouts.setdefault(case.layout, []).extend(
            Variant(name=name, settings=case.settings(asks=asks), collectives=True)
            for name, asks in ((case.twin, False), (case.name, True))
        )
    return tuple(
        Block(
            name=f"silent-{layout}",
            ranks=RANKS,
            variants=tuple(variants),
            rounds=rounds,
            steps=steps,
            profiled=0,
        )
        for layout, variants in layouts.items()
    )


def judge(seen: Seen, setting: Setting) -> list[Verdict]:
    """A verdict per case, and one for each kind of refusal that these ranks cannot show.

    What can be counted decides: knobs, bits, calls and bytes. The step's length is told; two of
    these short steps that do the same may differ by half on a busy machine.
    """
    verdicts = []
    for case in cases(setting):
        variants = seen.variants(f"silent-{case.layout}")
        verdicts.append(_unchanged(case, variants[case.name], variants[case.twin]))
    elsewhere = dict(ELSEWHERE)
    if setting.te:
        elsewhere["tp.needs-transformer-engine"] = TE_IS_HERE
    return verdicts + [
        Verdict(f"{rules}: refused, the step is unchanged.", NOT_TESTABLE, why)
        for rules, why in elsewhere.items()
    ]


def _unchanged(case: Case, asks: Measured, twin: Measured) -> Verdict:
    asked = case.asked + (f" ({case.why.replace('-', ' ')})" if case.why else "")
    claim = f"{case.rule}: {asked} is refused, and the step is unchanged."
    if asks.error or twin.error:
        return Verdict(claim, NOT_CONFIRMED, str(asks.error or twin.error))
    decision = asks.decision(case.rule, case.refused)
    if decision is None or decision.outcome != "refused":
        return Verdict(claim, NOT_CONFIRMED, f"the rule did not refuse {case.refused}")
    differs = list(_differences(asks, twin))
    if differs:
        return Verdict(claim, NOT_CONFIRMED, f"{decision.reason}; not as unasked: {differs}")
    evidence = (
        f"{decision.reason}; knobs and weights as unasked, as are {_communicated(asks)} a step"
    )
    if asks.steps:
        evidence += f"; {asks.step * 1e3:.0f} ms, unasked {twin.step * 1e3:.0f}"
    return Verdict(claim, CONFIRMED, evidence)


def _differences(asks: Measured, twin: Measured) -> Iterator[str]:
    """In what a variant's training differs from its twin's."""
    knobs = _in_effect(asks), _in_effect(twin)
    yield from (knob for knob in knobs[0] if knobs[0][knob] != knobs[1][knob])
    if asks.digests != twin.digests or asks.losses != twin.losses:
        yield "the weights or losses"
    if [r.collectives for r in asks.ranks] != [r.collectives for r in twin.ranks]:
        yield f"communication: {_communicated(asks)}, unasked {_communicated(twin)}"
    if asks.wire_bytes and twin.wire_bytes:
        apart = abs(asks.wire_bytes - twin.wire_bytes)
        if apart > max(PACKETS_BYTES, PACKETS * twin.wire_bytes):
            yield f"{apart:.0f} bytes on the wire"


def _in_effect(variant: Measured) -> dict[str, object]:
    """Knobs as trained, those that Megatron-Core ignores as the decision on them says."""
    told = {d.knob: d.effective for d in variant.decisions if d.outcome == "refused"}
    return {knob: told.get(knob, value) for knob, value in variant.effective.items()}


def _communicated(variant: Measured) -> str:
    found = variant.ranks[0].collectives
    calls, size = (sum(each[part] for each in found.values()) for part in (0, 1))
    return f"{calls} calls of {len(found)} kinds and {size:,} bytes"


SCENARIO = Scenario(
    name="silent",
    title="silent fallbacks: asked for, refused with a reason, the step unchanged",
    ranks=RANKS,
    blocks=blocks,
    judge=judge,
)
