"""Mutations of the rules that `CommOverlapConfig.setup()` applies, made from their declarations.

Nothing here names a rule. What the rules decide is found by asking them about the configurations
that `tests/unit_tests/training/rules/test_rules.py` has for each (a test demands one for every
rule). The files that declare these rules are then read as syntax trees.

Kinds:
    gate: a need of a gate (`Need`) is never looked at: it counts as met.
    default: what a rule chooses for a knob, or grants, is turned round: True to False, n to n + 1.
    stop: a rule that stops the run lets it continue.
    part: a part of a condition is changed, in a gate's test or in a function that decides: an
        operand of and/or is not looked at, a comparison is turned round or moved by one, a negation
        is dropped, a member of a tuple is missing. The functions are those that CommOverlapConfig
        calls, directly or not, in the files that declare rules, and its own methods.

Each is applied in this process and not undone: the caller forks.
"""

from __future__ import annotations
import __future__

import ast
import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.decisions import RULES, Decision, Need, Outcome, Rule
from megatron.bridge.training.runtime_update import data_parallel_size
from support.rule_runs import EVERYTHING, run_of

KINDS = ("gate", "default", "stop", "part")
_TEXTS = frozenset({"reason", "remedy", "claim", "found", "source"})
"""Keywords and variables that hold what is told, and decide nothing."""


@dataclass(frozen=True)
class Mutant:
    """One mutation.

    Attributes:
        kind: one of `KINDS`.
        where: the rule, or the function with its file and line.
        what: the change.
        apply: changes the loaded code.
    """

    kind: str
    where: str
    what: str
    apply: Callable[[], None]


def mutants(cases: dict[str, dict[str, Any]]) -> list[Mutant]:
    """Every mutation of the rules that decide in these cases.

    Args:
        cases: rule to the sections of a configuration that makes it decide, as for `run_of`.
    """
    decided = [d for case in cases.values() for d in _decisions(case)]
    modules = _modules({RULES[d.rule].path for d in decided})
    needs = [need for module in modules for need in _needs(module)]
    gated = {need.rule.id for need in needs}
    return [
        *(Mutant("gate", n.rule.id, "counts as met", _always_met(n)) for n in needs),
        *_turned_decisions(decided, gated),
        *_parts(_functions(modules, needs), {id(need.met): need.rule.id for need in needs}),
    ]


def _decisions(case: dict[str, Any]) -> list[Decision]:
    """What CommOverlapConfig decides in a case; nothing where the case has none."""
    sections = {k: v for k, v in case.items() if k in inspect.signature(run_of).parameters}
    run = run_of(**sections)
    config: CommOverlapConfig | None = run.comm_overlap
    if config is None:
        return []
    config.data_parallel_size = data_parallel_size(run.model, case.get("world_size", 16))
    software = case.get("software", EVERYTHING)
    return config.resolve(run.model, run.ddp, software, run.optimizer).decisions


def _modules(paths: set[str]) -> list[ModuleType]:
    """The loaded modules whose files declare rules, by file."""
    found = {
        path: module
        for module in list(sys.modules.values())
        for path in paths
        if (getattr(module, "__file__", None) or "").endswith("/" + path)
    }
    return [found[path] for path in sorted(paths)]


def _needs(module: ModuleType) -> Iterator[Need[Any]]:
    for value in vars(module).values():
        for each in value if isinstance(value, tuple) else (value,):
            # A gate that is imported is another module's.
            if isinstance(each, Need) and each.met.__module__ == module.__name__:
                yield each


def _always_met(need: Need[Any]) -> Callable[[], None]:
    return lambda: object.__setattr__(need, "met", lambda context: True)


# ------------------------------------------------------------------------------- decisions turned


def _turned_decisions(decided: list[Decision], gated: set[str]) -> Iterator[Mutant]:
    seen = {(d.rule, d.knob, d.outcome): d for d in decided}
    for (rule, knob, outcome), example in seen.items():
        target = (rule, knob, outcome)
        if outcome in (Outcome.DEFAULT, Outcome.GRANTED):
            turned = turn(example.effective)
            what = f"{knob} {outcome.value}: {_short(example.effective)} -> {_short(turned)}"
            yield Mutant("default", rule, what, _turned(target))
        elif outcome is Outcome.REFUSED and rule not in gated:
            yield Mutant("default", rule, f"{knob} refused: turned round", _turned(target))
        elif outcome is Outcome.ERROR and rule not in gated:
            yield Mutant("stop", rule, f"{knob}: a note instead of an error", _softened(target))


def turn(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return f"not-{value}"
    return 1 if value is None else None


def _turned(target: tuple[str, str, Outcome]) -> Callable[[], None]:
    return _changed(target, lambda d: replace(d, effective=turn(d.effective)))


def _softened(target: tuple[str, str, Outcome]) -> Callable[[], None]:
    return _changed(target, lambda d: replace(d, outcome=Outcome.NOTE))


def _changed(
    target: tuple[str, str, Outcome], change: Callable[[Decision], Decision]
) -> Callable[[], None]:
    def apply() -> None:
        decide = Rule.decide

        def changed(self: Rule, knob: str, **values: Any) -> Decision:
            decision = decide(self, knob, **values)
            same = (decision.rule, decision.knob, decision.outcome) == target
            return change(decision) if same else decision

        Rule.decide = changed  # type: ignore[method-assign]

    return apply


# ----------------------------------------------------------------------------- parts of conditions


def _functions(modules: list[ModuleType], needs: list[Need[Any]]) -> list[FunctionType]:
    """What CommOverlapConfig calls of these files, the tests of gates, and its own methods."""
    known = {
        value.__name__: value
        for module in modules
        for value in vars(module).values()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }
    file = inspect.getfile(CommOverlapConfig)
    methods = [f for f in vars(CommOverlapConfig).values() if inspect.isfunction(f)]
    todo: list[Any] = [f for f in methods if f.__code__.co_filename == file]
    todo += [need.met for need in needs] + [need.found for need in needs]
    reached: dict[int, FunctionType] = {}
    while todo:
        function = todo.pop(0)
        if id(function) not in reached:
            reached[id(function)] = function
            todo += [known[name] for name in _names(function.__code__) if name in known]
    told = {id(need.found) for need in needs}
    return [f for key, f in reached.items() if key not in told]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _names(const)


def _parts(functions: list[FunctionType], tests: dict[int, str]) -> Iterator[Mutant]:
    """Changed conditions in these functions; `tests` gives the rule of a gate's test."""
    for function in functions:
        path = Path(function.__code__.co_filename)
        node: Any = _node(path, function.__code__)
        name = tests.get(id(function)) or f"{path.name}:{node.lineno} {function.__name__}"
        for what, changed in changes(node):
            yield Mutant("part", name, what, _recompiled(function, changed))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _node(path: Path, code: CodeType) -> ast.AST:
    """The function or lambda whose code this is."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node.lineno == code.co_firstlineno:
            compiled = _compiled(node)
            if (compiled.co_code, compiled.co_names) == (code.co_code, code.co_names) and _same(
                compiled.co_consts, code.co_consts
            ):
                return node
    raise LookupError(f"{path}:{code.co_firstlineno}: no such function")


def _same(mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    plain = [[c for c in consts if not isinstance(c, CodeType)] for consts in (mine, theirs)]
    return plain[0] == plain[1]


def _compiled(node: ast.AST) -> CodeType:
    module: ast.AST
    if isinstance(node, ast.Lambda):
        module, mode = ast.Expression(node), "eval"
    else:
        module, mode = ast.Module([node], []), "exec"  # type: ignore[list-item]
    flags = __future__.annotations.compiler_flag
    whole = compile(module, "mutant", mode, flags, dont_inherit=True)  # type: ignore[call-overload]
    name = getattr(node, "name", "<lambda>")
    return next(c for c in whole.co_consts if isinstance(c, CodeType) and c.co_name == name)


def _recompiled(function: FunctionType, node: ast.AST) -> Callable[[], None]:
    def apply() -> None:
        function.__code__ = _compiled(ast.fix_missing_locations(node))

    return apply


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Each change of one condition in a function: what it is, and the function with it."""
    for site, original in enumerate(_conditions(node)):
        for changed in _changed_conditions(original):
            twin = copy.deepcopy(node)
            _replace(twin, list(_conditions(twin))[site], changed)
            yield f"{_text(original)} -> {_text(changed)}", twin


def _conditions(node: ast.AST) -> Iterator[ast.AST]:
    """Every expression in a function that decides something, outermost first."""
    for child in _deciding(node):
        if isinstance(child, (ast.BoolOp, ast.Compare)) or _is_not(child):
            yield child
        yield from _conditions(child)


def _deciding(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        told = isinstance(child, ast.keyword) and child.arg in _TEXTS
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            told = any(isinstance(t, ast.Name) and t.id in _TEXTS for t in targets)
        if not told and not isinstance(child, (ast.JoinedStr, ast.arguments)):
            yield child


_OTHER: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
    ast.Is: ast.IsNot(),
    ast.IsNot: ast.Is(),
    ast.In: ast.NotIn(),
    ast.NotIn: ast.In(),
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
}


def _changed_conditions(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.BoolOp):
        for i, operand in enumerate(node.values):
            if not isinstance(operand, ast.Constant):
                rest = node.values[:i] + node.values[i + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield ast.Compare(node.left, [_OTHER[type(node.ops[0])]], node.comparators)
        (right,) = node.comparators
        for i in range(len(right.elts) if isinstance(right, ast.Tuple) else 0):
            fewer = ast.Tuple(right.elts[:i] + right.elts[i + 1 :], ast.Load())  # type: ignore[union-attr]
            yield ast.Compare(node.left, node.ops, [fewer])
    elif isinstance(node, ast.UnaryOp):
        yield node.operand


def _is_not(node: ast.AST) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    new = copy.deepcopy(new)
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list) and any(each is old for each in value):
                setattr(parent, field, [new if each is old else each for each in value])


def _text(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))


def _short(value: Any) -> str:
    if isinstance(value, Enum) or value is None or isinstance(value, (bool, int, str)):
        return str(value)
    return type(value).__name__
