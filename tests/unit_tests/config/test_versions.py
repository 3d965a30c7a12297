"""The history of configuration keys, and the version that wrote a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.bridge.training.versions import KNOWN, Stack
from overlapkit.config.schema import core_table
from overlapkit.config.versions import index_of, keys_in, span_in, spans, stacks_of_dump
from overlapkit.config.yaml_file import read_yaml

OLDEST, NEWEST = 0, len(KNOWN) - 1


def test_a_key_that_came_one_that_went_and_one_that_stayed() -> None:
    assert span_in("ddp", "num_buckets", 1) is None
    assert span_in("ddp", "num_buckets", 2) is not None
    assert span_in("model", "moe_use_legacy_grouped_gemm", OLDEST) is not None
    assert span_in("model", "moe_use_legacy_grouped_gemm", 1) is None
    assert all(span_in("ddp", "overlap_grad_reduce", i) for i in range(len(KNOWN)))
    assert spans("ddp", "overlap_grad_reduces") == []


def test_a_default_that_changed() -> None:
    before = span_in("model", "cuda_graph_scope", OLDEST)
    after = span_in("model", "cuda_graph_scope", NEWEST)
    assert before is not None and before.default == "full"
    assert after is not None and after.default is None


def test_the_table_agrees_with_the_installed_core() -> None:
    table = core_table()
    for section, fields in (("ddp", table.ddp), ("optimizer", table.optimizer)):
        assert set(keys_in(section, OLDEST)) == set(fields)


@pytest.mark.parametrize(
    ("core", "index"),
    [("0.15.0", 0), ("0.16.1", 0), ("0.17.0", 1), ("0.18.2", 2), ("0.19.3", 3), ("main", 4)],
)
def test_a_version_has_the_fields_of_its_minor_release_or_of_an_older_one(
    core: str, index: int
) -> None:
    assert index_of(Stack(core)) == index


def test_every_file_that_bridge_0_3_1_wrote_is_dated(bridge_configs: Path) -> None:
    for path in sorted(bridge_configs.glob("*.yaml")):
        assert stacks_of_dump(read_yaml(str(path)).data) == (KNOWN[0],), path.name


def test_fields_that_came_later_date_a_file(bridge_configs: Path) -> None:
    data = dict(read_yaml(str(bridge_configs / "llama3_8b_pretrain_config.yaml")).data)
    for stack in range(1, len(KNOWN)):
        for section in ("ddp", "optimizer", "mixed_precision", "dist"):
            if isinstance(data.get(section), dict):
                data[section] = dict.fromkeys(keys_in(section, stack))
        assert KNOWN[stack] in stacks_of_dump(data)
        assert KNOWN[0] not in stacks_of_dump(data)


def test_a_file_without_telling_sections_is_not_dated() -> None:
    assert stacks_of_dump({"model": {"num_layers": 4}}) == ()


def test_a_section_shows_the_version_as_a_field_does() -> None:
    # These keys of dist alone fit several versions.
    data = {"dist": dict.fromkeys(keys_in("dist", 2)), "model": {}}
    several = stacks_of_dump(data)
    assert KNOWN[2] in several and len(several) > 1
    assert KNOWN[2] not in stacks_of_dump({**data, "env_vars": {}})
    assert set(stacks_of_dump({**data, "env_vars": {}})) <= set(several)


def test_a_file_that_somebody_shortened_is_not_dated_by_what_it_lacks() -> None:
    assert stacks_of_dump({"ddp": {"use_distributed_optimizer": True}, "optimizer": {}}) == ()
    few = {"ddp": {"use_distributed_optimizer": True}, "dist": dict.fromkeys(keys_in("dist", 0))}
    whole = {**few, "ddp": dict.fromkeys(keys_in("ddp", 0))}
    assert KNOWN[1] not in stacks_of_dump(whole)
    assert set(stacks_of_dump(few)) >= set(stacks_of_dump({"dist": few["dist"]}))


def test_a_nested_model_section_is_the_newest_stacks() -> None:
    assert stacks_of_dump({"ddp": {"use_distributed_optimizer": True}}, nested=True) == KNOWN[-1:]
