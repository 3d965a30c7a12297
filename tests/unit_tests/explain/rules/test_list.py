"""`overlapkit rules`: the rules, and the versions that each one holds for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from megatron.bridge.training.decisions import RULES
from megatron.bridge.training.versions import KNOWN, Stack
from overlapkit.explain.rules.list import all_rules
from support.documents import check_document

FIXED = "core.sent-then-freed"


def listed(overlapkit, *arguments: str) -> set[str]:
    document = overlapkit("rules", *arguments, "--json").document
    check_document(document)
    return {rule["id"] for rule in document["rules"]}


def test_every_rule_is_listed_with_its_place(overlapkit) -> None:
    document = overlapkit("rules", "--json").document
    check_document(document)
    assert document["stack"] is None
    assert [rule["id"] for rule in document["rules"]] == [rule.id for rule in all_rules()]
    assert len(document["rules"]) > 200
    for rule in document["rules"]:
        declared = RULES[rule["id"]]
        assert rule["place"] == {"file": f"src/{declared.path}", "line": declared.line}
        assert rule["versions"] == [str(each) for each in declared.versions]


@pytest.mark.parametrize("stack", KNOWN, ids=str)
def test_the_rules_of_a_version(stack: Stack, overlapkit) -> None:
    core = listed(overlapkit, "--core", stack.core or "")
    assert core == listed(overlapkit, "--bridge", stack.bridge or "")
    assert core == {rule.id for rule in all_rules() if rule.holds(stack)}


def test_a_bug_ends_with_its_version(overlapkit) -> None:
    assert FIXED in listed(overlapkit, "--core", "0.17.1")
    assert FIXED not in listed(overlapkit, "--core", "0.18.0")
    lines = overlapkit("rules", FIXED, "--core", "0.19.0").out
    assert "fixed in megatron-core 0.18.0" in lines
    assert "It does not hold for Megatron-Bridge 0.6.0 on megatron-core 0.19.0." in lines


def test_one_rule_whole(overlapkit) -> None:
    out = overlapkit("rules", "tp.needs-sequence-parallel").out
    rule = RULES["tp.needs-sequence-parallel"]
    assert rule.claim in out and "Remedy: set model.sequence_parallel=true." in out
    assert len(out.splitlines()) < 8


def test_a_pattern(overlapkit) -> None:
    assert listed(overlapkit, "wrong.*") == {r.id for r in all_rules() if r.id[:6] == "wrong."}


def test_a_pattern_has_a_line_for_each(overlapkit) -> None:
    lines = overlapkit("rules", "dp.*", "--core", "0.16.1").out.splitlines()
    assert lines[0] == f"{len(lines) - 1} rules that hold for {KNOWN[0]}"
    assert all(RULES[line.split()[0]].claim in line for line in lines[1:])


def test_the_whole_list_has_the_ids_alone(overlapkit) -> None:
    first, *lines = overlapkit("rules", "--core", "0.16.1").out.splitlines()
    ids = [name for line in lines for name in line.partition(": ")[2].split()]
    assert set(ids) == listed(overlapkit, "--core", "0.16.1")
    assert first.startswith(f"{len(ids)} rules that hold for {KNOWN[0]}; ")
    assert len(first) + sum(map(len, lines)) < 12000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["core.sent-then-free"], "did you mean core.sent-then-freed?"),
        (["--core", "old"], "is not a version"),
    ],
)
def test_bad_input(arguments: list[str], said: str, overlapkit) -> None:
    result = overlapkit("rules", *arguments)
    assert result.status == 2
    assert said in result.err and result.err.count("\n") == 1


def test_a_fresh_process_knows_the_rules_of_every_module() -> None:
    text = (
        "from overlapkit.explain.rules.list import all_rules\n"
        "before = {rule.id for rule in all_rules()}\n"
        "import importlib, pkgutil, megatron.bridge.recipes, megatron.bridge.training\n"
        "for package in (megatron.bridge.recipes, megatron.bridge.training):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        try:\n"
        "            importlib.import_module(module.name)\n"
        "        except ImportError:\n"
        "            pass  # needs torch, Megatron-Core or nemo_run, which declare nothing\n"
        "print(sorted({rule.id for rule in all_rules()} - before))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout.strip() == "[]"
