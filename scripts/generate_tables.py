"""Write the tables that the readers use instead of importing Megatron-Core.

`src/overlapkit/config/data/megatron_core_fields.json` contains every field of the configuration
classes of the installed Megatron-Core, with kind and default.
`src/overlapkit/config/data/bridge_keys.json` contains the keys that Megatron-Bridge writes, from
the configurations in `tests/data/bridge_configs`. Run it after raising the megatron-core bound:

    uv run python scripts/generate_tables.py
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "src" / "overlapkit" / "config" / "data"
SIMPLE = {bool: "bool", int: "int", float: "float", str: "str"}


def megatron_core_fields() -> dict[str, Any]:
    """Map each section of a run to the fields of its Megatron-Core class: name, kind, default."""
    import megatron.core
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.enums import CudaGraphScope
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    from megatron.bridge.models.gpt_provider import GPTModelProvider

    model = _fields(TransformerConfig)
    provider = {k: v for k, v in _fields(GPTModelProvider).items() if k not in model}
    mla = {k: v for k, v in _fields(MLATransformerConfig).items() if k not in model}
    return {
        "source": f"megatron-core {megatron.core.__version__}: TransformerConfig, "
        "MLATransformerConfig, DistributedDataParallelConfig, OptimizerConfig; provider: what "
        "megatron.bridge's GPTModelProvider adds to TransformerConfig",
        "model": model,
        "mla": mla,
        "provider": provider,
        "ddp": _fields(DistributedDataParallelConfig),
        "optimizer": _fields(OptimizerConfig),
        "cuda_graph_scopes": {scope.name: scope.value for scope in CudaGraphScope},
    }


def _fields(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {
        f.name: {"kind": _kind(hints[f.name]), "default": _default(f)}
        for f in dataclasses.fields(cls)
    }


def _kind(hint: Any) -> str:
    """bool, int, float or str, with `|null` where None is allowed; else "other"."""
    parts = set(typing.get_args(hint)) if _is_union(hint) else {hint}
    optional = types.NoneType in parts
    parts.discard(types.NoneType)
    # A Literal of strings is a string here: newer releases add choices.
    parts = {
        str
        if typing.get_origin(p) is typing.Literal and isinstance(typing.get_args(p)[0], str)
        else p
        for p in parts
    }
    if len(parts) == 1 and (name := SIMPLE.get(parts.pop())):
        return name + ("|null" if optional else "")
    return "other"


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _default(f: dataclasses.Field[Any]) -> Any:
    value = f.default if f.default is not dataclasses.MISSING else None
    if f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
    return value if isinstance(value, (bool, int, float, str, list, type(None))) else None


def bridge_keys(folder: Path) -> dict[str, Any]:
    """Map each section of Megatron-Bridge's run_config.yaml to its keys, sorted."""
    keys: dict[str, set[str]] = {}
    names = sorted(folder.glob("*.yaml"))
    for path in names:
        for section, content in yaml.safe_load(path.read_text()).items():
            if section.startswith("_"):
                continue
            known = keys.setdefault(section, set())
            if isinstance(content, dict):
                known.update(k for k in content if not k.startswith("_"))
    return {
        "source": "Megatron-Bridge 0.3.1 recipes as written by ConfigContainer.to_yaml(): "
        + ", ".join(p.stem for p in names),
        "sections": {section: sorted(known) for section, known in sorted(keys.items())},
    }


def main() -> int:
    DATA.mkdir(parents=True, exist_ok=True)
    for name, table in (
        ("megatron_core_fields", megatron_core_fields()),
        ("bridge_keys", bridge_keys(ROOT / "tests" / "data" / "bridge_configs")),
    ):
        (DATA / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
