"""A task as evals.json has it, and whether an answer to it is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from overlapkit.output.numbers import plain
from overlapkit.skill.evals.answer import Expected, Names, Number, is_right


@dataclass(frozen=True)
class Judged:
    """A part of an answer, judged.

    Attributes:
        name: of the part.
        given: what was answered; None for nothing.
        right: whether it is right.
        expected: the right answer: a number, a text or a list of texts.
    """

    name: str
    given: Any
    right: bool
    expected: Any


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

    def judge(self, given: Mapping[str, Mapping[str, Any]]) -> list[Judged]:
        """Every part of the answer to this task.

        Args:
            given: the answers, by the names of the tasks.
        """
        answer = given.get(self.name, {})
        return [
            Judged(name, answer.get(name), is_right(part, answer.get(name)), _value(part))
            for name, part in self.parts.items()
        ]


def _value(part: Expected) -> Any:
    if isinstance(part, Names):
        return list(part.value)
    return plain(part.value) if isinstance(part, Number) else part.value
