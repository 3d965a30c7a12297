"""torchrun, with its failures as data.

Run as `python -m overlapkit.lab.launch.agent FOLDER FD ARGUMENT...`.

Runs torchrun with the ARGUMENTs, and writes to FOLDER which ranks failed and how: torchrun itself
reports that only as text. Once torch is imported, waits until something can be read from the
descriptor FD: the link between the ranks is made in the meantime.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from overlapkit.lab.link import kernel

FAILURES_FILE = "failures.json"
"""In the work folder, only if a rank failed: exit codes by rank, negative for a signal."""


def main() -> None:
    """Run torchrun, and exit with its status."""
    # Before torch is imported, which takes seconds.
    kernel.die_with_parent()
    folder, go, arguments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    ready = os.read(go, 1)
    os.close(go)
    if not ready:
        sys.exit(1)
    status = 0
    try:
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


if __name__ == "__main__":
    main()
