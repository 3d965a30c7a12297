"""The tasks: a question on files, and how the tool answers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from overlapkit.skill.evals.answer import Expected, document

Answers: TypeAlias = dict[str, Expected]
"""The parts of an answer by name."""

FILES = Path("evals/files")
"""Where a task's files are, in the skill's folder."""


@dataclass(frozen=True)
class Task:
    """One question.

    Attributes:
        name: what it is about, in words joined by dashes; it does not change.
        prompt: the question. It says what each part of the answer is.
        files: names in `FILES`.
        answer: computes the parts from the folder of the files.
        in_source: whether an attentive reader of Megatron's source can find the answer there; if
            not, it is in bug reports, hardware, a profile, or arithmetic over the whole model.
    """

    name: str
    prompt: str
    files: tuple[str, ...]
    answer: Callable[[Path], Answers]
    in_source: bool = True


def tasks() -> list[Task]:
    """Every task, in an order that does not change."""
    # Imported here: they bring numpy, which who only reads answers does not need.
    from overlapkit.skill.evals.configurations import CONFIGURATIONS
    from overlapkit.skill.evals.faults import FAULTS
    from overlapkit.skill.evals.figures import FIGURES

    return [*CONFIGURATIONS, *FAULTS, *FIGURES]


def evals(root: Path, skill: Path) -> list[dict[str, Any]]:
    """Every task with its right answer, as evals.json has it.

    Args:
        root: the repository.
        skill: the skill's folder in it.

    Raises:
        InputError: a file is missing, or the tool cannot read one.
    """
    return list(_documents(root / skill / FILES))


def _documents(folder: Path) -> Iterator[dict[str, Any]]:
    for number, task in enumerate(tasks(), 1):
        parts = {name: document(each) for name, each in task.answer(folder).items()}
        yield {
            "id": number,
            "name": task.name,
            "prompt": task.prompt,
            "files": [(FILES / name).as_posix() for name in task.files],
            "in_source": task.in_source,
            "expected_output": "; ".join(_sentence(name, part) for name, part in parts.items()),
            "expectations": [_sentence(name, part) for name, part in parts.items()],
            "answer": parts,
        }


def _sentence(name: str, part: dict[str, Any]) -> str:
    if "number" in part:
        within = f" (within {part['within']:.1%})" if part["within"] else ""
        return f"{name} is {part['number']:,}{within}"
    return f"{name} is {', '.join(part['list']) if 'list' in part else part['text']}"
