"""The command `overlapkit translate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overlapkit.config.emit.forms import FORMS, Form
from overlapkit.config.reading import Reading
from overlapkit.config.sources import check_world_size, read_sources
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.explain.assumptions import assume
from overlapkit.output.console import write_json, write_text
from overlapkit.translate.text import remark_lines
from overlapkit.translate.translation import Translation, translate

if TYPE_CHECKING:
    from overlapkit.config.run import Settings


def run(
    *,
    arguments: Sequence[str],
    to: str,
    world_size: int | None,
    gpu: str | None,
    te: str | None,
    reading: Reading,
    from_megatron_lm: bool,
    as_json: bool,
    out: str | None,
) -> int:
    """Write a configuration in another form; returns the exit status.

    Args:
        arguments: a configuration and overrides; see `config.sources.name_sources`.
        to: the form.
        world_size: GPUs of the job.
        gpu, te: see `explain.assumptions.assume`.
        reading: for which versions and how strictly the configuration is read.
        from_megatron_lm: as in `explain`.
        as_json: whether to print the JSON document instead of the text.
        out: file for the text; None for standard output.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    form = form_of(to)
    target = None
    if out is not None:
        from overlapkit.output.files import outputs

        # A launch script can be given with a line: FILE:LINE.
        files = [*arguments, *(text.rpartition(":")[0] for text in arguments)]
        (target,) = outputs({"--out": out}, files)
    named = read_sources(
        arguments, command="translate", from_megatron_lm=from_megatron_lm, reading=reading
    )
    if not named:
        raise InputError("translate takes one CONFIG: none is given")
    translation = translated(named[0], form, world_size, gpu, te, reading)
    if target is not None:
        target.write(translation.text)
        for line in remark_lines(translation):
            print(f"overlapkit: {line}", file=sys.stderr)
    if as_json:
        from overlapkit.translate.document import translate_document

        write_json(translate_document(translation))
    elif target is None:
        write_text(translation.text)
    return EXIT_FINDING if translation.differs else 0


def form_of(name: str) -> Form:
    """A form by its name.

    Raises:
        InputError: there is no such form.
    """
    if name not in FORMS:
        raise InputError(f"--to {name}: unknown form; give {', '.join(FORMS)}")
    return name


def translated(
    settings: Settings,
    form: Form,
    world_size: int | None,
    gpu: str | None,
    te: str | None,
    reading: Reading,
) -> Translation:
    """The translation of settings.

    Raises:
        InputError: an option is wrong, or as `translate`.
    """
    check_world_size(world_size)
    # Both are explained in the environment that they set themselves, and no other.
    assumptions = assume(gpu, te, None, {}, reading.installation)
    return translate(settings, form, world_size, assumptions)
