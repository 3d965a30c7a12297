"""A slow link without privileges: the kernel paces each TCP connection of this process separately.

SO_MAX_PACING_RATE (socket(7)) limits what one connection sends. Unlike on a link, connections do
not share the rate: a rank that uses three of them at once can send three times as much.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h of Linux; Python does not define it
_UNLIMITED = 2 ** (8 * struct.calcsize("@L")) - 1
_TCP_INFO_SIZE = 256
_BYTES_SENT_OFFSET = 200  # tcpi_bytes_sent in struct tcp_info of linux/tcp.h, since Linux 4.19
_AGAIN_S = 0.2


def own_connections() -> Iterator[socket.socket]:
    """The process's open TCP connections, each as a socket that is closed before the next one."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if connection.type != socket.SOCK_STREAM or connection.family not in (
                    socket.AF_INET,
                    socket.AF_INET6,
                ):
                    continue
                connection.getpeername()
                yield connection


def pace_connection(connection: socket.socket, bytes_per_s: int | None) -> None:
    """Limit what a connection sends; None removes the limit."""
    rate = _UNLIMITED if bytes_per_s is None else bytes_per_s
    connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("@L", rate))


def sent_bytes() -> int | None:
    """Bytes sent over the open connections, without headers; None where the kernel is too old.

    Closed connections are not counted: a difference is valid only between two points in time with
    the same connections.
    """
    total = 0
    for connection in own_connections():
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        if len(info) < _BYTES_SENT_OFFSET + 8:
            return None
        total += struct.unpack_from("=Q", info, _BYTES_SENT_OFFSET)[0]
    return total


class Pacer:
    """Keeps every TCP connection of the process at one rate, including later ones."""

    def __init__(self) -> None:
        self._rate: int | None = None
        self._thread: threading.Thread | None = None

    def set_rate(self, bytes_per_s: int | None) -> None:
        """Limit each connection, also those made later; None removes the limit."""
        self._rate = bytes_per_s
        self._apply()
        if self._thread is None and bytes_per_s is not None:
            self._thread = threading.Thread(target=self._keep, name="pacer", daemon=True)
            self._thread.start()

    def _apply(self) -> None:
        for connection in own_connections():
            with suppress(OSError):
                pace_connection(connection, self._rate)

    def _keep(self) -> None:
        while True:
            time.sleep(_AGAIN_S)
            if self._rate is not None:
                self._apply()


def works() -> bool:
    """Whether this kernel paces a connection over loopback; a test takes a tenth of a second."""
    amount, bytes_per_s = 1_000_000, 10_000_000
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as sender,
            server.accept()[0] as receiver,
        ):
            pace_connection(sender, bytes_per_s)
            start = time.monotonic()
            sending = threading.Thread(target=sender.sendall, args=(bytes(amount),), daemon=True)
            sending.start()
            left = amount
            while left > 0 and (got := len(receiver.recv(1 << 16))):
                left -= got
            seconds = time.monotonic() - start
            sending.join()
    except OSError:
        return False
    # A first burst is not paced: half the time is enough. Without pacing it takes a hundredth.
    return seconds > 0.5 * amount / bytes_per_s
