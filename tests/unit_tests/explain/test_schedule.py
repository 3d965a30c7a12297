"""The microbatches of a step beside the layout, and the bubble of a pipeline."""

from __future__ import annotations

from typing import Any

import pytest

YAML = """\
model: {{num_layers: 24, hidden_size: 64, num_attention_heads: 4, vocab_size: 512, seq_length: 128,
        position_embedding_type: rope, pipeline_model_parallel_size: 4}}
train: {{micro_batch_size: 2, global_batch_size: {batch}}}
ddp: {{use_distributed_optimizer: true}}
comm_overlap: {{tp_comm_overlap: false}}
mixed_precision: bf16_mixed
"""

SCRIPT = """\
torchrun --nproc-per-node 8 --nnodes 2 pretrain_gpt.py --num-layers 32 --hidden-size 4096 \\
  --num-attention-heads 32 --seq-length 4096 --bf16 --vocab-size 32000 --micro-batch-size 1 {more}
"""


@pytest.fixture
def answer(overlapkit, config) -> Any:
    """The document and the lines for a batch on 16 GPUs: four replicas of four stages."""

    def of(*overrides: str, batch: int = 256) -> tuple[dict[str, Any], list[str]]:
        arguments = ("explain", config(YAML.format(batch=batch)), *overrides, "--world-size", "16")
        return overlapkit(*arguments, "--json").document, overlapkit(*arguments).out.splitlines()

    return of


def bubbles(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("bubble  ")]


def test_microbatches_are_counted(answer) -> None:
    document, lines = answer()
    assert document["microbatches"] == 256 // (2 * 4)
    assert any(" DP 4, 32 microbatches  Transformer Engine" in line for line in lines)


def test_one_microbatch_is_one(answer) -> None:
    assert any("DP 4, 1 microbatch  " in line for line in answer(batch=8)[1])


@pytest.mark.parametrize("override", ["train.global_batch_size=255", "train={}"])
def test_a_batch_that_is_not_known_has_none(answer, override: str) -> None:
    document, lines = answer(override)
    assert (document["microbatches"], document["pipeline"]) == (None, None)
    assert not any("microbatches  " in line for line in lines)
    assert not bubbles(lines)


def test_a_batch_that_may_shrink_is_rounded_down(answer) -> None:
    document, _ = answer("train.decrease_batch_size_if_needed=true", batch=255)
    assert document["microbatches"] == 31


def test_the_bubble_of_a_pipeline(answer) -> None:
    document, lines = answer()
    assert document["pipeline"] == {
        "bubble_share": 3 / 32,
        "by_vpp": {"2": 3 / 64, "3": 3 / 96, "6": 3 / 192},
    }
    assert bubbles(lines) == [
        "bubble  9.38 % of a step's pure compute, where stages take equally long: (PP - 1) / "
        "(VPP x microbatches) = 3 / (1 x 32); with VPP 2: 4.69 %, 3: 3.12 %, 6: 1.56 %"
    ]


def test_an_interleaved_pipeline_names_no_other_size(answer) -> None:
    document, lines = answer("model.virtual_pipeline_model_parallel_size=3")
    assert document["pipeline"] == {"bubble_share": 3 / 96, "by_vpp": {}}
    assert "3 / (3 x 32)" in bubbles(lines)[0] and "with VPP" not in bubbles(lines)[0]


def test_microbatches_that_fill_no_interleaved_pipeline_name_none(answer) -> None:
    document, _ = answer(batch=8 * 30)
    assert document["pipeline"] == {"bubble_share": 3 / 30, "by_vpp": {}}


def test_one_stage_has_no_bubble(answer) -> None:
    document, lines = answer("model.pipeline_model_parallel_size=1")
    assert document["microbatches"] == 8
    assert document["pipeline"] is None and not bubbles(lines)


@pytest.mark.parametrize(
    ("more", "count"), [("--global-batch-size 64", 4), ("", 1), ("--global-batch-size 65", None)]
)
def test_megatron_lms_default_is_one_for_each_replica(
    overlapkit, config, more: str, count: int | None
) -> None:
    script = config(SCRIPT.format(more=more), "train.sh")
    assert overlapkit("explain", script, "--json").document["microbatches"] == count


def test_a_layout_sets_the_chunks(answer) -> None:
    layout = "Et*3|" + "t*3|" * 6 + "t*3L"
    document, _ = answer(f"model.pipeline_model_parallel_layout={layout}")
    assert document["pipeline"] == {"bubble_share": 3 / (2 * 32), "by_vpp": {}}


def test_the_page_has_it(overlapkit, config, tmp_path) -> None:
    page = tmp_path / "page.html"
    overlapkit("explain", config(YAML.format(batch=256)), "--world-size", "16", "--html", str(page))
    text = page.read_text(encoding="utf-8")
    assert "DP 4, 32 microbatches" in text and "Pipeline bubble: 9.38 %" in text
