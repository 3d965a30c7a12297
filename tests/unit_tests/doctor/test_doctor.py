"""`overlapkit doctor` through the command line: what it finds, in which order, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from megatron.bridge.training.decisions import RULES
from overlapkit.doctor.finding import KINDS, MOST, Kind
from overlapkit.doctor.text import verdict
from support.documents import check_document
from support.trace_generator import SCENARIOS, write_kineto

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
TRACES = ROOT / "tests" / "data" / "traces"
SCRIPTS = ROOT / "tests" / "data" / "megatron_lm"
CONFIGS = ROOT / "tests" / "data" / "bridge_configs"

SIZES = "num_layers: 4, hidden_size: 256, num_attention_heads: 4, vocab_size: 1024, seq_length: 128"
NOT_HIDDEN = f"""\
model: {{{SIZES}}}
ddp: {{use_distributed_optimizer: false}}
comm_overlap: {{tp_comm_overlap: false, overlap_grad_reduce: true}}
"""
# As the recorded profile without overlap.
ONE_REDUCTION = f"""\
model: {{{SIZES}}}
ddp: {{use_distributed_optimizer: true, overlap_grad_reduce: false}}
comm_overlap: {{tp_comm_overlap: false, overlap_grad_reduce: false}}
"""


def ids(document: dict[str, Any]) -> list[str]:
    return [finding["id"] for finding in document["findings"]]


def profile(name: str) -> list[str]:
    files = sorted(TRACES.glob(f"{name}.rank*.json.gz"))
    return [word for file in files for word in ("--trace", str(file))]


@pytest.mark.parametrize(
    ("name", "world_size"),
    [("llama3_70b_64xh100", 64), ("gpt_1b_8xh100", 8), ("qwen3_30b_a3b_64xb200", 64)],
)
def test_a_valid_configuration_has_no_finding(name: str, world_size: int, doctor: Any) -> None:
    result = doctor(str(EXAMPLES / f"{name}.yaml"), "--world-size", str(world_size), "--json")
    assert (result.status, ids(result.document)) == (0, [])
    text = doctor(str(EXAMPLES / f"{name}.yaml"), "--world-size", str(world_size))
    assert "Nothing was found" in text.out


def test_nothing_given_looks_at_this_machine(doctor: Any) -> None:
    result = doctor("--json")
    document = result.document
    assert document["config"] is None and document["profile"] is None
    assert "nvidia-smi was not found" in document["machine"]["told"]
    assert {p["name"] for p in document["packages"]} >= {"torch", "megatron-core"}


def test_with_nothing_given_it_does_not_claim_that_all_is_hidden(doctor: Any) -> None:
    result = doctor()
    assert result.status == 0
    assert "give the run's configuration" in result.out.splitlines()[-1]


def test_pitfalls_come_worst_first(doctor: Any) -> None:
    document = doctor(
        str(EXAMPLES / "pitfalls_16xh100.yaml"), "--world-size", "16", "--json"
    ).document
    assert ids(document)[:2] == ["pp.same-peer-hazard", "tp.needs-sequence-parallel"]
    assert all(f["remedy"] and f["evidence"] for f in document["findings"])


def test_at_most_five_are_shown(doctor: Any, config: Any) -> None:
    environment = config("CUDA_DEVICE_MAX_CONNECTIONS=4\nCUDA_LAUNCH_BLOCKING=1\n", "job.env")
    arguments = [str(EXAMPLES / "pitfalls_16xh100.yaml"), "--world-size", "16"]
    result = doctor(*arguments, "--env-file", environment, "--json")
    document = result.document
    assert len(document["findings"]) == MOST and document["more_findings"] >= 1
    kinds = [list(KINDS).index(f["kind"]) for f in document["findings"]]
    assert kinds == sorted(kinds)
    text = doctor(*arguments, "--env-file", environment).out
    assert f"{MOST + document['more_findings']} findings; the 5 most likely are shown." in text


def test_one_cause_in_profile_and_configuration_is_one_finding(doctor: Any, config: Any) -> None:
    traces = profile("megatron-no-overlap")
    document = doctor(config(ONE_REDUCTION), *traces, "--json").document
    assert document["world_size"] == 2 and not document["profile"]["contradictions"]
    first = document["findings"][0]
    assert first["id"] == "single-bucket" and first["kind"] == "exposed"
    assert {e["source"] for e in first["evidence"]} == {"profile", "configuration"}
    assert first["knobs"] == ["ddp.overlap_grad_reduce"]
    # The distributed optimizer is on already.
    assert first["remedy"] == "omit comm_overlap.overlap_grad_reduce"
    assert first["cost_us"] == pytest.approx(19_000, rel=0.01)
    # The setting is part of the first finding, and not a finding beside it.
    assert ids(document).count("off.overlap_grad_reduce") == 0
    # Idle time is longer, but no communication that could be hidden.
    assert ids(document)[-1] == "device-idle"


def test_a_recorded_profile_contradicts_a_configuration_of_another_run(
    doctor: Any, config: Any
) -> None:
    """Gloo runs the profile's reduce-scatters as all_reduce."""
    document = doctor(config(NOT_HIDDEN), *profile("megatron-no-overlap"), "--json").document
    (told,) = document["profile"]["contradictions"]
    assert "distributed optimizer off" in told


def test_a_profile_alone_is_diagnosed(doctor: Any) -> None:
    document = doctor(*profile("megatron-pipeline"), "--json").document
    assert ids(document)[0] == "pipeline-exposed"
    assert document["profile"]["step_us"] > document["profile"]["exposed_comm_us"] > 0


def test_a_configuration_of_another_run_explains_nothing_in_the_profile(
    doctor: Any, config: Any, tmp_path: Path
) -> None:
    (truth,) = write_kineto(SCENARIOS["dp exposed"].but(noise=0, steps=2), tmp_path)
    # The profile has reduce-scatters.
    arguments = [config(NOT_HIDDEN), "--trace", truth.path]
    document = doctor(*arguments, "--json").document
    (told,) = document["profile"]["contradictions"]
    assert "distributed optimizer off" in told and told in document["notes"]
    (late,) = [f for f in document["findings"] if f["id"] == "grad-reduce-after-backward"]
    assert {e["source"] for e in late["evidence"]} == {"profile"}
    assert "dp.needs-distributed-optimizer" in ids(document)
    assert told in doctor(*arguments).out


@pytest.mark.parametrize("flags", ["", "--overlap-grad-reduce"])
def test_remedies_for_a_launch_script_are_its_flags(
    flags: str, doctor: Any, config: Any, tmp_path: Path
) -> None:
    (truth,) = write_kineto(SCENARIOS["dp exposed"].but(noise=0, steps=2), tmp_path)
    script = config(
        "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 4 --hidden-size 256 "
        "--num-attention-heads 4 --seq-length 128 --max-position-embeddings 128 --bf16 "
        f"--micro-batch-size 1 --global-batch-size 16 --use-distributed-optimizer {flags}",
        "run.sh",
    )
    document = doctor(script, "--trace", truth.path, "--json").document
    assert document["profile"]["contradictions"] == []
    (gather,) = [f for f in document["findings"] if f["id"] == "param-gather-exposed"]
    assert "--overlap-param-gather" in gather["remedy"] and "ddp." not in gather["remedy"]


def test_the_environment_is_compared_with_the_configuration(doctor: Any, config: Any) -> None:
    environment = config("CUDA_DEVICE_MAX_CONNECTIONS=1\n", "job.env")
    arguments = [str(EXAMPLES / "gpt_1b_8xh100.yaml"), "--world-size", "8", "--json"]
    (finding,) = doctor(*arguments, "--env-file", environment).document["findings"]
    assert finding["id"] == "launch.env-one-queue" and finding["kind"] == "environment"
    assert finding["evidence"][0]["source"] == "environment"


def test_the_current_environment_is_checked(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_LAUNCH_BLOCKING", "TORCH_NCCL_BLOCKING_WAIT"):
        monkeypatch.setenv(name, "1")
    document = doctor("--json").document
    assert ids(document) == [
        "environment.CUDA_LAUNCH_BLOCKING",
        "environment.TORCH_NCCL_BLOCKING_WAIT",
    ]
    assert document["environment"]["variables"]["CUDA_LAUNCH_BLOCKING"] == "1"
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT")
    assert doctor("--json").status == 0


@pytest.mark.parametrize("value", ["none", "0", "33", "99999999999", "\u0661"])
def test_an_invalid_number_of_queues(
    value: str, doctor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", value)
    assert ids(doctor("--json").document) == ["environment.CUDA_DEVICE_MAX_CONNECTIONS"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("tensor_model_parallel_size: 2", "off.tp_comm_overlap"),
        ("pipeline_model_parallel_size: 2", "off.overlap_p2p_comm"),
        (
            "num_moe_experts: 8, expert_model_parallel_size: 2",
            "off.overlap_moe_expert_parallel_comm",
        ),
        ("context_parallel_size: 2", "off.overlap_grad_reduce"),
    ],
)
def test_what_was_not_requested_is_found(
    model: str, expected: str, doctor: Any, config: Any
) -> None:
    path = config(f"model: {{{SIZES}, {model}}}\nddp: {{}}\n")
    result = doctor(path, "--world-size", "8", "--json")
    assert result.status == 1 and expected in ids(result.document)


def test_a_launch_script_is_examined(doctor: Any) -> None:
    path = str(SCRIPTS / "llama3_8b_string.sh")
    document = doctor("--from-megatron-lm", path, "--json").document
    assert document["framework"] == "megatron-lm" and document["world_size"] == 8
    assert ids(document) == ["launch.env-one-queue"]
    mistakes = doctor("--from-megatron-lm", str(SCRIPTS / "mistakes.sh"), "GPUS=8", "--json")
    found = mistakes.document["findings"]
    assert {f["kind"] for f in found} == {"stops"}
    assert not any("comm_overlap." in f["remedy"] for f in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml: no such file"),
        ([str(EXAMPLES / "gpt_1b_8xh100.yaml")], "--world-size N is missing"),
        ([str(EXAMPLES / "gpt_1b_8xh100.yaml"), "--world-size", "0"], "must be from 1"),
        (["--gpu", "z9"], "unknown GPU"),
        (["--env-file", "none.env"], "no such file"),
        (["--trace", "none.json"], "no such file"),
        (["--from-megatron-lm"], "name the launch script"),
        (["a.yaml", "b.yaml"], "takes one configuration"),
        (["model.num_layers=2"], "an override comes after"),
        (["--te", "new"], "--te new"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, doctor: Any) -> None:
    result = doctor(*arguments)
    assert (result.status, result.out) == (2, "")
    assert message in result.err and result.err.count("\n") == 1


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from overlapkit import cli\n"
        f"sys.argv = ['overlapkit', 'doctor', {str(EXAMPLES / 'gpt_1b_8xh100.yaml')!r}, "
        "'--world-size', '8', '--te', 'none']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'megatron.core', 'numpy', 'rich') if m in sys.modules]\n"
        "print('heavy:', heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout


def test_every_kind_has_a_meaning() -> None:
    assert set(KINDS) == set(get_args(Kind))


def test_a_document_with_everything_matches_its_schema(doctor: Any, config: Any) -> None:
    document = doctor(config(NOT_HIDDEN), *profile("megatron-no-overlap"), "--json").document
    check_document(document)
    assert document["config"] and document["profile"] and document["findings"]
    for finding in document["findings"]:
        assert set(finding["rules"]) <= set(RULES)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="nothing"),
        pytest.param(tuple(profile("megatron-pipeline")), id="profile"),
        *(
            pytest.param((str(path), "--world-size", "2048"), id=path.stem)
            for path in [*sorted(EXAMPLES.glob("*.yaml")), *sorted(CONFIGS.glob("*.yaml"))]
        ),
        *(
            pytest.param(("--from-megatron-lm", str(path), "GPUS=8"), id=path.stem)
            for path in sorted(SCRIPTS.glob("*.sh"))
            if path.stem != "two_launches"
        ),
    ],
)
def test_a_document_matches_its_schema(arguments: tuple[str, ...], doctor: Any) -> None:
    check_document(doctor(*arguments, "--json").document)


@pytest.mark.parametrize(("not_read", "said"), [(True, ", in what was read;"), (False, "hidden.")])
def test_nothing_found_is_said_of_what_was_read(not_read: bool, said: str) -> None:
    x: Any = SimpleNamespace(
        findings=[], report=SimpleNamespace(not_read=not_read, gaps=()), profile=None
    )
    assert said in verdict(x)
