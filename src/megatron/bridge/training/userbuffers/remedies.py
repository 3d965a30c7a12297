"""What mends userbuffers settings: changes that are tried before they are proposed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from megatron.bridge.training.decisions import Decision
from megatron.bridge.training.edits import REMOVED, Edit, Removed, either, in_words
from megatron.bridge.training.near_names import nearest
from megatron.bridge.training.userbuffers.facts import GEMMS, INTEGERS, MAX_CGA_SIZE, METHODS

SETTINGS = "comm_overlap.tp_comm_overlap_cfg"
"""Where a run's file has the settings."""

SWITCH = "model.tp_comm_overlap_rs_dgrad"
"""The switch of the layers, which belongs to a dgrad's method."""

TE_NUM_SPLITS = 4
"""Transformer Engine's own num_splits of a pipeline."""

_MOST_ROUNDS = 4
"""Changes that follow from another change: a method and the sizes that it needs."""

Check = Callable[[Any, bool | None], list[Decision]]


def key_of(gemm: str, setting: str = "") -> str:
    """The dotted key of a GEMM's settings, or of one of them."""
    return ".".join(filter(None, (SETTINGS, gemm, setting)))


def converted(key: str, value: object) -> object:
    """A value of the wrong kind as the kind that a setting has; None where it says nothing else."""
    if key == "method" or isinstance(value, bool):
        return None
    text = str(value).strip().lower()
    if key in INTEGERS:
        whole = text.removesuffix(".0")
        small = whole.isascii() and whole.lstrip("-").isdecimal() and len(whole) < 10
        return int(whole) if small else None
    return {"true": True, "false": False, "yes": True, "no": False}.get(text)


def method_meant(name: str, gemm: str) -> str:
    """The method that a misspelt one probably is, where the GEMM runs it; else its default."""
    near = nearest(name, METHODS)
    return near if near is not None and near in GEMMS[gemm].methods else GEMMS[gemm].method


def cluster(num_sm: int, cga_size: int) -> int:
    """The largest cluster that is no larger, and divides the SMs."""
    return next(n for n in range(min(cga_size, MAX_CGA_SIZE), 0, -1) if num_sm % n == 0)


def renamed(
    name: str, known: Iterable[str], given: Mapping[str, Any], key: str
) -> tuple[Edit, ...]:
    """A misspelt entry under the name that it probably means; removed where that is given too."""
    near = nearest(name, known)
    gone = Edit(key, REMOVED)
    if near is None or near in given:
        return (gone,)
    return gone, Edit(f"{key.rpartition('.')[0]}.{near}", deepcopy(given[name]))


def tried(
    decisions: Sequence[Decision], cfg: Any, check: Check, switch: bool | None
) -> list[Decision]:
    """Decisions whose edits were made and judged again, with what follows from them.

    Edits that do not make their decision go, or that need more than a few others, are left out.

    Args:
        decisions: about `cfg`.
        cfg: the settings.
        check: judges settings and the switch of the layers.
        switch: the switch of the layers; None where it is not known.
    """
    known = {(d.rule, d.knob) for d in decisions if d.is_finding}
    return [_tried(d, known, cfg, check, switch) if d.edits else d for d in decisions]


def _tried(
    decision: Decision, known: set[tuple[str, str]], cfg: Any, check: Check, switch: bool | None
) -> Decision:
    made = {edit.key: edit for edit in decision.edits}
    for _ in range(_MOST_ROUNDS):
        new, on = edited(cfg, made.values(), switch)
        after = check(new, on)
        if (decision.rule, decision.knob) in {(d.rule, d.knob) for d in after}:
            break
        added = [d for d in after if d.is_finding and (d.rule, d.knob) not in known]
        if not added:
            return _with_edits(decision, tuple(made.values()))
        more = {edit.key: edit for d in added for edit in d.edits}
        if not more:
            break
        made |= more
    return replace(decision, edits=())


def _with_edits(decision: Decision, edits: tuple[Edit, ...]) -> Decision:
    rest = (decision.remedy or "").removeprefix(in_words(decision.edits)).removeprefix(", or ")
    return replace(decision, edits=edits, remedy=either(edits, rest))


def edited(cfg: Any, edits: Iterable[Edit], switch: bool | None) -> tuple[Any, bool | None]:
    """Settings and the switch of the layers with changes made; `cfg` stays as it is."""
    result = deepcopy(cfg)
    for edit in edits:
        if edit.key == SWITCH:
            switch = bool(edit.value)
            continue
        if edit.key == SETTINGS:
            result = deepcopy(edit.value)
            continue
        *outer, last = edit.key.removeprefix(f"{SETTINGS}.").split(".")
        content = result
        for name in outer:
            if not isinstance(content.get(name), dict):
                content[name] = {}
            content = content[name]
        content.pop(last, None)
        if not isinstance(edit.value, Removed):
            content[last] = deepcopy(edit.value)
    return result, switch
