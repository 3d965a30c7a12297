"""The command `overlapkit doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overlapkit.config.overrides import is_override
from overlapkit.config.run import LARGEST, Settings, build_run
from overlapkit.config.sources import read_script, read_yaml_settings
from overlapkit.doctor.document import examination_json
from overlapkit.doctor.examine import Asked, examine
from overlapkit.doctor.text import examination_lines
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.output.console import write_json, write_text


def run(
    given: Sequence[str],
    *,
    from_megatron_lm: bool,
    traces: Sequence[str],
    world_size: int | None,
    gpu: str | None,
    te: str | None,
    env_file: str | None,
    as_json: bool,
) -> int:
    """Examine a job; returns the exit status.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    if world_size is not None and not 1 <= world_size <= LARGEST:
        raise InputError(f"--world-size {world_size}: must be from 1 to {LARGEST}")
    settings = _settings(given, from_megatron_lm=from_megatron_lm)
    asked = Asked(
        settings,
        world_size,
        gpu,
        te,
        env_file,
        _profile(traces, settings) if traces else None,
    )
    examination = examine(asked)
    if as_json:
        write_json(examination_json(examination))
    elif sys.stdout.isatty():
        from overlapkit.doctor.tables import show_examination
        from overlapkit.output.console import console

        show_examination(examination, console())
    else:
        write_text("".join(f"{line}\n" for line in examination_lines(examination)))
    return EXIT_FINDING if examination.findings else 0


def _settings(given: Sequence[str], *, from_megatron_lm: bool) -> Settings | None:
    if not given:
        if from_megatron_lm:
            raise InputError("--from-megatron-lm: name the launch script")
        return None
    config, *texts = given
    if is_override(config) and not Path(config).exists():
        raise InputError(f"{config}: an override comes after the configuration file")
    for text in texts:
        if not is_override(text):
            raise InputError(f"{text}: doctor takes one configuration; overrides are KEY=VALUE")
    return read_script(config, texts) if from_megatron_lm else read_yaml_settings(config, texts)


def _profile(traces: Sequence[str], settings: Settings | None) -> dict[str, Any]:
    """The document of `overlapkit trace` on these files."""
    from overlapkit.trace.command import expand
    from overlapkit.trace.read.parallel_read import read_ahead

    paths = expand(traces)
    ahead = read_ahead(paths[0]) if len(paths) == 1 else None
    # Imported here: numpy takes as long as everything else but the profile.
    from overlapkit.trace.analyse import analyse
    from overlapkit.trace.document import merged_findings, trace_json
    from overlapkit.trace.measure.dimensions import Layout
    from overlapkit.trace.rank_report import Options
    from overlapkit.trace.ranks import across, settle_ranks

    layout = None
    if settings is not None:
        model = build_run(settings).model
        layout = Layout(
            tp=model.tensor_model_parallel_size,
            pp=model.pipeline_model_parallel_size,
            cp=model.context_parallel_size,
            ep=model.expert_model_parallel_size,
            vpp=model.virtual_pipeline_model_parallel_size,
        )
    reports = settle_ranks(analyse(paths, Options(layout=layout), ahead), None)
    together = across(reports)
    return trace_json(reports, together, merged_findings(reports, together))
