"""Sockets that wait for a takeover: what recreating a connection begins with is done before the failure (claim 14).

Making a socket costs the kernel as much as the rest of a connection's repair. So a backup has one for each unready
connection, up to a limit; each is in repair mode, bound to nothing, and silent when it is closed.
"""

from __future__ import annotations

import resource
import socket
from collections import deque

from dataplane import repair
from state.errors import RepairError

_MOST = 5000


def most() -> int:
    """Sockets that wait, at most: a quarter of the files that this process may have open. Whatever a takeover needs
    beyond is made then."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if limit == resource.RLIM_INFINITY else min(_MOST, limit // 4)


class PreparedSockets:
    """By address family. Nothing here raises: a socket that cannot be had now is made when it is needed."""

    def __init__(self) -> None:
        self._most = most()
        self._waiting: dict[int, deque[socket.socket]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def provide(self, family: int, wanted: int) -> None:
        """One more, if fewer than `wanted` wait."""
        waiting = self._waiting.setdefault(family, deque())
        if len(waiting) < wanted and len(self) < self._most:
            try:
                waiting.append(repair.prepare(family))
            except RepairError:
                return

    def take(self, family: int) -> socket.socket | None:
        """One, if any waits; it is the caller's."""
        waiting = self._waiting.get(family)
        return waiting.popleft() if waiting else None

    def close(self) -> None:
        for waiting in self._waiting.values():
            while waiting:
                waiting.pop().close()
