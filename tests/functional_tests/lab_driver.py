"""A lab for tests to interrupt: `python -m lab_driver JSON`, told as JSON lines of what happens."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import msgspec

from overlapkit.errors import InputError
from overlapkit.lab.launch.start import Event, Launch, run_ranks
from overlapkit.lab.link import kernel

_PR_CAPBSET_DROP = 24
_CAP_SYS_ADMIN = 21


def without_sys_admin() -> None:
    """Give up CAP_SYS_ADMIN, as any user but root: new programs are started without it."""
    ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_SYS_ADMIN, 0, 0, 0)


def without_namespaces() -> None:
    """Enter a user namespace whose own limits permit no further namespace of any kind."""
    kernel.become_root_of_a_user_namespace()
    for kind in ("user", "net", "pid", "mnt"):
        Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")


def main() -> None:
    order = json.loads(sys.argv[1])
    if order.get("permitted") == "user":
        without_sys_admin()
        del order["permitted"]
        os.execv(sys.executable, [sys.executable, "-m", "lab_driver", json.dumps(order)])
    if order.get("permitted") == "none":
        without_namespaces()
    launch = Launch(
        ranks=2,
        module="lab_worker",
        args=(order["what"],),
        folder=Path(order["folder"]),
        environment={},
        link=order.get("link", "shaped"),
        timeout_s=order.get("timeout_s", 300.0),
        silence_s=300.0,
        scratch=Path(order["scratch"]) if "scratch" in order else None,
    )

    running = set()

    def tell(event: Event) -> None:
        print(json.dumps({"rank": event.rank, **event.data}), flush=True)
        if event.data["event"] == "step" and "silence_when_running_s" in order:
            running.add(event.rank)
            if len(running) == launch.ranks:
                # Not from the start: a busy machine takes long to import torch.
                object.__setattr__(launch, "silence_s", order["silence_when_running_s"])

    try:
        link = run_ranks(launch, tell)
    except InputError as error:
        print(json.dumps({"event": "error", "message": str(error)}), flush=True)
        sys.exit(2)
    # Imported here: numpy starts threads, and a process with threads enters no user namespace.
    from overlapkit.lab.document import lab_link

    print(json.dumps({"event": "link", **msgspec.structs.asdict(lab_link(link))}), flush=True)


if __name__ == "__main__":
    main()
