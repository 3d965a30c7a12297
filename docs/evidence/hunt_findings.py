"""What the hunt found, each case trained three times past the rules: a reproduction.

    uv run python docs/evidence/hunt_findings.py FILE.json [NAME ...]

Each case is a small one that shows what a rule says, on two ranks of the lab's tiny model, with
Megatron-Core's own layers (no Transformer Engine, no GPU). Beside it is the case with the rule's
remedy, which trains and equals the unpartitioned model.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from overlapkit.lab.hunt.case import Case, settings
from overlapkit.lab.hunt.laboratory import Laboratory
from overlapkit.lab.protocol import Variant
from overlapkit.lab.scenario import Settings, layered

TURNS = 3
SILENCE_S = 300.0
"""Longest time without an event of a rank: a busy machine imports torch within it."""


@dataclass(frozen=True)
class Shown:
    """A case that shows what a rule says.

    Attributes:
        rule: the rule's id.
        case: the case.
        remedy: the case with the rule's remedy; None where that is a refusal's alone.
        model: settings of section `model` that no feature of a case has.
    """

    rule: str
    case: Case
    remedy: Case | None = None
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def sections(self) -> Settings:
        """The configuration that the rule finds it in."""
        saved: Settings = {"checkpoint": {"save": "checkpoints"}} if self.saves else {}
        return layered(settings(self.case), {"model": self.model}, saved)

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is written between the steps."""
        return self.case.actions in ("checkpoint", "both")

    @property
    def trained(self) -> tuple[Case, ...]:
        """The case, and that with the remedy."""
        return (self.case,) if self.remedy is None else (self.case, self.remedy)


EXPERTS = {"experts": "alltoall", "topk": 2}
CASES = {
    "predictions with learned positions": Shown(
        "wrong.mtp-learned-positions",
        Case(pp=2, mtp=1, bias=False, microbatches=2),
        Case(pp=2, mtp=1, bias=False, microbatches=2, rope=True),
    ),
    "experts whole in a tensor-parallel group": Shown(
        "wrong.experts-reduced-as-dense",
        Case(tp=2, sp=True, etp=1, bias=False, **EXPERTS),
        Case(tp=2, sp=True, etp=1, ep=2, bias=False, **EXPERTS),
    ),
    "experts split over replicas": Shown(
        "wrong.experts-reduced-as-dense",
        Case(dp=2, etp=2, bias=False, **EXPERTS),
        Case(dp=2, bias=False, **EXPERTS),
    ),
    "uniform units": Shown(
        "core.recompute-units-divide-layers",
        Case(dp=2, recompute="uniform-2", bias=False),
        Case(dp=2, recompute="uniform", bias=False),
    ),
    "recomputed MLP with a bias": Shown(
        "core.recompute-mlp-bias",
        Case(dp=2, recompute="mlp"),
        Case(dp=2, recompute="mlp", bias=False),
    ),
    "recomputed norms": Shown(
        "core.recompute-needs-te", Case(dp=2, recompute="layernorm"), Case(dp=2)
    ),
    "whole experts with a bias": Shown(
        "core.expert-bias-in-place", Case(dp=2, **EXPERTS), Case(dp=2, bias=False, **EXPERTS)
    ),
    "split experts with a bias": Shown("core.expert-bias-splits", Case(tp=2, sp=True, **EXPERTS)),
    "shared expert with a bias": Shown(
        "core.shared-expert-bias", Case(dp=2, shared=True, **EXPERTS)
    ),
    "experts without sequence parallelism": Shown(
        "core.experts-need-sequence-parallel",
        Case(tp=2, bias=False, **EXPERTS),
        Case(tp=2, sp=True, bias=False, **EXPERTS),
    ),
    "softmax of one expert": Shown(
        "core.one-expert-pre-softmax",
        Case(dp=2, bias=False, experts="alltoall"),
        model={"moe_router_pre_softmax": False},
    ),
    "variable lengths": Shown(
        "core.variable-lengths-dispatcher",
        Case(pp=2, variable=True, bias=False),
        model={"moe_token_dispatcher_type": "allgather"},
    ),
    "shard of padding": Shown(
        "core.checkpoint-shard-of-padding",
        Case(
            dp=2,
            bias=False,
            distributed=True,
            overlap="reduce",
            bucket="each",
            actions="checkpoint",
            steps=2,
        ),
    ),
    "distributed activations": Shown(
        "core.distribute-activations-excludes",
        Case(tp=2, sp=True, bias=False, recompute="full", distribute=True),
        Case(tp=2, sp=True, bias=False, recompute="full"),
    ),
}


class PastTheRules(Laboratory):
    """Trains what the rules refuse."""

    def variant(self, case: Case, *, forced: bool = True, data: int = 0) -> Variant:
        """The case's variant, which no rule stops."""
        plain = super().variant(case, forced=forced, data=data)
        more = next((s.model for s in CASES.values() if s.case == case), {})
        return msgspec.structs.replace(
            plain, settings=layered(plain.settings, {"model": more}), bypass=True
        )


def outcomes(cases: list[Case]) -> dict[Case, str]:
    """What became of each case, in one line, trained by new ranks."""
    with tempfile.TemporaryDirectory() as scratch:
        fates = PastTheRules(Path(scratch), silence_s=SILENCE_S).fates(cases)
    return {
        case: fate.kind if fate.kind == "equal" else f"{fate.kind}: {fate.what[:160]}"
        for case, fate in fates.items()
    }


def main(target: str, *names: str) -> None:
    """Train the cases of these names, all by default, and write the record after every turn.

    Turns that the record has already are kept: those of a machine that was too busy can be added.
    """
    path = Path(target)
    record = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    record["versions"] = {name: version(name) for name in ("megatron-core", "torch")}
    chosen = {name: CASES[name] for name in names or CASES}
    for name, one in chosen.items():
        record["cases"].setdefault(
            name,
            {
                "rule": one.rule,
                "ranks": one.case.ranks,
                "sections": one.sections,
                "outcomes": [],
                **({"with the remedy": []} if one.remedy else {}),
            },
        )
    while left := [n for n in chosen if len(record["cases"][n]["outcomes"]) < TURNS]:
        found = outcomes([case for n in left for case in chosen[n].trained])
        for name in left:
            one, entry = chosen[name], record["cases"][name]
            entry["outcomes"].append(found[one.case])
            if one.remedy:
                entry["with the remedy"].append(found[one.remedy])
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        print(json.dumps(list(found.values())), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
