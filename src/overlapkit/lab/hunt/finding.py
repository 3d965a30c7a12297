"""What a hunt found: the smallest configuration that shows it, and how to repeat it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import yaml

from overlapkit.lab.hunt.case import Case, settings
from overlapkit.lab.hunt.judge import Fate
from overlapkit.lab.scenario import Settings

FindingKind = Literal["wrong numbers", "crash", "hang", "refused with a reason"]

_EXPLAINED = re.compile(r"^(AssertionError|ValueError|NotImplementedError): \S")
"""Errors that are raised on purpose, with a message."""

SIZES = ("tp", "pp", "vpp", "dp", "ep", "depth", "microbatches", "micro_batch", "mtp", "steps")
"""Features that are numbers: a larger one includes a smaller one."""

CHECKS = 3
"""How often the smallest case is trained again."""


@dataclass
class Finding:
    """A difference, or an error of what the rules allow.

    Attributes:
        case: the smallest that shows it.
        fate: what became of it.
        first: the case that showed it first.
        shown: in how many of `CHECKS` repetitions the smallest case showed it.
        smallest: whether no simpler case shows it; False where the time ended before.
        others: further cases of the hunt that showed the same.
    """

    case: Case
    fate: Fate
    first: Case
    shown: int = 0
    smallest: bool = False
    others: list[Case] = field(default_factory=list)

    @property
    def kind(self) -> FindingKind:
        """What kind of finding it is."""
        if self.fate.kind == "different":
            return "wrong numbers"
        if self.fate.kind == "hang":
            return "hang"
        explained = _EXPLAINED.match(self.fate.what) and in_megatron_core(self.fate)
        return "refused with a reason" if explained else "crash"

    def is_shown_by(self, case: Case, fate: Fate) -> bool:
        """Whether another case shows the same."""
        if fate.symptom != self.fate.symptom:
            return False
        return self.fate.kind in ("refused", "crash") or covers(self.case, case)


def in_megatron_core(fate: Fate) -> bool:
    """Whether the error was raised in Megatron-Core; also where there is no traceback."""
    files = [line for line in fate.lines if "File " in line]
    return not files or "megatron/core" in files[-1]


def covers(smallest: Case, case: Case) -> bool:
    """Whether a case has every feature of a smaller one, and sizes that are as large."""
    for name, value in smallest.features.items():
        own = getattr(case, name)
        larger = name in SIZES and own > value
        if own != value and not larger:
            return False
    return True


def configuration(case: Case, base: Settings | None = None) -> str:
    """The case as a YAML configuration of a few lines; see `on_two`."""
    content = settings(on_two(case), base)
    sections = {name: values for name, values in content.items() if values}
    text: str = yaml.safe_dump(sections, sort_keys=False, default_flow_style=None, width=96)
    return text


def on_two(case: Case) -> Case:
    """The case; one of a single rank with two replicas: `overlapkit lab` has no fewer ranks."""
    return case if case.ranks > 1 else msgspec.structs.replace(case, dp=2)


def file_name(finding: Finding) -> str:
    """Of its configuration."""
    return f"{finding.kind.replace(' ', '-')}-{finding.case.name}.yaml"


def command(file: str, case: Case) -> str:
    """The command that trains a configuration as it is written, on as many ranks."""
    ranks = on_two(case).ranks
    return f"overlapkit lab {file} --as-written --world-size {ranks} --ranks {ranks}"


def proposed_rule(finding: Finding) -> str | None:
    """What a rule would say, where Megatron-Core explains its error; else None."""
    if finding.kind != "refused with a reason":
        return None
    reason = finding.fate.what.partition(": ")[2].splitlines()[0]
    return f"{finding.case.words}: Megatron-Core refuses it: {reason}"
