"""Every configuration and launch script below a folder, in one line each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from overlapkit.audit import find
from support.documents import check_document

ROOT = Path(__file__).parents[3]
SARIF = json.loads((ROOT / "tests/data/sarif/sarif-2.1.0.json").read_text())

SOUND = """\
model: {num_layers: 4}
ddp: {use_distributed_optimizer: true}
comm_overlap: {tp_comm_overlap: false}
"""
REFUSED = """\
model: {tensor_model_parallel_size: 2}
ddp: {}
comm_overlap:
  tp_comm_overlap: true
"""
WORDS = """--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 \\
  --max-position-embeddings 64 --micro-batch-size 1 --global-batch-size 8 --bf16 --vocab-size 512"""
START = f"torchrun --nproc-per-node 8 pretrain_gpt.py {WORDS}\n"
SCRIPT = f"export CUDA_DEVICE_MAX_CONNECTIONS=32\n{START}"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`tree(name=content)`: files below the current folder, which is empty at first."""
    monkeypatch.chdir(tmp_path)

    def write(files: dict[str, str]) -> None:
        for name, content in files.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(content)

    return write


def states(result: Any) -> dict[str, str]:
    check_document(result.document)
    return {each["file"]: each["state"] for each in result.document["files"]}


def test_one_line_each_and_the_exit_status(tree, overlapkit) -> None:
    tree({"a/run.yaml": SOUND, "b/c/bad.yaml": REFUSED, "launch.sh": SCRIPT})
    result = overlapkit("audit", ".", "--world-size", "8")
    *lines, last = result.out.splitlines()
    assert result.status == 1
    names = [line.split(": ")[0] for line in lines]
    assert names == [
        "a/run.yaml",
        "b/c/bad.yaml",
        "launch.sh",
    ]
    assert lines[0].endswith("Everything that was requested is in effect.")
    assert "1 finding: REFUSED model.tp_comm_overlap" in lines[1]
    assert last.startswith("3 configurations: 1 with findings")
    Path("b/c/bad.yaml").unlink()
    assert overlapkit("audit", ".", "--world-size", "8").status == 0


def test_a_verdict_is_that_of_explain(overlapkit, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    document = overlapkit("audit", "examples", "--world-size", "256", "--json").document
    assert len(document["files"]) == len(list(Path("examples").glob("*.yaml")))
    for each in document["files"]:
        one = overlapkit("explain", each["file"], "--world-size", "256")
        assert each["verdict"] == one.out.splitlines()[1]
        assert one.status == (1 if each["findings"] else 0)
    assert document["findings"] == sum(each["findings"] for each in document["files"])


class TestWhatIsTaken:
    def test_what_has_nothing_to_do_with_megatron_is_passed_over(self, tree, overlapkit) -> None:
        tree(
            {
                "run.yaml": SOUND,
                "compose.yaml": "services: {web: {image: nginx}}\n",
                "values.yml": "tensor_model_parallel_size: 4\n",
                "setup.sh": "pip install megatron-core\n",
                "notes.txt": REFUSED,
            }
        )
        result = overlapkit("audit", ".", "--world-size", "8", "--json")
        assert states(result) == {"run.yaml": "sound"}
        assert (result.status, result.document["passed_over"]) == (0, 3)

    @pytest.mark.parametrize(
        "folder", [".git", ".hidden", "venv", "node_modules", "lib/site-packages/pkg"]
    )
    def test_other_peoples_folders(self, folder: str, tree, overlapkit) -> None:
        tree({f"{folder}/bad.yaml": REFUSED, "run.yaml": SOUND, ".bad.yaml": REFUSED})
        if folder == "venv":
            Path("venv/pyvenv.cfg").write_text("")
        result = overlapkit("audit", ".", "--world-size", "8", "--json")
        assert list(states(result)) == ["run.yaml"]

    def test_links(self, tree, overlapkit) -> None:
        tree({"a/run.yaml": SOUND})
        Path("a/loop").symlink_to("..")
        Path("a/same.yaml").symlink_to("run.yaml")
        Path("a/gone.yaml").symlink_to("nowhere")
        os.mkfifo("a/pipe.yaml")
        result = overlapkit("audit", ".", "--world-size", "8", "--json")
        assert states(result) == {"a/run.yaml": "sound", "a/gone.yaml": "wrong"}

    def test_a_file_that_is_named_is_always_judged(self, tree, overlapkit) -> None:
        tree({"values.yml": "tensor: 4\n"})
        result = overlapkit("audit", "values.yml", "--world-size", "8", "--json")
        assert states(result) == {"values.yml": "wrong"} and result.status == 1

    def test_nothing(self, tree, overlapkit) -> None:
        tree({"a/b.txt": ""})
        result = overlapkit("audit", ".")
        assert (result.status, result.out) == (0, "no configuration\n")

    def test_no_such_folder(self, tree, overlapkit) -> None:
        result = overlapkit("audit", "nowhere")
        assert result.status == 2 and result.err == "overlapkit: nowhere: no such file or folder\n"

    def test_no_end(self, tree, overlapkit, monkeypatch: pytest.MonkeyPatch) -> None:
        tree({f"{n}.txt": "" for n in range(4)})
        monkeypatch.setattr(find, "MOST_FILES", 3)
        result = overlapkit("audit", ".")
        assert result.status == 2 and "more than 3 files" in result.err


class TestWhatCannotBeJudged:
    def test_a_wrong_file_is_one_line_with_its_place(self, tree, overlapkit) -> None:
        tree({"a.yaml": "model: {}\nddp:\n  overlap_grad_reduc: true\n", "b.yaml": "ddp: [\n"})
        result = overlapkit("audit", ".")
        lines = result.out.splitlines()
        assert result.status == 1 and len(lines) == 3
        assert lines[0].startswith("a.yaml: does not start, line 3: ")
        assert "did you mean ddp.overlap_grad_reduce" in lines[0]
        assert lines[1].startswith("b.yaml: wrong")

    def test_a_missing_value_is_no_fault(self, tree, overlapkit) -> None:
        script = SCRIPT.replace("--num-layers 4", "--num-layers 4 --tensor-model-parallel-size $TP")
        tree({"launch.sh": script})
        result = overlapkit("audit", ".", "--json")
        assert states(result) == {"launch.sh": "not-judged"} and result.status == 0
        assert "TP" in result.document["files"][0]["problem"]

    def test_a_script_with_several_launches_has_a_line_for_each(self, tree, overlapkit) -> None:
        other = START.replace("--num-layers 4", "--num-layers 4 --tp-comm-overlap")
        tree({"launch.sh": SCRIPT + other})
        result = overlapkit("audit", ".", "--json")
        assert list(states(result)) == ["launch.sh:2", "launch.sh:4"]


class TestTheNumberOfGPUs:
    def test_a_script_states_its_own(self, tree, overlapkit) -> None:
        tree({"launch.sh": SCRIPT})
        document = overlapkit("audit", ".", "--world-size", "64", "--json").document
        assert document["files"][0]["world_size"] == 8

    def test_without_one_only_what_holds_for_any_number_is_said(self, tree, overlapkit) -> None:
        # bucket_size is overwritten only where there is data parallelism.
        tree({"run.yaml": REFUSED.replace("ddp: {}", "ddp: {bucket_size: 5}")})
        result = overlapkit("audit", ".", "--json")
        (each,) = result.document["files"]
        assert each["world_size"] is None and result.status == 1
        found = [d["knob"] for d in each["decisions"] if d["outcome"] == "refused"]
        assert found == ["model.tp_comm_overlap"]
        assert "--world-size" in each["verdict"]
        known = overlapkit("audit", ".", "--world-size", "8", "--json").document["files"][0]
        assert known["findings"] == 2

    def test_a_file_written_after_setup_states_it(self, overlapkit, monkeypatch) -> None:
        monkeypatch.chdir(ROOT / "tests/data/bridge_configs")
        name = "llama3_70b_pretrain_config.yaml"
        text = Path(name).read_text()
        document = overlapkit("audit", name, "--json").document["files"][0]
        assert ("data_parallel_size" in text) >= (document["world_size"] is not None)

    def test_one_that_the_layout_does_not_divide(self, tree, overlapkit) -> None:
        tree({"run.yaml": REFUSED})
        result = overlapkit("audit", ".", "--world-size", "7")
        assert result.status == 1 and "not divisible" in result.out


class TestForOtherPrograms:
    FILES = {"sound.yaml": SOUND, "sub/bad.yaml": REFUSED, "wrong.yaml": "ddp: 5\n"}

    def test_github(self, tree, overlapkit) -> None:
        tree(self.FILES)
        result = overlapkit("audit", ".", "--world-size", "8", "--format", "github")
        lines = [line for line in result.out.splitlines() if not line.startswith("::notice")]
        assert result.status == 1 and len(lines) == 2
        assert lines[0].startswith("::warning file=sub/bad.yaml,line=4,col=3,title=")
        assert lines[1].startswith("::error file=wrong.yaml,")

    def test_sarif_is_one_run(self, tree, overlapkit) -> None:
        tree(self.FILES)
        log = json.loads(overlapkit("audit", ".", "--world-size", "8", "--format", "sarif").out)
        assert list(Draft202012Validator(SARIF).iter_errors(log)) == []
        (run,) = log["runs"]
        found = [r for r in run["results"] if r["level"] == "warning"]
        uris = {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in found}
        assert uris == {"sub/bad.yaml"}
        assert run["invocations"][0]["executionSuccessful"] is False
