"""A rank for tests: `python -m lab_worker WHAT`, all-reduces in a loop until WHAT happens.

With `idle` it only waits, without torch, whose import takes most of a rank's time.
"""

from overlapkit.lab.link import rank_side as network

if __name__ == "__main__":
    network.join()

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from overlapkit.lab.launch.start import emit

if sys.argv[1:] != ["idle"]:
    import torch
    import torch.distributed as dist

MEGABYTE = 1_000_000


def reduced(megabytes: int, times: int = 1) -> None:
    """All-reduce so much, which between two ranks sends as much from each."""
    tensor = torch.ones(megabytes * MEGABYTE // 4)
    for _ in range(times):
        dist.all_reduce(tensor)


def leave_a_daemon() -> None:
    """A process that no process group, session or parent ties to this one."""
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(1000)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def waits_forever() -> None:
    time.sleep(1000)


def measure() -> None:
    """Tell how long 3 MB take at different rates, and what was counted of them."""
    for mbit in (None, 40.0, 160.0, None):
        dist.barrier()
        network.set_rate(mbit)
        dist.barrier()
        time.sleep(0.3)
        before, start = network.sent_bytes(), time.monotonic()
        reduced(3)
        seconds = time.monotonic() - start
        # What was sent before it has gone over the same connection once this is through.
        dist.barrier()
        sent = network.sent_bytes()
        assert before is not None and sent is not None
        emit({"event": "measured", "mbit": mbit, "seconds": seconds, "sent": sent - before})


def idle() -> None:
    """Be there until somebody ends this process."""
    emit({"event": "ready", "namespace": _namespace(), "temporary": os.environ["TMPDIR"]})
    if os.environ["RANK"] == "1":
        leave_a_daemon()
    emit({"event": "step", "step": 0})
    waits_forever()


def _namespace() -> str:
    return str(Path("/proc/self/ns/net").readlink())


def main(what: str) -> None:
    if what == "idle":
        idle()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    emit({"event": "ready", "namespace": _namespace(), "temporary": os.environ["TMPDIR"]})
    if rank == 1 and what != "measure":
        leave_a_daemon()
    for step in range(3):
        reduced(1)
        emit({"event": "step", "step": step})
    if what == "measure":
        measure()
        for stream in (sys.stdout, sys.stderr):
            stream.write("a line of many\n" * MEGABYTE)
    elif what == "loop":
        while True:
            reduced(1)
            time.sleep(0.05)
    elif rank == 1:
        if what == "raise":
            raise RuntimeError("the second rank gives up")
        if what == "exit":
            print("the second rank leaves", file=sys.stderr)
            os._exit(3)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            waits_forever()
    reduced(1)
    dist.destroy_process_group()
    network.leave()


if __name__ == "__main__":
    main(sys.argv[1])
