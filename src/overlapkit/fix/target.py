"""What is fixed: a YAML file, a launch script, or arguments; as a text in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.training.edits import ENV, Edit, Removed
from megatron.bridge.training.job_environment import ENV_VARS, IGNORED
from megatron.bridge.training.mixed_precision import mixed_precision_recipe
from overlapkit.config.megatron_lm.flag_edits import FlagEdit, flag_edits, make
from overlapkit.config.megatron_lm.flags import CHUNK_LAYERS, CHUNKS, FLAGS
from overlapkit.config.overrides import BY_NAME
from overlapkit.config.places import Place
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings
from overlapkit.config.schema import core_table, known_keys
from overlapkit.config.shapes import TRANSFORMER
from overlapkit.config.sources import Source
from overlapkit.config.text_file import proposed
from overlapkit.config.yaml_file import load_yaml
from overlapkit.errors import InputError
from overlapkit.fix.checks import (
    DTYPES,
    PRECISION,
    check_made,
    difference,
    environment_of,
    plain_value,
    refuse_elsewhere,
    refuse_overridden,
)
from overlapkit.fix.launches import (
    file_and_line,
    is_passed,
    launch_line,
    moved,
    other_launches,
    passed_flags,
    variables_of,
)
from overlapkit.fix.script_edit import (
    Script,
    accepted,
    with_flag,
    with_new_words,
    with_variable,
    without_flag,
    without_variable,
)
from overlapkit.fix.splice import CannotEdit
from overlapkit.fix.yaml_edit import Path, edit_yaml, key_paths

_PRECISION_CLASS = "megatron.bridge.training.mixed_precision.MixedPrecisionConfig"


@dataclass(frozen=True)
class Target:
    """A configuration that is fixed.

    Attributes:
        source: as the user named it.
        reading: how it is read.
        text: of its file, as it is now; empty for arguments.
    """

    source: Source
    reading: Reading
    text: str = ""

    @property
    def file(self) -> str:
        """Its file, as the user named it; empty for arguments."""
        return file_and_line(self.source.name)[0]

    def read(self) -> Settings:
        """Its settings.

        Raises:
            InputError: as `Source.read`.
        """
        if self.source.kind == "arguments":
            return self.source.read(self.reading)
        with proposed(self.file, self.text):
            return self.source.read(self.reading)

    def edited(self, settings: Settings, edits: Sequence[Edit]) -> tuple[Target, Settings]:
        """The configuration with changes of its settings, and its settings then.

        Args:
            settings: as they are now.
            edits: what to change; all of it or nothing is changed.

        Raises:
            CannotEdit: one of them cannot be made there, or would change something else.
        """
        origin = settings.origin
        if origin is not None and not origin.takes_flags:
            raise CannotEdit(
                f"it is {origin.name}'s configuration, whose own keys are not written here"
            )
        for edit in edits:
            refuse_overridden(settings, edit.key)
            refuse_elsewhere(settings, edit.key, self.file)
        if self.source.kind == "yaml":
            target = self._edited_yaml(settings, edits)
            allowed = frozenset(edit.key for edit in edits)
            if target.recipe_in_full(settings, edits):
                # It is compared by what the recipe means.
                allowed |= {PRECISION, *(f"{PRECISION}.{name}" for name in known_keys(PRECISION))}
        else:
            target, allowed = self._edited_flags(settings, edits)
        try:
            after = target.read()
        except InputError as error:
            raise CannotEdit(f"it would be refused then: {error}") from None
        if target.source.kind != "arguments" or not any(e.key.startswith(ENV) for e in edits):
            check_made(settings, after, edits, allowed)
        return target, after

    # --------------------------------------------------------------------------------- YAML

    def _edited_yaml(self, settings: Settings, edits: Sequence[Edit]) -> Target:
        text = self.text
        if any(edit.key.startswith(f"{PRECISION}.") for edit in edits):
            text = _with_recipe_in_full(text, settings)
        for edit in edits:
            if edit.key.startswith(ENV):
                path, value = _env_vars(settings, edit), edit.value
                value = value if isinstance(value, Removed) else str(value)
            else:
                path, value = self._path(settings, edit.key), plain_value(edit.value)
            text = edit_yaml(text, path, value)
        return replace(self, text=text)

    def recipe_in_full(self, settings: Settings, edits: Sequence[Edit]) -> bool:
        """Whether the changes write a mixed-precision recipe out that was a name."""
        by_name = BY_NAME in (settings.values.get(PRECISION) or {})
        return by_name and any(edit.key.startswith(f"{PRECISION}.") for edit in edits)

    def _path(self, settings: Settings, key: str) -> Path:
        """Where a setting is in the file: by its place, else by its name."""
        section, *names = key.split(".")
        data, _ = load_yaml(self.text)
        if section == "model" and names:
            model = data.get("model")
            inner = model.get(TRANSFORMER) if isinstance(model, dict) else None
            if isinstance(inner, dict):
                is_core = names[0] in core_table().model or names[0] in core_table().mla
                known = model.get(names[0]) is not None or (names[0] in model and not is_core)
                if not known and (names[0] in inner or is_core):
                    return ("model", TRANSFORMER, *names)
        if isinstance(data, dict) and section in data:
            return (section, *names)
        place = settings.where.get(key)
        if place is not None and place.line and place.column:
            return key_paths(self.text).get((place.line, place.column), (section, *names))
        return (section, *names)

    # ------------------------------------------------------------------------ scripts, arguments

    def _edited_flags(
        self, settings: Settings, edits: Sequence[Edit]
    ) -> tuple[Target, frozenset[str]]:
        """The target, and the keys that may have changed with its flags."""
        variables = [edit for edit in edits if edit.key.startswith(ENV)]
        change = flag_edits([e for e in edits if e not in variables], settings.stack.core)
        if change.why_not:
            raise CannotEdit(change.why_not)
        changed = (*change.remove, *(words[0] for words in change.add))
        keys = {key for flag in changed if flag in FLAGS for key in FLAGS[flag].keys}
        if CHUNK_LAYERS in changed:
            keys |= set(FLAGS[CHUNKS].keys)
        allowed = frozenset(edit.key for edit in edits) | keys
        if self.source.kind == "arguments":
            for edit in variables:
                raise CannotEdit(f"{_export(edit)} where the job is started")
            arguments = tuple(make(change, self.source.arguments))
            return replace(self, source=replace(self.source, arguments=arguments)), allowed
        return _ScriptChange(self, settings, allowed).made(change, variables), allowed


@dataclass
class _ScriptChange:
    """Changes of a script, one after the other; each is followed before the next."""

    target: Target
    settings: Settings
    allowed: frozenset[str]

    def made(self, change: FlagEdit, variables: Iterable[Edit]) -> Target:
        for flag in change.remove:
            if flag in self.passed():
                self.step(
                    without_flag(self.script(), flag),
                    lambda _, after, flag=flag: flag not in passed_flags(after),
                    f"omit {flag}",
                    flag,
                )
        for words in change.add:
            given = words[0] in self.passed()
            propose = with_new_words if given else with_flag
            if given and is_passed(self.target.source, self.target.text, self.settings, words):
                continue
            self.step(
                propose(self.script(), words[0], words[1:]),
                lambda target, after, words=words: is_passed(
                    target.source, target.text, after, words
                ),
                f"pass {' '.join(words)}",
                words[0],
            )
        for edit in variables:
            self.variable(edit)
        return self.target

    def passed(self) -> dict[str, Place]:
        return passed_flags(self.settings)

    def script(self) -> Script:
        given = frozenset(variables_of(self.target.source))
        return Script(
            self.target.text,
            self.passed(),
            given,
            launch_line(self.target.source, self.target.text),
        )

    def step(self, proposals: Any, wanted: Any, what: str, flag: str) -> None:
        place = self.passed().get(flag)
        if place is not None and place.file is not None and place.file != self.target.file:
            raise CannotEdit(f"{what} in {place.in_messages}: another file is not changed")
        before = self.settings
        others = other_launches(self.target.source, self.target.text)

        def accepts(text: str) -> bool:
            target = self.proposal(text)
            try:
                after = target.read()
            except (InputError, RecursionError):
                return False
            if not wanted(target, after) or difference(before, after, self.allowed, ()):
                return False
            if other_launches(target.source, target.text) != others:
                return False
            self.target, self.settings = target, after
            return True

        where = f" in {place.in_messages}" if place is not None and place.line else ""
        accepted(
            proposals, accepts, f"{what}{where}: no change of one place does that and nothing else"
        )

    def variable(self, edit: Edit) -> None:
        name = edit.key.removeprefix(ENV)
        gone = isinstance(edit.value, Removed)
        value = None if gone else str(edit.value)
        script = self.script()
        if script.launch is None:
            raise CannotEdit(f"the script starts no job: {_export(edit)} where it is started")
        place = self.settings.where.get(edit.key)
        line = place.line if place is not None else None
        proposals = (
            without_variable(script, name, line)
            if value is None
            else with_variable(script, name, value, line)
        )
        self.step(
            proposals,
            lambda _, after: environment_of(after).get(name) == value,
            _export(edit),
            edit.key,
        )

    def proposal(self, text: str) -> Target:
        """The target with another text; the line that selects a launch moves with it."""
        name, line = file_and_line(self.target.source.name)
        if line is None:
            return replace(self.target, text=text)
        name = f"{name}:{moved(self.target.text, text, line)}"
        return replace(self.target, text=text, source=replace(self.target.source, name=name))


def _env_vars(settings: Settings, edit: Edit) -> Path:
    """Where a variable is in a YAML file.

    Raises:
        CannotEdit: the framework's version has no such section, or that is not known.
    """
    name = edit.key.removeprefix(ENV)
    declared = settings.values.get(ENV_VARS)
    has_it = [not IGNORED.holds(stack) for stack in settings.stacks]
    bridge = settings.framework == "megatron-bridge"
    if bridge and ((has_it and all(has_it)) or (not has_it and declared)):
        return (ENV_VARS, name)
    if not bridge:
        raise CannotEdit(f"{_export(edit)} where the job is started")
    if not has_it:
        raise CannotEdit(
            f"{_export(edit)} where the job is started, or give --bridge: the version is not "
            f"known, and only 0.6.0 and newer have {ENV_VARS}"
        )
    raise CannotEdit(
        f"{_export(edit)} where the job is started: Megatron-Bridge "
        f"{settings.stacks[0].bridge} has no {ENV_VARS}"
    )


def _with_recipe_in_full(text: str, settings: Settings) -> str:
    """A YAML text with mixed_precision as keys, where it is a recipe's name."""
    content = settings.values.get(PRECISION) or {}
    if BY_NAME not in content or PRECISION in settings.overridden:
        return text
    recipe = mixed_precision_recipe(content[BY_NAME], settings.stack)
    section = {"_target_": _PRECISION_CLASS}
    section |= {key: _as_dumped(plain_value(value)) for key, value in recipe.items()}
    return edit_yaml(text, (PRECISION,), section)


def _as_dumped(value: Any) -> Any:
    """A value as Megatron-Bridge writes it: a dtype is an object that is not called."""
    if isinstance(value, str) and value in DTYPES:
        return {"_target_": f"torch.{value}", "_call_": False}
    return value


def _export(edit: Edit) -> str:
    name = edit.key.removeprefix(ENV)
    return f"unset {name}" if isinstance(edit.value, Removed) else f"export {name}={edit.value}"
