"""`overlapkit explain` for several versions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from megatron.bridge.training.versions import Package
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings
from overlapkit.config.sources import name_sources, world_sizes_of
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.explain.assumptions import assume
from overlapkit.explain.versions.matrix import Matrix, judge_versions
from overlapkit.output.console import write_json, write_text


def run(
    *,
    package: Package,
    readings: Sequence[Reading],
    arguments: Sequence[str],
    world_sizes: Sequence[int],
    gpu: str | None,
    te: str | None,
    env_file: str | None,
    form: str,
    from_megatron_lm: bool,
    **others: Any,
) -> int:
    """Judge one configuration for several versions; returns the exit status.

    Args:
        package: whose versions the readings differ in.
        readings: one for each version.
        arguments, world_sizes, gpu, te, env_file, from_megatron_lm: as in `explain.command.run`.
        form: text or json.
        others: the command's other options, of which none is to be given.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    given = [f"--{name}" for name, value in others.items() if value]
    given += [f"--format {form}"] if form not in ("text", "json") else []
    if given:
        raise InputError(f"{given[0]} takes one version: give --{package} one, or leave it out")
    sources = name_sources(arguments, command="explain", from_megatron_lm=from_megatron_lm, most=2)
    if len(sources) > 1:
        raise InputError(f"two configurations are compared for one version: give --{package} one")

    def read(reading: Reading) -> tuple[Settings, int]:
        settings = sources[0].read(reading)
        return settings, world_sizes_of([settings], world_sizes)[0]

    assumptions = assume(gpu, te, env_file, installation=readings[0].installation)
    matrix = judge_versions(package, readings, read, assumptions)
    _show(matrix, as_json=form == "json")
    return EXIT_FINDING if matrix.has_finding else 0


def _show(matrix: Matrix, *, as_json: bool) -> None:
    if as_json:
        from overlapkit.explain.versions.document import versions_document

        write_json(versions_document(matrix))
    elif sys.stdout.isatty():
        from overlapkit.explain.versions.tables import show_matrix
        from overlapkit.output.console import console

        show_matrix(matrix, console())
    else:
        from overlapkit.explain.versions.text import matrix_lines

        write_text("".join(f"{line}\n" for line in matrix_lines(matrix)))
