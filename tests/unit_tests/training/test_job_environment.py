"""env_vars of a configuration, and what rules learn of a job's environment."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.bridge.training.decisions import Outcome
from megatron.bridge.training.job_environment import UNKNOWN, JobEnvironment, with_env_vars
from megatron.bridge.training.runtime_update import update_runtime
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN, Stack
from support.rule_runs import run_of

NEW = Stack("0.19.0", "0.6.0")
OLD = Stack("0.18.2", "0.5.1")
JOB = JobEnvironment({"A": "1"}, True, "job.env")


def test_the_process_keeps_its_value_and_env_vars_sets_what_is_missing() -> None:
    environment, [note] = with_env_vars({"A": 2, "B": True, "C": "x"}, JOB, NEW)

    # Megatron-Bridge writes str(value).
    assert environment.variables == {"A": "1", "B": "True", "C": "x"}
    assert (note.rule, note.outcome) == ("launch.env-vars-overridden", Outcome.NOTE)
    assert (note.knob, note.requested, note.effective) == ("env_vars.A", "2", "1")
    assert "job.env sets A=1" in note.reason
    assert environment.origin("A") == "job.env"
    assert environment.origin("B") == "env_vars"


def test_an_empty_value_of_the_process_is_a_value() -> None:
    environment, [note] = with_env_vars({"A": 2}, JobEnvironment({"A": ""}, True), NEW)
    assert environment.get("A") == ""
    assert note.effective == ""


def test_the_same_value_in_both_places_needs_no_note() -> None:
    assert with_env_vars({"A": 1}, JOB, NEW)[1] == []


@pytest.mark.parametrize("value", [None, [1], {"a": 1}])
def test_what_is_no_scalar_stops_the_job(value: Any) -> None:
    environment, [error] = with_env_vars({"X": value, "Y": 1}, JOB, NEW)
    assert (error.rule, error.outcome) == ("launch.env-vars-invalid", Outcome.ERROR)
    assert error.knob == "env_vars.X"
    assert not environment.variables.keys() & {"X"}
    assert environment.get("Y") == "1"


@pytest.mark.parametrize("name", ["", 3])
def test_a_name_is_text_that_is_not_empty(name: Any) -> None:
    _, [error] = with_env_vars({name: 1}, JOB, NEW)
    assert error.rule == "launch.env-vars-invalid"


def test_versions_without_the_field_ignore_it() -> None:
    environment, [note] = with_env_vars({"A": 2, "B": [1]}, JOB, OLD)
    assert environment is JOB
    assert (note.rule, note.outcome) == ("launch.env-vars-ignored", Outcome.NOTE)
    assert "A, B" in note.reason
    assert "0.5.1" in note.reason


def test_env_vars_states_a_jobs_environment_and_nothing_of_it_where_it_is_empty() -> None:
    assert not with_env_vars({}, UNKNOWN, NEW)[0].declared
    environment, _ = with_env_vars({"A": 1}, UNKNOWN, NEW)
    assert environment.declared
    assert environment.knows("A")
    # A launcher may set it.
    assert not environment.knows("B")
    assert with_env_vars({"A": 1}, JOB, NEW)[0].knows("B")


@pytest.mark.parametrize("stack", KNOWN)
def test_it_is_the_first_step_of_the_update(stack: Stack) -> None:
    run = run_of()
    run.env_vars = {"X_OWN": True, "A": 2}
    update = update_runtime(
        run, 16, software=AssumedSoftware(stack=stack), environment=JOB, strict=False
    )

    # Probe "env_vars" of Megatron-Bridge 0.3.1 to main.
    newer = stack in KNOWN[3:]
    assert update.environment.get("X_OWN") == ("True" if newer else None)
    assert update.environment.get("A") == "1"
    assert update.decisions[0].rule == f"launch.env-vars-{'overridden' if newer else 'ignored'}"
