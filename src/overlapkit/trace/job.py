"""Reads and analyses the files of one run."""

from __future__ import annotations

import os
from collections.abc import Sequence

from overlapkit.errors import InputError
from overlapkit.trace.ahead import Ahead
from overlapkit.trace.dimensions import Layout
from overlapkit.trace.progress import progress
from overlapkit.trace.report import Options, RankReport, analyse_file


def read_layout(config: str) -> Layout:
    """The parallel sizes in a run's configuration.

    Raises:
        InputError: as `overlapkit explain`.
    """
    from overlapkit.config.run import build_run, read_settings
    from overlapkit.config.yaml_file import read_yaml

    model = build_run(read_settings(read_yaml(config))).model
    return Layout(
        tp=model.tensor_model_parallel_size,
        pp=model.pipeline_model_parallel_size,
        cp=model.context_parallel_size,
        ep=model.expert_model_parallel_size,
        vpp=model.virtual_pipeline_model_parallel_size,
    )


def analyse(paths: Sequence[str], options: Options, ahead: Ahead | None = None) -> list[RankReport]:
    """Every device of every file, in the order of the files; several files in processes.

    Args:
        paths: the files.
        options: what to make of them.
        ahead: processes that are reading the only file already.

    Raises:
        InputError: of the first file that cannot be read.
    """
    return [report for reports in analyse_each(paths, options, ahead) for report in reports]


def analyse_each(
    paths: Sequence[str], options: Options, ahead: Ahead | None = None
) -> list[list[RankReport]]:
    """The devices of each file, otherwise as `analyse`."""
    if len(paths) == 1:
        return [analyse_file(paths[0], options, ahead)]
    # Imported here: the most common run reads one file, and this costs a tenth of its start.
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(len(paths), cores or 1)
    found: dict[int, list[RankReport]] = {}
    with ProcessPoolExecutor(max_workers=workers) as pool:
        waiting = {
            pool.submit(analyse_file, path, options): index for index, path in enumerate(paths)
        }
        try:
            with progress(len(paths), "Reading traces") as advance:
                for done in as_completed(waiting):
                    found[waiting[done]] = done.result()
                    advance()
        except BrokenProcessPool:
            raise InputError(
                "a process reading a trace was ended by the system, most likely for lack of "
                "memory; name fewer files at a time"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return [found[index] for index in sorted(found)]
