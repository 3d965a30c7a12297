"""Every remedy is given for its problem in its software, and in no other.

A remedy of the source that no profile is given fails the last test.
"""

from __future__ import annotations

from functools import cache

import pytest

from overlapkit.trace.diagnose import remedies
from support.field.problems import MARKS, PROBLEMS, program
from support.field.situations import SITUATIONS
from support.trace_answers import Answer, trace_of

OF_TRAINING = {"one reduction", "late reductions", "parameter gather", "tensor parallel"}
OF_TRAINING |= {"tensor parallel without sequence parallel"}
"""Problems that engines of inference cannot have: their communication is said to be exposed."""


def _frameworks(problem) -> list:
    """Those with a remedy of their own for it; nothing, an engine, and one that has none."""
    own = [name for name in MARKS if problem in remedies._OF.get(name, {})]
    others = [name for name in MARKS if name not in own and name not in remedies.ENGINES]
    return [None, *own, "sglang", *others[-1:]]


ASKED = [(problem, framework) for problem in PROBLEMS for framework in _frameworks(problem)]
ASKED += [("exposed", "vllm"), ("experts", "tensorrt_llm")]


def _expected(problem, framework) -> remedies.Remedy:
    if framework in remedies.ENGINES and problem in OF_TRAINING:
        problem = "exposed"
    return remedies.remedy(problem, framework)


def _advice(remedy: remedies.Remedy) -> str:
    return f"{remedy.text}; in Megatron-LM: {remedy.flags}" if remedy.flags else remedy.text


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems")

    @cache
    def answer(problem, framework) -> Answer:
        name = f"{problem}-{framework}.json".replace(" ", "-")
        return trace_of(program(problem, framework).write(folder / name))

    return answer


@pytest.mark.parametrize(("problem", "framework"), ASKED)
def test_the_remedy_is_that_of_the_problem_in_the_software(problem, framework, answered):
    answer = answered(problem, framework)
    assert answer.document["framework"]["name"] == framework
    expected = _expected(problem, framework)
    # Exactly one thing is wrong, so that any other remedy would be false.
    (diagnosis,) = answer.document["diagnoses"]
    assert (diagnosis["remedy"], diagnosis["rule"]) == (_advice(expected), expected.rule)
    assert _advice(expected) in answer.text


def test_the_remedy_of_an_interleaved_pipeline_needs_its_configuration(tmp_path):
    expected = remedies.remedy("interleaved pipeline", "megatron")
    for name in ("interleaved, configured", "pipeline, configured"):
        answer = SITUATIONS[name](tmp_path)
        assert (_advice(expected) in answer.text) == name.startswith("interleaved")


def test_every_remedy_of_the_source_is_given_to_a_profile():
    given = {_expected(*asked).text for asked in ASKED}
    given.add(remedies.remedy("interleaved pipeline", "megatron").text)
    tables = [*remedies._OF.values(), remedies._GENERAL, {"exposed": remedies._ENGINE}]
    assert {r.text for table in tables for r in table.values()} - given == set()
