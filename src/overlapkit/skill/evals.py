"""Questions that the skill must help an agent answer, with answers computed by `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overlapkit.config.overrides import parse_override
from overlapkit.config.run import read_settings
from overlapkit.config.yaml_file import read_yaml
from overlapkit.explain.assumptions import assume
from overlapkit.explain.difference import find_difference
from overlapkit.explain.report import explain

_QUESTIONS = (
    (
        "examples/llama3_70b_64xh100.yaml",
        64,
        "h100",
        (),
        "Which communication overlap does {config} get on 64 H100, and with which environment must "
        "it be launched?",
    ),
    (
        "examples/pitfalls_16xh100.yaml",
        16,
        "h100",
        (),
        "{config} is slow on 16 H100 and its loss looks odd. Which overlap that it requests "
        "is not in effect, and what has to change?",
    ),
    (
        "examples/llama3_70b_64xh100.yaml",
        64,
        "h100",
        ("model.sequence_parallel=false", "model.virtual_pipeline_model_parallel_size=null"),
        "After {overrides} was added to {config} (64 H100), throughput fell. Which overlap was "
        "lost, and which of the two keys lost which?",
    ),
    (
        "examples/gpt_1b_8xh100.yaml",
        8,
        "h100",
        ("comm_overlap.bucket_size=2000000000",),
        "{config} runs on 8 H100 with {overrides}. overlap_grad_reduce is on, yet a profile shows "
        "one reduce-scatter after the backward. Why?",
    ),
)


def evals(root: Path) -> list[dict[str, Any]]:
    """Every question with what a correct answer must mention.

    Raises:
        InputError: an example is missing, or is not a configuration.
    """
    result = []
    for number, (config, world_size, gpu, overrides, question) in enumerate(_QUESTIONS, 1):
        document = read_yaml(root / config)
        changed = read_settings(document, [parse_override(o, document.data) for o in overrides])
        assumptions = _without_environment(gpu)
        report = explain(changed, world_size, assumptions)
        expected = [f"{d.knob} is not in effect as requested: {d.rule}" for d in report.findings]
        expected += [f"{v.name}={v.value}" for v in report.launch_env if number == 1]
        if overrides:
            base = read_settings(document)
            difference = find_difference([base, changed], [world_size] * 2, assumptions)
            expected += [
                f"{c.knob} changed because of {', '.join(c.causes)}"
                for c in difference.changes
                if c.causes and c.knob not in c.causes and c.knob in report.effective
            ]
        expected += [d.rule for d in report.decisions if d.rule == "core.single-bucket"]
        result.append(
            {
                "id": number,
                "prompt": question.format(config=config, overrides=" ".join(overrides)),
                "files": [config],
                "expectations": expected,
            }
        )
    return result


def _without_environment(gpu: str) -> Any:
    from dataclasses import replace

    return replace(assume(gpu, "assume", None), environment={})
