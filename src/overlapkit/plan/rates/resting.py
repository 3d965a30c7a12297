"""How much of an estimate rests on measured rates."""

from __future__ import annotations

from collections.abc import Callable

from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.rates.measured import KINDS, Kind, Measured

STEP = 1e-3


def resting(measured: Measured, seconds: Callable[[Machine], float]) -> dict[Kind, float]:
    """The share of a step's time that each kind of measurement accounts for.

    It is by how much more the step takes where all that was measured of the kind takes a little
    more. What is hidden counts nothing. Shapes without a measurement near enough are left out.

    Args:
        measured: the rates.
        seconds: of the step on a machine.

    Returns:
        The shares, without kinds that account for nothing.
    """
    base = seconds(measured.machine())
    shares = {
        kind: (seconds(measured.machine({kind: 1 + STEP})) / base - 1) / STEP for kind in KINDS
    }
    return {kind: share for kind, share in shares.items() if share > STEP}
