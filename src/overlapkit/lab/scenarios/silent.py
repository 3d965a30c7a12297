"""Silent fallbacks: a request is refused with a reason, and the step is as without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megatron.bridge.training.decisions import RULES
from megatron.bridge.training.runtime_update import GATHER_SYNC
from megatron.bridge.training.software import installed_stack
from overlapkit.lab.measurements import MeasuredVariant, Observations
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
"""Tolerance of the bytes sent, relative and in bytes: headers and a barrier are sent as well."""


@dataclass(frozen=True)
class Case:
    """One way to request what a rule refuses.

    Attributes:
        rule: the rule's id.
        base: settings of the twin, which has no such request.
        section, key, value: the request, added to the base.
        knob: the refused knob; None: that of the request.
        why: distinguishes this case from others of the same rule.
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
        """Name of the variant without the request."""
        return f"{self.name}.unasked"

    @property
    def layout(self) -> str:
        """Name of the layout; variants that take turns have the same."""
        model = self.base.get("model", {})
        if "pipeline_model_parallel_size" in model:
            return "pp"
        return "tp" if "tensor_model_parallel_size" in model else "dp"

    @property
    def refused(self) -> str:
        """The refused knob, dotted."""
        return self.knob or f"{self.section}.{self.key}"

    @property
    def request(self) -> str:
        """The request as an override on the command line of `overlapkit explain`."""
        return f"{self.section}.{self.key}={str(self.value).lower()}"

    def settings(self, *, requested: bool) -> Settings:
        """Of the variant with the request, or of its twin."""
        more = {self.section: {self.key: self.value}} if requested else {}
        return layered(TINY, SMALL, self.base, more)


TP_REQUEST = ("comm_overlap", "tp_comm_overlap", True, "model.tp_comm_overlap")

CASES = (
    Case("tp.off-unless-asked", layered(SEQUENCE, DEFAULTS), "model", "tp_comm_overlap"),
    Case("tp.needs-tensor-parallel", REPLICAS, *TP_REQUEST),
    Case("tp.needs-sequence-parallel", layered(SHARDS, DEFAULTS), *TP_REQUEST),
    Case("tp.needs-transformer-engine", layered(SEQUENCE, DEFAULTS), *TP_REQUEST),
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
        "core.param-gather-needs-optimizer",
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
"""All silent fallbacks that two ranks can show."""

ELSEWHERE: Mapping[str, str] = {
    "ub.*": "Transformer Engine reads these settings when it sets up userbuffers on GPUs",
    "launch.*": "CUDA, NCCL and Transformer Engine read these variables only on GPUs",
    "dp.torch-fsdp2-*": "these ranks train with Megatron DDP, not with torch's wrapper",
    "core.ncclep-serialised": "the back end exchanges tokens only between GPUs",
    "bridge.packing-no-ep-overlap": "these ranks train on text, and have no experts",
    "precision.fp4_param_is_*": "only Blackwell GPUs compute with the parameters that it is about",
    "dp.param-gather-differs": "the Megatron-Bridge of these ranks keeps the two switches equal",
    "lm.*": "a rule of Megatron-LM's own argument parser, which stops instead of continuing",
}
"""Patterns of rules whose refusals these ranks cannot show, and why."""

NOT_SILENT: Mapping[str, tuple[str, ...]] = {
    "the run stops, since it would train on wrong numbers": (
        "pp.same-peer-*",
        "tp.splits-*",
        "wrong.*",
    ),
    "the run stops with an error": (
        "dp.bucket-size-value",
        "ep.needs-*",
        "ep.no-*",
        "ep.one-mtp-layer",
        "ep.delay-*",
        "precision.mxfp8_gather_reuses_grad_buffer",
        "precision.fp4_excludes_fp8",
        "precision.fp4_needs_te",
        "core.sequence-parallel",
        "core.p2p-*",
        "core.defer-embedding-wgrad",
        "core.reuse-grad-buf-needs",
        "core.fp8-param-needs",
        "core.expert-parallel-needs-experts",
        "core.ep-overlap-*",
        "core.early-release-needs-ep-overlap",
        "core.dispatch-wgrad-*",
        "core.delay-wgrad-*",
        "core.num-buckets-excludes",
        "core.mxfp8-*",
        "core.optimizer-instances-*",
        "core.layer-wise-*",
        "core.layout-vpp-differs",
        "core.*-divide*",
        "core.chunks-*",
        "core.stage-sizes-exclude",
        "core.microbatches-fill-pipeline",
        "core.fp4-param-needs",
        "core.nccl-ub-*",
        "core.graphs-expandable",
        "tp.one-nvlink-domain",
        "tp.multicast-needs",
        "tp.bootstrap-needs-mpi",
        "tp.old-te-bootstraps-with-mpi",
        "tp.userbuffers-fixed-length",
        "bridge.fsdp-one-queue",
        "core.fp32-local-accumulation",
        "core.weight-shards-average",
        "core.flex-sm-counts",
        "core.ncclep-needs-flex",
        "core.graph-scope-twice",
        "bridge.local-graph-scopes",
        "bridge.full-iteration-nan-check",
        "bridge.fsdp-excludes-*",
        "core.full-iteration-with-optimizer-step",
        "core.hybrid-no-virtual-pipeline",
        "core.cp-exchange-of-each-layer",
        "bridge.fsdp-registration-needs",
        "bridge.fsdp-v2-[!n]*",
        "bridge.flex-needs-backend",
        "bridge.*ep-gpu",
        "core.shared-expert-*",
        "core.expert-bias-*",
        "core.experts-need-*",
        "core.one-expert-*",
        "core.variable-lengths-*",
        "core.recompute-*",
        "core.distribute-activations-*",
        "core.checkpoint-shard-*",
    ),
    "it states what follows from the settings, and refuses nothing": (
        "any.no-comm-overlap",
        "tp.userbuffers-default",
        "tp.preset-fit",
        "any.other-versions",
        "dp.distributed-optimizer-sync",
        "dp.param-gather-sync",
        "dp.muon-by-name",
        "bridge.bucket-default",
        "bridge.num-buckets",
        "core.param-gather-layer-wise",
        "bridge.fsdp-sync",
        "bridge.fsdp-no-*",
        "bridge.fsdp-distributed-optimizer",
        "bridge.fsdp-decoupled-grad",
        "bridge.fsdp-registration",
        "bridge.fsdp-v2-no-overlap",
        "bridge.graph-scopes-cleared",
        "bridge.flex-falls-back",
        "core.graph-full-iteration",
        "core.layout-sets-vpp",
        "core.sent-then-freed",
        "core.cp-exchange-exposed",
        "bridge.optimizer-step-checkpoint",
        "core.no-replica",
        "core.fsdp",
        "core.bucket-default",
        "core.bucket-count",
        "core.single-bucket",
        "core.first-chunk-only",
    ),
}
"""Reasons why other rules have no silent refusals, and patterns of their ids."""

TE_IS_HERE = "Transformer Engine can be imported here, so this requirement is met"


def cases(setting: Setting) -> tuple[Case, ...]:
    """Those that can be shown with what is installed."""
    stack = installed_stack()
    return tuple(
        case
        for case in CASES
        if RULES[case.rule].holds(stack)
        and not (setting.te and case.rule == "tp.needs-transformer-engine")
    )


def blocks(setting: Setting) -> tuple[Block, ...]:
    """For each layout a block with its cases, each next to its twin."""
    rounds, steps = setting.turns(3, 1)
    layouts: dict[str, list[Variant]] = {}
    for case in cases(setting):
        layouts.setdefault(case.layout, []).extend(
            Variant(name=name, settings=case.settings(requested=requested), collectives=True)
            for name, requested in ((case.twin, False), (case.name, True))
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


def judge(observed: Observations, setting: Setting) -> list[Verdict]:
    """A verdict per case, and one for each kind of refusal that these ranks cannot show.

    Only what can be counted decides: knobs, bits, calls and bytes. The step time is shown, but two
    equal steps of this length can differ by half on a busy machine.
    """
    verdicts = []
    for case in cases(setting):
        variants = observed.variants(f"silent-{case.layout}")
        verdicts.append(_unchanged(case, variants[case.name], variants[case.twin]))
    elsewhere = dict(ELSEWHERE)
    if setting.te:
        elsewhere["tp.needs-transformer-engine"] = TE_IS_HERE
    return verdicts + [
        Verdict(f"{rules}: a refused request leaves the step unchanged.", NOT_TESTABLE, why)
        for rules, why in elsewhere.items()
    ]


def _unchanged(case: Case, variant: MeasuredVariant, twin: MeasuredVariant) -> Verdict:
    request = case.request + (f" ({case.why.replace('-', ' ')})" if case.why else "")
    claim = f"{case.rule}: {request} is refused, and the step is unchanged."
    if variant.error or twin.error:
        return Verdict(claim, NOT_CONFIRMED, str(variant.error or twin.error))
    decision = variant.decision(case.rule, case.refused)
    if decision is None or decision.outcome != "refused":
        return Verdict(claim, NOT_CONFIRMED, f"the rule did not refuse {case.refused}")
    reason = decision.reason.rstrip(".")
    differences = list(_differences(variant, twin))
    if differences:
        evidence = f"{reason}; differs from the step without the request: {', '.join(differences)}"
        return Verdict(claim, NOT_CONFIRMED, evidence)
    evidence = f"{reason}; same knobs, weights and communication ({_communicated(variant)} a step)"
    if variant.steps:
        times = f"{variant.step * 1e3:.0f} ms, without the request {twin.step * 1e3:.0f} ms"
        evidence += f"; step {times}"
    return Verdict(claim, CONFIRMED, evidence)


def _differences(variant: MeasuredVariant, twin: MeasuredVariant) -> Iterator[str]:
    """In what a variant's training differs from its twin's."""
    knobs = _in_effect(variant), _in_effect(twin)
    yield from (knob for knob in knobs[0] if knobs[0][knob] != knobs[1][knob])
    if variant.digests != twin.digests or variant.losses != twin.losses:
        yield "weights or losses"
    if [r.collectives for r in variant.ranks] != [r.collectives for r in twin.ranks]:
        yield f"communication ({_communicated(variant)} instead of {_communicated(twin)})"
    if variant.wire_bytes and twin.wire_bytes:
        apart = abs(variant.wire_bytes - twin.wire_bytes)
        if apart > max(PACKETS_BYTES, PACKETS * twin.wire_bytes):
            yield f"bytes sent (by {apart:.0f})"


def _in_effect(variant: MeasuredVariant) -> dict[str, object]:
    """Knobs as trained; for those that Megatron-Core ignores, the value that the decision gives."""
    refused = {d.knob: d.effective for d in variant.decisions if d.outcome == "refused"}
    in_effect = {knob: refused.get(knob, value) for knob, value in variant.effective.items()}
    gather = "optimizer.overlap_param_gather"
    if variant.decision(GATHER_SYNC.id, gather) is not None:
        # The optimizer's switch was copied from ddp's, and is ignored with it.
        in_effect[gather] = in_effect["ddp.overlap_param_gather"]
    return in_effect


def _communicated(variant: MeasuredVariant) -> str:
    found = variant.ranks[0].collectives
    calls, size = (sum(each[part] for each in found.values()) for part in (0, 1))
    return f"{calls} calls of {len(found)} kinds and {size:,} bytes"


SCENARIO = Scenario(
    name="silent",
    title="silent fallbacks: refused with a reason, and the step is unchanged",
    ranks=RANKS,
    blocks=blocks,
    judge=judge,
)
