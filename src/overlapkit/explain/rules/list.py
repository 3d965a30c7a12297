"""The command `overlapkit rules`: what the rules are, and for which versions each one holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

# Declaring modules: importing them fills the registry of rules.
import megatron.bridge.recipes.launch_check
import megatron.bridge.recipes.launch_env
import megatron.bridge.recipes.megatron_lm_environment
import megatron.bridge.recipes.one_queue
import megatron.bridge.training.megatron_lm_rules
import megatron.bridge.training.rules.megatron_core
import megatron.bridge.training.runtime_update  # noqa: F401
from megatron.bridge.training.decisions import RULES, Dimension, Rule
from megatron.bridge.training.near_names import nearest
from megatron.bridge.training.versions import Stack
from overlapkit.config.reading import Reading
from overlapkit.errors import InputError
from overlapkit.output.console import write_json, write_text

_DIMENSIONS = tuple(Dimension)


def all_rules() -> list[Rule]:
    """Every rule, by dimension, then by file and line: the registry's order is that of imports."""
    # Rules that a test declares name no file of the package.
    declared = (rule for rule in RULES.values() if rule.path.startswith("megatron/"))
    return sorted(declared, key=lambda r: (_DIMENSIONS.index(r.dimension), r.path, r.line))


def select(names: Sequence[str], stack: Stack | None) -> list[Rule]:
    """The rules of these names that hold for a stack.

    Args:
        names: ids, or patterns such as ``tp.*``; none for every rule.
        stack: the versions; None for every rule, whatever its versions.

    Raises:
        InputError: there is no rule of a name.
    """
    rules = all_rules()
    for name in names:
        if not any(fnmatchcase(rule.id, name) for rule in rules):
            near = nearest(name, [rule.id for rule in rules])
            hint = f"did you mean {near}?" if near else "`overlapkit rules` lists them"
            raise InputError(f"{name}: no such rule; {hint}")
    return [
        rule
        for rule in rules
        if (not names or any(fnmatchcase(rule.id, name) for name in names))
        and (stack is None or rule.holds(stack))
    ]


def run(*, names: Sequence[str], reading: Reading, as_json: bool) -> int:
    """Print the rules; returns the exit status.

    Args:
        names: see `select`. Rules that are named alone, without a pattern, are shown whole. Without
            any, the plain text has the ids alone: all claims are long.
        reading: the versions, where only the rules that hold for them are wanted.
        as_json: whether to print the JSON document instead of text.

    Raises:
        InputError: there is no rule of a name, or as `Reading.versions`.
    """
    stack = reading.versions
    rules = select(names, stack)
    if as_json:
        from overlapkit.explain.rules.document import rules_document

        write_json(rules_document(rules, stack))
        return 0
    whole = bool(names) and not any(set(name) & set("*?[") for name in names)
    if whole:
        write_text("".join(f"{line}\n" for line in _whole(rules, names, stack)))
    elif sys.stdout.isatty():
        from overlapkit.explain.rules.tables import show_rules
        from overlapkit.output.console import console

        show_rules(rules, stack, console())
    else:
        from overlapkit.explain.rules.text import id_lines, list_lines

        lines = list_lines if names else id_lines
        write_text("".join(f"{line}\n" for line in lines(rules, stack)))
    return 0


def _whole(rules: Sequence[Rule], names: Sequence[str], stack: Stack | None) -> Iterator[str]:
    from overlapkit.explain.rules.text import rule_lines

    held = {rule.id for rule in rules}
    for number, rule in enumerate(select(names, None)):
        if number:
            yield ""
        yield from rule_lines(rule)
        if stack is not None and rule.id not in held:
            yield f"It does not hold for {stack}."
