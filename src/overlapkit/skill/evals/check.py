"""`overlapkit skill evals`: shows the tasks, or checks somebody's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlapkit.config.text_file import read_text
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.output.console import write_text
from overlapkit.skill.evals.answer import Expected, Names, form, is_right, read

_OF_SKILL = Path("evals/evals.json")
_IN_CHECKOUT = Path(".github/skills/perf-tp-dp-comm-overlap")


@dataclass(frozen=True)
class Asked:
    """A task as evals.json has it.

    Attributes:
        number: from 1.
        name: see `Task.name`.
        prompt: the question.
        files: relative to the skill's folder.
        parts: the right answer.
    """

    number: int
    name: str
    prompt: str
    files: tuple[str, ...]
    parts: dict[str, Expected]


def run(*, answers: str | None, file: str | None) -> int:
    """Print the tasks, or with `answers` check them; returns the exit status.

    Args:
        answers: a JSON file with an object: the name of a task, and an object with the parts of its
            answer.
        file: evals.json; None is that of the skill that this source belongs to.

    Raises:
        InputError: a file cannot be read, or is not of that form.
    """
    path = Path(file) if file is not None else _beside()
    asked = _tasks(path)
    if answers is None:
        write_text("".join(f"{line}\n" for line in _questions(asked, path.resolve().parents[1])))
        return 0
    wrong, lines = _judged(asked, _answers(answers, asked))
    write_text("".join(f"{line}\n" for line in lines))
    return EXIT_FINDING if wrong else 0


def _beside() -> Path:
    """evals.json of the skill's folder, or of the checkout, that this file is in."""
    root = Path(__file__).resolve().parents[4]
    for path in (root / _OF_SKILL, root / _IN_CHECKOUT / _OF_SKILL):
        if path.is_file():
            return path
    raise InputError(
        f"{_OF_SKILL}: not beside this installation of overlapkit; name the skill's with --file"
    )


def _tasks(path: Path) -> list[Asked]:
    try:
        return [
            Asked(
                number=int(each["id"]),
                name=str(each["name"]),
                prompt=str(each["prompt"]),
                files=tuple(map(str, each["files"])),
                parts={str(name): read(part) for name, part in each["answer"].items()},
            )
            for each in _json(str(path))["evals"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: is not a list of tasks of this skill ({error!r}); render it again"
        ) from None


def _answers(name: str, asked: list[Asked]) -> dict[str, dict[str, Any]]:
    given = _json(name)
    known = {task.name for task in asked}
    for task, parts in given.items():
        if task not in known:
            raise InputError(f"{name}: {task}: no such task; `overlapkit skill evals` lists them")
        if not isinstance(parts, dict):
            raise InputError(f"{name}: {task}: give an object with the parts of the answer")
    return given


def _json(name: str) -> dict[str, Any]:
    text = read_text(name, what="JSON file")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name}: is not JSON: {error}; write an object") from None
    if not isinstance(content, dict):
        raise InputError(f"{name}: is not a JSON object; write one")
    return content


def _questions(asked: list[Asked], folder: Path) -> Iterator[str]:
    yield f"{len(asked)} tasks. Write the answers as one JSON object, and check them with"
    yield "`overlapkit skill evals ANSWERS.json`:"
    yield '{"NAME": {"PART": ANSWER, ...}, ...}'
    for task in asked:
        yield ""
        yield f"{task.number}. {task.name}"
        yield task.prompt
        if task.files:
            yield f"files: {' '.join(str(folder / name) for name in task.files)}"
        parts = ", ".join(f'"{name}": {form(part)}' for name, part in task.parts.items())
        yield f"answer: {parts}"


def _judged(asked: list[Asked], given: dict[str, dict[str, Any]]) -> tuple[int, list[str]]:
    """How many answers are wrong or missing, and a line for each of these, then the sum."""
    lines = []
    for task in asked:
        if task.name not in given:
            lines.append(f"{task.name}: no answer")
            continue
        wrong = [
            f"{name} is {_shown(given[task.name].get(name))}, right is {_right(part)}"
            for name, part in task.parts.items()
            if not is_right(part, given[task.name].get(name))
        ]
        if wrong:
            lines.append(f"{task.name}: {'; '.join(wrong)}")
    right = len(asked) - len(lines)
    return len(lines), [*lines, f"{right} of {len(asked)} right"]


def _shown(given: Any) -> str:
    return "missing" if given is None else json.dumps(given, ensure_ascii=False)[:200]


def _right(part: Expected) -> str:
    return json.dumps(list(part.value) if isinstance(part, Names) else part.value)
