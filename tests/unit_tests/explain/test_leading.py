"""What leads a report: faults of versions, values that stop a job, and remedies in their place."""

from __future__ import annotations

from typing import Any

import pytest

FREED = """\
model: {num_layers: 16, hidden_size: 64, num_attention_heads: 4, vocab_size: 512, seq_length: 128,
        pipeline_model_parallel_size: 4, virtual_pipeline_model_parallel_size: 2,
        deallocate_pipeline_outputs: true}
train: {micro_batch_size: 1, global_batch_size: 32}
ddp: {use_distributed_optimizer: true}
comm_overlap: {tp_comm_overlap: false}
"""
FSDP = """\
#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=8
ARGS="--num-layers 4 --hidden-size 256 --num-attention-heads 8 --seq-length 128 --vocab-size 512
  --max-position-embeddings 128 --micro-batch-size 1 --global-batch-size 32 --bf16
  --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params
  --ckpt-format fsdp_dtensor --no-gradient-accumulation-fusion --use-distributed-optimizer
  --overlap-grad-reduce --overlap-param-gather"
srun --ntasks=32 {export} python pretrain_gpt.py $ARGS
"""
SIZES = ("--world-size", "16", "--gpu", "h100")


@pytest.fixture
def lines(overlapkit, config) -> Any:
    def of(text: str, *options: str, name: str = "run.yaml") -> list[str]:
        result = overlapkit("explain", config(text, name), *options)
        assert result.status in (0, 1), result.err
        return result.out.splitlines()

    return of


def test_a_known_fault_is_in_the_first_line_and_in_the_brief_answer(lines) -> None:
    brief = lines(FREED, *SIZES, "--core", "0.17.1", "--brief")
    assert brief[1].startswith("No finding. 1 known fault: model.deallocate_pipeline_outputs")
    assert "Everything that was requested" not in "\n".join(brief)
    assert "known fault model.deallocate_pipeline_outputs on: PP=4 with VPP=2" in brief[2]
    assert "[core.sent-then-freed" in brief[2] and "->" in brief[2]


def test_a_mended_version_has_none(lines) -> None:
    brief = lines(FREED, *SIZES, "--core", "0.18.2", "--brief")
    assert brief[1].startswith("Everything that was requested is in effect.")
    assert "known fault" not in "\n".join(brief)


def test_a_fault_leads_the_notes(lines) -> None:
    full = lines(FREED, *SIZES, "--core", "0.17.1", "--env-file", "/dev/null")
    marked = [n for n, line in enumerate(full) if "known fault model." in line]
    launch = [n for n, line in enumerate(full) if line.startswith("note env.")]
    assert marked and launch and marked[0] < launch[0]


def test_the_two_margins_are_one_line(lines) -> None:
    full = lines(FREED, *SIZES, "--env-file", "/dev/null")
    (margins,) = [line for line in full if line.startswith("note env.NVTE_") and "->" in line]
    assert "env.NVTE_FWD_LAYERNORM_SM_MARGIN 0, env.NVTE_BWD_LAYERNORM_SM_MARGIN 0: " in margins
    assert "does not set them" in margins
    assert "NVTE_FWD_LAYERNORM_SM_MARGIN=20 and NVTE_BWD_LAYERNORM_SM_MARGIN=20 in" in margins


def test_a_value_that_stops_the_job_is_shown_as_it_was_set(lines) -> None:
    text = FREED + "mixed_precision: {bf16: true, fp8: e4m3, fp8_recipe: mxfp8,\n"
    text += "  fp8_param_gather: true, reuse_grad_buf_for_mxfp8_param_ag: false}\n"
    brief = lines(text, "--world-size", "16", "--gpu", "b200", "--core", "0.16.1", "--brief")
    assert any("ERROR mixed_precision.fp8_param_gather set: on: " in line for line in brief)


def test_a_variable_is_changed_where_the_launcher_sets_it(lines) -> None:
    export = "--export=ALL,CUDA_DEVICE_MAX_CONNECTIONS=1"
    brief = lines(FSDP.format(export=export), "--gpu", "h100", "--brief", name="train.sbatch")
    (finding,) = [line for line in brief if ": ERROR CUDA_DEVICE_MAX_CONNECTIONS 1" in line]
    place = finding.partition(": ERROR")[0]
    assert place.endswith("train.sbatch:8:31")
    assert f"-> change CUDA_DEVICE_MAX_CONNECTIONS=1 to 8 at {place}; " in finding
    assert "8 is what lm.env-connections needs, 32 what Megatron-Bridge's own launch" in finding


def test_the_scripts_own_export_is_no_finding(lines) -> None:
    brief = lines(FSDP.format(export=""), "--gpu", "h100", "--brief", name="train.sbatch")
    assert not any("ERROR CUDA_DEVICE_MAX_CONNECTIONS" in line for line in brief)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((6, 4), "; of these sizes only tensor_model_parallel_size=6 does not divide 16, nor "),
        ((2, 3), "; of these sizes only pipeline_model_parallel_size=3 does not divide 16\n"),
        ((3, 5), " GPUs\n"),
        ((8, 4), " GPUs\n"),
    ],
)
def test_the_size_at_fault_is_named_where_it_is_one(
    overlapkit, config, sizes: tuple[int, int], said: str
) -> None:
    model = f"model.tensor_model_parallel_size={sizes[0]}"
    pipeline = f"model.pipeline_model_parallel_size={sizes[1]}"
    result = overlapkit("explain", config(FREED), model, pipeline, *SIZES)
    assert result.status == 2 and said in result.err
    assert ("num_attention_heads=4" in result.err) == (sizes == (6, 4))


def test_an_audit_says_what_does_not_start(overlapkit, tmp_path) -> None:
    (tmp_path / "typo.yaml").write_text(FREED.replace("use_distributed_o", "use_distributed_oo"))
    (tmp_path / "layout.yaml").write_text(
        FREED.replace("pipeline_model_parallel_size: 4", "pipeline_model_parallel_size: 3", 1)
    )
    (tmp_path / "broken.yaml").write_text(FREED + "model: {\n")
    out = overlapkit("audit", str(tmp_path), *SIZES).out.splitlines()
    assert "broken.yaml: wrong" in out[0]
    assert "layout.yaml: does not start: --world-size 16: world size (16)" in out[1]
    assert "typo.yaml: does not start, line 5: unknown key" in out[2]
    assert out[3] == "3 configurations: 2 that do not start, 1 that cannot be read as they are"
    document = overlapkit("audit", str(tmp_path), *SIZES, "--json").document
    assert [each["does_not_start"] for each in document["files"]] == [False, True, True]
    assert {each["state"] for each in document["files"]} == {"wrong"}
