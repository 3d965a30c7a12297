"""torchrun, with its failures as data.

Run as `python -m overlapkit.lab.launch.agent FOLDER FD PRELOAD ARGUMENT...`.

Runs torchrun with the ARGUMENTs, and writes to FOLDER which ranks failed and how: torchrun itself
reports that only as text. Once torch is imported, waits until something can be read from the
descriptor FD: the link between the ranks is made in the meantime.

PRELOAD is a module that is imported once, before the ranks are forked from this process: eight
ranks that each import torch and Megatron-Core take eight times as long. Where it is empty, each
rank is an interpreter of its own, which CUDA needs.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from overlapkit.lab.link import kernel

FAILURES_FILE = "failures.json"
"""In the work folder, only if a rank failed: exit codes by rank, negative for a signal."""


def main() -> None:
    """Run torchrun, and exit with its status."""
    # Before torch is imported, which takes seconds.
    kernel.die_with_parent()
    folder, go, preload = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    arguments = sys.argv[4:]
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if preload:
        importlib.import_module(preload)

    ready = os.read(go, 1)
    os.close(go)
    if not ready:
        sys.exit(1)
    status = 0
    try:
        if preload:
            _fork(arguments)
        else:
            run.main(arguments)
    except ChildFailedError as error:
        codes = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        aside = folder / f".{FAILURES_FILE}"
        aside.write_bytes(msgspec.json.encode(codes))
        aside.rename(folder / FAILURES_FILE)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # A normal exit first destroys torch's objects, and the lab would wait a third of a second.
    os._exit(status)


def _fork(arguments: Sequence[str]) -> None:
    """As `torchrun ARGUMENT...`, but the ranks are forked from this process."""
    from torch.distributed import run
    from torch.distributed.launcher.api import elastic_launch

    parsed = run.parse_args(list(arguments))
    config, _, _ = run.config_from_args(parsed)
    config.start_method = "fork"
    # The collector would write to what was imported, and so copy it in each rank.
    gc.freeze()
    elastic_launch(config, _rank)(parsed.training_script, *parsed.training_script_args)


def _rank(module: str, *arguments: str) -> None:
    """What a forked rank does: as `python -m module *arguments`.

    It returns only after success: torch's own report of an exception would hide what the module's
    exception hook does.
    """
    sys.argv = [module, *arguments]
    status: object = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        status = exit.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    else:
        return
    if not status:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    main()
