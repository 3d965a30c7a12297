"""Findings in a configuration: decisions that leave communication exposed."""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.models.pipeline_layout import virtual_sizes
from megatron.bridge.training.decisions import Decision, Outcome
from overlapkit.doctor.finding import Evidence, Finding, Kind, Source
from overlapkit.explain.report import Report

ADVISED = frozenset({"core.single-bucket"})
"""Rules whose notes are findings too, although nothing was refused."""


def decision_findings(report: Report) -> Iterator[Finding]:
    """What was refused, what must not start, and what hides nothing."""
    for d in report.decisions:
        if d.is_finding or d.rule in ADVISED:
            yield Finding(
                d.rule,
                _kind(d),
                _message(report, d),
                (Evidence(source_of(d), _evidence(report, d)),),
                d.remedy or "",
                rules=(d.rule,),
                knobs=(d.knob,),
            )


def _kind(d: Decision) -> Kind:
    if d.outcome is Outcome.WRONG_NUMBERS:
        return "wrong-numbers"
    if d.outcome is Outcome.ERROR:
        return "stops"
    if d.knob.startswith("env."):
        return "environment"
    return "refused" if d.outcome is Outcome.REFUSED else "off"


def source_of(d: Decision) -> Source:
    """Where the cause of a decision is."""
    return "environment" if d.knob.startswith("env.") else "configuration"


def _evidence(report: Report, d: Decision) -> str:
    """What was decided and why; of a launch script with the line."""
    text = f"{report.name(d)}: {d.reason.rstrip('.')}"
    where = report.place(d) if report.framework == "megatron-lm" else None
    return text if where is None or where.argument is not None else f"{where}: {text}"


def _message(report: Report, d: Decision) -> str:
    name = report.words.short(d.knob).removeprefix("env.")
    if d.outcome is Outcome.WRONG_NUMBERS:
        return f"The run trains on wrong numbers: {name}"
    if d.outcome is Outcome.ERROR:
        return f"The run must not start like this: {name}"
    if d.knob.startswith("env."):
        return f"{name}={d.effective} disables overlap"
    if d.outcome is Outcome.REFUSED:
        return f"{name} was requested and is not in effect"
    return f"{name} is on but hides nothing"


def unused_overlap(report: Report) -> Iterator[Finding]:
    """Communication that no setting overlaps, by dimension."""
    e = report.effective
    lm = report.framework == "megatron-lm"
    words = report.words

    def off(knob: str, message: str, remedy: str) -> Finding:
        evidence = Evidence("configuration", _is_off(report, knob))
        name = knob.rpartition(".")[2]
        return Finding(f"off.{name}", "off", message, (evidence,), remedy, knobs=(knob,))

    replicas = report.data_parallel_size * (e["model.context_parallel_size"] or 1)
    fsdp = any(d.rule == "core.fsdp" for d in report.decisions)
    if replicas > 1 and not fsdp:
        if not e["ddp.overlap_grad_reduce"]:
            yield off(
                "ddp.overlap_grad_reduce",
                f"Gradients of {replicas} replicas are reduced after the backward pass",
                words.give("--use-distributed-optimizer", "--overlap-grad-reduce")
                if lm
                else "set ddp.use_distributed_optimizer=true, and "
                * (not e["ddp.use_distributed_optimizer"])
                + "omit comm_overlap.overlap_grad_reduce",
            )
        elif e["ddp.use_distributed_optimizer"] and not e["ddp.overlap_param_gather"]:
            yield off(
                "ddp.overlap_param_gather",
                "Parameters are gathered before the forward pass begins",
                words.give("--overlap-param-gather")
                if lm
                else "omit comm_overlap.overlap_param_gather",
            )
    if (e["model.tensor_model_parallel_size"] or 1) > 1 and not e["model.tp_comm_overlap"]:
        yield off(
            "model.tp_comm_overlap",
            "Tensor-parallel collectives are not overlapped with their GEMMs",
            words.give("--sequence-parallel", "--tp-comm-overlap")
            if lm
            else "set model.sequence_parallel=true and comm_overlap.tp_comm_overlap=true",
        )
    if (e["model.pipeline_model_parallel_size"] or 1) > 1 and not e["model.overlap_p2p_comm"]:
        interleaved = (e["model.virtual_pipeline_model_parallel_size"] or 1) > 1
        yield off(
            "model.overlap_p2p_comm",
            "Pipeline sends and receives are not overlapped with compute",
            _overlap_p2p(virtual_sizes(report.run.model), lm=lm, interleaved=interleaved),
        )
    if (e["model.expert_model_parallel_size"] or 1) > 1 and not e[
        "model.overlap_moe_expert_parallel_comm"
    ]:
        yield off(
            "model.overlap_moe_expert_parallel_comm",
            "The exchange of tokens between experts is not overlapped",
            words.give("--overlap-moe-expert-parallel-comm")
            if lm
            else "set comm_overlap.overlap_moe_expert_parallel_comm=true",
        )


def _is_off(report: Report, knob: str) -> str:
    """That a knob is off; where a flag turned it off, that flag."""
    name = report.words.name(knob)
    if report.words.value(knob, False):
        return f"{name} is passed"
    return f"the effective value of {name} is off"


def _overlap_p2p(sizes: list[int], *, lm: bool, interleaved: bool) -> str:
    """How pipeline sends are overlapped; `sizes` are the numbers of chunks that fit a stage."""
    if interleaved:
        return (
            "omit --no-overlap-p2p-communication"
            if lm
            else "set comm_overlap.overlap_p2p_comm=true and comm_overlap.batch_p2p_comm=false"
        )
    if not sizes:
        return "change the layers of a stage: no virtual pipeline size divides them"
    return (
        f"give --num-virtual-stages-per-pipeline-rank {sizes[0]}"
        if lm
        else f"set model.virtual_pipeline_model_parallel_size={sizes[0]}, and add a comm_overlap "
        "section"
    )


def configuration_findings(report: Report) -> list[Finding]:
    """Every finding of a configuration; a refused knob is not also reported as off."""
    found = list(decision_findings(report))
    reported = {knob for finding in found for knob in finding.knobs}
    if "model.batch_p2p_comm" in reported:
        # The two exclude each other: a finding about one is about both.
        reported.add("model.overlap_p2p_comm")
    return found + [f for f in _unused(report) if not reported & set(f.knobs)]


def _unused(report: Report) -> list[Finding]:
    """Communication that no setting overlaps; none where flags that overlap it may be given."""
    return [f for f in unused_overlap(report) if not _may_be_given(report, f)]


def _may_be_given(report: Report, off: Finding) -> bool:
    """Whether flags are not known that may turn on what the script does not turn off itself."""
    return any(gap.flags is None for gap in report.gaps) and not report.asked & set(off.knobs)


def not_certain(report: Report) -> Iterator[str]:
    """What would be a finding, if what is not known of the launch script adds nothing."""
    for d in report.not_certain:
        yield f"{report.name(d)}: {d.reason.rstrip('.')} -> {d.remedy}"
    for finding in unused_overlap(report):
        if _may_be_given(report, finding):
            what = finding.message[:1].lower() + finding.message[1:]
            yield f"not certain, since flags are not known: {what} -> {finding.remedy}"
