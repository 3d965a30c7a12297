"""How far an estimate can be off: the errors of its class against published throughput.

`benchmarks/plan_vs_published.py --write` makes the table. Each layout was estimated with constants
that it was not fitted to, so that the errors are those that a new layout meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from overlapkit.hardware import gpus
from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.workload.offload import Offload
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


MEASURED_ON = "b200"
MEASURED = Errors(layouts=6, lower=0.927, upper=1.026)
"""Of layouts whose operators were measured on the machine that ran them, each estimated with a
share of the operators' rates that the other layouts gave (`benchmarks/plan_with_rates.py`): the
least and the most."""


class Order(msgspec.Struct, frozen=True):
    """How far the estimate misjudges one layout of a model on a machine against another.

    Attributes:
        pairs: that were compared, in current releases or in older ones.
        apart: ratio of their tokens/s that it misjudges by less for four pairs of five.
    """

    pairs: int
    apart: float


class ErrorTable(msgspec.Struct, frozen=True, kw_only=True):
    """The table of the data file.

    Attributes:
        source: what made it.
        classes: errors by `class_of`, and by `wider_class_of`.
        order: of pairs of layouts, by "dense" and "MoE".
    """

    source: str
    classes: dict[str, Errors]
    order: dict[str, Order]


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
    """The range of an estimate; None where nothing like it was ever compared, as with offloading.

    A class with too few layouts takes the errors of its GPU generation, which are wider.
    """
    if machine.name not in gpus() or work.offload != Offload():
        return None
    if machine.measured is not None and machine.measured.covers(work.precision):
        compared = f"{MEASURED_ON} with its own rates"
        own = machine.name == MEASURED_ON and machine.measured.rates.measured == "alone"
        return Range(compared, own, MEASURED.layouts, MEASURED.lower, MEASURED.upper)
    table = error_table()
    names = class_of(work, machine.name), wider_class_of(work, machine.name)
    for own, name in zip((True, False), names, strict=True):
        found = table.classes.get(name)
        if found is not None and found.layouts >= FEWEST:
            return Range(name, own, found.layouts, found.lower, found.upper)
    return None


def order_of(work: Workload) -> Order:
    """How far the estimate orders layouts of this kind of model.

    Of hybrids no two layouts on one machine are published: theirs counts as that of mixtures.
    """
    return error_table().order["dense" if kind_of(work) == "dense" else "MoE"]


def class_of(work: Workload, gpu: str) -> str:
    """The class of an estimate: GPU, precision, kind of model, and long sequences apart."""
    return f"{gpu} {work.precision.name} {_kind(work)}"


def wider_class_of(work: Workload, gpu: str) -> str:
    """The class of all GPUs of a generation, in any precision."""
    return f"{gpus()[gpu].arch} {_kind(work)}"


def kind_of(work: Workload) -> str:
    """Dense, MoE, or hybrid: with Mamba layers, whatever else."""
    if work.shape.mamba:
        return "hybrid"
    return "MoE" if work.shape.experts else "dense"


def _kind(work: Workload) -> str:
    kind = kind_of(work)
    return f"{kind}, long sequences" if work.layout.sequence > LONG_SEQUENCE else kind
