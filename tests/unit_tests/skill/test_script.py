"""`scripts/overlapkit` of the skill: the tool runs from the source that travels with the text."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from overlapkit.skill.render import SKILL, find_root
from support.installed_skill import missing_links

ROOT = find_root(str(Path(__file__).parent))
CONFIG = ROOT / "examples/pitfalls_16xh100.yaml"
PROFILE = ROOT / "tests/data/traces/megatron-no-overlap.rank0.json.gz"
SCRIPT = "scripts/overlapkit"


@pytest.fixture
def skill(tmp_path: Path) -> Path:
    """The skill in somebody's repository: links are followed, as `npx skills add` does."""
    target = tmp_path / "repository/.agents/skills" / SKILL.name
    shutil.copytree(ROOT / SKILL, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def run(
    skill: Path, *arguments: str, options: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, from the folder of the repository."""
    gone = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    repository = skill.parents[2]
    return subprocess.run(
        [sys.executable, *options, str(skill / SCRIPT), *arguments],
        cwd=repository,
        env={**kept, "XDG_CACHE_HOME": str(repository / "cache"), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that ends for bad input says."""
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("overlapkit: ")
    return line


def test_it_runs_the_source_beside_it(skill: Path) -> None:
    (skill / "src/overlapkit/__init__.py").write_text('__version__ = "0.0.beside"\n')
    assert run(skill, "--version").stdout == "overlapkit, version 0.0.beside\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["explain", str(CONFIG), "--world-size", "16"], 1, "WRONG NUMBERS"),
        (["plan", "--model", "llama3_8b", "--gpu", "h100", "--world-size", "8"], 0, "Estimated"),
        (["trace", str(PROFILE)], 0, "median of 3"),
        (["doctor", str(CONFIG), "--world-size", "16"], 1, "pp.same-peer-hazard"),
    ],
    ids=["explain", "plan", "trace", "doctor"],
)
def test_commands_answer(skill: Path, arguments: list[str], status: int, said: str) -> None:
    done = run(skill, *arguments)
    assert (done.returncode, done.stderr) == (status, "")
    assert said in done.stdout


def test_a_pattern_may_name_it_once_for_each_agent(skill: Path) -> None:
    again = [f".claude/skills/{SKILL.name}/{SCRIPT}", f".github/skills/{SKILL.name}/{SCRIPT}"]
    assert run(skill, *again, "--version").stdout.startswith("overlapkit, version")


def test_what_is_compiled_stays_out_of_the_repository(skill: Path) -> None:
    assert run(skill, "--version").returncode == 0
    assert not list(skill.rglob("__pycache__"))
    assert list((skill.parents[2] / "cache").rglob("cli.*.pyc"))


def test_text_alone_says_how_to_get_the_rest(skill: Path) -> None:
    shutil.rmtree(skill / "src")
    line = one_line(run(skill, "explain", str(CONFIG)))
    assert f"npx skills add OWNER/REPOSITORY --skill {SKILL.name}" in line


def test_a_checkout_without_symbolic_links_works(tmp_path: Path) -> None:
    skill = tmp_path / SKILL
    skill.mkdir(parents=True)
    shutil.copytree(ROOT / SKILL / "scripts", skill / "scripts")
    (skill / "src").write_text(str((ROOT / SKILL / "src").readlink()))
    (tmp_path / "src").symlink_to(ROOT / "src")
    assert run(skill, "--version").stdout.startswith("overlapkit, version")


def test_missing_packages_are_named_with_the_way_to_get_them(skill: Path) -> None:
    line = one_line(run(skill, "--version", options=("-S",)))
    assert "lacks click, isal" in line
    assert f"uv run -s {skill / SCRIPT}" in line


def test_an_old_python_can_read_it() -> None:
    ast.parse((ROOT / SKILL / SCRIPT).read_text(), feature_version=(3, 7))


class TestLab:
    @pytest.fixture
    def without_torch(self, tmp_path: Path) -> dict[str, str]:
        """An environment with what the other commands need, and a uv that says its arguments."""
        packages, programs = tmp_path / "packages", tmp_path / "programs"
        packages.mkdir()
        programs.mkdir()
        for module in ("click", "isal", "jinja2", "msgspec", "numpy", "packaging", "dotenv"):
            self._link(module, packages)
        self._link("yaml", packages)
        self._link("rich", packages)
        uv = programs / "uv"
        uv.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        uv.chmod(0o755)
        return {"PYTHONPATH": str(packages), "PATH": f"{programs}:{os.environ['PATH']}"}

    def _link(self, module: str, folder: Path) -> None:
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        (folder / module).symlink_to(Path(spec.origin).parent)

    def test_it_gets_torch_and_megatron_core_through_uv(
        self, skill: Path, without_torch: dict[str, str]
    ) -> None:
        done = run(skill, "lab", "--ranks", "2", options=("-S",), **without_torch)
        assert done.returncode == 0, done.stderr
        words = done.stdout.splitlines()
        assert words[0] == "run"
        assert words[-5:] == ["--script", str(skill / SCRIPT), "lab", "--ranks", "2"]
        brought = {b for a, b in pairwise(words) if a == "--with"}
        assert {"torch>=2.6", "megatron-core>=0.16,<0.20"} <= brought

    def test_its_help_needs_neither(self, skill: Path, without_torch: dict[str, str]) -> None:
        done = run(skill, "lab", "--help", **without_torch)
        assert done.stdout.startswith("Usage: overlapkit lab")


class TestCopy:
    @pytest.mark.parametrize("name", ["src", "examples"])
    def test_what_it_carries_is_a_link_in_the_repository(self, name: str) -> None:
        link = ROOT / SKILL / name
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / name

    def test_every_link_of_its_pages_resolves_inside(self, skill: Path) -> None:
        assert missing_links(skill) == []
        (skill / "references/measure.md").unlink()
        assert missing_links(skill) == ["SKILL.md: references/measure.md"]
