"""`overlapkit skill evals`: the tasks are shown without their answers, and answers are checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from overlapkit.output.schema import json_schema
from overlapkit.skill.evals.answer import Expected, Number, Text, document, is_right, names, read
from overlapkit.skill.render import SKILL, find_root

Command = Callable[..., Any]
ROOT = find_root(str(Path(__file__).parent))
TASKS: list[dict[str, Any]] = json.loads((ROOT / SKILL / "evals/evals.json").read_text())["evals"]


def right() -> dict[str, dict[str, Any]]:
    """The right answers of every task, in the form of an answers file."""
    return {
        task["name"]: {
            part: written.get("number", written.get("list", written.get("text")))
            for part, written in task["answer"].items()
        }
        for task in TASKS
    }


def answers(folder: Path, content: object) -> str:
    path = folder / "answers.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("expected", "given", "is_so"),
    [
        (Number(12), 12, True),
        (Number(12), "12", True),
        (Number(134217728), "134,217,728", True),
        (Number(12), 12.1, False),
        (Number(100, 0.01), 100.9, True),
        (Number(100, 0.01), 101.2, False),
        (Number(-26.6, 0.01), -26.5, True),
        (Number(-26.6, 0.01), 26.6, False),
        (Number(1), True, False),
        (Number(1), None, False),
        (Number(1), "one", False),
        (Text("pp.none"), " PP.none ", True),
        (Text("pp.none"), "pp.some", False),
        (Text("0"), ["0"], False),
        (names(["b", "a"]), ["a", "B", "a"], True),
        (names(["b", "a"]), ["a"], False),
        (names(["b", "a"]), ["a", "b", "c"], False),
        (names(["a"]), "a", False),
    ],
)
def test_what_is_right(expected: Expected, given: object, is_so: bool) -> None:
    assert is_right(expected, given) is is_so
    assert is_right(read(document(expected)), given) is is_so


def test_tasks_are_shown_without_their_answers(overlapkit: Command) -> None:
    done = overlapkit("skill", "evals")
    assert done.status == 0
    for task in TASKS:
        assert task["prompt"] in done.out
        assert task["expected_output"] not in done.out
    for name in (name for task in TASKS for name in task["files"]):
        assert str(ROOT / SKILL / name) in done.out


def test_right_answers_are_right(tmp_path: Path, overlapkit: Command) -> None:
    done = overlapkit("skill", "evals", answers(tmp_path, right()))
    assert (done.status, done.out) == (0, f"{len(TASKS)} of {len(TASKS)} right\n")


def test_what_is_wrong_or_missing_is_named_with_what_is_right(
    tmp_path: Path, overlapkit: Command
) -> None:
    given = right()
    given["hardware-queues"]["h100"] = 32
    del given["hardware-queues"]["b200"]
    del given["fleet"]
    done = overlapkit("skill", "evals", answers(tmp_path, given))
    assert done.status == 1
    wrong, missing, total = sorted(done.out.splitlines(), key=lambda line: line[0], reverse=True)
    assert wrong.startswith("hardware-queues: ")
    assert "h100 is 32, right is 1" in wrong
    assert "b200 is missing, right is 32" in wrong
    assert missing == "fleet: no answer"
    assert total == f"{len(TASKS) - 2} of {len(TASKS)} right"


def test_json_of_the_tasks_has_no_answers(overlapkit: Command) -> None:
    done = overlapkit("skill", "evals", "--json")
    jsonschema.validate(done.document, json_schema("skill-evals"))
    assert (done.status, done.document["right"], done.document["answered"]) == (0, None, None)
    assert [task["prompt"] for task in done.document["tasks"]] == [t["prompt"] for t in TASKS]
    for task in done.document["tasks"]:
        assert task["right"] is None
        assert all(Path(file).exists() for file in task["files"])
        assert {(p["given"], p["right"], p["expected"]) for p in task["parts"]} == {(None,) * 3}


def test_json_of_answers_has_what_is_right_beside_what_is_wrong(
    tmp_path: Path, overlapkit: Command
) -> None:
    done = overlapkit("skill", "evals", answers(tmp_path, right()), "--json")
    assert (done.status, done.document["right"]) == (0, len(TASKS))
    given = right()
    given["hardware-queues"]["h100"] = 32
    del given["fleet"]
    done = overlapkit("skill", "evals", answers(tmp_path, given), "--json")
    jsonschema.validate(done.document, json_schema("skill-evals"))
    assert done.status == 1
    assert done.document["answered"] == len(TASKS) - 1
    assert done.document["right"] == len(TASKS) - 2
    wrong = {task["name"]: task["parts"] for task in done.document["tasks"] if not task["right"]}
    assert set(wrong) == {"hardware-queues", "fleet"}
    h100, b200 = sorted(wrong["hardware-queues"], key=lambda part: str(part["right"]))
    assert (h100["given"], h100["right"], h100["expected"]) == (32, False, 1)
    assert (b200["right"], b200["expected"]) == (True, None)
    (fleet,) = wrong["fleet"]
    assert fleet["given"] is None and fleet["expected"] == right_of_fleet()


def right_of_fleet() -> object:
    """The names of the fleet's files with a finding."""
    return next(iter(right()["fleet"].values()))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not JSON", "is not JSON"),
        ([], "is not a JSON object"),
        ({"nothing": {}}, "nothing: no such task"),
        ({"fleet": ["a.yaml"]}, "fleet: give an object"),
    ],
)
def test_an_answers_file_of_another_form(
    content: object, said: str, tmp_path: Path, overlapkit: Command
) -> None:
    done = overlapkit("skill", "evals", answers(tmp_path, content))
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert said in line


@pytest.mark.parametrize("content", [{}, {"evals": [{"id": 1}]}, {"evals": 1}])
def test_another_file_is_no_list_of_tasks(
    content: object, tmp_path: Path, overlapkit: Command
) -> None:
    done = overlapkit("skill", "evals", "--file", answers(tmp_path, content))
    assert done.status == 2
    assert "is not a list of tasks" in done.err
