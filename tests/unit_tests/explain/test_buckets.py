"""`explain --buckets`, and the field `buckets` of its JSON."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from megatron.bridge.models.parameter_count import chunk_parameter_count, chunk_parameters
from megatron.bridge.training.bucketing import bucketing
from overlapkit.explain.buckets import bucket_summary, buckets_of

LLAMA = {
    "num_layers": 8,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "ffn_hidden_size": 256,
    "vocab_size": 2048,
    "seq_length": 128,
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "normalization": "RMSNorm",
    "bf16": True,
}
DDP = {"overlap_grad_reduce": True, "use_distributed_optimizer": True, "bucket_size": 100_000}


def run_of(model: dict[str, Any], ddp: dict[str, Any], **optimizer: Any) -> Any:
    return SimpleNamespace(
        model=SimpleNamespace(**LLAMA | model),
        ddp=SimpleNamespace(**DDP | ddp),
        optimizer=SimpleNamespace(**optimizer),
    )


def known(model: dict[str, Any], ddp: dict[str, Any], dp: int = 4, **optimizer: Any) -> Any:
    buckets = buckets_of(run_of(model, ddp, **optimizer), dp)
    assert not isinstance(buckets, str), buckets
    return buckets


@pytest.mark.parametrize(
    ("ddp", "reduced", "gathered"),
    [
        ({}, 2, 2),
        ({"grad_reduce_in_fp32": True}, 4, 2),
        ({"use_distributed_optimizer": False}, 2, 0),
        ({"fp8_param_gather": True}, 2, 1),
        ({"fp8_param_gather": True, "reuse_grad_buf_for_mxfp8_param_ag": True}, 2, 2),
        ({"fp4_param_gather": True}, 2, None),
    ],
)
def test_bytes_of_an_element(ddp: dict[str, Any], reduced: int, gathered: int | None) -> None:
    buckets = known({"fp8": "e4m3", "fp8_param": True}, ddp)
    bucket = next(b for b in buckets.chunks[0].buckets if "mlp" in b.first)
    assert bucket.reduced_bytes == bucket.elements * reduced
    assert bucket.gathered_bytes == (None if gathered is None else bucket.elements * gathered)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"share_embeddings_and_output_weights": True},
        {"pipeline_model_parallel_size": 2},
        {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2},
        {"num_moe_experts": 4, "moe_grouped_gemm": True, "expert_model_parallel_size": 2},
    ],
)
def test_names_are_those_of_the_parameters(layout: dict[str, Any]) -> None:
    run = run_of(layout, {})
    buckets = known(layout, {})
    by_place = {place: chunk for chunk in buckets.chunks for place in chunk.places}
    cut = bucketing(run.model, run.ddp, data_parallel_size=4)
    assert len(by_place) == len(cut)
    for chunk in cut:
        names = [
            tensor.name
            for tensor in chunk_parameters(
                run.model, pp_rank=chunk.pp_rank, vp_stage=chunk.vp_stage
            )
        ]
        ours = by_place[chunk.pp_rank, chunk.vp_stage].buckets
        assert [(b.first, b.last) for b in ours] == [
            (names[b.tensors[0]], names[b.tensors[-1]]) for b in chunk.buckets
        ]


def test_the_last_bucket_of_one_stage_has_nothing_left() -> None:
    buckets = known({"share_embeddings_and_output_weights": True}, {})
    (chunk,) = buckets.chunks
    assert [b.hidden_by for b in chunk.buckets[:-1]] == ["backward"] * (len(chunk.buckets) - 1)
    last = chunk.buckets[-1]
    assert last.hidden_by is None
    assert last.last == "embedding.word_embeddings.weight"
    assert chunk.exposed_bytes == last.reduced_bytes
    share = round(100 * last.reduced_bytes / chunk.reduced_bytes)
    text = bucket_summary(buckets)
    assert f"the last, {share} % of the bytes, cannot be hidden" in text
    assert text.endswith("the tied embedding's gradient comes last")


def test_without_overlap_nothing_hides() -> None:
    buckets = known({}, {"overlap_grad_reduce": False})
    assert {b.hidden_by for chunk in buckets.chunks for b in chunk.buckets} == {None}
    assert "none can be hidden: overlap_grad_reduce is off" in bucket_summary(buckets)


def test_later_stages_and_chunks_have_others_that_compute() -> None:
    layout = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    buckets = known(layout, {})
    hidden = {
        place: chunk.buckets[-1].hidden_by for chunk in buckets.chunks for place in chunk.places
    }
    assert hidden == {
        (0, 0): None,
        (0, 1): "earlier chunks",
        (1, 0): "pipeline bubble",
        (1, 1): "earlier chunks",
    }


def test_the_totals_of_each_stage_count_every_chunk() -> None:
    layout = {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2}
    buckets = known(layout, {"bucket_size": 20_000})
    model = run_of(layout, {}).model
    of_first = len(buckets.chunks[0].buckets)
    assert of_first > 1
    assert [(each.stages, each.chunks, each.buckets) for each in buckets.by_stage] == [
        ((0,), 2, of_first + 1),
        ((1, 2), 2, 2),
        ((3,), 2, 2),
    ]
    for each in buckets.by_stage:
        for stage in each.stages:
            held = [chunk_parameter_count(model, pp_rank=stage, vp_stage=n) for n in (0, 1)]
            assert each.parameters == sum(held)
        assert each.reduced_bytes >= 2 * each.parameters
    summary = bucket_summary(buckets)
    assert summary.startswith(f"{of_first} buckets of ")
    assert f"first pipeline stage, {of_first + 1} in all its chunks; the last," in summary


def test_a_stage_holds_its_layers_and_its_embedding() -> None:
    """By hand: two layers of a first stage of four, without tensor parallelism."""
    width, ffn, vocabulary = 64, 256, 2048
    layer = 4 * width * width + 3 * width * ffn + 2 * width
    (first, *_) = known({"pipeline_model_parallel_size": 4}, {}).by_stage
    assert first.parameters == 2 * layer + vocabulary * width


def test_experts_of_one_rank_are_held_and_not_reduced() -> None:
    layout = {"num_moe_experts": 4, "moe_grouped_gemm": True, "expert_model_parallel_size": 4}
    buckets = known(layout, {})
    (stage,) = buckets.by_stage
    dense = [b for b in buckets.chunks[0].buckets if not b.expert]
    assert stage.reduced_bytes == sum(b.reduced_bytes for b in dense)
    assert stage.parameters > sum(b.parameters for b in dense)


def test_buckets_that_share_a_collective_wait_for_its_last() -> None:
    """Weights that are not FP8 are reduced with the last FP8 bucket, wherever they come."""
    buckets = known({"fp8": "e4m3", "fp8_param": True}, {"fp8_param_gather": True})
    output = buckets.chunks[0].buckets[0]
    assert output.first == "output_layer.weight"
    assert output.hidden_by is None


def test_one_rank_reduces_nothing() -> None:
    assert "no gradient is reduced" in str(buckets_of(run_of({}, {}), 1))


def test_absurdly_many_are_not_listed() -> None:
    run = run_of({"num_layers": 4000}, {"bucket_size": 1})
    assert str(buckets_of(run, 4)).endswith("too many to list: each costs its own latency")


def test_experts_of_one_rank_communicate_nothing() -> None:
    layout = {"num_moe_experts": 4, "moe_grouped_gemm": True, "expert_model_parallel_size": 4}
    experts = [b for b in known(layout, {}).chunks[0].buckets if b.expert]
    assert experts
    assert {(b.ranks, b.reduced_bytes, b.gathered_bytes) for b in experts} == {(1, 0, 0)}


YAML = """\
model: {num_layers: 4, hidden_size: 64, num_attention_heads: 4, vocab_size: 512, seq_length: 128,
        position_embedding_type: rope, pipeline_model_parallel_size: 2}
ddp: {use_distributed_optimizer: true}
comm_overlap: {tp_comm_overlap: false, bucket_size: 20000}
mixed_precision: bf16_mixed
"""


def test_the_command_lists_every_bucket(overlapkit, config) -> None:
    arguments = (config(YAML), "--world-size", "8")
    document = overlapkit("explain", *arguments, "--json").document["buckets"]
    lines = overlapkit("explain", *arguments, "--buckets").out.splitlines()
    chunks = document["chunks"]
    assert document["summary"] in lines
    assert [chunk["places"] for chunk in chunks] == [
        [{"stage": 0, "chunk": 0}],
        [{"stage": 1, "chunk": 0}],
    ]
    assert [each["stages"] for each in document["stages"]] == [[0], [1]]
    first = document["stages"][0]
    assert (
        f"stage 0: {first['buckets']} buckets; a GPU holds {first['parameters']:,} parameters and "
        f"hands {first['reduced_bytes'] / 1e6:,.1f} MB of gradients to the reduction in a step, "
        f"{first['exposed_bytes'] / 1e6:,.1f} MB of them with nothing to hide them"
    ) in lines
    listed = [line for line in lines if "hidden by:" in line]
    assert len(listed) == sum(len(chunk["buckets"]) for chunk in chunks) > 4
    assert any(line.startswith("stage 0: closed at 20,000 parameters") for line in lines)
    assert any(line.startswith("stage 1: not divided: only the first") for line in lines)


def test_the_report_has_one_line_of_them(overlapkit, config) -> None:
    out = overlapkit("explain", config(YAML), "--world-size", "8").out
    assert len([line for line in out.splitlines() if line.startswith("buckets  ")]) == 1


def test_two_configurations_are_refused(overlapkit, config) -> None:
    one, two = config(YAML, "a.yaml"), config(YAML, "b.yaml")
    result = overlapkit("explain", one, two, "--world-size", "8", "--buckets")
    assert result.status == 2
    assert "--buckets takes one configuration" in result.err


SCRIPT = """\
torchrun --nproc-per-node 8 --nnodes 16 pretrain_gpt.py --num-layers 32 --hidden-size 4096 \\
  --num-attention-heads 32 --seq-length 4096 --bf16 --context-parallel-size 2 --vocab-size 32000 \\
  --micro-batch-size 1 --global-batch-size 128 --use-distributed-optimizer --overlap-grad-reduce
"""


def test_megatron_lms_default_size_counts_context_parallel_ranks(overlapkit, config) -> None:
    script = config(SCRIPT, "train.sh")
    document = overlapkit("explain", "--from-megatron-lm", script, "--json").document
    (chunk,) = document["buckets"]["chunks"]
    assert chunk["bucket_size"] == 128_000_000
    (count,) = [d for d in document["decisions"] if d["rule"] == "core.bucket-count"]
    assert f"in {len(chunk['buckets'])} buckets" in count["reason"]
