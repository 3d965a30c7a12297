"""Flags of forks and of older versions, abbreviated ones, and files that bring more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from overlapkit.config.launchers.forks import FORKS
from overlapkit.config.megatron_lm.flag_versions import all_flags
from overlapkit.config.megatron_lm.script import read_megatron_lm_arguments
from overlapkit.config.run import Settings
from overlapkit.errors import InputError
from support.megatron_lm_cases import arguments

BASE = "--num-layers 8 --hidden-size 256 --num-attention-heads 8 --seq-length 128 --bf16"


def read(text: str, **options: bool) -> Settings:
    return read_megatron_lm_arguments(arguments(text), **options)


def notes(settings: Settings) -> str:
    assert settings.launch is not None
    return "\n".join(settings.launch.notes)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("--use-ascend-mc2 --overlap-grad-reduce --reuse-fp32-param", "MindSpeed"),
        ("--moe-alltoall-overlap-comm --moe-tp-extend-ep", "MindSpeed"),
        ("--context-parallel-algo hybrid_cp_algo --ulysses-degree-in-cp 4", "MindSpeed"),
        ("--schedules-method dualpipev --moe-fb-overlap", "MindSpeed"),
        ("--patch-tokenizer-type Qwen2Tokenizer --max-padding-length 4096", "Pai-Megatron-Patch"),
        ("--use-hip-profiler --pipe-sp-splits 4", "HYGON"),
        ("--enable-hetero --hetero-device-types A100 A800", "FlagScale"),
        ("--fully-shard-model-parallel-size 2 --dion-momentum 0.95", "Megatron-Dion"),
        ("--goldfish-loss --goldfish-k 50", "swiss-ai"),
        ("--ademamix-alpha 8", "swiss-ai"),
        ("--enable_primus_turbo --use_turbo_deepep", "Primus"),
        ("--use_rms_norm --num_attention_heads_kv 8", "Megatron-LLM"),
        ("--DDP-impl local --use-checkpoint-lr-scheduler", "before Megatron-Core"),
        ("--checkpoint-num-layers 1 --activations-checkpoint-method uniform", "before"),
    ],
)
def test_a_fork_is_named_by_its_own_flags(text: str, name: str) -> None:
    settings = read(text)
    assert settings.origin is not None and name in settings.origin.name
    assert settings.is_partly_read
    [first, *_] = settings.origin.remarks
    assert text.split()[0] in first and "its own code is not known here" in first


@pytest.mark.parametrize("fork", FORKS, ids=lambda fork: fork.name)
def test_every_flag_of_a_fork_passes(fork) -> None:
    for mark in sorted(fork.marks):
        flag = f"--{mark}x" if mark.endswith("-") else f"--{mark}"
        for spelt in {flag, f"--{flag[2:].replace('-', '_')}"}:
            settings = read(f"{spelt} 1")
            assert settings.origin is not None, spelt


def test_a_forks_flags_are_not_megatron_lms() -> None:
    stopped_at = {"--model-parallel-size", "--batch-size"}
    both = {name for name in all_flags() if any(fork.has(name) for fork in FORKS)}
    assert both == stopped_at


def test_megatron_lms_own_job_has_no_fork() -> None:
    settings = read("--overlap-grad-reduce --log-throughput --made-up-name x")
    assert settings.origin is None


def test_the_names_of_megatron_lm_1() -> None:
    settings = read_megatron_lm_arguments(
        f"pretrain_gpt.py {BASE} --model-parallel-size 4 --batch-size 8".split()
    )
    flat = settings.flat()
    assert flat["model.tensor_model_parallel_size"] == 4
    assert flat["train.micro_batch_size"] == 8
    assert "--model-parallel-size is read as --tensor-model-parallel-size" in notes(settings)
    assert settings.origin is not None and "versions 1 to 3" in settings.origin.name


def test_an_old_versions_data_parallelism_has_no_rules(
    overlapkit, config: Callable[..., str]
) -> None:
    script = f"torchrun --nproc-per-node 8 pretrain_gpt.py {BASE} --micro-batch-size 1 "
    old = config(f"{script} --DDP-impl local --overlap-grad-reduce\n", "old.sh")
    new = config(f"{script} --overlap-grad-reduce\n", "new.sh")

    def dimensions(path: str) -> set[str]:
        document = overlapkit("explain", "--from-megatron-lm", path, "--json").document
        return {decision["dimension"] for decision in document["decisions"]}

    assert "DP" in dimensions(new) and "DP" not in dimensions(old)


@pytest.mark.parametrize(
    "text",
    ["--wandb-run-tag x", "--my-comm-stream 2", "--ulysses 4", "--swigllu", "--brand-new 3"],
)
def test_an_unknown_flag_is_said_and_the_verdict_is_of_what_was_read(text: str) -> None:
    settings = read(text)
    assert text.split()[0] in notes(settings)
    assert settings.is_partly_read


def test_of_many_unknown_flags_those_that_may_matter_come_first() -> None:
    others = " ".join(f"--colour-{n} x" for n in range(20))
    said = notes(read(f"{others} --ulysses 4"))
    assert "--ulysses, --colour-0" in said and "and 13 more" in said


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("--tensor-model-par 4", "--tensor-model-parallel-size"),
        ("--tensor-model-parallel 4", "--tensor-model-parallel-size"),
        ("--pipeline_model_parallel 4", "--pipeline_model_parallel_size"),
        ("--overlap-grad-r", "--overlap-grad-reduce"),
        ("--micro-batch 4", "--micro-batch-size"),
        ("--use-distributed-opt", "--use-distributed-optimizer"),
    ],
)
def test_an_abbreviated_flag_is_refused_until_it_is_allowed(short: str, whole: str) -> None:
    with pytest.raises(InputError, match="no abbreviated flags") as caught:
        read(short)
    assert f"write {whole}." in str(caught.value) and "--allow-unknown" in str(caught.value)
    assert short.split()[0] in notes(read(short, allow_unknown=True))


@pytest.mark.parametrize("flag", ["--overlap-grad", "--context-parallel-algorithm", "--tp-comm"])
def test_whole_words_at_the_start_of_a_flag_may_be_a_forks(flag: str) -> None:
    assert flag in notes(read(flag))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--config-file run.yaml", "--config-file run.yaml"),
        ("--config=run.yml", "--config run.yml"),
        ("--train-config run.json", "--train-config run.json"),
        ("--args-file flags.txt", "--args-file flags.txt"),
        ("--made-up x @more.args", "@more.args"),
    ],
)
def test_a_file_of_more_arguments_is_refused_until_it_is_allowed(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert f"{said}: the program takes more arguments from that file" in str(caught.value)
    assert "--allow-unknown" in str(caught.value)
    read(text, allow_unknown=True)


@pytest.mark.parametrize(
    "text", ["--dataset-config data.yaml", "--config-name small", "--profile-config x.json"]
)
def test_another_file_is_no_file_of_arguments(text: str) -> None:
    assert text.split()[0] in notes(read(text))


@pytest.mark.parametrize(
    ("word", "value"),
    [("40000000", 40_000_000), ("40_000_000", 40_000_000), ("+8", 8), (str(10**30), 10**30)],
)
def test_a_number_is_what_python_reads(word: str, value: int) -> None:
    assert read(f"--ddp-bucket-size {word}").flat()["ddp.bucket_size"] == value


@pytest.mark.parametrize("word", ["4e7", "40M", "1_", "0x10", "4.0"])
def test_what_python_does_not_read_as_a_number_is_refused(word: str) -> None:
    with pytest.raises(InputError, match="must be a whole number"):
        read(f"--ddp-bucket-size {word}")


def test_a_bucket_of_any_size_has_an_answer(overlapkit, config: Callable[..., str]) -> None:
    script = config(
        f"export CUDA_DEVICE_MAX_CONNECTIONS=8\ntorchrun --nproc-per-node 8 pretrain_gpt.py {BASE} "
        f"--micro-batch-size 1 --overlap-grad-reduce --ddp-bucket-size {10**30}\n",
        "train.sh",
    )
    result = overlapkit("explain", "--from-megatron-lm", script, "--json")
    assert result.status in (0, 1)


def test_no_finding_is_certain_of_megatron_lm_before_megatron_core(overlapkit, tmp_path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(
        "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 8 --hidden-size 64 "
        "--num-attention-heads 8 --seq-length 64 --micro-batch-size 4 --global-batch-size 6 "
        "--tensor-model-parallel-size 8 --DDP-impl local\n"
    )
    result = overlapkit("explain", "--from-megatron-lm", str(script), "--gpu", "h100")
    assert result.status == 0
    assert "ERROR" not in result.out
    assert "this is a rule of today's Megatron-LM" in result.out
    assert "Not certain: " in result.out and "; ." not in result.out
    script.write_text(script.read_text().replace("--DDP-impl local", ""))
    assert overlapkit("explain", "--from-megatron-lm", str(script), "--gpu", "h100").status == 1
