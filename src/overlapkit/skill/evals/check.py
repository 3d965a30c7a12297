"""`overlapkit skill evals`: shows the tasks, or checks somebody's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overlapkit.config.text_file import read_text
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.output.console import write_json, write_text
from overlapkit.skill.evals.answer import form, read
from overlapkit.skill.evals.asked import Asked

_OF_SKILL = Path("evals/evals.json")
_IN_CHECKOUT = Path(".github/skills/perf-tp-dp-comm-overlap")


def run(*, answers: str | None, file: str | None, as_json: bool = False) -> int:
    """Print the tasks, or with `answers` check them; returns the exit status.

    Args:
        answers: a JSON file with an object: the name of a task, and an object with the parts of its
            answer.
        file: evals.json; None is that of the skill that this source belongs to.
        as_json: whether the JSON document is printed.

    Raises:
        InputError: a file cannot be read, or is not of that form.
    """
    path = Path(file) if file is not None else _beside()
    asked, folder = _tasks(path), path.resolve().parents[1]
    given = None if answers is None else _answers(answers, asked)
    if as_json:
        from overlapkit.skill.evals.document import evals_document

        document = evals_document(asked, folder, given)
        write_json(document)
        return EXIT_FINDING if document.right not in (None, len(asked)) else 0
    if given is None:
        write_text("".join(f"{line}\n" for line in _questions(asked, folder)))
        return 0
    wrong, lines = _judged(asked, given)
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
            f"{part.name} is {_shown(part.given)}, right is {json.dumps(part.expected)}"
            for part in task.judge(given)
            if not part.right
        ]
        if wrong:
            lines.append(f"{task.name}: {'; '.join(wrong)}")
    right = len(asked) - len(lines)
    return len(lines), [*lines, f"{right} of {len(asked)} right"]


def _shown(given: Any) -> str:
    return "missing" if given is None else json.dumps(given, ensure_ascii=False)[:200]
