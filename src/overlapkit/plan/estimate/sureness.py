"""How far an estimate can be off: the errors of its class against published throughput.

`benchmarks/plan_vs_published.py --write` makes the table. Each layout was estimated with constants
that it was not fitted to, so that the errors are those that a new layout meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path

import msgspec

from overlapkit.hardware import gpus
from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.workload.step import Workload

TABLE = Path(__file__).resolve().parents[2] / "data" / "estimate_errors.json"
LONG_SEQUENCE = 16384
"""Tokens of a sequence above which attention decides the step, and errors are counted apart."""
FEWEST = 5
"""Layouts that a class needs, so that the spread of its errors says something."""


class Errors(msgspec.Struct, frozen=True):
    """What a class's layouts measured, as shares of their estimated tokens/s.

    Attributes:
        layouts: that were compared.
        lower, upper: a tenth of the layouts measured less than `lower`, and a tenth more than
            `upper`; with fewer than ten layouts they are the least and the most.
    """

    layouts: int
    lower: float
    upper: float


class ErrorTable(msgspec.Struct, frozen=True, kw_only=True):
    """The table of the data file.

    Attributes:
        source: what made it.
        classes: errors by `class_of`, and by `wider_class_of`.
        pairs: pairs of layouts of one model, GPU and precision that were compared.
        apart: natural logarithm of a ratio: of eight pairs of ten the estimate misjudges the ratio
            of their steps by less.
    """

    source: str
    classes: dict[str, Errors]
    pairs: int
    apart: float


@dataclass(frozen=True)
class Range:
    """Where the measured throughput of a layout is to be expected.

    Attributes:
        compared: the class whose errors these are, such as "h100 bf16 dense".
        own: whether that is the estimate's own class; else it is the GPU's generation.
        layouts: published layouts of the class.
        lower, upper: share of the estimated tokens/s.
    """

    compared: str
    own: bool
    layouts: int
    lower: float
    upper: float

    def steps(self, step_s: float) -> tuple[float, float]:
        """Least and most seconds of a step that is estimated to take `step_s`."""
        return step_s / self.upper, step_s / self.lower

    def tokens(self, tokens_per_s: float) -> tuple[float, float]:
        """Least and most tokens/s where `tokens_per_s` are estimated."""
        return tokens_per_s * self.lower, tokens_per_s * self.upper


@cache
def error_table() -> ErrorTable:
    """The table, read once."""
    return msgspec.json.decode(TABLE.read_bytes(), type=ErrorTable)


def range_of(work: Workload, machine: Machine) -> Range | None:
    """The range of an estimate; None where nothing like it was ever compared.

    A class with too few layouts takes the errors of its GPU generation, which are wider.
    """
    if machine.name not in gpus():
        return None
    table = error_table()
    names = class_of(work, machine.name), wider_class_of(work, machine.name)
    for own, name in zip((True, False), names, strict=True):
        found = table.classes.get(name)
        if found is not None and found.layouts >= FEWEST:
            return Range(name, own, found.layouts, found.lower, found.upper)
    return None


def told_apart(step_s: float, other_step_s: float) -> bool:
    """Whether the estimate orders two layouts of one model on one machine better than chance.

    What is wrong for both of them alike does not matter here, so that less decides than the range.
    """
    return abs(log(step_s / other_step_s)) > error_table().apart


def class_of(work: Workload, gpu: str) -> str:
    """The class of an estimate: GPU, precision, dense or MoE, and long sequences apart."""
    return f"{gpu} {work.precision.name} {_kind(work)}"


def wider_class_of(work: Workload, gpu: str) -> str:
    """The class of all GPUs of a generation, in any precision."""
    return f"{gpus()[gpu].arch} {_kind(work)}"


def _kind(work: Workload) -> str:
    kind = "MoE" if work.shape.experts else "dense"
    return f"{kind}, long sequences" if work.layout.sequence > LONG_SEQUENCE else kind
