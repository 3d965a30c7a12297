"""Scripts that start a launcher with overrides: ``python3 -m verl.trainer.main_ppo KEY=VALUE``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from overlapkit.config.launchers import detect
from overlapkit.config.launchers.tree import Keys, Tree, own_overrides
from overlapkit.config.overrides import apply_overrides, parse_override
from overlapkit.config.places import Place, word_place
from overlapkit.config.shell.follow import SHOWS_TEXT, Started
from overlapkit.config.shell.values import Field
from overlapkit.config.text_file import exists
from overlapkit.config.yaml_file import read_yaml
from overlapkit.errors import InputError

_MARKS = ("actor_rollout_ref.", "policy.megatron_cfg.", "engine.override_transformer_config.")
_PROGRAMS = ("verl.", "run_grpo", "run_dpo", "run_sft", "megatron_gpt_", "megatron_t5_")
_READ = (
    "actor_rollout_ref.actor.",
    "policy.",
    "cluster.",
    "trainer.n",
    "trainer.devices",
    "trainer.precision",
    "engine.",
    "optim.override",
    "model.",
)
"""The overrides that a reader looks at: the values of the others need not be understood."""
_FILES = (("--config", ""), ("--config-name", "--config-path"))


def hydra_launch(started: Sequence[Started]) -> Started | None:
    """The last program that is started with a launcher's overrides; None without one."""
    found = None
    for each in started:
        words = [word.text for word in (*each.outer, *each.words)]
        if not words or (each.words and each.words[0].text in SHOWS_TEXT):
            continue
        overrides = list(own_overrides(words))
        marked = any(text.lstrip("+").startswith(_MARKS) for text in overrides)
        named = any(_is_program(word) for word in words)
        if overrides and (marked or named):
            found = each
    return found


def _is_program(word: str) -> bool:
    name = PurePosixPath(word).name
    return name.startswith(_PROGRAMS) and (word.endswith(".py") or word.startswith("verl."))


def tree_of_launch(
    started: Started, path: str, lines: Sequence[str], folder: Path
) -> tuple[Tree, list[str]]:
    """The configuration that a launch describes, and notes on what of it is not known.

    The file that it names is the base where it exists beside the script; the overrides are on top.

    Raises:
        InputError: an override is below a value that is no mapping.
    """
    words = [*started.outer, *started.words]
    file = _file(words, folder)
    base = read_yaml(file) if file is not None else None
    data: dict[str, Any] = dict(base.data) if base is not None else {}
    places: dict[Keys, Place] = dict(base.places) if base is not None else {}
    notes: list[str] = []
    named = _option(words, "--config-name") or _option(words, "--config")
    if base is None and named:
        data["config_name"] = named
        notes.append(f"{path}:{started.line}: {named} is not read: it is not beside the script")
    for word in words:
        for text in own_overrides([word.text]):
            name = text.lstrip("+").partition("=")[0]
            if not name.startswith(_READ):
                continue
            where = word_place(path, lines, word.line or started.line, _written(text))
            if word.unknown is not None:
                unknown = word.unknown.name or "a command"
                notes.append(
                    f"{where.in_messages}: {name} has no known value: it comes from {unknown}; "
                    f"give it as {name}=VALUE"
                )
                continue
            override = _parsed(text)
            if override is not None:
                data = apply_overrides(data, [override])
                places[tuple(name.split("."))] = where
    return Tree(path, data, places), notes


def reader_of_launch(tree: Tree, started: Started) -> detect.Reader | None:
    """What reads the launch's configuration; None where it is none that is read here."""
    data = tree.data
    words = " ".join(word.text for word in (*started.outer, *started.words))
    if "verl." in words and "actor_rollout_ref" not in data and "engine" not in data:
        data = {**data, "actor_rollout_ref": {}}
    return detect.reader_of(data)


def _written(text: str) -> str:
    """An override's key as it stands in the script."""
    return text.lstrip("+").partition("=")[0]


def _parsed(text: str) -> Any:
    """The override; None where its value is nothing that could be looked at."""
    key, _, value = text.partition("=")
    if value in ("", "None"):
        text = f"{key}=null"
    try:
        parsed = parse_override(text, allow_unknown=True)
    except InputError:
        return None
    return replace(parsed, text=text)


def _file(words: Sequence[Field], folder: Path) -> Path | None:
    """The configuration that the launch names, where it exists here."""
    for option, at in _FILES:
        name = _option(words, option)
        if not name:
            continue
        parent = _option(words, at) if at else ""
        for suffix in ("", ".yaml"):
            for start in (folder, Path()):
                path = start / (parent or "") / f"{name}{suffix}"
                if exists(str(path)) and path.is_file():
                    return path
    return None


def _option(words: Sequence[Field], option: str) -> str:
    for n, word in enumerate(words):
        name, is_set, text = word.text.partition("=")
        if name == option:
            value = text if is_set else words[n + 1].text if n + 1 < len(words) else ""
            return value.strip("'\"")
    return ""
