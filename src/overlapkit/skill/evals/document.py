"""The JSON document of `overlapkit skill evals`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from overlapkit.output.console import encodable
from overlapkit.skill.evals.answer import form
from overlapkit.skill.evals.asked import Asked, Judged


class EvalsPart(Struct, frozen=True, kw_only=True):
    """One part of a task's answer."""

    name: Annotated[str, Meta(description="the key of the part in an answers file")]
    form: Annotated[str, Meta(description="`a number`, `a text` or `a list of texts`")]
    given: Annotated[Any, Meta(description="the answer that was given; `null` where none was")]
    right: Annotated[bool | None, Meta(description="whether it is right; `null` without answers")]
    expected: Annotated[
        Any,
        Meta(
            description="the right answer: a number, a text or a list of texts; `null` where the "
            "given one is right, and without answers"
        ),
    ]


class EvalsTask(Struct, frozen=True, kw_only=True):
    """One task."""

    number: Annotated[int, Meta(description="from 1")]
    name: Annotated[str, Meta(description="the key of the task in an answers file")]
    prompt: Annotated[str, Meta(description="the question")]
    files: Annotated[list[str], Meta(description="the files that it is about")]
    right: Annotated[
        bool | None, Meta(description="whether every part is right; `null` without answers")
    ]
    parts: Annotated[list[EvalsPart], Meta(description="of the answer")]


class EvalsDocument(Struct, frozen=True, kw_only=True):
    """Tasks for an agent, and how its answers were."""

    schema: Annotated[
        Literal["overlapkit/skill-evals/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/skill-evals/v1"
    tasks: Annotated[list[EvalsTask], Meta(description="in order of their numbers")]
    answered: Annotated[
        int | None,
        Meta(description="how many tasks have an answer; `null` without an answers file"),
    ]
    right: Annotated[
        int | None,
        Meta(description="how many of `tasks` are right; `null` without an answers file"),
    ]


def evals_document(
    asked: Sequence[Asked], folder: Path, given: Mapping[str, Mapping[str, Any]] | None
) -> EvalsDocument:
    """The tasks as the document `overlapkit/skill-evals/v1`.

    Args:
        asked: the tasks.
        folder: of the skill, which their files are relative to.
        given: the answers, by the names of the tasks; None where nobody gave any.
    """
    tasks = [_task(task, folder, None if given is None else task.judge(given)) for task in asked]
    return EvalsDocument(
        tasks=tasks,
        answered=None if given is None else sum(task.name in given for task in asked),
        right=None if given is None else sum(task.right is True for task in tasks),
    )


def _task(task: Asked, folder: Path, judged: Sequence[Judged] | None) -> EvalsTask:
    parts = [
        EvalsPart(name=name, form=form(part), given=None, right=None, expected=None)
        for name, part in task.parts.items()
    ]
    if judged is not None:
        parts = [
            EvalsPart(
                name=each.name,
                form=form(task.parts[each.name]),
                given=each.given,
                right=each.right,
                expected=None if each.right else each.expected,
            )
            for each in judged
        ]
    return EvalsTask(
        number=task.number,
        name=task.name,
        prompt=task.prompt,
        files=[encodable(str(folder / name)) for name in task.files],
        right=None if judged is None else all(each.right for each in judged),
        parts=parts,
    )
