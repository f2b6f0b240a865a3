"""Listening ports of data connections: one socket for each port, shared by all bundles of a server.

Two clients may have been told the same port, by this server or by one that it takes over from. So who connects is told
apart by address: the port is open for exactly those clients that were told it, and everybody else is reset. That also
keeps strangers from taking a transfer that is meant for another (RFC 2577, section 6).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dataplane import repair
from state.errors import LocalError

_BACKLOG = 64
_ACCEPTS_PER_TURN = 16
_UNPRIVILEGED = 1024

Accepted = Callable[[socket.socket, tuple[str, int]], None]


@dataclass(eq=False)
class Listening:
    """One client is awaited at one port: a `stack.Awaited`."""

    local_port: int
    _ports: PassivePorts
    _key: tuple[str, int]
    _client: str
    accepted: Accepted
    _closed: Callable[[Listening], None]

    @property
    def vip(self) -> str:
        return self._key[0]

    @property
    def client(self) -> str:
        return self._client

    @property
    def open(self) -> bool:
        return self._ports.awaits(self)

    def close(self) -> None:
        if self._ports.forget(self._key, self._client, self):
            self._closed(self)


@dataclass
class _Listener:
    sock: socket.socket
    awaited: dict[str, Listening] = field(default_factory=dict)
    """By the client's address."""


class PassivePorts:
    """The listening data ports of one agent. `awaiting` is told of each client that is awaited from now on."""

    def __init__(self, awaiting: Callable[[Listening], None] = lambda listening: None) -> None:
        self._awaiting = awaiting
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[tuple[str, int], _Listener] = {}

    def listen(
        self,
        vip: str,
        client: str,
        runs: Iterable[range],
        port: int | None,
        accepted: Accepted,
        closed: Callable[[Listening], None],
    ) -> Listening:
        """Await this client at `port`, or at any of these above 1023 that it is not awaited at; `accepted` takes each
        non-blocking socket and the client's address and port. `closed` is called when it is closed.

        Raises `LocalError` when it is awaited there already, or no port can be had.
        """
        if port is not None:
            found = self._at((vip, port), client, accepted, closed)
            if found is None:
                raise LocalError(f"{vip}:{port} cannot be listened on, or {client} is awaited there already")
            return found
        candidates = [number for run in runs for number in run if number >= _UNPRIVILEGED]
        first = secrets.randbelow(len(candidates)) if candidates else 0  # not to be guessed, and not soon again
        for number in candidates[first:] + candidates[:first]:
            found = self._at((vip, number), client, accepted, closed)
            if found is not None:
                return found
        raise LocalError(f"{vip}: no data port is free for {client}")

    def _at(
        self, key: tuple[str, int], client: str, accepted: Accepted, closed: Callable[[Listening], None]
    ) -> Listening | None:
        listener = self._listeners.get(key)
        if listener is None:
            sock = _listening(*key)
            if sock is None:
                return None
            listener = self._listeners[key] = _Listener(sock)
            self._loop.add_reader(sock.fileno(), self._accept, key)
        elif client in listener.awaited:
            return None
        awaited = Listening(key[1], self, key, client, accepted, closed)
        listener.awaited[client] = awaited
        self._awaiting(awaited)
        return awaited

    def awaits(self, awaited: Listening) -> bool:
        listener = self._listeners.get((awaited.vip, awaited.local_port))
        return listener is not None and listener.awaited.get(awaited.client) is awaited

    def forget(self, key: tuple[str, int], client: str, awaited: Listening) -> bool:
        """This client is not awaited there any more; the port is closed after the last. False: it was not."""
        listener = self._listeners.get(key)
        if listener is None or listener.awaited.get(client) is not awaited:
            return False
        del listener.awaited[client]
        if not listener.awaited:
            self._loop.remove_reader(listener.sock.fileno())
            listener.sock.close()
            del self._listeners[key]
        return True

    def close(self) -> None:
        """The agent ends."""
        for listener in self._listeners.values():
            self._loop.remove_reader(listener.sock.fileno())
            listener.sock.close()
        self._listeners.clear()

    def _accept(self, key: tuple[str, int]) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            listener = self._listeners.get(key)
            if listener is None:
                return  # what was accepted closed the port
            try:
                sock, peer = listener.sock.accept()
            except OSError:
                return
            sock.setblocking(False)
            awaited = listener.awaited.get(peer[0])
            if awaited is None:
                repair.refuse_quietly(sock)
            else:
                awaited.accepted(sock, (peer[0], peer[1]))


def _listening(vip: str, port: int) -> socket.socket | None:
    """None when the port is in use."""
    sock = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((vip, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        return None
    return sock
