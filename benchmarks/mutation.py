"""How many mutations of the rules the 26 cases of the skill catch, and the unit suite.

    uv run python benchmarks/mutation.py [--suite] [--only KIND] [--list]

The mutations are made from the declarations of the rules that `CommOverlapConfig.setup()` applies:
`tests/support/mutants.py` says how, and which kinds there are. A new rule is counted at once. Each
is applied in a process of its own, a fork of this one, which then runs
tests/unit_tests/training/test_comm_overlap.py: a failing case has caught it. With --suite the ones
that survive are tried with tests/unit_tests/training. Survivors are named.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
CASES = TESTS / "unit_tests" / "training" / "test_comm_overlap.py"
SUITE = TESTS / "unit_tests" / "training"
LONGEST = 900
"""Seconds after which a run is stopped: a mutation can make a loop endless."""
sys.path.insert(0, str(TESTS))
sys.path.insert(0, str(SUITE / "rules"))

from support.mutants import KINDS, Mutant, mutants  # noqa: E402


def declared_mutants() -> list[Mutant]:
    """Those of the rules that decide in the configurations of test_rules.py."""
    rules = importlib.import_module("test_rules")
    # A rule that ended with a version decides on the newest stack that it holds for.
    return mutants({name: rules.on_stack(name, case) for name, case in rules.ALL_CASES.items()})


def caught(tests: Path, mutant: Mutant | None) -> bool:
    """Whether a test fails with a mutation; None changes nothing.

    Raises:
        RuntimeError: the tests could not be run.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            signal.alarm(LONGEST)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            if mutant is not None:
                mutant.apply()
            plugins = ("cacheprovider", "xdist", "unraisableexception")
            without = [word for name in plugins for word in ("-p", f"no:{name}")]
            status = int(pytest.main([str(tests), "-x", "-q", *without]))
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if os.WIFSIGNALED(ended):
        return True
    status = os.WEXITSTATUS(ended)
    if status not in (0, 1):
        raise RuntimeError(f"pytest ended with {status} on {tests.name} ({mutant})")
    return status == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", action="store_true", help="try survivors with the unit suite")
    parser.add_argument("--only", choices=KINDS, help="one kind alone")
    parser.add_argument("--list", action="store_true", help="name the mutations and stop")
    options = parser.parse_args()
    os.chdir(ROOT)
    # Imported once, before the forks.
    for module in ("megatron.bridge.training.config", "megatron.bridge.models.gpt_provider"):
        importlib.import_module(module)
    # What is loaded here stays loaded: pytest in a fork need not look through it for garbage.
    gc.freeze()
    made = [m for m in declared_mutants() if options.only in (None, m.kind)]
    if options.list:
        print(*(f"{m.kind}: {m.where}: {m.what}" for m in made), sep="\n")
        return 0
    if caught(CASES, None):
        print(f"{CASES.name} fails without any mutation", file=sys.stderr)
        return 2
    survivors = [m for m in made if not caught(CASES, m)]
    hidden = [m for m in survivors if not (options.suite and caught(SUITE, m))]
    print("| kind | mutations | caught by the 26 cases |", end="")
    print(" by the unit suite |" if options.suite else "")
    print("|---|---|---|" + "---|" * options.suite)
    for kind in [*KINDS, "all"]:
        every, left, least = (
            sum(m.kind == kind or kind == "all" for m in some) for some in (made, survivors, hidden)
        )
        if every:
            print(f"| {kind} | {every} | {_of(every - left, every)} |", end="")
            print(f" {_of(every - least, every)} |" if options.suite else "")
    gc.unfreeze()
    for title, some in (
        ("Survive the 26 cases, not the suite", [m for m in survivors if m not in hidden]),
        ("Survive both" if options.suite else "Survive the 26 cases", hidden),
    ):
        if some:
            print(f"\n{title}:", *(f"  {m.kind}: {m.where}: {m.what}" for m in some), sep="\n")
    return 0


def _of(count: int, every: int) -> str:
    return f"{count} of {every} ({100 * count // every} %)"


if __name__ == "__main__":
    sys.exit(main())
