"""The lab shows every rule that can refuse silently, or says why it cannot."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from fnmatch import fnmatch

import pytest

import megatron.bridge.recipes
import megatron.bridge.training
from megatron.bridge.training.decisions import RULES, Outcome
from megatron.bridge.training.runtime_update import compare_with_request
from megatron.bridge.training.software import AssumedSoftware, installed_stack
from overlapkit.config.effective import EFFECTIVE_KNOBS, knob_value, make_effective
from overlapkit.config.run import read_settings
from overlapkit.config.yaml_file import Document
from overlapkit.lab.scenario import NOT_TESTABLE, Setting
from overlapkit.lab.scenarios import silent

SILENT = {case.rule for case in silent.CASES}
NEEDS_TORCH = {"config"}


def declared() -> set[str]:
    """Every rule there is."""
    for package in (megatron.bridge.training, megatron.bridge.recipes):
        for module in pkgutil.iter_modules(package.__path__):
            if module.name not in NEEDS_TORCH:
                importlib.import_module(f"{package.__name__}.{module.name}")
    # Rules that other tests declare name no file of the package.
    return {name for name, rule in RULES.items() if rule.path.startswith("megatron/")}


def places(name: str) -> int:
    """In how many of the three tables a rule is found."""
    patterns = [p for group in silent.NOT_SILENT.values() for p in group]
    return (
        (name in SILENT)
        + any(fnmatch(name, pattern) for pattern in silent.ELSEWHERE)
        + any(fnmatch(name, pattern) for pattern in patterns)
    )


def test_every_rule_is_shown_or_accounted_for_once() -> None:
    assert {name: places(name) for name in declared() if places(name) != 1} == {}


def test_no_table_names_what_there_is_not() -> None:
    rules = declared()
    patterns = [*SILENT, *silent.ELSEWHERE, *(p for g in silent.NOT_SILENT.values() for p in g)]
    assert [p for p in patterns if not any(fnmatch(name, p) for name in rules)] == []


@pytest.mark.parametrize("case", silent.CASES, ids=lambda case: case.name)
def test_the_rule_refuses_what_its_case_asks_for(case: silent.Case) -> None:
    refused = {}
    for requested in (True, False):
        settings = read_settings(Document(case.name, case.settings(requested=requested)))
        settings = replace(settings, stacks=(installed_stack(),))
        run, update = make_effective(settings, silent.RANKS, AssumedSoftware(te=None))
        effective = {knob: knob_value(run, knob) for knob in EFFECTIVE_KNOBS}
        written = {k: v for k, v in settings.flat().items() if v is not None}
        decisions = compare_with_request(update.decisions, written, effective)
        assert not [d for d in decisions if d.outcome is Outcome.ERROR]
        refused[requested] = {
            (d.rule, d.knob): d.requested for d in decisions if d.outcome is Outcome.REFUSED
        }
    assert refused[True].get((case.rule, case.refused)) == case.value
    assert refused[False].get((case.rule, case.refused)) != case.value


def test_blocks_hold_every_case_beside_its_twin() -> None:
    blocks = silent.blocks(Setting())
    names = [variant.name for block in blocks for variant in block.variants]
    assert len(names) == len(set(names)) == 2 * len(silent.CASES)
    for block in blocks:
        layouts = {
            tuple(
                variant.settings["model"].get(f"{dimension}_model_parallel_size", 1)
                for dimension in ("tensor", "pipeline")
            )
            for variant in block.variants
        }
        assert len(layouts) == 1, "what takes turns shares its process groups"


def test_with_transformer_engine_one_need_is_met() -> None:
    rules = {case.rule for case in silent.cases(Setting(te=True))}
    assert SILENT - rules == {"tp.needs-transformer-engine"}


def test_what_cannot_be_shown_says_why() -> None:
    from overlapkit.lab.measurements import MeasuredVariant, Observations, ObservedBlock
    from overlapkit.lab.protocol import VariantResult

    def failed(name: str) -> MeasuredVariant:
        return MeasuredVariant(name, [VariantResult(name=name, error="ValueError: refused")])

    observed = Observations(
        {
            block.name: ObservedBlock(
                0, None, {v.name: failed(v.name) for v in block.variants}, {}, "cpu"
            )
            for block in silent.blocks(Setting(te=True))
        },
        {},
    )
    verdicts = silent.judge(observed, Setting(te=True))
    elsewhere = [v for v in verdicts if v.outcome == NOT_TESTABLE]
    assert len(elsewhere) == len(silent.ELSEWHERE) + 1
    assert all(v.evidence for v in elsewhere)
    assert all("refused" in v.evidence for v in verdicts if v.outcome != NOT_TESTABLE)
