"""`overlapkit explain --fix` and `--diff`: what is written, what is said, and what is refused."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import overlapkit as library
from overlapkit.config import sources
from overlapkit.errors import InputError
from overlapkit.output import files
from support.documents import check_document

Cli = Callable[..., Any]

RUN = """\
# The run of Tuesday.
model:
  num_layers: 32
  hidden_size: 4096
  num_attention_heads: 32
  seq_length: 4096
  vocab_size: 128256
  tensor_model_parallel_size: 2
  sequence_parallel: false   # saves nothing here
train: {micro_batch_size: 1, global_batch_size: 64}
ddp: {use_distributed_optimizer: true}
comm_overlap:
  tp_comm_overlap: true
"""
FIXED = RUN.replace("sequence_parallel: false ", "sequence_parallel: true ")
OPTIONS = ["--world-size", "16", "--gpu", "h100", "--core", "0.16.1"]
SCRIPT = """\
#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=8
ARGS=(
    --tensor-model-parallel-size 2
    --num-layers 32 --hidden-size 4096 --num-attention-heads 32 --seq-length 4096
    --micro-batch-size 1 --global-batch-size 64 --bf16 --vocab-size 128256
    --tp-comm-overlap
)
torchrun --nproc-per-node 8 --nnodes 2 pretrain_gpt.py "${ARGS[@]}"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_bytes(RUN.encode())
    (tmp_path / "train.sh").write_bytes(SCRIPT.encode())
    return tmp_path


def test_the_diff_writes_nothing_and_is_applied(here: Path, overlapkit: Cli) -> None:
    shown = overlapkit("explain", "run.yaml", *OPTIONS, "--diff")
    assert shown.status == 1
    assert (here / "run.yaml").read_text() == RUN
    assert sorted(p.name for p in here.iterdir()) == ["run.yaml", "train.sh"]
    subprocess.run(["git", "apply"], input=shown.out.encode(), check=True)
    assert (here / "run.yaml").read_text() == FIXED
    again = overlapkit("explain", "run.yaml", *OPTIONS, "--diff")
    assert (again.status, again.out) == (0, "run.yaml: nothing to fix\n")
    assert overlapkit("explain", "run.yaml", *OPTIONS).status == 0


def test_with_both_options_nothing_is_written(here: Path, overlapkit: Cli) -> None:
    both = overlapkit("explain", "run.yaml", *OPTIONS, "--fix", "--diff")
    assert both.out == overlapkit("explain", "run.yaml", *OPTIONS, "--diff").out
    assert (here / "run.yaml").read_text() == RUN


def test_a_fix_is_written_and_said(here: Path, overlapkit: Cli) -> None:
    done = overlapkit("explain", "run.yaml", *OPTIONS, "--fix")
    assert done.status == 0
    assert (here / "run.yaml").read_text() == FIXED
    assert done.out.splitlines() == [
        "run.yaml: 1 finding fixed, 0 left",
        "fixed  model.tp_comm_overlap [tp.needs-sequence-parallel]",
        "  model.sequence_parallel: off -> on (run.yaml:9:3)",
    ]


def test_a_script_is_fixed(here: Path, overlapkit: Cli) -> None:
    done = overlapkit("explain", "train.sh", *OPTIONS[2:], "--fix")
    assert done.status == 0, done.out
    after = (here / "train.sh").read_text()
    assert "    --sequence-parallel\n" in after
    removed = set(SCRIPT.splitlines()) - set(after.splitlines())
    assert removed <= {"export CUDA_DEVICE_MAX_CONNECTIONS=8"}
    assert overlapkit("explain", "train.sh", *OPTIONS[2:]).status == 0


def test_what_is_left_is_said_with_the_reason(here: Path, overlapkit: Cli) -> None:
    override = "model.sequence_parallel=false"
    left = overlapkit("explain", "run.yaml", override, *OPTIONS, "--fix")
    assert left.status == 1
    assert (here / "run.yaml").read_text() == RUN
    assert f"{override} on the command line sets it: change that" in left.out
    assert "0 findings fixed, 1 left" in left.out


def test_arguments_are_in_no_file(here: Path, overlapkit: Cli) -> None:
    words = SCRIPT.partition("(")[2].partition(")")[0].split()
    shown = overlapkit(
        "explain", "--from-megatron-lm", *OPTIONS, "--fix", "--", *words,
    )  # fmt: skip
    assert shown.status == 1
    assert "The arguments are in no file. With the changes they are:" in shown.out
    assert shown.out.rstrip().endswith("--sequence-parallel")


def test_the_document(here: Path, overlapkit: Cli) -> None:
    document = overlapkit("explain", "run.yaml", *OPTIONS, "--diff", "--json").document
    check_document(document)
    assert document["findings"] == 0
    (fix,) = document["fixes"]
    assert fix["rule"] == "tp.needs-sequence-parallel" and fix["fixed"] and fix["why"] is None
    assert fix["changes"] == [
        {
            "key": "model.sequence_parallel",
            "was_set": True,
            "is_set": True,
            "old": False,
            "new": True,
            "where": {"file": "run.yaml", "line": 9, "column": 3, "override": None},
        }
    ]
    assert document["diff"].startswith("--- a/run.yaml\n+++ b/run.yaml\n")
    without = overlapkit("explain", "run.yaml", *OPTIONS, "--json").document
    assert without["fixes"] == [] and without["diff"] is None


def test_the_library_writes_nothing(here: Path) -> None:
    options: dict[str, Any] = {"world_size": 16, "gpu": "h100", "core": "0.16.1"}
    options["env"] = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    document = library.explain("run.yaml", **options, diff=True)
    assert [fix.rule for fix in document.fixes] == ["tp.needs-sequence-parallel"]
    assert document.diff and "sequence_parallel: true" in document.diff
    assert (here / "run.yaml").read_text() == RUN
    with pytest.raises(InputError, match="a mapping has no place"):
        library.explain({"model": {}}, **options, diff=True)


@pytest.mark.parametrize(
    "before",
    [RUN.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + RUN.encode(), RUN.rstrip().encode()],
    ids=["crlf", "byte order mark", "no last line break"],
)
def test_bytes_that_are_not_changed_stay(before: bytes, here: Path, overlapkit: Cli) -> None:
    (here / "run.yaml").write_bytes(before)
    assert overlapkit("explain", "run.yaml", *OPTIONS, "--fix").status == 0
    wanted = before.replace(b"sequence_parallel: false", b"sequence_parallel: true")
    assert (here / "run.yaml").read_bytes() == wanted


def test_the_mode_of_the_file_stays(here: Path, overlapkit: Cli) -> None:
    (here / "train.sh").chmod(0o751)
    assert overlapkit("explain", "train.sh", *OPTIONS[2:], "--fix").status == 0
    assert stat.S_IMODE((here / "train.sh").stat().st_mode) == 0o751


def refused(overlapkit: Cli, *arguments: str, option: str = "--fix") -> str:
    done = overlapkit("explain", *arguments, *OPTIONS, option)
    assert done.status == 2 and done.out == "" and done.err.count("\n") == 1
    return str(done.err)


def test_a_symbolic_link_is_not_written_through(here: Path, overlapkit: Cli) -> None:
    (here / "link.yaml").symlink_to("run.yaml")
    assert "link.yaml is a symbolic link" in refused(overlapkit, "link.yaml")
    (here / "real").mkdir()
    shutil.copy(here / "run.yaml", here / "real")
    (here / "folder").symlink_to("real")
    assert "folder is a symbolic link" in refused(overlapkit, "folder/run.yaml")
    assert (here / "run.yaml").read_text() == (here / "real/run.yaml").read_text() == RUN
    # To look is no harm.
    assert overlapkit("explain", "link.yaml", *OPTIONS, "--diff").status == 1


def test_what_is_write_protected_is_not_written(here: Path, overlapkit: Cli) -> None:
    (here / "run.yaml").chmod(0o444)
    assert "write-protected" in refused(overlapkit, "run.yaml")
    (here / "closed").mkdir()
    shutil.copyfile(here / "run.yaml", here / "closed/run.yaml")
    (here / "closed").chmod(0o555)
    try:
        assert "closed/run.yaml" in refused(overlapkit, "closed/run.yaml")
    finally:
        (here / "closed").chmod(0o755)
    assert (here / "run.yaml").read_text() == (here / "closed/run.yaml").read_text() == RUN


def test_one_configuration_is_fixed(here: Path, overlapkit: Cli) -> None:
    shutil.copy(here / "run.yaml", here / "other.yaml")
    said = refused(overlapkit, "run.yaml", "other.yaml")
    assert "--fix takes one configuration" in said and "other.yaml" in said
    assert "without b:" in refused(overlapkit, "run.yaml", "b:model.num_layers=4", option="--diff")
    assert "--buckets" in refused(overlapkit, "run.yaml", "--buckets")


def test_a_change_meanwhile_is_not_lost(
    here: Path, overlapkit: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = files.check_rewritable
    calls = []

    def meanwhile(option: str, name: str) -> None:
        calls.append(name)
        # The third look is that before the new content takes the place of the old.
        if len(calls) == 3:
            (here / "run.yaml").write_text(RUN + "# mine\n")
        check(option, name)

    monkeypatch.setattr(files, "check_rewritable", meanwhile)
    monkeypatch.setattr("overlapkit.fix.command.check_rewritable", meanwhile)
    assert "changed while it was being fixed" in refused(overlapkit, "run.yaml")
    assert (here / "run.yaml").read_text() == RUN + "# mine\n"
    assert sorted(p.name for p in here.iterdir()) == ["run.yaml", "train.sh"]


def test_the_file_is_read_once(
    here: Path, overlapkit: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = sources.read_yaml

    def and_change(name: str) -> Any:
        (here / "run.yaml").write_text("model: {}\n")
        return read(name)

    monkeypatch.setattr(sources, "read_yaml", and_change)
    shown = overlapkit("explain", "run.yaml", *OPTIONS, "--diff")
    assert "1 finding would be fixed" in shown.out


def test_a_pipe_cannot_be_fixed(here: Path, overlapkit: Cli) -> None:
    with (here / "run.yaml").open() as file:
        name = f"/dev/fd/{file.fileno()}"
        assert "symbolic link" in refused(overlapkit, name)


def test_a_variable_of_the_job(here: Path, overlapkit: Cli) -> None:
    (here / "job.env").write_text("CUDA_DEVICE_MAX_CONNECTIONS=32\n")
    found = overlapkit("explain", "run.yaml", *OPTIONS, "--env-file", "job.env", "--fix")
    assert found.status == 1
    assert "export CUDA_DEVICE_MAX_CONNECTIONS=1" in " ".join(found.out.split())
    declared = RUN + "env_vars:\n  CUDA_DEVICE_MAX_CONNECTIONS: 32\n"
    (here / "run.yaml").write_text(declared)
    options = [*OPTIONS[:4], "--bridge", "0.6.0", "--env-file", "/dev/null", "--fix"]
    assert overlapkit("explain", "run.yaml", *options).status == 0
    assert (
        (here / "run.yaml").read_text().endswith('env_vars:\n  CUDA_DEVICE_MAX_CONNECTIONS: "1"\n')
    )
