"""A plan for a Megatron-LM job speaks flags and exports."""

from __future__ import annotations

import re
from typing import Any

import pytest

MODEL = """export CUDA_DEVICE_MAX_CONNECTIONS=1
MODEL_ARGS=(
    --num-layers 32 --hidden-size 4096 --num-attention-heads 32 --seq-length 4096
    --vocab-size 32000 --micro-batch-size 1 --global-batch-size 128 --bf16
)
"""
RUN = "torchrun --nproc-per-node 8 --nnodes 2 pretrain_gpt.py ${MODEL_ARGS[@]}"
LAYOUT = "--tensor-model-parallel-size 4 --pipeline-model-parallel-size 2"
KEYS = re.compile(r"\b(model|ddp|optimizer|comm_overlap|mixed_precision)\.\w+")


@pytest.fixture
def script(config: Any) -> Any:
    return lambda more: config(f"{MODEL}{RUN} {more}\n", "train.sh")


def test_the_plan_of_a_script_has_flags(script: Any, plan: Any) -> None:
    told = plan("--from-megatron-lm", script(LAYOUT), "--gpu", "h100").out
    assert "Pass --tp-comm-overlap --overlap-grad-reduce --overlap-param-gather" in told
    assert "export CUDA_DEVICE_MAX_CONNECTIONS=1" in told
    assert not KEYS.findall(told)


def test_its_page_has_flags(script: Any, plan: Any, tmp_path: Any) -> None:
    page = tmp_path / "plan.html"
    plan("--from-megatron-lm", script(LAYOUT), "--gpu", "h100", "--html", str(page))
    text = page.read_text()
    assert "<code>--sequence-parallel</code>" in text and not KEYS.findall(text)


def test_a_swept_layout_is_said_in_flags(script: Any, plan: Any) -> None:
    told = plan("--from-megatron-lm", script(LAYOUT), "--gpu", "h100", "--sweep", "tp,pp").out
    assert not KEYS.findall(told)


def test_the_document_has_the_flags_beside_the_keys(script: Any, plan: Any) -> None:
    document = plan("--from-megatron-lm", script(LAYOUT), "--gpu", "h100", "--json").document
    assert ["--sequence-parallel"] in document["flags"] and document["omitted_flags"] == []
    assert document["settings"]["comm_overlap.tp_comm_overlap"] is True
    assert not [s for s in document["next_steps"] if KEYS.search(s["change"])]
    of_bridge = plan(
        "--model", "llama3_8b", "--gpu", "h100", "--world-size", "8", "--json"
    ).document
    assert of_bridge["flags"] is None and of_bridge["settings"]


def test_a_flag_against_the_plan_is_omitted(script: Any, plan: Any) -> None:
    more = (
        f"{LAYOUT} --num-layers-per-virtual-pipeline-stage 4 --no-overlap-p2p-communication "
        "--sequence-parallel"
    )
    document = plan("--from-megatron-lm", script(more), "--gpu", "h100", "--json").document
    assert set(document["omitted_flags"]) <= set(more.split())


def test_a_flag_that_turns_overlap_off_is_omitted(script: Any, plan: Any) -> None:
    more = f"{LAYOUT} --num-layers-per-virtual-pipeline-stage 4 --no-overlap-p2p-communication"
    told = plan("--from-megatron-lm", script(more), "--gpu", "h100").out
    assert ", and omit --no-overlap-p2p-communication (to paste" in told
    assert told.count("--use-distributed-optimizer: off -> on") == 1
    assert "--no-overlap-p2p-communication: on -> off" in told
