"""What the documents at the top of the repository name is in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from overlapkit.skill.anchors.query import find_anchor

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [*sorted(p.name for p in ROOT.glob("*.md")), *(f"docs/{n}.md" for n in ("lab",))]
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)\)")
TOP = {path.name for path in ROOT.iterdir()} | {"held-versions"}
# Not part of a checkout: made by uv, or deleted to get the newest versions.
ABSENT = {"uv.lock", "held-versions", "held-versions/pyproject.toml"}


def _text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def _paths(document: str) -> set[str]:
    """The words of inline code and of blocks of commands that start in the repository."""
    text = _text(document)
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
    code = CODE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    words = {word for part in [*blocks, *code] for word in part.split()}
    found = {word.rstrip(".,:;") for word in words if word.split("/")[0].rstrip(".,:;") in TOP}
    return {word for word in found if "=" not in word and "NAME" not in word} - ABSENT


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str) -> None:
    for path in _paths(document):
        assert list(ROOT.glob(path.rstrip("/"))) or (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document: str) -> None:
    for link in LINK.findall(_text(document)):
        assert "://" in link or ((ROOT / document).parent / link).exists(), link


def test_the_test_finds_paths() -> None:
    assert "src/overlapkit/config/shell" in _paths("ARCHITECTURE.md")
    assert ".ci/run" in _paths("CONTRIBUTING.md")


def test_every_function_on_the_path_of_a_decision_is_in_its_file() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(src/\S+\.py)` \| (.+) \|$", _text("ARCHITECTURE.md"), re.M)
    assert len(rows) >= 20
    for path, names in rows:
        for name in CODE.findall(names):
            find_anchor(ROOT, path, name)


def test_every_folder_of_the_source_is_described() -> None:
    text = _text("ARCHITECTURE.md")
    folders = {p.parent.relative_to(ROOT).as_posix() for p in (ROOT / "src").rglob("*.py")}
    for folder in folders - {"src/megatron/bridge", "src/overlapkit"}:
        assert f"| `{folder}` |" in text, folder


def test_the_readme_quotes_the_recorded_run_of_the_lab() -> None:
    section = _text("README.md").partition("## What the lab shows\n")[2]
    (quoted,) = re.findall(r"```text\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert quoted in _text("docs/evidence/lab-default.txt")


def test_the_errors_of_plan_in_the_readme_are_those_of_the_recorded_benchmark() -> None:
    recorded = {}
    for line in _text("docs/evidence/benchmarks.md").splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if len(cells) == 6 and cells[0].endswith("tables"):
            name, rows, mean, median, _, worst = cells
            recorded[name] = [rows, mean, median, worst]
    kinds = {"dense": "dense", "mixture of experts": "MoE", "hybrid with Mamba layers": "hybrid"}
    table = _text("README.md").partition("| published by | model |")[2].partition("\n\n")[0]
    stated = {}
    for line in table.splitlines()[2:]:
        whose, model, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        tables = "NVIDIA's tables" if whose == "NVIDIA" else "others' tables"
        stated[f"{kinds[model]}, {tables}"] = [figure.replace(" %", "%") for figure in figures]
    assert stated == recorded and len(stated) == 5
