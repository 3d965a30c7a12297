"""The skill, installed with npm's package `skills`, answers where nothing else is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlapkit.skill.render import SKILL, find_root
from support.installed_skill import START, commands, missing_links, run

ROOT = find_root(str(Path(__file__).parent))
VALUES = {
    "CONFIG": "run.yaml",
    "CONFIG_B": "changed.yaml",
    "N": "2",
    "FOLDER": "configurations",
    "ID": "tp.needs-sequence-parallel",
    "FILE": "new.json.gz",
    "FILE...": "base.json.gz",
    "BASE": "base.json.gz",
    "NEW": "new.json.gz",
}
ANSWERS = {
    "explain": "REFUSED model.tp_comm_overlap",
    "audit": "run.yaml",
    "translate": "--no-persist-layer-norm",
    "rules": "sequence_parallel",
    "plan": "Estimated step",
    "trace": "median of 3",
    "compare": "Median step",
    "doctor": "core.single-bucket",
}


def unavailable() -> str | None:
    """Why the package cannot be run here; None if it can."""
    for program in ("git", "npx", "uv"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        done = subprocess.run(
            ["npx", "--yes", "skills", "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "npm's registry does not answer"
    return None if done.returncode == 0 else "npx cannot get the package skills"


@pytest.fixture(scope="module", params=["--copy", "links"])
def repository(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """An empty repository with the skill and a few files to ask about; the clone is deleted."""
    why = unavailable()
    if why:
        pytest.skip(why)
    made = tmp_path_factory.mktemp("installed")
    clone, here = made / "clone", made / "repository"
    # What is committed and what is not yet: a clone with the files of this checkout.
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    here.mkdir()
    subprocess.run(["git", "init", "--quiet", here], check=True)
    how = ["--copy", "--agent", "claude-code"] if request.param == "--copy" else []
    done = subprocess.run(
        ["npx", "--yes", "skills", "add", clone, "--skill", SKILL.name, "--yes", *how],
        cwd=here,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    (here / "configurations").mkdir()
    text = (ROOT / "examples/gpt_1b_8xh100.yaml").read_text().replace("auto", "2000000000")
    (here / "changed.yaml").write_text(text)
    text = text.replace("tp_comm_overlap: false", "tp_comm_overlap: true")
    for name in ("run.yaml", "configurations/run.yaml"):
        (here / name).write_text(text)
    for name, source in (("base", "megatron-overlap"), ("new", "megatron-no-overlap")):
        shutil.copy(ROOT / f"tests/data/traces/{source}.rank0.json.gz", here / f"{name}.json.gz")
    shutil.rmtree(clone)
    yield here


def installed(repository: Path) -> Path:
    """The folder of the skill in a repository, where its files really are."""
    (folder,) = {p.resolve() for p in repository.glob(f".*/skills/{SKILL.name}")}
    return folder


@pytest.mark.functional
def test_every_command_of_the_skill_answers_as_it_stands(repository: Path, tmp_path: Path) -> None:
    lines = commands(installed(repository), VALUES)
    answered = set()
    for line in lines:
        command = line.removeprefix(START).split()[0]
        if command == "lab":
            continue  # It brings torch: several gigabytes.
        done = run(line, repository, tmp_path)
        assert done.returncode in (0, 1), f"{line}\n{done.stderr}"
        if "changed.yaml" not in line:
            assert ANSWERS[command] in done.stdout, line
        answered.add(command)
    assert answered == set(ANSWERS)
    assert not list(repository.rglob("__pycache__"))


@pytest.mark.functional
def test_the_installed_pages_have_no_broken_link(repository: Path) -> None:
    assert missing_links(installed(repository)) == []


@pytest.mark.functional
def test_doctor_does_not_take_the_scripts_environment_for_the_jobs(
    repository: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 570.86'\n")
    (programs / "nvidia-smi").chmod(0o755)
    (repository / "tp.yaml").write_text(
        "model: {num_layers: 4, hidden_size: 256, num_attention_heads: 4, vocab_size: 1024,\n"
        "  seq_length: 128, tensor_model_parallel_size: 2, sequence_parallel: true}\n"
        "comm_overlap: {tp_comm_overlap: true}\n"
    )
    command = f"PATH={programs}:$PATH {START} doctor tp.yaml --world-size 2"
    done = run(command, repository, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "packages: not examined" in done.stdout
    assert "Transformer Engine assumed" in done.stdout
