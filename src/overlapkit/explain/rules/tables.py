"""The rules on a terminal, which may be narrow: no columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from megatron.bridge.training.decisions import Rule
from megatron.bridge.training.versions import Stack
from overlapkit.explain.rules.text import EVERY, title, versions_text
from overlapkit.explain.text import TITLES
from overlapkit.output.tables import print_item


def show_rules(rules: Sequence[Rule], stack: Stack | None, console: Console) -> None:
    """Each dimension's rules: id and versions, and the claim under them."""
    console.print(title(rules, stack))
    for dimension, group in groupby(rules, key=lambda rule: rule.dimension):
        console.print(Text(f"\n{TITLES[dimension]}", "bold"))
        for rule in group:
            held = versions_text(rule)
            style = "dim" if held == EVERY else "yellow"
            console.print(Text.assemble((rule.id, "cyan"), "  ", (held, style)))
            print_item(console, "  ", Text(rule.claim))
