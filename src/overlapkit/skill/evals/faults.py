"""Tasks on faults that no source tells: wrong numbers by version, and what a machine needs."""

from __future__ import annotations

from pathlib import Path

import overlapkit
from overlapkit.skill.evals.answer import Number, Text, names
from overlapkit.skill.evals.ask import finding_rule, findings, fixed_in
from overlapkit.skill.evals.tasks import Answers, Task


def _hazard(folder: Path) -> Answers:
    document = overlapkit.explain(folder / "interleaved_8b.yaml", world_size=16, gpu="h100")
    (found,) = findings(document)
    return {"rule": Text(found.rule), "outcome": Text(found.outcome.value)}


def _experts_cleared(folder: Path) -> Answers:
    path = folder / "moe_mxfp8.yaml"
    document = overlapkit.explain(path, world_size=64, gpu="b200", core="0.17.1")
    rule = finding_rule(document)
    return {"rule": rule, "fixed_in": fixed_in(rule.value)}


def _versions(folder: Path) -> Answers:
    wrong = [
        core
        for core in ("0.16.1", "0.17.1", "0.18.2", "0.19.0")
        if overlapkit.explain(
            folder / "moe_mxfp8.yaml", world_size=64, gpu="b200", core=core
        ).findings
    ]
    return {"versions": names(wrong)}


def _instances(folder: Path) -> Answers:
    path = folder / "instances.yaml"
    document = overlapkit.explain(path, world_size=32, gpu="h100", core="0.16.1")
    rule = finding_rule(document)
    return {"rule": rule, "fixed_in": fixed_in(rule.value)}


def _wide(folder: Path) -> Answers:
    document = overlapkit.explain(folder / "wide_tp.yaml", world_size=32, gpu="h100")
    (found,) = findings(document)
    return {"knob": Text(found.knob), "rule": Text(found.rule)}


def _multicast(folder: Path) -> Answers:
    path = folder / "pretrain_34b.sh"
    document = overlapkit.explain(path, gpu="a100", from_megatron_lm=True)
    on_h100 = overlapkit.explain(path, gpu="h100", from_megatron_lm=True)
    known = {d.rule for d in findings(on_h100)}
    (found,) = [d for d in findings(document) if d.rule not in known]
    return {"variable": Text(found.knob.removeprefix("env.")), "rule": Text(found.rule)}


def _old_te(folder: Path) -> Answers:
    path = folder / "pretrain_34b.sh"
    document = overlapkit.explain(path, gpu="h100", te="1.5.0", from_megatron_lm=True)
    known = {d.rule for d in findings(overlapkit.explain(path, gpu="h100", from_megatron_lm=True))}
    (found,) = [d for d in findings(document) if d.rule not in known]
    return {"rule": Text(found.rule), "findings": Number(document.findings)}


FAULTS = (
    Task(
        "swapped-tensors",
        "interleaved_8b.yaml trains on 16 H100 without an error. What will become of it: `rule` "
        "(id of overlapkit) and `outcome` (refused, error or wrong-numbers)?",
        ("interleaved_8b.yaml",),
        _hazard,
        in_source=False,
    ),
    Task(
        "loss-is-nan",
        "moe_mxfp8.yaml (64 B200, megatron-core 0.17.1) soon has a loss of NaN. Which known fault "
        "is it (`rule`, id of overlapkit), and which version of megatron-core mends it "
        "(`fixed_in`)?",
        ("moe_mxfp8.yaml",),
        _experts_cleared,
        in_source=False,
    ),
    Task(
        "versions-with-nan",
        "Of megatron-core 0.16.1, 0.17.1, 0.18.2 and 0.19.0, which have a finding for "
        "moe_mxfp8.yaml on 64 B200 (`versions`)?",
        ("moe_mxfp8.yaml",),
        _versions,
        in_source=False,
    ),
    Task(
        "incomplete-gradients",
        "instances.yaml (32 H100, megatron-core 0.16.1) does not converge as before. Which known "
        "fault can it be (`rule`, id of overlapkit), and which version mends it (`fixed_in`)?",
        ("instances.yaml",),
        _instances,
        in_source=False,
    ),
    Task(
        "beyond-nvlink",
        "Will wide_tp.yaml start on 32 H100 in machines of 8? If not, which knob is it (`knob`), "
        "by which rule (`rule`, id of overlapkit)?",
        ("wide_tp.yaml",),
        _wide,
        in_source=False,
    ),
    Task(
        "older-machine",
        "pretrain_34b.sh is to run on A100. Beside what is wrong on H100 too, which environment "
        "variable is missing (`variable`), by which rule (`rule`, id of overlapkit)?",
        ("pretrain_34b.sh",),
        _multicast,
        in_source=False,
    ),
    Task(
        "old-transformer-engine",
        "pretrain_34b.sh is to run on H100 with Transformer Engine 1.5.0. How many findings are "
        "there (`findings`), and which rule has one that a recent Transformer Engine does not "
        "have (`rule`, id of overlapkit)?",
        ("pretrain_34b.sh",),
        _old_te,
        in_source=False,
    ),
)
