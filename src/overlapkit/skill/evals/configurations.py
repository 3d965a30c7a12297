"""Tasks on configurations: what is in effect, and why not the rest."""

from __future__ import annotations

from pathlib import Path

import overlapkit
from overlapkit.skill.evals.answer import Number, Text, names
from overlapkit.skill.evals.ask import causes, difference, finding_rules, findings
from overlapkit.skill.evals.tasks import Answers, Task


def _refused(folder: Path) -> Answers:
    document = overlapkit.explain(folder / "dense_13b.yaml", world_size=16, gpu="h100")
    return {
        "knobs": names([d.knob for d in findings(document)]),
        "bucket_size": Number(document.effective["ddp.bucket_size"]),
    }


def _precision(folder: Path) -> Answers:
    path = folder / "dense_13b.yaml"
    document = overlapkit.explain(path, world_size=16, gpu="h100", diff=True)
    (change,) = [
        change
        for fix in document.fixes
        if fix.knob == "ddp.grad_reduce_in_fp32"
        for change in fix.changes
    ]
    return {"key": Text(change.key)}


def _fixed(folder: Path) -> Answers:
    path = folder / "dense_13b.yaml"
    document = overlapkit.explain(path, world_size=16, gpu="h100", diff=True)
    return {"keys": names([change.key for fix in document.fixes for change in fix.changes])}


def _lost(folder: Path) -> Answers:
    found = difference(folder / "merged_base.yaml", folder / "merged_new.yaml", 16, "h100")
    return {
        "tp_overlap": causes(found, "model.tp_comm_overlap"),
        "one_bucket": causes(found, "buckets"),
    }


def _environment(config: str, world_size: int, gpu: str) -> dict[str, str]:
    return overlapkit.explain(config, world_size=world_size, gpu=gpu).launch_env


def _queues(folder: Path) -> Answers:
    path = str(folder / "merged_base.yaml")
    return {
        gpu: Number(int(_environment(path, 16, gpu)["CUDA_DEVICE_MAX_CONNECTIONS"]))
        for gpu in ("h100", "b200")
    }


def _variables(folder: Path) -> Answers:
    return {"variables": names(list(_environment(str(folder / "merged_base.yaml"), 16, "h100")))}


def _script(folder: Path) -> Answers:
    document = overlapkit.explain(folder / "pretrain_34b.sh", gpu="h100", from_megatron_lm=True)
    (found,) = findings(document)
    assert found.where is not None
    assert found.where.line is not None
    return {
        "variable": Text(found.knob.removeprefix("env.")),
        "line": Number(found.where.line),
        "outcome": Text("stops" if found.outcome.value == "error" else "slower"),
    }


def _other_tp(folder: Path) -> Answers:
    path, overrides = folder / "pretrain_34b.sh", ["TP=1"]
    document = overlapkit.explain(path, overrides=overrides, gpu="h100", from_megatron_lm=True)
    return {"rules": finding_rules(document)}


def _fleet(folder: Path) -> Answers:
    found = []
    for path in sorted((folder / "fleet").glob("[a-d].*")):
        script = path.suffix == ".sh"
        document = overlapkit.explain(path, world_size=16, gpu="h100", from_megatron_lm=script)
        found += [path.name] * bool(document.findings)
    return {"files": names(found)}


def _chunk_sends(folder: Path) -> Answers:
    path = folder / "interleaved_8b.yaml"
    document = overlapkit.explain(
        path,
        overrides=["model.virtual_pipeline_model_parallel_size=null"],
        world_size=16,
        gpu="h100",
    )
    return {
        "findings": Number(document.findings),
        "batch_p2p_comm": Text(str(document.effective["model.batch_p2p_comm"]).lower()),
    }


CONFIGURATIONS = (
    Task(
        "refused-knobs",
        "Megatron-Bridge runs dense_13b.yaml on 16 H100. Which knobs that the file sets are not in "
        "effect as it sets them (`knobs`, dotted with the section that Megatron reads, such as "
        "model.x or ddp.x), and which bucket size do the gradients really get (`bucket_size`)?",
        ("dense_13b.yaml",),
        _refused,
    ),
    Task(
        "precision-key",
        "In dense_13b.yaml (16 H100), under which dotted key must `grad_reduce_in_fp32: false` "
        "stand to have effect (`key`)?",
        ("dense_13b.yaml",),
        _precision,
    ),
    Task(
        "remedies",
        "Which dotted keys of dense_13b.yaml (16 H100) have to be added or changed so that all "
        "that it asks for is in effect (`keys`)?",
        ("dense_13b.yaml",),
        _fixed,
    ),
    Task(
        "lost-in-a-merge",
        "A merge turned merged_base.yaml into merged_new.yaml (16 H100), and training became "
        "slower. Which keys made tensor-parallel overlap go (`tp_overlap`), and which keys made "
        "the gradients one bucket (`one_bucket`)?",
        ("merged_base.yaml", "merged_new.yaml"),
        _lost,
    ),
    Task(
        "hardware-queues",
        "Which CUDA_DEVICE_MAX_CONNECTIONS does merged_base.yaml need with the newest "
        "Megatron-Bridge on 16 H100 (`h100`), and which on 16 B200 (`b200`)?",
        ("merged_base.yaml",),
        _queues,
    ),
    Task(
        "launch-variables",
        "Which environment variables must be set for merged_base.yaml on 16 H100, with the newest "
        "Megatron-Bridge (`variables`)?",
        ("merged_base.yaml",),
        _variables,
    ),
    Task(
        "script-line",
        "pretrain_34b.sh is to run on H100. Which variable that it exports is wrong (`variable`), "
        "in which line (`line`), and what does the job do, `stops` or `slower` (`outcome`)?",
        ("pretrain_34b.sh",),
        _script,
    ),
    Task(
        "script-without-tp",
        "Somebody starts pretrain_34b.sh with TP=1 in the environment, on H100. Which rules (ids "
        "of overlapkit) have a finding then (`rules`)?",
        ("pretrain_34b.sh",),
        _other_tp,
    ),
    Task(
        "fleet",
        "Which configurations in fleet have a finding on 16 H100 (`files`, names without folder)?",
        ("fleet",),
        _fleet,
    ),
    Task(
        "without-interleaving",
        "Where interleaved_8b.yaml (16 H100) had no virtual pipeline: how many findings would "
        "there be (`findings`), and would model.batch_p2p_comm be `true` or `false` "
        "(`batch_p2p_comm`)?",
        ("interleaved_8b.yaml",),
        _chunk_sends,
    ),
)
