"""Renders the templates into the repository, or tells how what is committed has drifted."""

from __future__ import annotations

import difflib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2

from overlapkit.errors import InputError
from overlapkit.output.files import Output
from overlapkit.output.numbers import imperative
from overlapkit.skill.anchors import find_anchor
from overlapkit.skill.evals import evals
from overlapkit.skill.facts import facts

SKILL = Path(".github/skills/perf-tp-dp-comm-overlap")
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Page:
    """One rendered file: its path in the repository and its text."""

    path: Path
    text: str


def find_root(start: Path) -> Path:
    """The repository that `start` lies in.

    Raises:
        InputError: it lies in none that holds the sources of the skill.
    """
    for folder in (start, *start.parents):
        if (folder / "src/overlapkit/skill/templates").is_dir():
            return folder
    raise InputError(
        f"{start}: not in a checkout of overlapkit; run this in one, or name it with --root"
    )


def pages(root: Path) -> Iterator[Page]:
    """Every page, rendered from the templates and sources of the checkout at `root`.

    Raises:
        InputError: a template names an unknown fact, or an anchor's query is not answered once.
    """
    templates = root / TEMPLATES.relative_to(TEMPLATES.parents[3])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown and JSON, from our own sources.
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["imperative"] = imperative
    environment.globals |= facts()
    environment.globals["anchor"] = lambda *query: find_anchor(root, *query)
    environment.globals["evals"] = evals(root)
    environment.globals["evidence"] = lambda name: evidence(root, name)
    environment.globals["output_of"] = lambda *command: output_of(root, *command)
    for path in sorted(templates.rglob("*.j2")):
        name = path.relative_to(templates).as_posix()
        try:
            text = environment.get_template(name).render()
        except jinja2.TemplateError as error:
            line = f":{error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise InputError(f"{path}{line}: {error}") from None
        yield Page(_target(name.removesuffix(".j2")), text)


def output_of(root: Path, *command: str) -> str:
    """A command of ours on files of the repository, and what it printed, as a fenced block.

    Raises:
        InputError: it ended as for bad input.
    """
    done = subprocess.run(
        [sys.executable, "-m", "overlapkit.cli", *command],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    told = f"overlapkit {' '.join(command)}"
    if done.returncode not in (0, 1):
        raise InputError(f"{told}: {done.stderr.strip()}")
    return f"```text\n$ {told}\n{done.stdout.rstrip()}\n```"


def evidence(root: Path, name: str) -> str:
    """A recorded output under docs/evidence.

    Raises:
        InputError: there is none of that name.
    """
    try:
        return (root / "docs/evidence" / name).read_text(encoding="utf-8").rstrip()
    except OSError as error:
        raise InputError(f"docs/evidence/{name}: {error.strerror}") from None


def _target(name: str) -> Path:
    return Path(name) if name.startswith("docs/") else SKILL / name


def drift(root: Path) -> Iterator[str]:
    """Lines of a unified diff from what is committed to what would be rendered; none if equal."""
    expected = {page.path: page.text for page in pages(root)}
    for path, text in expected.items():
        file = root / path
        old = file.read_text(encoding="utf-8") if file.is_file() else ""
        yield from difflib.unified_diff(
            old.splitlines(keepends=True),
            text.splitlines(keepends=True),
            f"{path} (committed)",
            f"{path} (rendered)",
        )
    for file in sorted((root / SKILL).rglob("*")):
        path = file.relative_to(root)
        if file.is_file() and path not in expected:
            yield f"{path} has no template: delete it, or add one\n"


def write(root: Path) -> list[Path]:
    """Write every page that changed, whole or not at all; returns their paths.

    All pages are rendered before the first is written, so that a failing one changes nothing.
    """
    changed = []
    for page in list(pages(root)):
        file = root / page.path
        if not file.is_file() or file.read_bytes() != page.text.encode():
            file.parent.mkdir(parents=True, exist_ok=True)
            output = Output("skill render", str(file), within=root)
            output.check()
            changed.append((page, output))
    for page, output in changed:
        output.write(page.text)
    return [page.path for page, _ in changed]
