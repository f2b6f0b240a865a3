"""The agent's connection to the controller: hello, checkpoints out, orders in; reconnects by itself.

Checkpoints of one turn of the event loop travel in one `Store`. While there is no controller, or while one is too slow
to answer (`STORE_LIMIT`), connections go on unprotected, which is counted: availability is worth more than a protection
that nobody could provide then. After a reconnection the agent sends everything again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from dataplane.event_loop import Paced, prefer
from state import messages
from state.configuration import Address
from state.errors import MessageRefused
from state.messages import FromController, Hello, Message

STORE_LIMIT = 0.25
_FREED_AT_ONCE = 8
_RETRY_FIRST, _RETRY_LAST = 0.05, 0.25
_CONNECT_SECONDS = 0.5
"""With the pause before it less than the grace that a controller gives after its own restart (1 s): agents that live
are back by then."""
_UNHEARD_MS = 5000
"""Milliseconds that what was sent may stay unacknowledged: less than a host needs to start again, and long for a
controller that is only stopped, whose window has closed. Heartbeats make sure that something always is sent."""
_BACKLOG_LIMIT = 64 * 1024 * 1024
"""Bytes that a controller which does not read may leave here."""
_CLOSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Orders(Protocol):
    """What the agent does with the controller's messages."""

    def hello(self) -> Hello: ...

    def ordered(self, message: FromController) -> None: ...

    def disconnected(self) -> None: ...


class ControllerLink(asyncio.Protocol):
    """One agent's side. Use `run()` as a task; `send` and `store` never block."""

    def __init__(self, address: Address, orders: Orders) -> None:
        self._address = address
        self._orders = orders
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = messages.FrameReader(from_agent=False)
        self._lost: asyncio.Future[bool] | None = None
        self._welcome = False
        self._closing = False
        self._held: asyncio.Future[None] | None = None
        self._blocks: list[bytes] = []
        self._waiting: list[Callable[[], None]] = []
        self._freed: Paced[Callable[[], None]] = Paced(_call)
        self._unstored: deque[tuple[int, float, list[Callable[[], None]]]] = deque()
        self._number = 0
        self._at_once = 0
        self.unprotected = 0
        """Checkpoints that no controller stored in time."""

    async def run(self) -> None:
        """Connect, and connect again whenever the connection is lost. Ends by `close` or by cancellation."""
        failures = 0
        while not self._closing:
            welcomed = False
            self._lost = self._loop.create_future()  # it may be lost again before `create_connection` returns
            try:
                connecting = self._loop.create_connection(lambda: self, self._address.host, self._address.port)
                await asyncio.wait_for(connecting, _CONNECT_SECONDS)
            except OSError as error:  # TimeoutError is one
                if failures == 0:
                    _log.warning("controller %s: %s; trying again", self._address, str(error) or "no answer")
            else:
                welcomed = await self._lost
            if self._held is not None:
                await self._held
                self._held = None
            failures = 0 if welcomed else failures + 1
            await asyncio.sleep(min(_RETRY_FIRST * 2 ** min(failures, 10), _RETRY_LAST))

    def hold(self, until: asyncio.Future[None]) -> None:
        """Do not connect again before this is done."""
        self._held = until

    @property
    def connected(self) -> bool:
        return self._transport is not None and self._welcome

    # --- asyncio.Protocol ---
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        sock = transport.get_extra_info("socket")
        prefer(self._loop, sock.fileno())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_MS)
        self._transport = transport
        self._reader = messages.FrameReader(from_agent=False)
        self.send(self._orders.hello())

    def data_received(self, data: bytes) -> None:
        self._at_once = _FREED_AT_ONCE
        try:
            received = self._reader.feed(data)
        except MessageRefused as error:
            _log.error("controller: %s", error)
            self.disconnect()
            return
        for message in received:
            if isinstance(message, messages.Stored):
                for sentence in message.refused:
                    _log.error("the controller refused a checkpoint: %s", sentence)
                self.unprotected += len(message.refused)
                self._stored(message.number)
            else:
                if isinstance(message, messages.Welcome):
                    self._welcome = True
                try:
                    self._orders.ordered(message)  # type: ignore[arg-type]
                except Exception:  # an order that fails must not take the connection, and so the server, down
                    _log.exception("carrying out %s", type(message).__name__)

    def connection_lost(self, exc: Exception | None) -> None:
        welcomed, self._welcome = self._welcome, False
        self._transport = None
        self._release(len(self._unstored))
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(welcomed)
        self._orders.disconnected()

    async def close(self) -> None:
        """Say what waits to be said, and end; `run` ends too."""
        self._closing = True
        self.flush()
        if self._transport is not None and self._lost is not None:
            self._transport.close()
            await asyncio.wait([self._lost], timeout=_CLOSE_SECONDS)

    def disconnect(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- what the agent sends ---
    def send(self, message: Message) -> None:
        """Dropped when there is no connection: everything that matters is sent again after `Welcome`."""
        if self._transport is None:
            return
        self._transport.write(messages.encode(message))
        if self._transport.get_write_buffer_size() > _BACKLOG_LIMIT:
            _log.error("controller %s does not read: disconnected", self._address)
            self._transport.abort()

    def store(self, block: bytes, stored: Callable[[], None]) -> None:
        """Have the block stored; `stored` is called once it is, or once nobody can."""
        if not self.connected:
            self.unprotected += 1
            stored()
            return
        if not self._blocks:
            self._loop.call_soon(self._flush)
        self._blocks.append(block)
        self._waiting.append(stored)

    def flush(self) -> None:
        """Send the checkpoints of this turn now: what is said next may be about their connections' end."""
        if self._blocks:
            self._flush()

    def _flush(self) -> None:
        if not self._blocks:
            return
        blocks, waiting = self._blocks, self._waiting
        self._blocks, self._waiting = [], []
        first = 0
        for portion in messages.portions(blocks):
            self._number += 1
            last = first + len(portion)
            self._unstored.append((self._number, self._loop.time(), waiting[first:last]))
            first = last
            if self.connected:
                self.send(messages.Store(self._number, portion))
        if not self.connected:
            self._release(len(self._unstored))

    def _stored(self, number: int) -> None:
        while self._unstored and self._unstored[0][0] <= number:
            self._free(self._unstored.popleft()[2])

    def _free(self, waiting: list[Callable[[], None]]) -> None:
        """Let connections go on: a few at once, the others with the loop's next turns."""
        at_once = 0 if self._freed else min(self._at_once, len(waiting))
        self._at_once -= at_once
        for stored in waiting[:at_once]:
            stored()
        self._freed.extend(waiting[at_once:])

    def overdue(self, now: float) -> None:
        """Let connections go on whose checkpoint was not stored within `STORE_LIMIT`."""
        late = 0
        for _, since, _ in self._unstored:
            if now - since < STORE_LIMIT:
                break
            late += 1
        self._release(late)

    def _release(self, count: int) -> None:
        for _ in range(count):
            waiting = self._unstored.popleft()[2]
            self.unprotected += len(waiting)
            self._free(waiting)


def _call(callback: Callable[[], None]) -> None:
    callback()
