"""The workflows agree with pyproject.toml, the scripts and each other.

`.ci/run` checks their form against GitHub's schemas; here is what no schema knows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from packaging.version import Version

from overlapkit import __version__

ROOT = Path(__file__).resolve().parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]


def _workflow(name: str) -> dict[str, Any]:
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def _commands(workflow: dict[str, Any]) -> str:
    steps = [step for job in workflow["jobs"].values() for step in job.get("steps", [])]
    return "\n".join(step["run"] for step in steps if "run" in step)


def test_every_supported_python_is_checked() -> None:
    matrix = _workflow("ci")["jobs"]["check"]["strategy"]["matrix"]["python"]
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix == supported


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_permissions_are_granted_to_single_jobs(path: Path) -> None:
    workflow = _workflow(path.stem)
    assert workflow["permissions"] == {}
    assert all("permissions" in job for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_scripts_that_steps_run_exist(path: Path) -> None:
    named = re.findall(r"(?:bash|uv run) ((?:\.ci|scripts)/\S+)", path.read_text(encoding="utf-8"))
    assert named or path.stem not in ("ci", "weekly", "release")
    assert all((ROOT / name).is_file() for name in named)


def test_the_weekly_report_waits_for_every_other_job() -> None:
    jobs = _workflow("weekly")["jobs"]
    assert sorted(jobs["report"]["needs"]) == sorted(jobs.keys() - {"report"})


def test_the_weekly_run_deletes_what_holds_the_versions() -> None:
    members = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["tool"]["uv"]["workspace"]
    (folder,) = members["members"]
    for job in ("newest", "lowest"):
        steps = _workflow("weekly")["jobs"][job]["steps"]
        assert any(f"rm -r {folder} && " in step.get("run", "") for step in steps)


def test_a_called_workflow_does_not_wait_for_its_caller() -> None:
    """`github.workflow` is the caller's name in both, so one pattern would be one group."""
    release, ci = (_workflow(name)["concurrency"]["group"] for name in ("release", "ci"))
    assert release.replace("${{ github.ref }}", "") != ci.replace(
        "${{ github.workflow }}", _workflow("release")["name"]
    ).replace("${{ github.ref }}", "")


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (\S+)", changelog, re.MULTILINE)
    assert titles[0] == Version(__version__).base_version
    assert titles == sorted(titles, key=Version, reverse=True)
    assert "CHANGELOG.md" in _commands(_workflow("release"))
