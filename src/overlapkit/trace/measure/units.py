"""What the windows of a report are, and what a time of each is called."""

from __future__ import annotations

from typing import Literal

StepsFrom = Literal["ranges", "repetition", "iterations"]
"""What marks the steps: ranges of the profile, a sequence of kernels that repeats, or an inference
engine's ranges around its iterations."""

Unit = Literal["step", "iteration"]
"""What the windows are: an inference engine has iterations, and no steps."""

A_UNIT: dict[Unit, str] = {"step": "a step", "iteration": "an iteration"}
"""What follows a time that each of them takes."""


def unit_of(steps_from: StepsFrom | None, *, trains: bool) -> Unit:
    """What the windows of a profile are.

    Args:
        steps_from: what marks them.
        trains: whether the software that ran can be a training job.
    """
    repeated = steps_from == "repetition" and not trains
    return "iteration" if repeated or steps_from == "iterations" else "step"
