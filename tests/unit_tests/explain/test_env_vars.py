"""env_vars of a configuration, as explain, doctor and plan show and judge them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import overlapkit as kit
from overlapkit.config.emit.forms import emit
from overlapkit.config.overrides import parse_override
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.yaml_file import Document, read_yaml

Command = Callable[..., Any]
CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
MARGIN = "NVTE_FWD_LAYERNORM_SM_MARGIN"

RUN = """\
model:
  tensor_model_parallel_size: 4
  sequence_parallel: true
  num_layers: 8
  hidden_size: 1024
  num_attention_heads: 16
  vocab_size: 32000
  seq_length: 2048
train: {micro_batch_size: 1, global_batch_size: 64}
ddp: {use_distributed_optimizer: true}
comm_overlap: {tp_comm_overlap: true}
env_vars:
  CUDA_DEVICE_MAX_CONNECTIONS: 32
  NVTE_FWD_LAYERNORM_SM_MARGIN: 20
  X_OWN: true
"""


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (CONNECTIONS, MARGIN):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    return file


def explained(file: Path, *arguments: str, **options: Any) -> dict[str, Any]:
    given = {"gpu": "h100", "world_size": 16, **options}
    document = kit.explain(str(file), overrides=list(arguments), **given)
    result: dict[str, Any] = msgspec.to_builtins(document)
    return result


def about(document: dict[str, Any], knob: str) -> dict[str, Any]:
    [decision] = [d for d in document["decisions"] if d["knob"] == knob]
    return decision


def test_a_wrong_number_of_queues_is_a_finding_with_its_line(run_file: Path) -> None:
    finding = about(explained(run_file), f"env.{CONNECTIONS}")
    assert (finding["rule"], finding["outcome"]) == ("launch.env-order-lost", "refused")
    assert f"{run_file}:13 (env_vars) sets {CONNECTIONS}=32" in finding["reason"]
    assert f"{run_file}:13 (env_vars)" in finding["remedy"]


def test_the_right_number_is_none(run_file: Path) -> None:
    document = explained(run_file, f"env_vars.{CONNECTIONS}=1")
    assert document["findings"] == 0
    assert document["job_env"][CONNECTIONS] == {
        "value": "1",
        "source": f"env_vars.{CONNECTIONS}=1 (env_vars)",
    }


def test_json_has_what_the_job_gets_and_nothing_else_of_this_process(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVATE", "of-nobody")
    document = explained(run_file)
    assert document["job_env"].keys() == {CONNECTIONS, MARGIN, "X_OWN"}
    assert document["job_env"]["X_OWN"]["value"] == "True"
    assert "of-nobody" not in json.dumps(document)


@pytest.mark.parametrize("given", ["mapping", "process"])
def test_the_process_wins_and_a_note_names_both(
    given: str, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given == "mapping":
        document = explained(run_file, env={CONNECTIONS: "1"})
    else:
        monkeypatch.setenv(CONNECTIONS, "1")
        document = explained(run_file)
    assert document["findings"] == 0
    note = about(document, f"env_vars.{CONNECTIONS}")
    assert (note["rule"], note["requested"], note["effective"]) == (
        "launch.env-vars-overridden",
        "32",
        "1",
    )
    assert f"the 32 of {run_file}:13 (env_vars)" in note["reason"]
    assert document["job_env"][CONNECTIONS]["value"] == "1"


def test_a_secret_of_the_process_is_not_shown(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "of-nobody")
    document = explained(run_file, "env_vars.SOME_API_KEY=none")
    assert about(document, "env_vars.SOME_API_KEY")["effective"] == "(another value)"
    assert "of-nobody" not in json.dumps(document)


def test_what_is_missing_in_env_vars_is_judged_unless_a_launcher_sets_it(run_file: Path) -> None:
    text = run_file.read_text()
    run_file.write_text(text.replace(f"  {CONNECTIONS}: 32\n", ""))
    finding = about(explained(run_file), f"env.{CONNECTIONS}")
    assert (finding["rule"], finding["outcome"]) == ("launch.env-order-lost", "refused")
    assert "neither env_vars nor the current environment sets" in finding["reason"]
    assert "unless the job's launcher sets it" in finding["reason"]
    assert finding["remedy"].endswith("in env_vars")
    # In a file of the job's environment there is no launcher left.
    finding = about(explained(run_file, env={}), f"env.{CONNECTIONS}")
    assert "launcher" not in finding["reason"]
    # Without env_vars nothing is known of the job's environment.
    run_file.write_text(text.partition("env_vars")[0])
    assert explained(run_file)["findings"] == 0


def test_an_assumed_gpu_is_one_more_remedy(run_file: Path) -> None:
    finding = about(explained(run_file, gpu=None), f"env.{CONNECTIONS}")
    assert "on Blackwell or newer it is right: state --gpu" in finding["remedy"]
    assert "--gpu" not in about(explained(run_file), f"env.{CONNECTIONS}")["remedy"]
    assert explained(run_file, gpu="b200")["findings"] == 0
    one_queue = about(
        explained(run_file, f"env_vars.{CONNECTIONS}=1", gpu="b200"), f"env.{CONNECTIONS}"
    )
    assert one_queue["rule"] == "launch.env-one-queue"


def test_older_versions_ignore_it(run_file: Path) -> None:
    document = explained(run_file, bridge="0.5.1")
    assert document["findings"] == 0
    assert about(document, "env_vars")["rule"] == "launch.env-vars-ignored"
    assert document["job_env"] == {}


@pytest.mark.parametrize("value", ["[1]", "null", "{a: 1}"])
def test_a_value_that_is_no_scalar_is_an_error(value: str, run_file: Path) -> None:
    error = about(explained(run_file, f"env_vars.A={value}"), "env_vars.A")
    assert (error["rule"], error["outcome"]) == ("launch.env-vars-invalid", "error")


def test_a_section_that_is_no_mapping_is_bad_input(run_file: Path) -> None:
    with pytest.raises(kit.InputError, match="env_vars must be a section with keys"):
        explained(run_file, "env_vars=[1]")


def test_a_variable_is_the_cause_of_a_finding(run_file: Path, overlapkit: Command) -> None:
    override = f"b:env_vars.{CONNECTIONS}=1"
    done = overlapkit(
        *("explain", str(run_file), override, "b:env_vars.OTHER=1"),
        *("--world-size", "16", "--gpu", "h100", "--json"),
    )
    assert done.status == 0
    [change] = done.document["changes"]
    assert [cause["key"] for cause in change["causes"]] == [f"env_vars.{CONNECTIONS}"]


def test_doctor_names_both_sources_and_the_line(run_file: Path, doctor: Command) -> None:
    done = doctor(str(run_file), "--world-size", "16", "--gpu", "h100")
    assert done.status == 1
    assert f"environment: the current environment and env_vars: {CONNECTIONS}=32" in done.out
    assert f"{run_file}:13 (env_vars)" in done.out


def test_doctor_finds_what_disables_all_overlap(run_file: Path, doctor: Command) -> None:
    run_file.write_text(f"{RUN}  CUDA_LAUNCH_BLOCKING: 1\n")
    done = doctor(str(run_file), "--world-size", "16", "--gpu", "h100", "--json")
    [finding] = [
        f for f in done.document["findings"] if f["id"] == "environment.CUDA_LAUNCH_BLOCKING"
    ]
    assert f"{run_file}:16 (env_vars)" in finding["evidence"][0]["text"]


def settings_of(file: Path) -> Settings:
    return read_settings(read_yaml(str(file)))


def test_a_plan_corrects_env_vars(run_file: Path, plan: Command) -> None:
    arguments = (str(run_file), "--world-size", "16", "--gpu", "h100")
    done = plan(*arguments, "--emit", "yaml")
    assert done.status == 0
    written = yaml.safe_load(done.out)["env_vars"]
    assert (written[CONNECTIONS], written["X_OWN"]) == (1, True)
    assert f"env_vars.{CONNECTIONS}=1" in plan(*arguments).out
    run_file.write_text(done.out)
    assert explained(run_file)["findings"] == 0


def test_every_form_writes_env_vars(run_file: Path) -> None:
    settings = settings_of(run_file)
    given = settings.values["env_vars"]
    assert yaml.safe_load(emit(settings, "yaml").text)["env_vars"] == given
    hydra = emit(settings, "hydra").text
    words = [w.strip(" \\'") for w in hydra.splitlines() if "env_vars." in w]
    again = read_settings(
        Document("x", {"model": {}, "ddp": {}}), [parse_override(word) for word in words]
    )
    assert again.values["env_vars"] == given
    python = emit(settings, "bridge").text
    block = python.partition("env_vars=")[2].partition("\n    },")[0] + "}"
    assert eval(block, {"__builtins__": {}}) == given
