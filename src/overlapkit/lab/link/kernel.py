"""The Linux calls that Python 3.10 does not wrap: namespaces, mounts, the death of a parent.

Numbers are those of the kernel's own headers (sched.h, prctl.h, mount.h).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from overlapkit.processes import die_with_parent as die_with_parent

NEW_MOUNTS = 0x00020000
NEW_USER = 0x10000000
NEW_PIDS = 0x20000000
NEW_NETWORK = 0x40000000

_PR_SET_CHILD_SUBREAPER = 36
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(status: int, what: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces given by `flags` for new ones; only children enter NEW_PIDS.

    Raises:
        OSError: the system does not permit it.
    """
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter_network(namespace: int) -> None:
    """Move the calling thread, and no other, into the network namespace of a descriptor."""
    _checked(_libc.setns(ctypes.c_int(namespace), ctypes.c_int(NEW_NETWORK)), "setns")


def become_root_of_a_user_namespace() -> None:
    """Enter a new user namespace in which the caller is root; outside it keeps its identity.

    Raises:
        OSError: the system does not permit it.
    """
    user, group = os.geteuid(), os.getegid()
    unshare(NEW_USER)
    # Without privileges a group map needs setgroups to be denied: user_namespaces(7).
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def mount_privately() -> None:
    """In a new mount namespace, mount a /proc for the new process ids, and a new /dev/shm.

    What a killed process leaves in /dev/shm is then removed with the namespace.

    Raises:
        OSError: the system does not permit it.
    """
    nothing = ctypes.c_char_p(None)
    _checked(
        _libc.mount(b"none", b"/", nothing, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), nothing),
        "making mounts private",
    )
    hardened = _MS_NOSUID | _MS_NODEV
    _checked(
        _libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(hardened | _MS_NOEXEC), nothing),
        "mounting /proc",
    )
    _checked(
        _libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", ctypes.c_ulong(hardened), b"mode=1777"),
        "mounting /dev/shm",
    )


def adopt_orphans() -> None:
    """Become the parent, instead of init, of every descendant whose own parent dies."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0), "prctl")


def descendants(of: int) -> set[int]:
    """Process ids of all descendants of a process, as its own /proc shows them."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = [of]
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                # The command's name is in parentheses and can contain spaces: proc(5).
                after_name = (entry / "stat").read_text(errors="replace").rpartition(")")[2]
                yield int(entry.name), int(after_name.split()[1])


def id_in_namespace(pid: int) -> int | None:
    """The id of a process in its own process-id namespace; None where it has ended."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return None


def state(pid: int) -> str | None:
    """A process's state in a word, such as running, sleeping or stopped: proc(5)."""
    words = {
        "R": "running",
        "S": "sleeping",
        "D": "waiting for a device",
        "T": "stopped",
        "t": "stopped by a debugger",
        "Z": "ended",
    }
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return words.get(stat.rpartition(")")[2].split()[0], "alive")
    return None
