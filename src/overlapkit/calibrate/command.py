"""`overlapkit plan calibrate`: rates of the user's own machine from profiles of its training."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

from overlapkit.calibrate.collect import rates_in
from overlapkit.errors import InputError
from overlapkit.output.console import write_json, write_text
from overlapkit.output.files import outputs
from overlapkit.plan.rates.text import rates_lines, unread_lines


def run(
    files: Sequence[str], *, traces: Sequence[str], gpu: str | None, out: str | None, as_json: bool
) -> int:
    """Read the profiles; returns the exit status.

    Args:
        files, traces: the profiles, in whichever way they were named.
        gpu: what they were recorded on; None takes what they name.
        out: where to write the file of rates; None prints it.
        as_json: whether to print it although it is written.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    named = [*traces, *files]
    if not named:
        raise InputError("give --from-trace FILE: a profile of torch.profiler, or a folder of them")
    (target,) = outputs({"--out": out}, named)
    rates = rates_in(named, gpu)
    if target is not None:
        target.write(msgspec.json.format(msgspec.json.encode(rates), indent=1).decode() + "\n")
    if target is None or as_json:
        write_json(rates)
        for line in unread_lines(rates):
            print(f"overlapkit: {line}", file=sys.stderr)
    else:
        assert out is not None
        write_text("".join(f"{line}\n" for line in rates_lines(rates, out)))
    return 0
