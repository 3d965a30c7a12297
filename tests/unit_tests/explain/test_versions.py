"""`explain` for several versions: which accept a configuration, and what differs among them."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

import overlapkit as library
from megatron.bridge.training.versions import KNOWN
from overlapkit.config.reading import Reading
from overlapkit.config.sources import read_sources
from overlapkit.errors import InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.versions.asked import asked_readings
from overlapkit.explain.versions.matrix import judge_versions
from overlapkit.explain.versions.tables import show_matrix
from overlapkit.explain.versions.text import matrix_lines
from support.documents import check_document

MIXTURE = """\
model: {num_layers: 4, hidden_size: 64, num_attention_heads: 4, vocab_size: 512, seq_length: 128,
        num_moe_experts: 8, moe_grouped_gemm: true, moe_token_dispatcher_type: alltoall,
        expert_model_parallel_size: 8, mtp_num_layers: 0}
train: {micro_batch_size: 1, global_batch_size: 16}
ddp: {use_distributed_optimizer: true}
comm_overlap: {tp_comm_overlap: false, overlap_moe_expert_parallel_comm: true}
mixed_precision: bf16_mixed
"""

FP8 = """\
export CUDA_DEVICE_MAX_CONNECTIONS=1
torchrun --nproc-per-node 8 --nnodes 2 pretrain_gpt.py --num-layers 4 --hidden-size 256 \\
  --num-attention-heads 8 --seq-length 4096 --vocab-size 32000 --bf16 --micro-batch-size 1 \\
  --global-batch-size 16 --fp8-format hybrid --fp8-recipe tensorwise --fp8-param-gather \\
  --tensor-model-parallel-size 2 --sequence-parallel --transformer-impl transformer_engine \\
  --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --eval-interval 10
"""

SIZES = ("--world-size", "16", "--gpu", "h100")


@pytest.fixture
def explained(overlapkit, config) -> Any:
    def of(*options: str, text: str = MIXTURE, name: str = "run.yaml") -> Any:
        return overlapkit("explain", config(text, name), *SIZES, *options)

    return of


def lines_of(out: str, package: str) -> dict[str, str]:
    """The version of each line about one, and the rest of the line."""
    found = [line.split(": ", 1) for line in out.splitlines() if line.startswith(package)]
    return {name.removeprefix(package).split()[0]: rest for name, rest in found}


def test_each_version_has_a_line(explained) -> None:
    result = explained("--bridge", "0.6.0,0.3.1", "--bridge", "0.5.1")
    assert result.status == 1
    answers = lines_of(result.out, "Megatron-Bridge")
    assert list(answers) == ["0.3.1", "0.5.1", "0.6.0"]
    why = "ERROR model.overlap_moe_expert_parallel_comm [core.ep-overlap-mtp-zero]"
    assert answers["0.5.1"] == f"refused, 1 finding: {why}"
    assert answers["0.6.0"] == "accepted, 0 findings"


def test_what_differs_is_told_with_its_versions(explained) -> None:
    out = explained("--bridge", "0.3.1,0.5.1,0.6.0").out.splitlines()
    differs = out[out.index("What differs:") :]
    assert differs[1].startswith(
        "ERROR with 0.3.1 to 0.5.1: model.overlap_moe_expert_parallel_comm on: mtp_num_layers is 0"
    )
    assert differs[1].endswith("-> set model.mtp_num_layers=null")
    assert "env.CUDA_DEVICE_MAX_CONNECTIONS: 8 with 0.3.1 to 0.5.1; 32 with 0.6.0" in differs


def test_all_is_every_version_that_is_known(explained) -> None:
    document = explained("--core", "all", "--json").document
    assert [v["core"] for v in document["versions"]] == [stack.core for stack in KNOWN]
    assert [v["bridge"] for v in document["versions"]] == [stack.bridge for stack in KNOWN]
    by_bridge = explained("--bridge", "all", "--json").document
    assert by_bridge["by"] == "bridge" and by_bridge["versions"] == document["versions"]


def test_each_answer_is_that_of_the_version_alone(explained) -> None:
    document = explained("--core", "all", "--json").document
    check_document(document)
    for version in document["versions"]:
        alone = explained("--core", version["core"], "--json").document
        assert alone["schema"] == "overlapkit/explain/v1"
        assert version["findings"] == alone["findings"]
        found = [d["rule"] for d in version["decisions"]]
        assert found == [
            d["rule"] for d in alone["decisions"] if d["outcome"] in ("error", "refused")
        ]
        env = {
            row["knob"]: each["value"]
            for row in document["differs"]
            if row["kind"] == "env"
            for each in row["values"]
            if version["core"] in each["versions"]
        }
        assert env
        for name, value in env.items():
            assert alone["launch_env"].get(name.removeprefix("env.")) == value


def test_wrong_numbers_of_a_script_are_counted(explained) -> None:
    result = explained("--core", "0.17.1,0.18.2", "--json", text=FP8, name="train.sh")
    old, new = result.document["versions"]
    assert (old["accepted"], old["findings"], old["wrong_numbers"]) == (True, 1, 1)
    assert (new["accepted"], new["findings"], new["bridge"]) == (True, 0, None)
    out = explained("--core", "0.17.1,0.18.2", text=FP8, name="train.sh").out
    assert lines_of(out, "megatron-core")["0.17.1"] == (
        "accepted, 1 finding: WRONG NUMBERS --overlap-param-gather [wrong.fp8-forced-gather]"
    )


def test_what_a_script_may_add_unseen_is_said_beside_the_versions(explained) -> None:
    text = "source /opt/cluster/env.sh\n" + FP8
    out = explained("--core", "0.16.1,0.18.2", text=text, name="run.sh").out
    assert "Not known: what /opt/cluster/env.sh" in out
    (gap,) = explained("--core", "all", "--json", text=text, name="run.sh").document["not_known"]
    assert "/opt/cluster/env.sh" in gap["what"]


def test_nothing_differs_and_no_finding(explained) -> None:
    text = MIXTURE.replace(", mtp_num_layers: 0", "").replace("true}\nmixed", "false}\nmixed")
    result = explained("--bridge", "0.4.2,0.5.1", text=text)
    assert result.status == 0
    assert "Nothing differs: the answer is the same with each of them." in result.out


def test_what_every_version_has_is_told_once(explained) -> None:
    result = explained("--core", "0.18.2,0.19.0", "train.global_batch_size=17")
    assert result.status == 1
    after = result.out.partition("With every version:\n")[2]
    assert after.startswith("ERROR train.global_batch_size 17: 17 is no multiple of 16")


def test_a_key_that_a_version_lacks_is_a_note(explained) -> None:
    out = explained("--core", "0.16.1,0.19.0", "model.moe_mlp_glu_interleave_size=32").out
    notes = [line for line in out.splitlines() if "is ignored by core 0.16.1" in line]
    assert notes and notes[0].startswith("with 0.16.1: model.moe_mlp_glu_interleave_size")


@pytest.mark.parametrize(
    "options",
    [("--fix",), ("--diff",), ("--buckets",), ("--brief",), ("--html", "x"), ("--format", "sarif")],
)
def test_options_for_one_version_are_refused(explained, options: tuple[str, ...]) -> None:
    result = explained("--core", "all", *options)
    assert result.status == 2
    assert f"{options[0]} " in result.err and "takes one version: give --core one" in result.err


def test_two_configurations_are_refused(overlapkit, config) -> None:
    names = config(MIXTURE, "a.yaml"), config(MIXTURE, "b.yaml")
    result = overlapkit("explain", *names, *SIZES, "--core", "all")
    assert result.status == 2 and "are compared for one version" in result.err


def test_several_of_both_are_refused(explained) -> None:
    result = explained("--core", "0.17.1,0.18.2", "--bridge", "all")
    assert result.status == 2 and "--core and --bridge both name several versions" in result.err


def test_a_version_that_is_none_is_told(explained) -> None:
    result = explained("--core", "0.17.1,newest")
    assert result.status == 2 and "--core newest: 'newest' is not a version" in result.err


def test_a_configuration_that_none_takes_is_bad_input(explained) -> None:
    result = explained("--core", "all", "model.tensor_model_parallel_size=3")
    assert result.status == 2 and "is not divisible by tensor_model_parallel_size=3" in result.err


def test_the_library_has_the_same(explained, config) -> None:
    document = explained("--core", "0.16.1,0.19.0", "--json").document
    name = config(MIXTURE)
    answer = library.explain_versions(name, core=["0.19.0", "0.16.1"], world_size=16, gpu="h100")
    assert [v.findings for v in answer.versions] == [v["findings"] for v in document["versions"]]
    with pytest.raises(InputError, match="no version is given"):
        library.explain_versions(name, world_size=16)


def test_the_terminal_has_the_same_lines(config) -> None:
    package, readings = asked_readings(["0.16.1, 0.19.0"], [], Reading())
    name = config(MIXTURE)
    matrix = judge_versions(
        package,
        readings,
        lambda reading: (read_sources([name], command="explain", reading=reading)[0], 16),
        assume("h100", None, None, {}),
    )
    console = Console(width=400, record=True, force_terminal=True)
    with console.capture() as captured:
        show_matrix(matrix, console)
    assert "\x1b[1;31m" in captured.get()
    plain = Console(width=400, no_color=True)
    with plain.capture() as captured:
        show_matrix(matrix, plain)
    assert captured.get().splitlines() == list(matrix_lines(matrix))
