"""The agents' side of the controller: one listening socket, one green thread per agent that reads, none that blocks.

What arrives is handled at once, on the thread that read it: the conductor is pure and quick, and a closed connection
must become a bundle at the switch without waiting in a queue.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, Protocol

import eventlet
from eventlet.green import socket as green_socket

from controller.accepting import Accepting
from state import messages
from state.configuration import Address
from state.errors import LocalError, MessageRefused
from state.messages import Message

_READ_BYTES = 256 * 1024
_BACKLOG_LIMIT = 64 * 1024 * 1024
_HELLO_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """What the runtime does with an agent's words."""

    def agent_hello(self, link: AgentLink, hello: messages.Hello) -> None: ...

    def agent_died(self, died: messages.Died) -> None: ...

    def agent_unheard(self, unheard: messages.Unheard) -> None: ...

    def agent_said(self, link: AgentLink, said: list[messages.FromAgent]) -> None: ...

    def agent_refused(self) -> None:
        """Somebody said what is no message; the connection ends."""

    def agent_gone(self, link: AgentLink) -> None: ...


class AgentLink:
    """One agent's connection. `send` never blocks; what the kernel does not take is kept, up to a limit."""

    def __init__(self, sock: Any, peer: str) -> None:
        self.name: str | None = None
        self.peer = peer
        self._sock = sock
        self._backlog = bytearray()
        self._writing = False
        self.closed = False

    def send(self, message: Message) -> None:
        if self.closed:
            return
        data = messages.encode(message)
        if not self._backlog:
            try:
                sent = self._sock.fd.send(data)  # the non-blocking socket below the green one
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # the reader sees the end
            if sent == len(data):
                return
            data = data[sent:]
        self._backlog += data
        if len(self._backlog) > _BACKLOG_LIMIT:
            _log.error("agent %s does not read: disconnected", self.name)
            self.close()
        elif not self._writing:
            self._writing = True
            eventlet.spawn_n(self._write)

    def _write(self) -> None:
        try:
            while self._backlog and not self.closed:
                sent = self._sock.send(bytes(self._backlog[:_READ_BYTES]))
                del self._backlog[:sent]
        except OSError:
            self._backlog.clear()
        finally:
            self._writing = False

    def close(self) -> None:
        """Stop; what was sent so far still reaches the agent."""
        if not self.closed:
            self.closed = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def read(self, listener: Listener) -> None:
        """Until the connection ends; always ends with `agent_gone` if there was a hello."""
        reader = messages.FrameReader(from_agent=True)
        try:
            with eventlet.Timeout(_HELLO_SECONDS):
                said = self._next(reader)
            if isinstance(said[0], messages.Died):
                listener.agent_died(said[0])
                return
            if isinstance(said[0], messages.Unheard):
                listener.agent_unheard(said[0])
                return
            if not isinstance(said[0], messages.Hello):
                raise MessageRefused("the first message must be Hello")
            listener.agent_hello(self, said[0])
            said = said[1:]
            while not self.closed:
                if said:
                    listener.agent_said(self, said)
                    eventlet.sleep(0)  # reading what is there already would let nobody else run
                said = self._next(reader)
        except (OSError, EOFError, eventlet.Timeout):
            pass
        except MessageRefused as error:
            _log.warning("agent %s (%s): %s", self.name or "unnamed", self.peer, error)
            listener.agent_refused()
            self.send(messages.Refused(str(error), False))
        finally:
            self.close()
            listener.agent_gone(self)
            self._sock.close()

    def _next(self, reader: messages.FrameReader) -> list[messages.FromAgent]:
        while True:
            data = self._sock.recv(_READ_BYTES)
            if not data:
                raise EOFError
            said = reader.feed(data)
            if said:
                return said  # type: ignore[return-value]


def listen(address: Address) -> Any:
    """The agents' listening socket. Raises `LocalError`."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = green_socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address.host, address.port))
        sock.listen(256)
    except OSError as error:
        sock.close()
        raise LocalError(f"agents.listen: cannot listen on {address}: {error.strerror}") from None
    return sock


def serve(sock: Any, listener: Listener, spawn: Callable[..., Any] = eventlet.spawn_n) -> None:
    """Accept agents for ever."""
    accepting = Accepting(sock, "agents")
    while True:
        connection, peer = accepting.accept()
        with contextlib.suppress(OSError):  # it has ended already: its reader will see that
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        spawn(AgentLink(connection, str(peer[0])).read, listener)
