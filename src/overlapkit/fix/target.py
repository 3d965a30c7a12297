"""What is fixed: a YAML file, a launch script, or arguments; as a text in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from megatron.bridge.training.edits import ENV, Edit, Removed
from megatron.bridge.training.job_environment import ENV_VARS, IGNORED
from megatron.bridge.training.mixed_precision import mixed_precision_recipe
from overlapkit.config.megatron_lm.flag_edits import FlagEdit, flag_edits, make
from overlapkit.config.megatron_lm.flags import FLAGS, flag_value
from overlapkit.config.overrides import BY_NAME
from overlapkit.config.places import Place
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings, build_run
from overlapkit.config.schema import core_table, known_keys
from overlapkit.config.shapes import TRANSFORMER
from overlapkit.config.shell.follow import follow_script
from overlapkit.config.shell.slurm import slurm_variables
from overlapkit.config.sources import Source
from overlapkit.config.text_file import exists, proposed
from overlapkit.config.yaml_file import load_yaml
from overlapkit.errors import InputError
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
from overlapkit.fix.yaml_edit import Path, edit_yaml, key_paths, same

PRECISION = "mixed_precision"
_TWINS = frozenset({"fp8_param", "fp8_param_gather"})
"""Two names of one field."""


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
        return _file(self.source.name)[0]

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
        for edit in edits:
            _refuse_overridden(settings, edit.key)
            _refuse_elsewhere(settings, edit.key, self.file)
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
            _check(settings, after, edits, allowed)
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
                path, value = self._path(settings, edit.key), _plain(edit.value)
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
        passed = self.passed()
        for flag in change.remove:
            if flag in self.passed():
                self.step(
                    without_flag(self.script(), flag),
                    lambda after, flag=flag: flag not in _passed(after),
                    f"omit {flag}",
                    flag,
                )
        for words in change.add:
            given = words[0] in passed and words[0] in self.passed()
            propose = with_new_words if given else with_flag
            if given and len(words) == 1:
                continue
            self.step(
                propose(self.script(), words[0], words[1:]),
                lambda after, words=words: _has(after, words),
                f"pass {' '.join(words)}",
                words[0],
            )
        for edit in variables:
            self.variable(edit)
        return self.target

    def passed(self) -> dict[str, Place]:
        return _passed(self.settings)

    def script(self) -> Script:
        given = frozenset(
            text.partition("=")[0] for text in self.target.source.given if "." not in text[:1]
        )
        return Script(self.target.text, self.passed(), given, _launch_line(self.target))

    def step(self, proposals: Any, wanted: Any, what: str, flag: str) -> None:
        place = self.passed().get(flag)
        if place is not None and place.file is not None and place.file != self.target.file:
            raise CannotEdit(f"{what} in {place.in_messages}: another file is not changed")
        before = self.settings
        others = _other_launches(self.target)

        def accepts(text: str) -> bool:
            target = self.proposal(text)
            try:
                after = target.read()
            except (InputError, RecursionError):
                return False
            if not wanted(after) or _difference(before, after, self.allowed, ()):
                return False
            if _other_launches(target) != others:
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
            lambda after: _environment(after).get(name) == value,
            _export(edit),
            edit.key,
        )

    def proposal(self, text: str) -> Target:
        """The target with another text; the line that selects a launch moves with it."""
        name, line = _file(self.target.source.name)
        if line is None:
            return replace(self.target, text=text)
        moved = _moved(self.target.text, text, line)
        return replace(
            self.target, text=text, source=replace(self.target.source, name=f"{name}:{moved}")
        )


def _file(name: str) -> tuple[str, int | None]:
    file, _, line = name.rpartition(":")
    if file and line.isdecimal() and len(line) < 8 and not exists(name):
        return file, int(line)
    return name, None


def _moved(old: str, new: str, line: int) -> int:
    """The line in the new text that a line of the old one became: they differ in one place."""
    before, after = old.split("\n"), new.split("\n")
    above = 0
    for one, other in zip(before, after, strict=False):
        if one != other:
            break
        above += 1
    added = len(after) - len(before)
    if line <= above:
        return line
    if line - 1 > above or after[line - 1 + added : line + added] == [before[line - 1]]:
        return line + added
    # The line itself has the change.
    return line


def _followed(target: Target) -> Any:
    text = target.text.replace("\r\n", "\n")
    given = dict(t.split("=", 1) for t in target.source.given if "." not in t.partition("=")[0])
    return follow_script(text, target.file, given, slurm_variables(text))


def _launches(target: Target) -> list[Any]:
    from overlapkit.config.megatron_lm.launch_line import is_launch

    return [started for started in _followed(target).started if is_launch(started)]


def _launch_line(target: Target) -> int | None:
    """The line of the launch that is fixed."""
    _, wanted = _file(target.source.name)
    lines = [started.line for started in _launches(target)]
    if wanted is not None:
        return wanted
    return lines[0] if lines else None


def _other_launches(target: Target) -> list[tuple[str, ...]]:
    """The command lines of the script's jobs but for that of a line that the user named."""
    _, wanted = _file(target.source.name)
    if wanted is None:
        return []
    others = [started for started in _launches(target) if started.line != wanted]
    return [tuple(word.text for word in started.words) for started in others]


def _passed(settings: Settings) -> dict[str, Place]:
    return settings.launch.passed if settings.launch is not None else {}


def _has(settings: Settings, words: Sequence[str]) -> bool:
    """Whether a flag is passed with these words."""
    flag = words[0]
    declared = FLAGS.get(flag)
    if declared is None:
        # A flag that no setting is read from.
        return True
    if flag not in _passed(settings):
        return False
    value = flag_value(flag, list(words[1:]), flag)
    flat = settings.flat()
    return all(same(flat.get(key), value) for key in declared.keys)


def _environment(settings: Settings) -> dict[str, str]:
    launched = settings.launch.environment if settings.launch is not None else {}
    declared = settings.values.get(ENV_VARS) or {}
    return {**{str(n): str(v) for n, v in declared.items()}, **launched}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


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
    return edit_yaml(text, (PRECISION,), {key: _plain(value) for key, value in recipe.items()})


def _precision_differs(before: Settings, after: Settings, edits: Sequence[Edit]) -> str:
    """A field of mixed precision that has another value without having been changed."""
    one, other = build_run(before).mixed_precision, build_run(after).mixed_precision
    changed = {edit.key.partition(".")[2] for edit in edits}
    if changed & _TWINS:
        changed |= _TWINS
    for name in known_keys(PRECISION) - changed:
        if getattr(one, name, None) != getattr(other, name, None):
            return f"{PRECISION}.{name}"
    return ""


def _export(edit: Edit) -> str:
    name = edit.key.removeprefix(ENV)
    return f"unset {name}" if isinstance(edit.value, Removed) else f"export {name}={edit.value}"


def _refuse_overridden(settings: Settings, key: str) -> None:
    """Raise CannotEdit for a key that the command line sets, whatever the file says."""
    names = key.split(".")
    above = {".".join(names[: n + 1]) for n in range(len(names))}
    for each in above & settings.overridden:
        place = settings.where.get(each)
        raise CannotEdit(
            f"{place.argument if place is not None else each} on the command line sets it: change "
            "that"
        )


def _refuse_elsewhere(settings: Settings, key: str, file: str) -> None:
    """Raise CannotEdit for a key that another file sets."""
    place = settings.where.get(key)
    if place is not None and place.file is not None and file and place.file != file:
        raise CannotEdit(f"it is set in {place.in_messages}: another file is not changed")


def _check(
    before: Settings, after: Settings, edits: Sequence[Edit], allowed: frozenset[str]
) -> None:
    """Raise CannotEdit unless the settings have the edits, and no other changed."""
    flat, environment = after.flat(), _environment(after)
    for edit in edits:
        gone = isinstance(edit.value, Removed)
        if edit.key.startswith(ENV):
            name = edit.key.removeprefix(ENV)
            right = environment.get(name) == (None if gone else str(edit.value))
        else:
            with suppress(TypeError):
                flat = _with_nested(flat, edit.key)
            value = _plain(edit.value)
            # Where no flag says a value, its default may.
            right = edit.key not in flat if gone else same(flat.get(edit.key), value)
            right = right or (after.launch is not None and edit.key not in after.asked)
        if not right:
            raise CannotEdit(f"{edit} would not be read back from it")
    what = _difference(before, after, allowed, [edit.key for edit in edits])
    if not what and PRECISION in allowed:
        what = _precision_differs(before, after, edits)
    if what:
        raise CannotEdit(f"{what} would change with it")


def _with_nested(flat: dict[str, Any], key: str) -> dict[str, Any]:
    """Flat settings with a key of more than two parts beside them."""
    section, *names = key.split(".")
    if len(names) < 2:
        return flat
    value = flat.get(f"{section}.{names[0]}")
    for name in names[1:]:
        if not isinstance(value, dict) or name not in value:
            return flat
        value = value[name]
    return {**flat, key: value}


def _difference(
    before: Settings, after: Settings, allowed: frozenset[str], keys: Sequence[str]
) -> str:
    """What differs besides the keys that may; empty where nothing does."""
    free = {".".join(key.split(".")[:2]) for key in (*allowed, *keys)}
    free |= {f"{ENV_VARS}.{key.removeprefix(ENV)}" for key in free if key.startswith(ENV)}
    one, other = before.flat(), after.flat()
    for key in one.keys() | other.keys():
        if key in free or key in (k.partition(".")[0] for k in free):
            continue
        # What follows from other flags is no setting of the script's.
        follows = before.launch is not None and key not in before.asked | after.asked
        if not follows and not (key in one and key in other and same(one[key], other[key])):
            return key
    changed = {k.removeprefix(ENV) for k in (*allowed, *keys) if k.startswith(ENV)}
    was, now = _environment(before), _environment(after)
    for name in was.keys() | now.keys():
        if name not in changed and was.get(name) != now.get(name):
            return name
    if before.launch is not None and after.launch is not None:
        if before.launch.world_size != after.launch.world_size:
            return "the number of GPUs"
        if before.launch.unread != after.launch.unread:
            return "a flag that is not read"
    return ""
