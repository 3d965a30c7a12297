"""The link between ranks, made by the kernel: a bridge, and a namespace and veth pair per rank.

The hub is a network namespace with a bridge, where torchrun's store listens. One end of a veth pair
is in the rank's namespace, the other one on the bridge. A token bucket (tc-tbf) at both ends limits
what the rank sends and receives. Only descriptors of this process keep the namespaces alive, so
they end with it, however it ends.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from overlapkit.lab.link import kernel

HUB_ADDRESS = "10.77.0.1"
STORE_PORT = 29400
"""Fixed: no other process listens in the hub's namespace."""
RANK_INTERFACE = "eth0"
SOCKET_NAME = b"\0overlapkit-lab"
"""Name of an abstract Unix socket, which is visible only within its network namespace."""

_PREFIX = 16
_MTU = 9000
_ROOT = 0xFFFFFFFF  # TC_H_ROOT of linux/pkt_sched.h
_MOST_RANKS = 60_000
_BURST_S = 0.005
_LEAST_BURST = 32 * 1024
_QUEUE_BYTES = 64 * 2**20
"""More than TCP ever has in flight: a full queue would drop packets, and sending them again would
count as traffic. Links between GPUs do not drop packets either."""
_MOST_BYTES_PER_S = 2**32 - 1
"""tbf's rate is a 32-bit number of bytes per second (34 Gbit/s): above it, no limit is set."""
_LONGEST_REQUEST = 4096


class Hub:
    """Turns the current network namespace into the hub, and serves ranks that join.

    Raises:
        OSError, ImportError, pyroute2.netlink.exceptions.NetlinkError: the system does not permit
            it or has no bridges, veth pairs or tbf, or pyroute2 is not installed.
    """

    def __init__(self, ranks: int) -> None:
        from pyroute2 import IPRoute

        if ranks > _MOST_RANKS:
            raise OSError(f"{ranks} ranks on one bridge: at most {_MOST_RANKS}")
        home = _namespace()
        _set_defaults()
        self._hub: Any = IPRoute()
        self._up(self._hub, "lo")
        self._hub.link("add", ifname="bridge", kind="bridge")
        bridge = self._up(self._hub, "bridge", mtu=_MTU)
        self._hub.addr("add", index=bridge, address=HUB_ADDRESS, prefixlen=_PREFIX)
        self._ends: list[tuple[Any, int, int]] = []
        self._namespaces: list[int] = []
        for rank in range(ranks):
            kernel.unshare(kernel.NEW_NETWORK)
            namespace = _namespace()
            _set_defaults()
            inside: Any = IPRoute()
            kernel.enter_network(home)
            self._up(inside, "lo")
            peer = {"ifname": RANK_INTERFACE, "net_ns_fd": namespace}
            self._hub.link("add", ifname=f"rank{rank}", kind="veth", peer=peer)
            outer = self._up(self._hub, f"rank{rank}", mtu=_MTU, master=bridge)
            inner = self._up(inside, RANK_INTERFACE, mtu=_MTU)
            number = rank + 2
            address = f"10.77.{number >> 8}.{number & 255}"
            inside.addr("add", index=inner, address=address, prefixlen=_PREFIX)
            self._namespaces.append(namespace)
            self._ends.append((inside, inner, outer))
        if ranks:
            # Finds out now, and not during the run, whether the kernel has tbf.
            self._limit(0, 1000.0)
            self._limit(0, None)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(SOCKET_NAME)
        self._listener.listen(ranks)

    def register(self, selector: selectors.BaseSelector) -> None:
        """Add sockets to `selector`; the data of each is a function to call when it is ready."""

        def accept() -> None:
            connection, _ = self._listener.accept()
            selector.register(connection, selectors.EVENT_READ, self._server(selector, connection))

        selector.register(self._listener, selectors.EVENT_READ, accept)

    def _server(
        self, selector: selectors.BaseSelector, connection: socket.socket
    ) -> Callable[[], None]:
        def serve() -> None:
            request = b""
            with suppress(ConnectionError):
                request = connection.recv(_LONGEST_REQUEST)
            if not request:
                selector.unregister(connection)
                connection.close()
                return
            answer, descriptors = self._answer(msgspec.json.decode(request))
            with suppress(ConnectionError):
                socket.send_fds(connection, [msgspec.json.encode(answer)], descriptors)

        return serve

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        rank = request["rank"]
        if request["ask"] == "join":
            return {}, [self._namespaces[rank]]
        try:
            self._limit(rank, request["mbit"])
        except Exception as error:  # pyroute2's errors are not OSErrors
            return {"error": f"{type(error).__name__}: {error}"}, []
        return {}, []

    def _limit(self, rank: int, mbit: float | None) -> None:
        """Limit a rank's link in both directions, or remove the limit."""
        inside, inner, outer = self._ends[rank]
        bytes_per_s = None if mbit is None else max(1, round(mbit * 1e6 / 8))
        for route, index in ((inside, inner), (self._hub, outer)):
            if bytes_per_s is not None and bytes_per_s <= _MOST_BYTES_PER_S:
                burst = max(_LEAST_BURST, round(bytes_per_s * _BURST_S))
                route.tc("replace", "tbf", index, rate=bytes_per_s, burst=burst, limit=_QUEUE_BYTES)
            elif any(q.get_attr("TCA_KIND") == "tbf" for q in route.get_qdiscs(index=index)):
                route.tc("del", index=index, parent=_ROOT)

    @staticmethod
    def _up(route: Any, name: str, **more: Any) -> int:
        index = int(route.link_lookup(ifname=name)[0])
        route.link("set", index=index, state="up", **more)
        return index


def _namespace() -> int:
    """The calling thread's network namespace, as a descriptor that keeps it alive."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _set_defaults() -> None:
    """Settings of a network namespace that would otherwise depend on the machine."""
    settings = Path("/proc/sys/net")
    for scope in ("default", "all"):
        # One address of one family for each interface: gloo uses the first that it finds.
        with suppress(OSError):
            (settings / f"ipv6/conf/{scope}/disable_ipv6").write_text("1")
    # BBR, the default on some machines, resends packets that only wait in a slow link's queue.
    with suppress(OSError):
        (settings / "ipv4/tcp_congestion_control").write_text("cubic")
