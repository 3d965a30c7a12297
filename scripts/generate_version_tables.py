"""Makes the table of configuration fields by version that `overlapkit` reads.

    uv run python scripts/generate_version_tables.py

Reads the facts in `scripts/version_facts/` and writes one history per key: for which of the known
stacks (`megatron.bridge.training.versions.KNOWN`) it exists, with which kind and default.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from megatron.bridge.training.versions import KNOWN

ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT / "scripts" / "version_facts"
TARGET = ROOT / "src/overlapkit/config/data/fields_by_version.json"

CORE_CLASSES = {
    "model_parallel": "model",
    "transformer": "model",
    "mla": "model",
    "ddp": "ddp",
    "optimizer": "optimizer",
}
"""Section of a run configuration that holds a class's fields."""

SIMPLE = {"bool": "bool", "int": "int", "float": "float", "str": "str"}
_OPTIONAL = re.compile(r"(?:typing\.)?Optional\[(\w+)\]$|(\w+) \| None$")


def kind(annotation: str) -> str:
    """The kind of a field as `overlapkit.config.schema.Field` spells it."""
    if annotation in SIMPLE:
        return annotation
    found = _OPTIONAL.match(annotation)
    inner = (found.group(1) or found.group(2)) if found else ""
    return f"{inner}|null" if inner in SIMPLE else "other"


Spans = dict[str, dict[str, list[dict[str, Any]]]]


class History:
    """Spans of versions for each key, filled in from the oldest version to the newest."""

    def __init__(self) -> None:
        self.sections: Spans = {}

    def add(self, stack: int, section: str, key: str, kind: str, default: Any, **more: Any) -> None:
        """A key exists from this stack on, with this kind and default."""
        spans = self.sections.setdefault(section, {}).setdefault(key, [])
        if spans and spans[-1].get("until") is None:
            if (spans[-1]["kind"], spans[-1]["default"]) == (kind, default):
                return
            if spans[-1]["since"] == stack:
                spans.pop()
            else:
                spans[-1]["until"] = stack
        spans.append({"since": stack, "kind": kind, "default": default, **more})

    def remove(self, stack: int, section: str, key: str) -> None:
        """A key no longer exists from this stack on."""
        spans = self.sections.get(section, {}).get(key, [])
        if spans and spans[-1].get("until") is None:
            spans[-1]["until"] = stack

    def current(self, section: str, key: str) -> dict[str, Any]:
        """The newest span of a key."""
        return self.sections[section][key][-1]

    def exists(self, section: str, key: str) -> bool:
        """Whether the key exists in the version that is being read."""
        spans = self.sections.get(section, {}).get(key)
        return bool(spans) and spans[-1].get("until") is None


def literal(default: Any) -> Any:
    """A default that JSON and a reader can compare; an expression or a required field is null."""
    return None if isinstance(default, str) and default.startswith(("=", "<required>")) else default


def apply(history: History, stack: int, facts: dict[str, Any], sections: dict[str, str]) -> None:
    """The changes of one version."""
    for group, fields in facts.get("base", facts.get("added", {})).items():
        section = sections.get(group, group)
        for key, fact in fields.items():
            if "." not in section and isinstance(fact, dict) and "type" in fact:
                history.add(stack, section, key, kind(fact["type"]), literal(fact["default"]))
    for dotted in facts.get("removed", []):
        group, _, key = dotted.partition(".")
        if "." not in key:
            history.remove(stack, sections.get(group, group), key)
    for group, changes in facts.get("changed_default", {}).items():
        for key, change in changes.items():
            section = sections.get(group, group)
            if history.exists(section, key):
                now = history.current(section, key)
                history.add(stack, section, key, now["kind"], literal(change["to"]))
    for group, changes in facts.get("changed_type", {}).items():
        for key, change in changes.items():
            section = sections.get(group, group)
            if history.exists(section, key):
                now = history.current(section, key)
                history.add(stack, section, key, kind(change["to"]), now["default"])


def keys_by_name(history: History) -> None:
    """Keys that Megatron-Bridge writes and that no class above declares: known by name."""
    written = json.loads((FACTS / "bridge_keys_by_version.json").read_bytes())["versions"]
    for stack, version in enumerate(list(written), start=1):
        facts = written[version]
        for section, keys in facts["added"].items():
            for key in keys:
                if not history.sections.get(section, {}).get(key):
                    history.add(stack, section, key, "other", None, by_name=True)
        for section, keys in facts["not_written_any_more"].items():
            for key in keys:
                spans = history.sections.setdefault(section, {}).setdefault(key, [])
                if not spans:
                    span = {"since": 0, "until": stack, "kind": "other", "default": None}
                    spans.append({**span, "by_name": True})
                elif spans[-1].get("until") is None and spans[-1]["kind"] == "other":
                    spans[-1]["until"] = stack


def main() -> None:
    core = json.loads((FACTS / "core_fields.json").read_bytes())
    bridge = json.loads((FACTS / "bridge_fields.json").read_bytes())
    history = History()
    for stack, facts in enumerate(core["versions"].values()):
        apply(history, stack, facts, CORE_CLASSES)
    for stack, facts in enumerate(bridge["versions"].values()):
        apply(history, stack, facts, {"container": ""})
    keys_by_name(history)
    table = {
        "source": "scripts/version_facts (public source of megatron-core and Megatron-Bridge)",
        "stacks": [[stack.bridge, stack.core] for stack in KNOWN],
        "sections": {
            section: dict(sorted(keys.items()))
            for section, keys in sorted(history.sections.items())
        },
    }
    TARGET.write_text(json.dumps(table, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
