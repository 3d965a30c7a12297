"""The committed skill agrees with the source, is complete by itself, and its claims are true."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from megatron.bridge.training.decisions import RULES
from megatron.bridge.training.runtime_update import update_runtime
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.schema import section_fields
from overlapkit.explain.rules.list import all_rules
from overlapkit.skill.facts import facts
from overlapkit.skill.render import SKILL, drift, find_root
from support.late import needs

Command = Callable[..., Any]
ROOT = find_root(str(Path(__file__).parent))
FOLDER = ROOT / SKILL
SCRIPT = "scripts/overlapkit"
MAIN = (FOLDER / "SKILL.md").read_text(encoding="utf-8")
DOCS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
ANCHOR = re.compile(r"```(\d+):(\d+):(\S+)\n(.*?)\n```", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)\)")
ANCHORED = sorted(
    page.relative_to(ROOT).as_posix()
    for folder in (FOLDER, ROOT / "docs")
    for page in folder.rglob("*.md")
    if ANCHOR.search(page.read_text(encoding="utf-8"))
)
COMMANDS = re.compile(r"`uv run ([^`]+)`")


def _files(pattern: str) -> list[str]:
    """The files of the repository that a word of a command names, as a shell would expand it."""
    return sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob(pattern) if "*" in pattern)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what rendering reads and writes."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in (
        "src",
        ".github/skills",
        "docs",
        "examples",
        "tests/data/traces",
    ):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("__pycache__"),
            symlinks=True,
        )
    return tmp_path


def collected(file: Path) -> int:
    """How many tests pytest finds in a file."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return sum(f"/{file.name}::" in line for line in done.stdout.splitlines())


class TestDrift:
    def test_what_is_committed_is_what_is_rendered(self) -> None:
        assert list(drift(ROOT)) == []

    def test_check_fails_after_one_line_on_top_and_render_fixes_it(
        self, checkout: Path, overlapkit: Command
    ) -> None:
        assert overlapkit("skill", "render", "--check", "--root", str(checkout)).status == 0
        source = checkout / "src/megatron/bridge/training/rules/pipeline.py"
        source.write_text("# one more line\n" + source.read_text())
        before = (checkout / SKILL / "SKILL.md").read_text()
        (checkout / SKILL / SCRIPT).chmod(0o644)
        done = overlapkit("skill", "render", "--check", "--root", str(checkout))
        assert done.status == 1
        assert "+```" in done.out
        assert (checkout / SKILL / "SKILL.md").read_text() == before
        assert overlapkit("skill", "render", "--root", str(checkout)).status == 0
        assert (checkout / SKILL / "SKILL.md").read_text() != before
        assert os.access(checkout / SKILL / SCRIPT, os.X_OK)
        assert overlapkit("skill", "render", "--check", "--root", str(checkout)).status == 0

    def test_a_page_without_a_template_and_a_script_that_cannot_be_executed_are_drift(
        self, checkout: Path, overlapkit: Command
    ) -> None:
        (checkout / SKILL / SCRIPT).chmod(0o644)
        (checkout / SKILL / "references" / "stray.md").write_text("by hand")
        done = overlapkit("skill", "render", "--check", "--root", str(checkout))
        assert done.status == 1
        assert "stray.md has no template" in done.out
        assert f"{SCRIPT} is not executable" in done.out

    def test_a_query_that_matches_nothing_fails_the_render_and_changes_nothing(
        self, checkout: Path, overlapkit: Command
    ) -> None:
        source = checkout / "src/megatron/bridge/training/rules/tensor.py"
        source.write_text(source.read_text().replace("def decide_tp_overlap", "def decide_it"))
        before = {p: p.read_bytes() for p in (checkout / SKILL).rglob("*") if p.is_file()}
        done = overlapkit("skill", "render", "--root", str(checkout))
        assert done.status == 2
        assert "decide_tp_overlap is found 0 times" in done.err
        assert len(done.err.strip().splitlines()) == 1
        assert {p: p.read_bytes() for p in (checkout / SKILL).rglob("*") if p.is_file()} == before

    def test_outside_a_checkout(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlapkit: Command
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = overlapkit("skill", "render")
        assert done.status == 2
        assert "not in a checkout" in done.err


class TestAnchors:
    @pytest.mark.parametrize("page", ANCHORED)
    def test_every_quoted_line_is_where_the_anchor_says(self, page: str) -> None:
        for start, end, path, text in ANCHOR.findall((ROOT / page).read_text(encoding="utf-8")):
            lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
            assert lines[int(start) - 1 : int(end)] == text.splitlines()

    def test_every_anchor_has_its_label(self) -> None:
        section = MAIN.partition("## Code Anchors\n")[2].partition("\n## ")[0]
        labels = ("TP gating", "PP selection", "DP defaults", "Launch-time environment")
        places = [section.index(f"{label}:\n```") for label in labels]
        assert places == sorted(places)
        assert len(ANCHOR.findall(section)) == len(labels)


class TestFormat:
    def test_valid_except_for_a_field_that_the_reference_validator_does_not_know(self) -> None:
        skills_ref = pytest.importorskip("skills_ref", reason="it needs Python 3.11")
        problems = skills_ref.validate(FOLDER)
        assert len(problems) == 1
        assert "Unexpected fields in frontmatter: when_to_use." in problems[0]

    def test_frontmatter(self) -> None:
        head = yaml.safe_load(MAIN.split("---")[1])
        assert head["name"] == FOLDER.name
        assert head["license"] == "Apache-2.0"
        assert len(head["description"]) <= 1024
        for trigger in (
            "overlap_param_gather",
            "overlap_grad_reduce",
            "sequence-parallel overlap",
            "TP overlap",
            "DP overlap",
            "comm overlap",
            "throughput regression",
        ):
            assert trigger in head["when_to_use"]

    def test_sections(self) -> None:
        titles = re.findall(r"^## (.+)$", MAIN, re.MULTILINE)
        assert titles == ["First", "Enablement", "Code Anchors", "Pitfalls", "Verification"]
        assert MAIN.index("references/background.md") < MAIN.index("## First")

    def test_lean(self) -> None:
        # Under 2,000 tokens. A byte-pair tokenizer counted 3.32 characters a token in this text.
        assert len(MAIN) / 3.32 < 2000


class TestComplete:
    @pytest.mark.parametrize("page", ["README.md", "AGENTS.md", *DOCS])
    def test_links_of_the_repository_resolve(self, page: str) -> None:
        file = ROOT / page
        for link in LINK.findall(file.read_text(encoding="utf-8")):
            assert "://" in link or (file.parent / link).exists(), link
        text = file.read_text(encoding="utf-8")
        named = re.findall(r"`((?:src|tests|docs|examples|benchmarks|scripts)/[\w./-]+)`", text)
        assert all((ROOT / path).exists() for path in named)

    def test_references_are_all_linked(self) -> None:
        linked = set(LINK.findall(MAIN))
        assert {f"references/{p.name}" for p in (FOLDER / "references").glob("*.md")} == linked

    def test_paths_of_the_repository_are_marked_and_exist(self) -> None:
        for page in FOLDER.rglob("*.md"):
            text = page.read_text(encoding="utf-8")
            named = set(re.findall(r"(?:src|tests|docs|examples)/[\w./-]+\.\w+", text))
            assert all((ROOT / path).exists() for path in named), page
            # The source and the examples are in the skill's folder.
            carried = {path for path in named if path.startswith(("src/", "examples/"))}
            assert all((FOLDER / path).exists() for path in carried)
            if named - carried:
                assert "overlapkit repository" in text, page

    def test_no_page_is_long(self) -> None:
        # One question loads one page.
        longest = 7500
        for page in (FOLDER / "references").iterdir():
            assert len(page.read_text(encoding="utf-8")) / 3.32 < longest, page

    def test_other_agents_find_it(self) -> None:
        for link in (".claude/skills", ".agents/skills"):
            assert (ROOT / link / FOLDER.name / "SKILL.md").is_file()


class TestClaims:
    @pytest.mark.parametrize("title", ["What to set", "What a profile shows"])
    def test_readme_shows_real_output(
        self, title: str, monkeypatch: pytest.MonkeyPatch, overlapkit: Command
    ) -> None:
        monkeypatch.chdir(ROOT)
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        section = readme.partition(f"## {title}\n")[2].partition("\n## ")[0]
        commands = re.findall(r"^uv run --no-dev overlapkit (.+)$", section, re.MULTILINE)
        blocks = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
        assert len(commands) == len(blocks) > 0
        for command, block in zip(commands, blocks, strict=True):
            words = [w for pattern in command.split() for w in (_files(pattern) or [pattern])]
            shown = {line.rstrip() for line in overlapkit(*words).out.splitlines()}
            for line in block.splitlines():
                # What ends in an ellipsis is cut.
                start = line.removesuffix("…")
                assert line in shown or (start != line and any(s.startswith(start) for s in shown))

    @needs("megatron.core")
    def test_the_enablement_snippet_grants_everything(self) -> None:
        snippet = re.search(r"```python\n(.*?)```", MAIN, re.DOTALL)
        assert snippet is not None
        ast.parse(snippet[1])

        def section(name: str) -> SimpleNamespace:
            return SimpleNamespace(**{k: f.default for k, f in section_fields(name).items()})

        cfg = SimpleNamespace(
            model=section("model"),
            ddp=section("ddp"),
            optimizer=section("optimizer"),
            mixed_precision=None,
            comm_overlap=None,
        )
        exec(snippet[1], {"cfg": cfg})
        update = update_runtime(cfg, 64, software=AssumedSoftware())
        assert not [d for d in update.decisions if d.is_finding]
        assert cfg.model.tp_comm_overlap is True
        assert cfg.model.tp_comm_overlap_cfg["qkv_fprop"]["method"] == "ring_exchange"
        assert cfg.model.overlap_p2p_comm is True
        assert cfg.ddp.overlap_grad_reduce is True
        assert cfg.ddp.overlap_param_gather is True
        assert cfg.ddp.align_param_gather is True

    def test_every_rule_id_in_the_pages_exists(self) -> None:
        for page in [*FOLDER.rglob("*.md"), ROOT / "docs/training/communication-overlap.md"]:
            text = page.read_text(encoding="utf-8")
            prefixes = "tp|pp|dp|ep|any|core|ub|launch|precision"
            named = set(re.findall(rf"`((?:{prefixes})\.[\w.-]+)`", text))
            assert named <= set(RULES), page

    def test_every_rule_is_in_one_row_of_the_references(self) -> None:
        pages = [p.read_text(encoding="utf-8") for p in (FOLDER / "references").iterdir()]
        rows = re.findall(r"^\| `([\w.-]+)` src/", "\n".join(pages), re.MULTILINE)
        assert sorted(rows) == sorted(rule.id for rule in all_rules())

    def test_twenty_six_cases(self, request: pytest.FixtureRequest) -> None:
        cases = ROOT / "tests/unit_tests/training/test_comm_overlap.py"
        found = sum(item.path == cases for item in request.session.items)
        # Not all of them are collected, as where this test is run alone.
        assert (found if found == 26 else collected(cases)) == 26
        assert "reports `26 passed`" in MAIN

    @pytest.mark.parametrize("command", sorted(set(COMMANDS.findall(MAIN))))
    def test_files_in_commands_exist(self, command: str) -> None:
        for word in command.split():
            if word.startswith("tests/"):
                assert (ROOT / word).exists()

    def test_queues_come_from_the_launch_rules(self) -> None:
        by_layout = {q["layout"]: q for q in facts()["queues"]}
        assert by_layout["TP = CP = 1"]["hopper_before"] == 8
        assert by_layout["TP or CP > 1"] == {
            "layout": "TP or CP > 1",
            "hopper_before": 1,
            "hopper_since": 1,
            "blackwell_before": 32,
            "blackwell_since": 32,
        }

    def test_enough_evals_most_of_which_no_source_answers(self) -> None:
        evals: list[dict[str, Any]] = json.loads(
            (FOLDER / "evals/evals.json").read_text(encoding="utf-8")
        )["evals"]
        assert len({e["name"] for e in evals}) == len(evals) >= 20
        assert sum(not e["in_source"] for e in evals) >= 10
        for each in evals:
            assert each["answer"]
            assert all(f"`{part}`" in each["prompt"] for part in each["answer"])
            assert all((FOLDER / name).exists() for name in each["files"])
        used = {name for e in evals for name in e["files"]}
        there = {p.relative_to(FOLDER).as_posix() for p in (FOLDER / "evals/files").iterdir()}
        assert there == used
