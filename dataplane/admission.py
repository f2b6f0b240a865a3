"""Who is let in: bounds on the number of connections, and a door that shuts without a word.

The bounds are for connections that clients make. One that is taken over has been let in already, by the server that
died: it is counted and always finds room, so the bound stays below what the process may open. Data connections and UDP
ports of bundles are counted, too.
"""

from __future__ import annotations

import resource
import socket
from collections import Counter
from collections.abc import Callable

from dataplane import prepared_sockets
from dataplane.packet_socket import deafen

_DESCRIPTORS_KEPT = 512
"""For files, the control connection, and connections that are taken over beyond the bound."""
_KEPT_OF_PARTS = 256
"""Of these, what parts of bundles that were let in may not take."""
TOO_MANY = "too many connections"
TOO_MANY_OF_ONE = "too many connections of one client"


_HOST_OF_IPV6 = 8
"""A host can have as many IPv6 addresses as it likes within one prefix of 64 bits (RFC 7934): they count as one."""


class Admission:
    """Counts connections, altogether and by client: an IPv4 address, or the /64 of an IPv6 address."""

    def __init__(self, connections: int, per_client: int, waiting: Callable[[], int] = lambda: 0) -> None:
        """`waiting`: how many sockets wait for a takeover now."""
        self._limit = connections
        self._limit_client = per_client
        self._waiting = waiting
        self._clients: Counter[bytes] = Counter()
        self._count = 0
        self.refused: Counter[str] = Counter()

    def refusal(self, client: bytes) -> str | None:
        """Why one more connection of this client is not let in (and counted); None when it is."""
        if self._count >= self._limit:
            reason = TOO_MANY
        elif self._clients.get(_host(client), 0) >= self._limit_client:
            reason = TOO_MANY_OF_ONE
        else:
            return None
        self.refused[reason] += 1
        return reason

    def has_room_for_part(self) -> bool:
        """A bundle that was let in may open a part more: only files that cannot be opened are in its way. An heir may
        have more connections than it would let in."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return limit == resource.RLIM_INFINITY or self._count + self._waiting() < limit - _KEPT_OF_PARTS

    def entered(self, client: bytes) -> None:
        self._count += 1
        self._clients[_host(client)] += 1

    def left(self, client: bytes) -> None:
        self._count -= 1
        host = _host(client)
        self._clients[host] -= 1
        if not self._clients[host]:
            del self._clients[host]


def _host(client: bytes) -> bytes:
    return client if len(client) == 4 else client[:_HOST_OF_IPV6]


def within_descriptors(connections: int) -> int:
    """That many connections, or as many as this process may have files open for, beside the sockets that wait for a
    takeover."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, limit - _DESCRIPTORS_KEPT - prepared_sockets.most()))


def shut(listener: socket.socket) -> None:
    """From now on the kernel drops what is sent to this listening socket: no SYN ACK, and no RST either.

    A client repeats its SYN after a second, and reaches whoever serves the address then.
    """
    deafen(listener)
