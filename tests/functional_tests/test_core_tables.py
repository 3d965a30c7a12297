"""The committed tables are those of the installed Megatron-Core and of the example files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.functional

ROOT = Path(__file__).parents[2]
REGENERATE = "run: uv run python scripts/generate_tables.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "generate_tables.py"
    spec = importlib.util.spec_from_file_location("generate_tables", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def committed(script: ModuleType, name: str) -> dict:
    return json.loads((script.DATA / f"{name}.json").read_text())


def test_megatron_core_fields(script: ModuleType) -> None:
    core = pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    if not core.__version__.startswith("0.16."):
        pytest.skip("the table is that of 0.16; newer fields are in fields_by_version.json")
    table = json.loads(json.dumps(script.megatron_core_fields()))
    known = committed(script, "megatron_core_fields")
    # The source contains the exact version; the fields are those of every version in the bounds.
    assert known.pop("source").startswith("megatron-core 0.16.")
    assert table.pop("source").startswith("megatron-core 0.16.")
    assert known == table, REGENERATE


def test_bridge_keys(script: ModuleType) -> None:
    table = script.bridge_keys(ROOT / "tests" / "data" / "bridge_configs")
    assert committed(script, "bridge_keys") == table, REGENERATE
