"""Makes the table of Megatron-LM's flags by version that `overlapkit` reads.

    uv run python scripts/generate_flag_table.py

Reads the facts in `scripts/version_facts/`. `megatron_lm_parser.json` has every flag of three
versions. For the oldest and the newest of the known stacks (`megatron.bridge.training.versions`)
there are the flags that decide on communication (`megatron_lm_flags.json`) and the fields of
TransformerConfig, from which Megatron-LM generates flags (`core_fields.json`). Where nothing is
known of a flag in those two, nothing is claimed: it is taken to be as in the version next to it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from megatron.bridge.training.versions import KNOWN

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "scripts" / "version_facts"
TARGET = ROOT / "src/overlapkit/config/data/megatron_lm_flags.json"

CORES = [stack.core or "" for stack in KNOWN]
NEW_NAMES = "0.16.0"
"""The version from which TransformerConfig's flags are generated, so that --no-tp-comm-X exists
beside --disable-tp-comm-X (639c08ab82)."""

GONE = {"use-custom-fsdp": CORES[0]}
"""Switches of older versions that are read all the same, and the first version without them."""

Flags = dict[str, tuple[str, str]]
"""A flag's name without its dashes, to the number of words after it and its destination."""


def facts(name: str) -> Any:
    """The versions in a file of facts."""
    return json.loads((FACTS / name).read_bytes())["versions"]


def parsers() -> dict[str, Flags]:
    """Every flag of the versions whose parser was built."""
    result: dict[str, Flags] = {}
    flags: Flags = {}
    for version, changes in facts("megatron_lm_parser.json").items():
        flags = {k: v for k, v in flags.items() if k not in changes.get("removed", ())}
        for words, names in changes.get("base", changes.get("added", {})).items():
            for name, _, to in (each.partition("=") for each in names):
                flags[name] = (words, to or name.replace("-", "_"))
        result[version] = flags
    return result


def communication() -> list[Flags]:
    """The flags that decide on communication, of each known stack."""
    result: list[Flags] = []
    options: dict[str, Any] = {}
    for changes in facts("megatron_lm_flags.json").values():
        options = {k: v for k, v in options.items() if k not in changes.get("removed", ())}
        options |= changes.get("base", changes.get("added", {}))
        flags: Flags = {}
        for to, forms in options.items():
            for form in forms:
                is_switch = form["kind"] != "StoreAction"
                words = "0" if is_switch else str(form.get("nargs") or 1)
                flags |= {name.removeprefix("--"): (words, to) for name in form["flags"]}
        result.append(flags)
    return result


def fields() -> list[dict[str, Any]]:
    """TransformerConfig's fields, of each known stack."""
    result: list[dict[str, Any]] = []
    known: dict[str, Any] = {}
    for changes in facts("core_fields.json").values():
        known = {
            k: v
            for k, v in known.items()
            if not {f"{group}.{k}" for group in ("transformer", "model_parallel")}
            & set(changes.get("removed", ()))
        }
        for group in ("model_parallel", "transformer"):
            known |= changes.get("base", changes.get("added", {})).get(group, {})
        result.append(dict(known))
    return result


def generated(field: str, fact: dict[str, Any]) -> Flags:
    """The flags that Megatron-LM generates from a field without metadata of its own."""
    name, kind = field.replace("_", "-"), fact["type"]
    if kind != "bool":
        return {name: ("+" if kind.lower().startswith("list") else "1", field)}
    if fact["default"]:
        return {f"no-{name}": ("0", field), f"disable-{name}": ("0", field)}
    return {name: ("0", field)}


def presence() -> tuple[dict[str, list[bool]], dict[str, str]]:
    """For each flag the known stacks that have it, and the number of words after it."""
    built, decide, known = parsers(), communication(), fields()
    deciding = set().union(*decide)
    names = set().union(*built.values(), deciding)
    new = {k: f for k, f in known[-1].items() if k not in known[-2]}
    added = {name: v for k, fact in new.items() for name, v in generated(k, fact).items()}
    removed = [k for k in known[0] if k not in known[1]]
    old = {name: v for k in removed for name, v in generated(k, known[0][k]).items()}
    words: dict[str, str] = {}
    has: dict[str, list[bool]] = {}
    for name in sorted(names | set(added) | set(old)):
        row = [name in built.get(core, ()) for core in CORES]
        forms = [flags[name] for flags in built.values() if name in flags]
        forms += [each[name] for each in (*decide, added, old) if name in each]
        words[name] = forms[0][0]
        destination = forms[0][1]
        if name in deciding:
            row = [name in each for each in decide]
        else:
            row[0] = row[1] and not (destination in known[1] and destination not in known[0])
            row[-1] = row[-2] and not (destination in known[-2] and destination not in known[-1])
        row[0] |= name in old
        row[-1] |= name in added
        has[name] = row
    return has, words


def span(name: str, row: list[bool]) -> tuple[str | None, str | None]:
    """The versions of a flag: the first that has it, and the first that no longer does."""
    first = row.index(True)
    last = len(row) - 1 - row[::-1].index(True)
    assert all(row[first : last + 1]), name
    since = CORES[first] if first else NEW_NAMES if name.startswith("no-tp-comm-") else None
    return since, CORES[last + 1] if last + 1 < len(row) else None


def values() -> dict[str, dict[str, list[str | None]]]:
    """The words of a flag that some known stack does not accept, with the versions that do."""
    accepted: dict[str, list[set[str]]] = defaultdict(lambda: [set() for _ in CORES])
    for stack, changes in enumerate(facts("megatron_lm_flags.json").values()):
        for form in (f for forms in changes.get("base", {}).values() for f in forms):
            for name in form["flags"]:
                for later in range(len(CORES)):
                    accepted[name][later] |= set(form.get("choices") or ())
        for change in changes.get("changed", {}).values():
            for flags, _, _, choices in change["to"]:
                for later in range(stack, len(CORES)):
                    accepted[flags[0]][later] = set(choices or ())
    result: dict[str, dict[str, list[str | None]]] = {}
    for name, rows in accepted.items():
        for word in sorted(set().union(*rows)):
            row = [word in row for row in rows]
            if not all(row):
                result.setdefault(name, {})[word] = list(span(name, row))
    return result


def main() -> None:
    has, words = presence()
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, row in has.items():
        since, until = span(name, row)
        groups[words[name], since or "", until or ""].append(name)
    for name, version in GONE.items():
        groups["0", "", version].append(name)
    table = {
        "source": "scripts/version_facts (Megatron-LM's own parser, by version)",
        "flags": [
            {"words": many, "since": since or None, "until": until or None, "names": " ".join(each)}
            for (many, since, until), each in sorted(groups.items())
        ],
        "values": values(),
    }
    TARGET.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
