"""What `overlapkit explain` answers, and the exit status that a CI job gates on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.training.decisions import FINDINGS

ROOT = Path(__file__).parents[3]
DENSE = "tests/data/bridge_configs/llama3_70b_pretrain_config.yaml"
MOE = "tests/data/bridge_configs/qwen3_30b_a3b_pretrain_config.yaml"
PRESET = "userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192"

RUN = """\
model:
  tensor_model_parallel_size: 4
  sequence_parallel: true
ddp:
  use_distributed_optimizer: true
comm_overlap:
  tp_comm_overlap: true
"""


def entry_point(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    command = [str(Path(sys.executable).with_name("overlapkit")), *arguments]
    environment = {k: v for k, v in os.environ.items() if "CONNECTIONS" not in k}
    return subprocess.run(
        command,
        **{"capture_output": True, "text": True, "cwd": ROOT, "env": environment} | options,
        check=False,
    )


class TestTheInstalledCommand:
    def test_a_sound_run(self) -> None:
        done = entry_point("explain", DENSE, "--core", "0.18.2", "--world-size", "64")
        assert (done.returncode, done.stderr) == (0, "")
        assert "TP 4" in done.stdout and "DP 2" in done.stdout
        assert "Everything that was requested is in effect." in done.stdout
        assert "\x1b" not in done.stdout

    def test_a_finding(self) -> None:
        arguments = (DENSE, "model.sequence_parallel=false", "--world-size", "64")
        done = entry_point("explain", *arguments)
        assert (done.returncode, done.stderr) == (1, "")
        assert "tp.needs-sequence-parallel" in done.stdout

    def test_bad_input(self) -> None:
        done = entry_point("explain", "nowhere.yaml", "--world-size", "64")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "overlapkit: nowhere.yaml: no such file\n"

    def test_an_override_of_two_lines_is_told_in_one(self) -> None:
        done = entry_point("explain", DENSE, "model.a\nb=1", "--world-size", "64")
        assert done.returncode == 2 and done.stderr.count("\n") == 1

    def test_json_is_one_document(self) -> None:
        done = entry_point("explain", DENSE, "--world-size", "64", "--json")
        assert done.returncode == 0 and done.stderr == ""
        assert json.loads(done.stdout)["effective"]["model.tp_comm_overlap"] is True

    @pytest.mark.parametrize("form", ["", "--json"])
    @pytest.mark.parametrize(("override", "status"), [("", 0), ("ddp.bucket_size=5", 1)])
    def test_a_reader_that_had_enough_changes_no_status(
        self, form: str, override: str, status: int
    ) -> None:
        command = Path(sys.executable).with_name("overlapkit")
        arguments = f"explain {DENSE} {override} --world-size 64 {form}"
        done = subprocess.run(
            ["bash", "-c", f"{command} {arguments} | true; exit ${{PIPESTATUS[0]}}"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert (done.returncode, done.stderr) == (status, "")

    def test_a_configuration_from_a_pipe(self) -> None:
        command = Path(sys.executable).with_name("overlapkit")
        script = f"{command} explain <(cat {DENSE}) --world-size 64 --json"
        done = subprocess.run(["bash", "-c", script], capture_output=True, cwd=ROOT, check=False)
        assert done.returncode == 0 and done.stderr == b""

    @pytest.mark.parametrize("json_or_text", [["--json"], []])
    def test_a_name_that_no_encoding_takes(self, json_or_text: list[str], tmp_path: Path) -> None:
        name = tmp_path / os.fsdecode(b"\xff\xc3\xa9.yaml")
        name.write_text(RUN)
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        arguments = ["explain", str(name), "--world-size", "8", *json_or_text]
        done = entry_point(*arguments, env=environment)
        assert (done.returncode, done.stderr) == (0, ""), done

    def test_no_arguments_show_the_commands(self) -> None:
        done = entry_point()
        assert done.returncode == 0 and "explain" in done.stdout


def effective(result) -> dict:
    assert result.status in (0, 1), result.err
    return json.loads(result.out)["effective"]


def findings(result) -> dict[str, str]:
    """Rule to knob of every finding."""
    document = json.loads(result.out)
    found = [d for d in document["decisions"] if d["outcome"] in FINDINGS]
    assert result.status == (1 if found else 0)
    assert len(found) == document["findings"]
    return {d["rule"]: d["knob"] for d in found}


# An addition to RUN, the world size, and the rules that refuse something; none: exit status 0.
STATUS = {
    "all in effect": ([], 8, []),
    "TP 1": (
        ["model.tensor_model_parallel_size=1", "model.sequence_parallel=false"],
        8,
        ["tp.needs-tensor-parallel"],
    ),
    "no sequence parallelism": (
        ["model.sequence_parallel=false"],
        8,
        ["tp.needs-sequence-parallel"],
    ),
    "sequence parallelism at TP 1": (
        ["model.tensor_model_parallel_size=1"],
        8,
        ["tp.needs-tensor-parallel", "core.sequence-parallel"],
    ),
    "set by hand and overwritten": (["ddp.bucket_size=1000"], 8, ["dp.bucket-size"]),
    "set by hand to what it becomes": (["ddp.overlap_grad_reduce=true"], 8, []),
    "without the distributed optimizer": (
        ["ddp.use_distributed_optimizer=false", "comm_overlap.overlap_grad_reduce=true"],
        8,
        ["dp.needs-distributed-optimizer"],
    ),
    "the pipeline hazard": (
        [
            "model.pipeline_model_parallel_size=2",
            "model.virtual_pipeline_model_parallel_size=2",
            "comm_overlap.overlap_p2p_comm=false",
            "comm_overlap.batch_p2p_comm=true",
        ],
        8,
        ["pp.same-peer-hazard"],
    ),
    "the pipeline hazard of Megatron-Core's own defaults": (
        [
            "model.pipeline_model_parallel_size=2",
            "model.virtual_pipeline_model_parallel_size=2",
            "comm_overlap=null",
        ],
        8,
        ["pp.same-peer-hazard"],
    ),
    "an expert overlap without experts": (
        ["comm_overlap.overlap_moe_expert_parallel_comm=true"],
        8,
        ["ep.needs-expert-parallel", "ep.needs-experts"],
    ),
    "a userbuffers setting that Transformer Engine refuses": (
        ["comm_overlap.tp_comm_overlap_cfg={qkv_fprop: {method: pipeline}}"],
        8,
        ["ub.pipeline-all-gather"],
    ),
    "a userbuffers setting that there is not": (
        ["comm_overlap.tp_comm_overlap_cfg={qkv_fprop: {num_sms: 4}}"],
        8,
        ["ub.key-name"],
    ),
    "userbuffers settings of no GEMM": (
        ["comm_overlap.tp_comm_overlap_cfg={qkv_fprop: 5}"],
        8,
        ["ub.shape"],
    ),
}


@pytest.mark.parametrize(("overrides", "size", "rules"), STATUS.values(), ids=STATUS)
def test_the_exit_status_tells_of_findings(
    overrides: list[str], size: int, rules: list[str], overlapkit, config
) -> None:
    result = overlapkit("explain", config(RUN), *overrides, "--world-size", str(size), "--json")
    found = findings(result)
    assert set(rules) <= set(found), found
    assert bool(rules) == bool(found), found
    plain = overlapkit("explain", config(RUN), *overrides, "--world-size", str(size))
    assert plain.status == result.status
    for rule in rules:
        assert rule in plain.out


def test_a_preset_by_name_or_as_bridge_writes_it(overlapkit, config) -> None:
    module = "megatron.bridge.training.comm_overlap"
    key = "model.tp_comm_overlap_cfg"
    found = [
        effective(overlapkit("explain", config(RUN + text), "--world-size", "8", "--json"))[key]
        for text in (
            f"  tp_comm_overlap_cfg: {PRESET}\n",
            f"  tp_comm_overlap_cfg: {module}.{PRESET}\n",
            f"  tp_comm_overlap_cfg: {{_target_: {module}.{PRESET}, _call_: false}}\n",
        )
    ]
    assert found[0] == found[1] == found[2]
    assert found[0]["qkv_fprop"]["method"] == "ring_exchange"


def test_a_userbuffers_class_brings_its_defaults(overlapkit, config) -> None:
    setting = "{_target_: a.b.RingExchangeOverlapCfg, aggregate: true}"
    text = RUN + f"  tp_comm_overlap_cfg: {{proj_fprop: {setting}}}\n"
    result = overlapkit("explain", config(text), "--world-size", "8", "--json")
    entry = effective(result)["model.tp_comm_overlap_cfg"]["proj_fprop"]
    assert entry["method"] == "ring_exchange" and entry["aggregate"] is True


def test_comm_overlap_on_a_null_section(overlapkit, config) -> None:
    text = RUN.replace("comm_overlap:\n  tp_comm_overlap: true", "comm_overlap: null")
    name = config(text)
    off = effective(overlapkit("explain", name, "--world-size", "8", "--json"))
    assert off["model.tp_comm_overlap"] is False and off["ddp.overlap_grad_reduce"] is False
    on = overlapkit(
        "explain", name, "comm_overlap.tp_comm_overlap=true", "--world-size", "8", "--json"
    )
    assert effective(on)["model.tp_comm_overlap"] and effective(on)["ddp.overlap_grad_reduce"]


def test_sections_that_are_null_have_megatron_cores_defaults(overlapkit, config) -> None:
    result = overlapkit("explain", config("model:\nddp:\n"), "--world-size", "1", "--json")
    knobs = effective(result)
    assert knobs["model.tensor_model_parallel_size"] == 1
    assert knobs["ddp.overlap_grad_reduce"] is False


@pytest.mark.parametrize(
    ("te", "on"), [("assume", True), ("2.12", True), ("none", False), ("here", None)]
)
def test_transformer_engine(te: str, on: bool | None, overlapkit, config) -> None:
    result = overlapkit("explain", config(RUN), "--world-size", "8", "--te", te, "--json")
    told = json.loads(result.out)["transformer_engine"]
    if on is None:
        on = ", installed here" in told
    assert effective(result)["model.tp_comm_overlap"] is on
    assert ("tp.needs-transformer-engine" in findings(result)) is not on
    if te == "assume":
        assert "assumed" in told


def test_an_old_transformer_engine(overlapkit, config) -> None:
    arguments = [config(RUN), "mixed_precision=bf16_with_nvfp4_mixed", "--world-size", "8"]
    assert overlapkit("explain", *arguments, "--te", "2.7").status == 0
    old = overlapkit("explain", *arguments, "--te", "2.6", "--json")
    assert "precision.fp4_needs_te" in findings(old)


class TestTheEnvironment:
    def test_what_the_gpu_needs(self, overlapkit, config) -> None:
        for gpu, queues in (("h100", "1"), ("b200", "32"), ("GB200", "32"), (None, "1")):
            options = ["--gpu", gpu] if gpu else []
            result = overlapkit("explain", config(RUN), "--world-size", "8", *options, "--json")
            document = json.loads(result.out)
            assert document["launch_env"]["CUDA_DEVICE_MAX_CONNECTIONS"] == queues
            assert document["gpu"] == {"name": (gpu or "h100").lower(), "assumed": gpu is None}

    @pytest.mark.parametrize(
        ("text", "status"),
        [
            ("CUDA_DEVICE_MAX_CONNECTIONS=1\n", 0),
            ("export CUDA_DEVICE_MAX_CONNECTIONS='1'  # order\n\n# a comment\n", 0),
            ("\ufeffCUDA_DEVICE_MAX_CONNECTIONS=1\n", 0),
            ("OTHER=8\n", 1),  # CUDA's default of 8 then holds
            ("", 1),
            ("CUDA_DEVICE_MAX_CONNECTIONS=8\n", 1),
            ("\ufeffCUDA_DEVICE_MAX_CONNECTIONS=8\n", 1),
            ("CUDA_DEVICE_MAX_CONNECTIONS=\n", 1),
            ("CUDA_DEVICE_MAX_CONNECTIONS=" + "9" * 5000 + "\n", 1),
        ],
    )
    def test_a_file_of_it(self, text: str, status: int, overlapkit, config) -> None:
        environment = config(text, "cluster.env")
        result = overlapkit(
            "explain", config(RUN), "--world-size", "8", "--env-file", environment, "--json"
        )
        assert result.status == status
        assert (list(findings(result).values()) == ["env.CUDA_DEVICE_MAX_CONNECTIONS"]) == (
            status == 1
        )
        assert json.loads(result.out)["environment"] == environment

    def test_the_present_one(self, overlapkit, config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
        result = overlapkit("explain", config(RUN), "--world-size", "8", "--json")
        assert "launch.env-order-lost" in findings(result)

    def test_bytes_of_the_present_one(
        self, overlapkit, config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "\udcff")
        result = overlapkit("explain", config(RUN), "--world-size", "8", "--json")
        assert "launch.env-differs" in findings(result)


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ([], 2**31 - 4),
        (["comm_overlap.bucket_size=9223372036854775807"], 8),
        (["comm_overlap.wgrad_deferral_limit=-9223372036854775808"], 8),
        (["model.num_layers=10000", "model.hidden_size=2147483647"], 8),
        (["model.vocab_size=2147483647", "model.seq_length=2147483647"], 8),
        (["model.ffn_hidden_size=9223372036854775807"], 8),
        (["comm_overlap.tp_comm_overlap_cfg={fc2_fprop: {num_sm: 9223372036854775807}}"], 8),
    ],
)
def test_absurd_but_valid_values(overrides: list[str], size: int, overlapkit, config) -> None:
    sound = ["model.num_layers=4", "model.hidden_size=64", "model.num_attention_heads=4"]
    arguments = [config(RUN), *sound, "model.vocab_size=512", *overrides]
    for form in ([], ["--json"]):
        result = overlapkit("explain", *arguments, "--world-size", str(size), *form)
        assert result.status in (0, 1) and result.err == ""


def test_sizes_at_their_limits_are_still_counted(overlapkit, config) -> None:
    sound = ["model.hidden_size=64", "model.num_attention_heads=4", "model.vocab_size=512"]
    most = ["model.num_layers=400", "model.num_moe_experts=500", "model.add_bias_linear=false"]
    arguments = [config(RUN), *sound, *most, "comm_overlap.bucket_size=1", "--world-size", "8"]
    result = overlapkit("explain", *arguments, "--json")
    assert result.status in (0, 1)
    assert "buckets" in result.out


def test_unknown_keys_of_a_file_are_fine(overlapkit, config) -> None:
    text = RUN + "something_new: {a: [1, {b: 2}]}\nlogger: {fresh_key: 1}\n"
    text = text.replace("model:\n", "model:\n  brand_new_feature: {x: 1}\n")
    assert overlapkit("explain", config(text), "--world-size", "8").status == 0


def test_the_last_override_of_a_key_wins(overlapkit, config) -> None:
    result = overlapkit(
        "explain",
        config(RUN),
        "model.tensor_model_parallel_size=8",
        "model.tensor_model_parallel_size=2",
        "--world-size",
        "8",
        "--json",
    )
    assert effective(result)["model.tensor_model_parallel_size"] == 2


def test_names_of_a_file_are_no_markup(overlapkit, config) -> None:
    name = config(RUN, "[bold]run[red].yaml")
    result = overlapkit("explain", name, "--world-size", "8")
    assert result.status == 0 and "[bold]run[red].yaml" in result.out


HAZARD = "model: {num_layers: 8, pipeline_model_parallel_size: 4, \
virtual_pipeline_model_parallel_size: 2, deallocate_pipeline_outputs: true}\n\
ddp: {}\ncomm_overlap: {tp_comm_overlap: false}\ndist: {distributed_backend: gloo}\n"


def test_a_bug_that_a_version_fixed_is_reported_for_the_versions_that_have_it(
    overlapkit: Any, config: Any
) -> None:
    path = config(HAZARD)

    def notes(*options: str) -> dict[str, str]:
        answer = overlapkit("explain", path, "--world-size", "8", "--json", *options)
        return {d["rule"]: d["reason"] for d in json.loads(answer.out)["decisions"]}

    assert "core.sent-then-freed" in notes("--core", "0.16.1")
    assert "core.sent-then-freed" not in notes("--core", "0.18.0")
    unknown = notes()
    assert "core.sent-then-freed" not in unknown
    assert "megatron-core 0.16.1 and 0.17.1" in unknown["any.other-versions"]
    assert "any.other-versions" not in notes("--bridge", "main")


def test_activations_freed_while_they_are_sent_are_named_by_what_was_seen(
    overlapkit: Any, config: Any
) -> None:
    for backend, seen in (("gloo", "trains on corrupted"), ("nccl", "one large run reported")):
        path = config(HAZARD.replace("gloo", backend), f"{backend}.yaml")
        shown = overlapkit("explain", path, "--world-size", "8", "--core", "0.17.1").out
        (line,) = [line for line in shown.splitlines() if "[core.sent-then-freed" in line]
        assert seen in line
        assert "model.deallocate_pipeline_outputs=false, or use megatron-core 0.18.0" in line


def test_the_versions_are_in_the_document(
    overlapkit: Any, config: Any, bridge_configs: Path
) -> None:
    def stack(path: str, *options: str) -> Any:
        answer = overlapkit("explain", path, "--world-size", "64", "--json", *options)
        return json.loads(answer.out)["stack"]

    dumped = str(bridge_configs / "llama3_8b_pretrain_config.yaml")
    assert stack(dumped) == {
        "core": "0.16.1",
        "bridge": "0.3.1",
        "source": "fields",
        "candidates": ["0.16.1"],
        "path": None,
    }
    assert stack(dumped, "--bridge", "0.6.0") == {
        "core": "0.19.0",
        "bridge": "0.6.0",
        "source": "given",
        "candidates": ["0.19.0"],
        "path": None,
    }
    assert stack(config(HAZARD))["source"] == "unknown"
    refused = overlapkit("explain", dumped, "--world-size", "64", "--core", "newest")
    assert refused.status == 2 and "--core newest" in refused.err


ALL_IN_EFFECT = "Everything that was requested is in effect."
ALL_THAT_WAS_READ = (
    "Everything that was requested and read is in effect; the notes name what was not read."
)


@pytest.mark.parametrize(
    ("key", "verdict"),
    [
        ("brand_new_switch: true", ALL_THAT_WAS_READ),
        ("brand_new_switch: null", ALL_IN_EFFECT),
        ("qk_layernorm: true", ALL_IN_EFFECT),
    ],
)
def test_what_was_not_read_is_not_said_to_be_in_effect(
    key: str, verdict: str, overlapkit, config
) -> None:
    text = RUN.replace("model:\n", f"model:\n  {key}\n")
    lines = overlapkit("explain", config(text), "--world-size", "8").out.splitlines()
    assert lines[1].startswith(verdict)


@pytest.mark.parametrize(
    ("flag", "verdict"), [("--brand-new 3", ALL_THAT_WAS_READ), ("--lr 1e-4", ALL_IN_EFFECT)]
)
def test_nor_a_flag(flag: str, verdict: str, overlapkit) -> None:
    words = "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --bf16"
    words += f" --micro-batch-size 1 --global-batch-size 8 --vocab-size 512 {flag}"
    lines = overlapkit(
        "explain", "--from-megatron-lm", "--world-size", "8", "--", *words.split()
    ).out.splitlines()
    assert lines[1].startswith(verdict)
