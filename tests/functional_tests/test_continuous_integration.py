"""The pre-commit hooks and the GitHub actions, as far as a machine without GitHub can try them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PITFALLS = "examples/pitfalls_16xh100.yaml"
WORKFLOWS = sorted(str(p) for p in (ROOT / ".github/workflows").glob("*.yml"))
SOUND = "examples/gpt_1b_8xh100.yaml"


def hook(name: str = "overlapkit-audit") -> dict[str, Any]:
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    (declared,) = (each for each in hooks if each["id"] == name)
    assert isinstance(declared, dict)
    return declared


def committed(
    *files: str, name: str = "overlapkit-audit", where: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """The hook's entry as pre-commit runs it: its arguments and the changed files come after it."""
    declared = hook(name)
    program, *options = shlex.split(declared["entry"])
    assert program == "overlapkit"
    given = [*declared.get("args", []), *(files if declared.get("pass_filenames", True) else [])]
    command = [sys.executable, "-m", "overlapkit.cli", *options, *given]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)


def test_the_hook_fails_with_a_finding_alone() -> None:
    assert {"id", "name", "entry", "language", "types_or"} <= hook().keys()
    assert committed(SOUND).returncode == 0
    failed = committed(SOUND, PITFALLS)
    assert failed.returncode == 1
    assert PITFALLS in failed.stdout and "model.batch_p2p_comm" in failed.stdout


def test_the_hook_passes_over_other_files() -> None:
    other = committed("action.yml", ".ci/run", "README.md", *WORKFLOWS)
    assert other.returncode == 0, other.stdout


def drifted(tmp_path: Path) -> Path:
    """A repository whose page has an anchor that moved and one that is right."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "code.py").write_text("first = 1\nsecond = 2\n")
    page = "```1:1:code.py\nfirst = 1\n```\n\n```1:1:code.py\nsecond = 2\n```\n"
    (folder / "page.md").write_text(page)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    return folder


def test_the_hook_of_skills_looks_at_every_page(tmp_path: Path) -> None:
    folder = drifted(tmp_path)
    done = committed("code.py", name="overlapkit-skill-check", where=folder)
    assert done.returncode == 1
    assert "page.md:5: anchor 1:1:code.py: moved" in done.stdout
    (folder / "page.md").unlink()
    assert committed(name="overlapkit-skill-check", where=folder).returncode == 0


def act(
    tmp_path: Path, action_file: str = "action.yml", where: Path = ROOT, **given: str
) -> subprocess.CompletedProcess[str]:
    """The action's last step, with its inputs, on this checkout's program."""
    action = yaml.safe_load((ROOT / action_file).read_text())
    place = str((ROOT / action_file).parent)
    step = action["runs"]["steps"][-1]
    inputs = {name: each["default"] for name, each in action["inputs"].items()} | given
    variables = {}
    for name, expression in step["env"].items():
        known = expression.removeprefix("${{ ").removesuffix(" }}")
        value = place if known == "github.action_path" else inputs[known.partition(".")[2]]
        variables[name] = value
    # uvx would build the program again: the step's own command line goes to the one that is here.
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    uvx = programs / "uvx"
    uvx.write_text(
        '#!/bin/bash\n[ "$1 $2" = "--quiet --from" ] && [ "$4" = overlapkit ] || exit 9\n'
        f'shift 4\nexec {shlex.quote(sys.executable)} -m overlapkit.cli "$@"\n'
    )
    uvx.chmod(0o755)
    env = {**os.environ, **variables, "PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.run(
        [str(shutil.which("bash")), "-e", "-c", step["run"]],
        cwd=where,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="the action's steps are bash")
class TestTheAction:
    def test_findings_are_annotations_and_fail_the_step(self, tmp_path: Path) -> None:
        done = act(tmp_path, **{"folder": "examples", "world-size": "16"})
        assert done.returncode == 1, done.stderr
        assert f"::error file={PITFALLS},line=26,col=3," in done.stdout

    def test_every_input_reaches_the_program(self, tmp_path: Path) -> None:
        given = {"folder": f"{SOUND} {PITFALLS}", "world-size": "16", "gpu": "b200"}
        given |= {"core": "0.16.1", "bridge": "0.3.1", "format": "json"}
        done = act(tmp_path, **given)
        rows = json.loads(done.stdout)
        assert done.returncode == 1 and rows["schema"] == "overlapkit/audit/v1"
        assert rows["paths"] == [SOUND, PITFALLS]
        # The two-stage hazard holds for the version that was given, and is counted at 16 GPUs.
        assert {row["world_size"] for row in rows["files"]} == {16}

    def test_an_input_is_no_command(self, tmp_path: Path) -> None:
        mark = tmp_path / "mark"
        act(tmp_path, folder=f"$(touch {mark}) examples; touch {mark}", gpu=f"`touch {mark}`")
        assert not mark.exists()

    def test_the_answer_is_a_file_as_well(self, tmp_path: Path) -> None:
        out = tmp_path / "overlap.sarif"
        done = act(tmp_path, folder=PITFALLS, format="sarif", output=str(out))
        assert done.returncode == 1
        assert json.loads(out.read_text())["version"] == "2.1.0"


@pytest.mark.skipif(shutil.which("bash") is None, reason="the action's steps are bash")
class TestTheActionOfSkills:
    FILE = ".github/actions/skill-check/action.yml"

    def test_drift_is_annotated_and_fails_the_step(self, tmp_path: Path) -> None:
        done = act(tmp_path, self.FILE, drifted(tmp_path))
        assert done.returncode == 1, done.stderr
        assert "::error file=page.md,line=5," in done.stdout
        assert "line=1" not in done.stdout

    def test_every_input_reaches_the_program(self, tmp_path: Path) -> None:
        folder = drifted(tmp_path)
        out = tmp_path / "skills.json"
        inputs = {"paths": "page.md", "root": str(folder), "collect": "true", "format": "json"}
        done = act(tmp_path, self.FILE, folder, output=str(out), **inputs)
        document = json.loads(out.read_text())
        assert done.returncode == 1 and json.loads(done.stdout) == document
        assert document["root"] == str(folder)
        assert [file["file"] for file in document["files"]] == ["page.md"]
