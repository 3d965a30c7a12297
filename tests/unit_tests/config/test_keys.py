"""Keys that a version, or every version, lacks: what is refused, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN
from overlapkit.config.effective import make_effective
from overlapkit.config.reading import Reading
from overlapkit.config.remarks import remarks
from overlapkit.config.run import Settings
from overlapkit.config.sources import read_sources
from overlapkit.errors import InputError

TYPOS = {
    "a missing letter": ("comm_overlap", "overlap_grad_reduc", "overlap_grad_reduce"),
    "another letter": ("ddp", "use_distributed_optimiser", "use_distributed_optimizer"),
    "two letters": ("model", "tensor_modl_paralel_size", "tensor_model_parallel_size"),
    "a transposition": ("ddp", "bukcet_size", "bucket_size"),
    "hyphens": ("model", "sequence-parallel", "sequence_parallel"),
    "a newer version's knob": ("ddp", "num_bucket", "num_buckets"),
    "a knob of dist": ("dist", "use_megatron_fsd", "use_megatron_fsdp"),
}
NO_TYPOS = {
    "a fork's own": ("model", "tensor_model_parallel_size_of_the_vision_tower"),
    "another number": ("ddp", "fp6_param_gather"),
    "a word more": ("ddp", "overlap_grad_reduce_fast"),
    "a feature of tomorrow": ("ddp", "overlap_momentum_gather"),
    "a short name": ("model", "bf15"),
    "a section that no rule reads": ("logger", "overlap_grad_reduc"),
}


@pytest.fixture
def read(config: Callable[..., str]) -> Callable[..., Settings]:
    """`read(data, *overrides, **reading)`: the settings of a file with this content."""

    def settings(data: Any, *overrides: str, **reading: Any) -> Settings:
        path = config(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
        (result,) = read_sources([path, *overrides], command="explain", reading=Reading(**reading))
        return result

    return settings


def said(settings: Settings) -> str:
    return "\n".join(remarks(settings))


@pytest.mark.parametrize(("section", "key", "meant"), TYPOS.values(), ids=TYPOS)
def test_a_typing_error_in_a_knob_is_refused_and_can_be_passed_over(
    section: str, key: str, meant: str, read: Callable[..., Settings]
) -> None:
    data = {"model": {"num_layers": 4}, section: {key: 1}}
    if section == "comm_overlap":
        data[section] = {"tp_comm_overlap": False, key: 1}
    with pytest.raises(InputError, match=rf":\d: .*did you mean {section}\.{meant}\?") as error:
        read(data)
    assert "--allow-unknown" in str(error.value) and "\n" not in str(error.value)
    passed = read(data, allow_unknown=True)
    assert passed.passed_over == (f"{section}.{key}",)
    assert f"{section}.{key} (" in said(passed) and "not looked at" in said(passed)


@pytest.mark.parametrize(("section", "key"), NO_TYPOS.values(), ids=NO_TYPOS)
def test_another_unknown_key_is_passed_over_with_a_note(
    section: str, key: str, read: Callable[..., Settings]
) -> None:
    settings = read({"model": {"num_layers": 4}, section: {key: 1}})
    if section == "logger":
        assert said(settings) == ""
    else:
        assert f"key {section}.{key} (" in said(settings)


@pytest.mark.parametrize("key", ["overlap_grad_reduc", "tensor_model_paralel_size"])
def test_a_dump_has_no_typing_errors(key: str, read: Callable[..., Settings]) -> None:
    dump = {"_target_": "ConfigContainer", "model": {key: 2}, "ddp": {key: 2}, "modle": {"a": 1}}
    assert set(read(dump).passed_over) == {"modle", f"model.{key}", f"ddp.{key}"}


def test_every_key_that_a_version_has_is_known_to_all(read: Callable[..., Settings]) -> None:
    every = {"ddp": {"num_buckets": 4, "preserve_fp32_weights": True}, "env_vars": {"ANY": 1}}
    for core in (None, *(stack.core for stack in KNOWN)):
        assert read(every, core=core).passed_over == ()


def test_a_key_that_the_version_lacks_is_ignored_with_a_note(
    read: Callable[..., Settings],
) -> None:
    data = "model: {num_layers: 4}\nddp:\n  num_buckets: 4\n"
    old, new = read(data, core="0.16.1"), read(data, core="0.18.2")
    assert "ddp.num_buckets" in said(old) and ":3)" in said(old)
    assert "ignored by core 0.16.1: known from core 0.18.2" in said(old)
    assert said(new) == ""
    runs = [make_effective(each, 8, AssumedSoftware())[0] for each in (old, new)]
    assert [getattr(run.ddp, "num_buckets", "lacking") for run in runs] == ["lacking", 4]


def test_a_key_that_is_gone_is_not_looked_at(read: Callable[..., Settings]) -> None:
    data = "model: {num_layers: 4, moe_use_legacy_grouped_gemm: true}\n"
    assert "gone since core 0.17.1" in said(read(data))
    assert said(read(data, core="0.16.1")) == ""
    run, _ = make_effective(read(data), 8, AssumedSoftware())
    assert not hasattr(run.model, "moe_use_legacy_grouped_gemm")


def test_a_key_of_bridge_goes_by_bridges_version(read: Callable[..., Settings]) -> None:
    data = {"model": {"num_layers": 4}, "dist": {"lazy_init": True}}
    assert "gone since Megatron-Bridge 0.4.2" in said(read(data, core="0.16.1", bridge="0.4.2"))
    assert said(read(data, core="0.19.0", bridge="0.3.1")) == ""


def test_an_unknown_section_is_said_and_not_taken_for_absent(
    read: Callable[..., Settings],
) -> None:
    data = """\
model:
  num_layers: 4
  language_model:
    decoder: {tensor_model_parallel_size: 8}
  vision: {depth: 2}
trainer: {devices: 8}
answer: 42
"""
    text = said(read(data))
    assert "model.language_model (" in text and ":3)" in text
    assert "its tensor_model_parallel_size is not looked at: the run may be another one" in text
    assert "sections trainer (" in text and "and model.vision (" in text
    assert "key answer (" in text


def test_many_unknown_keys_are_counted(read: Callable[..., Settings]) -> None:
    settings = read({"model": {f"own_{number}": 1 for number in range(30)}})
    assert len(remarks(settings)) == 1
    assert remarks(settings)[0].count("run.yaml") == 4 and "and 26 more" in said(settings)


@pytest.mark.parametrize(
    ("section", "meant"),
    [("modle", "model"), ("comm-overlap", "comm_overlap"), ("optimiser", "optimizer")],
)
def test_a_typing_error_in_a_section_is_refused(
    section: str, meant: str, read: Callable[..., Settings]
) -> None:
    data: dict[str, Any] = {"ddp": {}, section: {"tp_comm_overlap": True}}
    with pytest.raises(InputError, match=f"did you mean {meant}"):
        read(data)
    assert read(data, allow_unknown=True).passed_over == (section,)


def test_a_section_beside_the_one_that_it_resembles_is_another_one(
    read: Callable[..., Settings],
) -> None:
    assert read({"model": {}, "models": {"a": 1}}).passed_over == ("models",)
    assert read({"model": {}, "trainer": {"a": 1}}).passed_over == ("trainer",)


def test_an_override_of_an_unknown_key_needs_the_option(read: Callable[..., Settings]) -> None:
    data = {"model": {"num_layers": 4}}
    with pytest.raises(InputError, match=r"model\.xyzzy: unknown key"):
        read(data, "model.xyzzy=1")
    settings = read(data, "model.xyzzy=1", "mine.too=2", allow_unknown=True)
    assert settings.passed_over == ("mine", "model.xyzzy")


def test_a_file_of_another_version_than_the_given_one_is_said(
    bridge_configs: Any, read: Callable[..., Settings]
) -> None:
    text = (bridge_configs / "llama3_8b_pretrain_config.yaml").read_text(encoding="utf-8")
    assert said(read(text, core="0.16.1")) == ""
    assert "has the fields of core 0.16.1, another version" in said(read(text, core="0.19.0"))


def test_the_option_is_every_commands(overlapkit: Any, config: Callable[..., str]) -> None:
    path = config("model: {num_layers: 4}\nddp: {overlap_grad_reduc: true}\n")
    for command in ("explain", "doctor"):
        refused = overlapkit(command, path, "--world-size", "8")
        assert refused.status == 2 and refused.err.count("\n") == 1
        passed = overlapkit(command, path, "--world-size", "8", "--allow-unknown", "--json")
        assert passed.status < 2
        assert any("ddp.overlap_grad_reduc" in note for note in passed.document["notes"])
