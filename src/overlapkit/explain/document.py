"""The JSON document of `overlapkit explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from megatron.bridge.training.decisions import RULES, Decision, Dimension, Outcome
from overlapkit.config.gaps import Gap
from overlapkit.config.run import Framework
from overlapkit.explain.bucket_document import ExplainBuckets, buckets_document
from overlapkit.explain.lint.fix_document import ExplainFix
from overlapkit.explain.lint.place_document import ExplainUserPlace, place_document
from overlapkit.explain.report import Report
from overlapkit.explain.schedule import Pipeline
from overlapkit.explain.stack_document import JobStack, stack_document
from overlapkit.output.console import encodable
from overlapkit.output.numbers import plain

Config = Annotated[str, Meta(description="the configuration, as the command line names it")]
WorldSize = Annotated[int, Meta(description="GPUs of the job")]
Findings = Annotated[
    int,
    Meta(description="how many decisions have the outcome `wrong-numbers`, `error` or `refused`"),
]

Notes = Annotated[
    list[str],
    Meta(
        description="what was assumed in reading the configuration, and what of it was not looked "
        "at"
    ),
]


class ExplainGPU(Struct, frozen=True, kw_only=True):
    """The GPU that the rules assume."""

    name: Annotated[str, Meta(description="short name, such as `h100`")]
    assumed: Annotated[bool, Meta(description="`--gpu` was not given")]


class JobVariable(Struct, frozen=True, kw_only=True):
    """A variable of the job's environment."""

    value: Annotated[str, Meta(description="its value, cut to 80 characters")]
    source: Annotated[
        str,
        Meta(description="where it comes from: as in `environment`, or a line of `env_vars`"),
    ]


class ExplainSource(Struct, frozen=True, kw_only=True):
    """Where a rule is declared."""

    file: Annotated[
        str,
        Meta(
            description="in a checkout relative to its root, otherwise to the folder that contains "
            "the packages"
        ),
    ]
    line: Annotated[int, Meta(description="from 1; it moves with the code")]


class ExplainGap(Struct, frozen=True, kw_only=True):
    """Something of a launch script that is not known, and may add to what was read."""

    what: Annotated[str, Meta(description="what it is: a file, a variable, a branch")]
    place: Annotated[str, Meta(description="its file, and the line where it has one")]
    remedy: Annotated[str, Meta(description="how to make it known")]
    variables: Annotated[
        list[str] | None,
        Meta(description="environment variables that it may set; `null` where it may set any"),
    ]
    flags: Annotated[
        list[str] | None, Meta(description="flags that it may add; `null` where it may add any")
    ]


NotKnown = Annotated[
    list[ExplainGap],
    Meta(
        description="what of a launch script is not known: no finding rests on the absence of "
        "what it may add"
    ),
]


class ExplainDecision(Struct, frozen=True, kw_only=True):
    """What became of one knob.

    A knob can have several decisions: a default, and a note on what Megatron-Core makes of it.
    """

    knob: Annotated[
        str,
        Meta(description="dotted: `model.tp_comm_overlap`; `env.NAME` for an environment variable"),
    ]
    requested: Annotated[Any, Meta(description="the requested value; `null` where none was")]
    effective: Annotated[Any, Meta(description="the value that the run uses")]
    outcome: Annotated[
        Outcome,
        Meta(
            description="`granted`: requested and in effect; `default`: not requested, a default "
            "was chosen; `refused`: requested, and the run continues without it; `error`: the run "
            "must not start like this; `wrong-numbers`: it starts, and trains on wrong numbers; "
            "`note`: a fact that follows from the settings"
        ),
    ]
    reason: Annotated[str, Meta(description="why, in one sentence")]
    remedy: Annotated[str | None, Meta(description="how to get the other outcome")]
    rule: Annotated[str, Meta(description="id of the rule that decided: `<dimension>.<name>`")]
    dimension: Annotated[
        Dimension,
        Meta(
            description="what the knob belongs to: a kind of parallelism (no rule is of `CP`), "
            "`precision`, `launch` (the environment) or `any`"
        ),
    ]
    source: Annotated[ExplainSource, Meta(description="where that rule is declared")]
    where: Annotated[
        ExplainUserPlace | None,
        Meta(
            description="where the user set the knob, the same key of `comm_overlap` or "
            "`mixed_precision`, or else what the remedy changes; `null` where the user set nothing"
        ),
    ] = None
    flag: Annotated[
        str | None,
        Meta(
            description="the flag that sets the knob, as the job spells it; `null` where none "
            "does, and for a run that takes no flags"
        ),
    ] = None
    certain: Annotated[
        bool,
        Meta(
            description="`false` for a note that would be a finding, if nothing of `not_known` "
            "changed it"
        ),
    ] = True


class ExplainPipeline(Struct, frozen=True, kw_only=True):
    """How long a pipeline stands idle while it fills and drains."""

    bubble_share: Annotated[
        float,
        Meta(
            description="idle time of a GPU over the time in which it computes: (PP - 1) / (VPP x "
            "`microbatches`), with stages that take equally long (Narayanan et al. 2021, section "
            "2.2)"
        ),
    ]
    by_vpp: Annotated[
        dict[str, float],
        Meta(
            description="the same for each virtual pipeline size that divides the layers; empty "
            "where the pipeline is interleaved already"
        ),
    ]


class ExplainDocument(Struct, frozen=True, kw_only=True):
    """Which communication overlap a run gets, and why."""

    schema: Annotated[
        Literal["overlapkit/explain/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/explain/v1"
    config: Config
    framework: Annotated[
        Framework, Meta(description="whose rules were applied: `megatron-bridge` or `megatron-lm`")
    ]
    stack: Annotated[JobStack, Meta(description="the versions whose rules were applied")]
    world_size: WorldSize
    data_parallel_size: Annotated[int, Meta(description="`world_size` / (TP x PP x CP)")]
    microbatches: Annotated[
        int | None,
        Meta(
            description="of a step on each replica, after a ramp-up of the batch; `null` where "
            "the batch sizes are not known or do not divide"
        ),
    ] = None
    pipeline: Annotated[
        ExplainPipeline | None,
        Meta(
            description="how long the pipeline stands idle; `null` with one stage, or where "
            "`microbatches` is"
        ),
    ] = None
    gpu: Annotated[ExplainGPU, Meta(description="the GPU that the rules assume")]
    transformer_engine: Annotated[
        str, Meta(description="what was assumed of Transformer Engine, or found here")
    ]
    environment: Annotated[
        str, Meta(description="where the variables come from that `launch_env` is compared with")
    ]
    job_env: Annotated[
        dict[str, JobVariable],
        Meta(
            description="what is known of the job's environment: each variable of `launch_env` and "
            "of the configuration's `env_vars` that the job has"
        ),
    ]
    findings: Findings
    decisions: Annotated[list[ExplainDecision], Meta(description="what was decided, by dimension")]
    effective: Annotated[
        dict[str, Any],
        Meta(
            description="every knob that decides about overlap, dotted, and the value that the run "
            "will have"
        ),
    ]
    launch_env: Annotated[
        dict[str, str],
        Meta(description="each environment variable that the job needs, and its value"),
    ]
    launch_env_reasons: Annotated[
        dict[str, str], Meta(description="the same variables, and why they are needed")
    ]
    buckets: Annotated[
        ExplainBuckets, Meta(description="how the gradients are divided for their reduction")
    ]
    notes: Notes
    not_known: NotKnown = []
    fixes: Annotated[
        list[ExplainFix],
        Meta(
            description="with `--fix` or `--diff`: what becomes of each finding; the other fields "
            "are then of the configuration with the changes"
        ),
    ] = []
    diff: Annotated[
        str | None,
        Meta(
            description="with `--fix` or `--diff`: the changes of the file, as a unified diff; "
            "empty where it has none; `null` without these options"
        ),
    ] = None


def explain_document(report: Report) -> ExplainDocument:
    """The report as the document `overlapkit/explain/v1`."""
    a = report.assumptions
    return ExplainDocument(
        config=report.source,
        framework=report.framework,
        stack=stack_document(report.basis),
        world_size=report.world_size,
        data_parallel_size=report.data_parallel_size,
        microbatches=report.microbatches,
        pipeline=None if report.pipeline is None else _pipeline(report.pipeline),
        gpu=ExplainGPU(name=a.gpu_name, assumed=not a.gpu_given),
        transformer_engine=a.te,
        environment=a.environment_source,
        job_env=_job_env(report),
        findings=len(report.findings),
        decisions=[decision_document(report, d) for d in report.decisions],
        effective={k: plain(v) for k, v in report.effective.items()},
        launch_env={v.name: v.value for v in report.launch_env},
        launch_env_reasons={v.name: v.reason for v in report.launch_env},
        buckets=buckets_document(report.buckets),
        notes=[*report.notes, *report.remarks],
        not_known=list(map(gap_document, report.gaps)),
    )


def _pipeline(pipeline: Pipeline) -> ExplainPipeline:
    return ExplainPipeline(
        bubble_share=pipeline.bubble,
        by_vpp={str(size): share for size, share in pipeline.interleaved.items()},
    )


def gap_document(gap: Gap) -> ExplainGap:
    """Something of a launch script that is not known, in the document."""
    return ExplainGap(
        what=gap.what,
        place=gap.place,
        remedy=gap.remedy,
        variables=None if gap.variables is None else sorted(gap.variables),
        flags=None if gap.flags is None else sorted(gap.flags),
    )


def _job_env(report: Report) -> dict[str, JobVariable]:
    job = report.environment
    names = dict.fromkeys([*(v.name for v in report.launch_env), *job.origins])
    return {
        name: JobVariable(value=encodable(value)[:80], source=job.origin(name))
        for name in names
        if (value := job.get(name)) is not None
    }


def source_of(rule_id: str) -> tuple[str, int]:
    """Where a rule is declared: file, relative to the repository in a checkout, and line."""
    declared = RULES[rule_id]
    root = Path(__file__).resolve().parents[3]
    in_checkout = (root / "pyproject.toml").is_file()
    return ("src/" if in_checkout else "") + declared.path, declared.line


def decision_document(report: Report, decision: Decision) -> ExplainDecision:
    """A decision as documents have it, with where the user set what it is about."""
    file, line = source_of(decision.rule)
    where = report.place(decision)
    return ExplainDecision(
        knob=decision.knob,
        requested=plain(decision.requested),
        effective=plain(decision.effective),
        outcome=decision.outcome,
        reason=decision.reason,
        remedy=decision.remedy,
        rule=decision.rule,
        dimension=decision.dimension,
        source=ExplainSource(file=file, line=line),
        where=None if where is None else place_document(where),
        flag=report.words.flag(decision.knob),
        certain=decision.certain,
    )
