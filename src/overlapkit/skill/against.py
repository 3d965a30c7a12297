"""Writes the skill with the anchors of the reader's own checkout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from overlapkit.errors import InputError
from overlapkit.output.files import Output
from overlapkit.skill.anchors.checkout import anchors_of
from overlapkit.skill.render import SKILL, TEMPLATES, environment_of, rendered

PAGES = ("SKILL.md", "references/code.md")
"""The pages that have anchors of the checkout; the others are those of the skill as it is."""
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", *PAGES[:1], "code.md")


def write_against(checkout: str, out: str) -> list[Path]:
    """Write the whole skill with the anchors of a checkout.

    Args:
        checkout: of Megatron-Bridge or Megatron-LM.
        out: the folder to write it to: a new or an empty one, or one with a skill.

    Returns:
        The pages that have anchors of the checkout.

    Raises:
        InputError: the checkout has no code that decides on overlap, `out` is another folder, or
            the skill's own folder is not there.
    """
    source = _own_folder()
    target = _target(out)
    if target != source and target.is_relative_to(source):
        raise InputError(f"--out {out}: is inside of the skill's own folder; name another one")
    environment = environment_of(TEMPLATES)
    environment.globals["anchors"] = anchors = anchors_of(checkout)
    environment.globals["against"] = ", and in ".join(each.name for each in anchors)
    texts = {name: rendered(environment, f"{name}.j2") for name in PAGES}
    try:
        if not target.exists() or not target.samefile(source):
            # What links lead to is part of the skill: its source.
            shutil.copytree(source, target, ignore=_NOT_COPIED, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise InputError(f"--out {out}: cannot be written: {error}") from None
    for name, text in texts.items():
        Output("--out", str(target / name), within=target).write(text)
    return [target / name for name in texts]


def _own_folder() -> Path:
    """The skill's folder: in a checkout of overlapkit, or where the skill is installed.

    Raises:
        InputError: there is none, as beside an installed package.
    """
    root = TEMPLATES.parents[3]
    for folder in (root / SKILL, root):
        if all((folder / name).is_file() for name in PAGES):
            return folder
    raise InputError(
        "--against: the skill's folder is not there; run this in a checkout of overlapkit, or "
        "with the skill's scripts/overlapkit"
    )


def _target(out: str) -> Path:
    try:
        target = Path(os.path.realpath(out))
        if target.exists() and not target.is_dir():
            raise InputError(f"--out {out}: is not a folder; name a new one")
        other = target.is_dir() and any(target.iterdir()) and not (target / PAGES[0]).is_file()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--out {out}: cannot be used: {reason}") from None
    if other:
        raise InputError(
            f"--out {out}: has files and is no skill's folder; name a new or an empty folder"
        )
    return target
