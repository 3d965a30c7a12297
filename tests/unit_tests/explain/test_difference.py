"""`overlapkit explain A B`: what differs, and which key caused it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import yaml

from overlapkit.config.versions import keys_in

RUN = """\
model:
  tensor_model_parallel_size: 4
  sequence_parallel: true
ddp:
  use_distributed_optimizer: true
comm_overlap:
  tp_comm_overlap: true
mixed_precision: bf16_mixed
"""


@pytest.fixture
def compare(overlapkit, config) -> Callable[..., dict]:
    """`compare(a, b, ...)`: the causes of each change, by its kind and knob."""

    def run(a: str, b: str, *options: str) -> dict[tuple[str, str], list[str]]:
        names = config(a, "a.yaml"), config(b, "b.yaml")
        options = options or ("--world-size", "16")
        result = overlapkit("explain", *names, *options, "--json")
        assert result.status in (0, 1), result.err
        document = json.loads(result.out)
        assert result.status == (1 if document["after"]["findings"] else 0)
        return {
            (c["kind"], c["knob"]): sorted(cause["key"] for cause in c["causes"])
            for c in document["changes"]
        }

    return run


def test_the_same_run_twice(compare, overlapkit, config) -> None:
    assert compare(RUN, RUN) == {}
    name = config(RUN)
    result = overlapkit("explain", name, name, "--world-size", "16")
    assert result.status == 0 and "No decision differs" in result.out


def test_what_an_override_would_change(overlapkit, config) -> None:
    name = config(RUN)
    changed = ["b:model.sequence_parallel=false", "--world-size", "16", "--json"]
    document = json.loads(overlapkit("explain", name, *changed).out)
    causes = {c["knob"]: [cause["key"] for cause in c["causes"]] for c in document["changes"]}
    assert causes["model.tp_comm_overlap"] == ["model.sequence_parallel"]
    assert document["before"]["findings"] == 0
    assert document["after"]["findings"] == 1
    # An override of the second alone leaves the first as it is.
    with_both = json.loads(overlapkit("explain", name, name, *changed).out)
    assert with_both["changes"] == document["changes"]


def test_keys_that_no_rule_reads_change_nothing(compare) -> None:
    assert compare(RUN, RUN + "logger: {log_interval: 5}\n") == {}
    assert compare(RUN, RUN.replace("model:\n", "model:\n  layernorm_epsilon: 0.5\n")) == {}


def test_a_single_key(compare) -> None:
    changes = compare(RUN, RUN.replace("sequence_parallel: true", "sequence_parallel: false"))
    cause = ["model.sequence_parallel"]
    assert changes == {
        ("knob", "model.sequence_parallel"): cause,
        ("knob", "model.tp_comm_overlap"): cause,
        ("finding", "model.tp_comm_overlap"): cause,
    }


def test_a_single_key_among_others(compare) -> None:
    other = RUN.replace("sequence_parallel: true", "sequence_parallel: false\n  seq_length: 4096")
    other = other.replace("tp_comm_overlap: true", "tp_comm_overlap: true\n  bucket_size: 5")
    changes = compare(RUN, other)
    assert changes["knob", "model.tp_comm_overlap"] == ["model.sequence_parallel"]
    assert changes["knob", "ddp.bucket_size"] == ["comm_overlap.bucket_size"]


def test_two_keys_that_are_needed_together(compare) -> None:
    pipeline = (
        "model:\n  pipeline_model_parallel_size: 2\n  virtual_pipeline_model_parallel_size: 2\n"
    )
    changes = compare(RUN, RUN.replace("model:\n", pipeline))
    both = ["model.pipeline_model_parallel_size", "model.virtual_pipeline_model_parallel_size"]
    assert changes["knob", "model.overlap_p2p_comm"] == both
    assert changes["knob", "ddp.align_param_gather"] == both


def test_one_of_two_keys_that_each_suffice(compare) -> None:
    without = RUN.replace("ddp:\n  use_distributed_optimizer: true\n", "ddp: {}\n")
    both = RUN + "optimizer: {use_distributed_optimizer: true}\n"
    changes = compare(without, both)
    assert changes["knob", "ddp.overlap_grad_reduce"] == ["ddp.use_distributed_optimizer"]
    assert len(changes["knob", "optimizer.use_distributed_optimizer"]) == 1


def test_a_whole_section(compare, overlapkit, config) -> None:
    absent = RUN.replace("comm_overlap:\n  tp_comm_overlap: true\n", "comm_overlap: null\n")
    for a, b, told in ((RUN, absent, "present -> absent"), (absent, RUN, "absent -> present")):
        changes = compare(a, b)
        assert {tuple(causes) for causes in changes.values()} == {("comm_overlap",)}
        assert ("knob", "model.tp_comm_overlap") in changes
        names = config(a, "a.yaml"), config(b, "b.yaml")
        text = overlapkit("explain", *names, "--world-size", "16").out
        assert f"comm_overlap {told}" in text


def test_a_null_section_is_an_absent_one(compare) -> None:
    without = RUN.replace("comm_overlap:\n  tp_comm_overlap: true\n", "")
    assert compare(without, without + "comm_overlap: null\noptimizer: null\n") == {}


def test_the_world_size(compare, overlapkit, config) -> None:
    changes = compare(RUN, RUN, "--world-size", "16", "--world-size", "4")
    assert changes["knob", "ddp.overlap_grad_reduce"] == ["--world-size"]
    assert {tuple(causes) for causes in changes.values()} == {("--world-size",)}


def test_a_layout_that_fits_only_its_own_world_size(compare) -> None:
    wide = RUN.replace("tensor_model_parallel_size: 4", "tensor_model_parallel_size: 24")
    changes = compare(RUN, wide, "--world-size", "16", "--world-size", "24")
    layout = ["--world-size", "model.tensor_model_parallel_size"]
    assert changes["knob", "model.tensor_model_parallel_size"] == layout
    assert changes["knob", "ddp.overlap_grad_reduce"] == layout


def test_a_precision_by_name(compare, overlapkit, config) -> None:
    other = RUN.replace("bf16_mixed", "bf16_with_fp8_current_scaling_mixed")
    assert compare(RUN, other) == {("knob", "ddp.fp8_param_gather"): ["mixed_precision"]}
    names = config(RUN, "a.yaml"), config(other, "b.yaml")
    text = overlapkit("explain", *names, "--world-size", "16").out
    assert "mixed_precision bf16_mixed -> bf16_with_fp8_current_scaling_mixed" in text


def test_a_precision_by_name_and_spelt_out(compare) -> None:
    spelt = RUN.replace("mixed_precision: bf16_mixed", "mixed_precision: {bf16: true}")
    assert compare(RUN, spelt) == {}
    half = RUN.replace(
        "mixed_precision: bf16_mixed", "mixed_precision: {bf16: true, grad_reduce_in_fp32: false}"
    )
    changes = compare(RUN, half)
    assert changes == {("knob", "ddp.grad_reduce_in_fp32"): ["mixed_precision.grad_reduce_in_fp32"]}


def test_a_launch_variable(compare) -> None:
    other = RUN.replace("tensor_model_parallel_size: 4\n  sequence_parallel: true", "bf16: true")
    changes = compare(RUN, other)
    cause = ["model.tensor_model_parallel_size"]
    assert changes["env", "env.CUDA_DEVICE_MAX_CONNECTIONS"] == cause


def test_an_explicit_request_that_is_overwritten(compare) -> None:
    by_hand = RUN.replace("ddp:\n", "ddp:\n  overlap_grad_reduce: false\n")
    changes = compare(RUN, by_hand)
    assert changes == {("finding", "ddp.overlap_grad_reduce"): ["ddp.overlap_grad_reduce"]}
    assert compare(by_hand, RUN) == changes


def test_text_lists_what_was_written_differently_in_one_place(overlapkit, config) -> None:
    other = RUN.replace("tensor_model_parallel_size: 4", "tensor_model_parallel_size: 8")
    names = config(RUN, "a.yaml"), config(other, "b.yaml")
    text = overlapkit("explain", *names, "--world-size", "16").out
    assert "As written: model.tensor_model_parallel_size 4 -> 8" in text
    assert "none -> none" not in text


def test_text_shows_the_findings_of_the_second(overlapkit, config) -> None:
    other = RUN.replace("sequence_parallel: true", "sequence_parallel: false")
    names = config(RUN, "a.yaml"), config(other, "b.yaml")
    there = overlapkit("explain", *names, "--world-size", "16")
    assert there.status == 1 and "new finding" in there.out and "REFUSED" in there.out
    back = overlapkit("explain", *reversed(names), "--world-size", "16")
    assert back.status == 0 and "finding gone" in back.out and "REFUSED" not in back.out


def test_overrides_apply_to_both(overlapkit, config) -> None:
    name = config(RUN)
    arguments = ["explain", name, name, "model.tensor_model_parallel_size=2", "--world-size", "16"]
    assert "No decision differs" in overlapkit(*arguments).out


def test_two_of_bridges_files_that_differ_in_many_keys(overlapkit, bridge_configs) -> None:
    names = (
        bridge_configs / "deepseek_v3_pretrain_config.yaml",
        bridge_configs / "gpt3_175b_pretrain_config.yaml",
    )
    overlapkit("explain", *names, "--world-size", "2048", "--json")
    start = time.process_time()
    result = overlapkit("explain", *names, "--world-size", "2048", "--json")
    spent = time.process_time() - start
    # Well under a second; a run for every key and every decision would take minutes.
    assert spent < 20, f"{spent:.1f} s of CPU time"
    changes = json.loads(result.out)["changes"]
    assert len(changes) > 5 and all(change["causes"] for change in changes)


def written_by(stack: int, **ddp: object) -> str:
    """A file with the fields of the stack of this index."""
    dump: dict[str, object] = {"_target_": "ConfigContainer", "model": {"num_layers": 4}}
    for section in ("ddp", "optimizer", "dist"):
        dump[section] = {key: span.default for key, span in keys_in(section, stack).items()}
    switches = {"use_distributed_optimizer": True, "overlap_grad_reduce": True}
    dump["ddp"] = {**dump["ddp"], **switches, **ddp}  # type: ignore[dict-item]
    return yaml.safe_dump(dump)


def test_the_versions_are_a_cause(compare, overlapkit, config) -> None:
    # From Megatron-Bridge 0.5.1 on the optimizer's switch follows ddp's.
    old, new = (written_by(stack, overlap_param_gather=True) for stack in (1, 2))
    assert compare(old, new)[("knob", "optimizer.overlap_param_gather")] == ["--core"]
    names = config(old, "a.yaml"), config(new, "b.yaml")
    shown = overlapkit("explain", *names, "--world-size", "16").out
    assert "before: Megatron-Bridge's rules (0.4.2 on core 0.17.1, by its fields)" in shown
    assert "after: Megatron-Bridge's rules (0.5.1 on core 0.18.2, by its fields)" in shown
    assert "--core 0.4.2 on core 0.17.1 -> 0.5.1 on core 0.18.2" in shown
    document = overlapkit("explain", *names, "--world-size", "16", "--json").document
    assert [document[side]["stack"]["core"] for side in ("before", "after")] == ["0.17.1", "0.18.2"]
    assert compare(old, new, "--world-size", "16", "--core", "0.18.2") == {}


def test_env_vars_are_a_cause(compare) -> None:
    run = "model: {num_layers: 4, tensor_model_parallel_size: 2}\nddp: {}\n"
    wrong = run + "env_vars: {CUDA_DEVICE_MAX_CONNECTIONS: 32}\n"
    right = run + "env_vars: {CUDA_DEVICE_MAX_CONNECTIONS: 1}\n"
    changes = compare(right, wrong, "--world-size", "8", "--gpu", "h100", "--core", "0.19.0")
    assert changes[("finding", "env.CUDA_DEVICE_MAX_CONNECTIONS")] == [
        "env_vars.CUDA_DEVICE_MAX_CONNECTIONS"
    ]


def test_no_change_is_said_only_of_what_was_read(overlapkit, config) -> None:
    text = "model: {num_layers: 4, hidden_size: 64, num_attention_heads: 4, vocab_size: 512%s}\n"
    text += "comm_overlap: {tp_comm_overlap: false}\n"
    one = config(text % "", "a.yaml")
    two = config(text % ", brand_new: 3", "b.yaml")
    same = overlapkit("explain", one, config(text % "", "c.yaml"), "--world-size", "8").out
    assert "No decision differs: the overlap in effect is the same." in same
    other = overlapkit("explain", one, two, "--world-size", "8").out
    assert "No decision differs in what was read; the notes name what was not read." in other
    assert "model.brand_new" in other
