"""What is known of the environment of a job's processes, and what env_vars adds to it.

Since Megatron-Bridge 0.6.0 a configuration has `env_vars`. The first step of its update puts them
into the process's environment, each only where the process has no value of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import REMOVED, Edit, either
from megatron.bridge.training.versions import Range, Stack

ENV_VARS = "env_vars"
"""The section of a configuration."""

_SINCE = "0.6.0"
_SOURCE = "Megatron-Bridge cce495373: ConfigContainer.env_vars, applied by setdefault"

APPLIED = rule(
    "launch.env-vars-overridden",
    Dimension.LAUNCH,
    claim="A variable that the process already has keeps its value: env_vars of the configuration "
    "sets only what is missing.",
    remedy="unset the variable where the job is started, or set the same value in env_vars",
    versions=(Range("bridge", since=_SINCE),),
    source=_SOURCE,
)
INVALID = rule(
    "launch.env-vars-invalid",
    Dimension.LAUNCH,
    claim="Megatron-Bridge stops at start where a name in env_vars is empty or a value is not a "
    "string, a number or a boolean. A value becomes its text: true becomes True.",
    remedy="remove the entry of env_vars, or give it a name and one value",
    versions=(Range("bridge", since=_SINCE),),
    source=_SOURCE,
)
IGNORED = rule(
    "launch.env-vars-ignored",
    Dimension.LAUNCH,
    claim="Megatron-Bridge before 0.6.0 has no env_vars: what the section sets is not in the "
    "job's environment.",
    remedy="export the variables where the job is started, or use Megatron-Bridge 0.6.0 or newer",
    versions=(Range("bridge", until=_SINCE),),
    source=_SOURCE,
)


@dataclass(frozen=True)
class JobEnvironment:
    """What is known of the environment that a job's processes have.

    Attributes:
        variables: name to value.
        complete: whether a name that is missing is certainly not set.
        source: where the variables come from, as a sentence names it: "job.env".
        origins: the sources of the variables that come from elsewhere, by name.
        places: where env_vars sets each of its names, such as a line; env_vars itself by default.
        unknown: names that may be set, to a value that is not known; never missing for certain.
        declared: whether the configuration has env_vars, where its job's environment is written
            down; only a launcher could then set a name that is missing.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False
    source: str = "the job's environment"
    origins: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    declared: bool = False
    unknown: frozenset[str] = frozenset()

    def get(self, name: str) -> str | None:
        """The value of a variable; None where it is not set, or not known (see `knows`)."""
        return self.variables.get(name)

    def knows(self, name: str) -> bool:
        """Whether it is known if the variable is set, and to what."""
        return name in self.variables or (self.complete and name not in self.unknown)

    def origin(self, name: str) -> str:
        """Where a variable that is set comes from."""
        return self.origins.get(name, self.source)

    @property
    def sources(self) -> str:
        """Where the variables come from, all together."""
        return f"{self.source} and {ENV_VARS}" if self.declared else self.source

    def says_unset(self, name: str) -> str:
        """That a variable is not set, as the start of a sentence with where it was looked for."""
        if self.declared:
            return f"neither {ENV_VARS} nor {self.source} sets {name}"
        return f"{self.source} does not set {name}"

    def place_to_set(self, name: str) -> str:
        """Where to set a variable, so that the job has the value: "in job.env, before ..."."""
        if name in self.origins:
            return f"in {self.origins[name]}"
        if self.declared and not self.complete and name not in self.variables:
            return f"in {ENV_VARS}"
        return f"in {self.source}, before the process starts"


UNKNOWN = JobEnvironment()
"""An environment of which nothing is known."""


def this_process() -> JobEnvironment:
    """The environment of this process, which is the job's own."""
    return JobEnvironment(dict(os.environ), True, "the process's environment")


def with_env_vars(
    env_vars: Mapping[Any, Any] | None, process: JobEnvironment, stack: Stack
) -> tuple[JobEnvironment, list[Decision]]:
    """A job's environment after Megatron-Bridge applied the configuration's env_vars.

    Args:
        env_vars: the section; None or empty where it sets nothing.
        process: what is known of the environment before.
        stack: the versions of the run.

    Returns:
        The environment, and what is to be said about env_vars: an error for each entry that stops
        the job, and a note for each that the process overrides or that the version ignores.
    """
    if not env_vars:
        return process, []
    if IGNORED.holds(stack):
        return process, [_ignored(env_vars, stack)]
    added: dict[str, str] = {}
    decisions: list[Decision] = []
    for name, value in env_vars.items():
        if wrong := _wrong(name, value):
            edits = (Edit(f"{ENV_VARS}.{name}", REMOVED),)
            remedy = either(edits, "give it a name and one value")
            decisions.append(INVALID.error(f"{ENV_VARS}.{name}", value, wrong, remedy, edits))
        elif (own := process.get(name)) is None:
            added[name] = str(value)
        elif own != str(value):
            decisions.append(_overridden(name, str(value), own, process))
    return (
        replace(
            process,
            variables={**process.variables, **added},
            origins={**process.origins, **{n: process.places.get(n, ENV_VARS) for n in added}},
            declared=True,
        ),
        decisions,
    )


_SECRET = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
"""Names of variables whose value in the process may not be for everyone who reads a report."""
_ANOTHER = "(another value)"
_LONGEST = 80
"""Characters of a value that are shown."""


def _wrong(name: object, value: object) -> str:
    """Why Megatron-Bridge refuses an entry; empty where it takes it."""
    if not isinstance(name, str) or not name:
        return f"the name of an environment variable must be text that is not empty, not {name!r}"
    if not isinstance(value, (str, int, float)):
        kind = {list: "a list", dict: "a mapping", type(None): "null"}.get(type(value), "no scalar")
        return f"the value is {kind}, and must be a string, a number or a boolean"
    return ""


def _overridden(name: str, written: str, own: str, process: JobEnvironment) -> Decision:
    shown = _ANOTHER if _SECRET.search(name) else own[:_LONGEST]
    return APPLIED.decide(
        f"{ENV_VARS}.{name}",
        requested=written[:_LONGEST],
        effective=shown,
        reason=f"{process.origin(name)} sets {name}={shown}, which wins over the "
        f"{written[:_LONGEST]} of {process.places.get(name, ENV_VARS)}",
        outcome=Outcome.NOTE,
        remedy=APPLIED.remedy,
    )


def _ignored(env_vars: Mapping[Any, Any], stack: Stack) -> Decision:
    names = ", ".join(map(str, env_vars))
    return IGNORED.decide(
        ENV_VARS,
        requested=None,
        effective=None,
        reason=f"Megatron-Bridge {stack.bridge} has no {ENV_VARS}: {names} "
        f"{'is' if len(env_vars) == 1 else 'are'} not in the job's environment",
        outcome=Outcome.NOTE,
        remedy=IGNORED.remedy,
    )
