"""A data connection that a server opens towards its client (active FTP), from the VIP.

The kernel keeps the last segment of the handshake back (`repair.hold_handshake`): the client's program sees no
connection before its checkpoint is stored. A server that dies sooner leaves its client in SYN-RECEIVED, and whoever
connects there again comes to the same accept (`docs/decisions/021-active-data-connections.md`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable

from dataplane import repair
from dataplane.socket_address import family, socket_address
from state.errors import LocalError

CONNECT_SECONDS = 10.0


class Connecting:
    """A connect that is under way: a `stack.Awaited`. It ends with one call: `connected`, or `failed` with why.

    `closed` is called before either, or when it is given up.
    """

    def __init__(
        self,
        vip: str,
        local_port: int,
        remote: tuple[str, int],
        connected: Callable[[socket.socket, tuple[str, int]], None],
        failed: Callable[[str], None],
        closed: Callable[[Connecting], None],
        *,
        interface: int,
    ) -> None:
        """`interface`: index of the one towards the clients, see `socket_address`. Raises `LocalError` when the system
        refuses at once."""
        self.local_port = local_port
        self._remote = remote
        self._connected, self._failed, self._closed = connected, failed, closed
        self._loop = asyncio.get_running_loop()
        packed = ipaddress.ip_address(remote[0]).packed
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        self._sock: socket.socket | None = socket.socket(family(packed), kind)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            repair.hold_handshake(self._sock)
            self._sock.bind((vip, local_port))
            with contextlib.suppress(BlockingIOError):
                self._sock.connect(socket_address(packed, remote[1], interface))
        except (OSError, OverflowError) as error:
            self._sock.close()
            raise LocalError(f"{vip}:{local_port} to {remote[0]}:{remote[1]}: {error}") from None
        self._loop.add_writer(self._sock.fileno(), self._decided)
        self._limit = self._loop.call_later(CONNECT_SECONDS, self._give_up, "timed out")

    def _decided(self) -> None:
        assert self._sock is not None
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._give_up(os.strerror(error).lower())
            return
        sock = self._detach()
        assert sock is not None
        self._connected(sock, self._remote)

    def _give_up(self, sentence: str) -> None:
        self.close()
        self._failed(sentence)

    def _detach(self) -> socket.socket | None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_writer(sock.fileno())
            self._limit.cancel()
            self._closed(self)
        return sock

    def close(self) -> None:
        sock = self._detach()
        if sock is not None:
            sock.close()
