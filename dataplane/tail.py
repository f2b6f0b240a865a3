"""The end of a connection whose server has said all: its client still acknowledges, or does not end its own side. Or it
takes nothing any more, so that not even all can be handed to the kernel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from dataplane import repair
from dataplane.stream import ByteStream

_LINGER = 30.0
"""Seconds that a client may take to end its side once it has everything."""
_STUCK = 300.0
"""Seconds without any acknowledgement after which the tail of a closing connection is given up."""
_TAIL_CHECK, _IDLE_TAIL_CHECK = 0.05, 1.0


class Tail:
    """Watches a socket after its FIN. It calls `end` once both sides have everything, or `reset` when its client does
    nothing any more. `watch` is to be called when the client's FIN came; no event tells of acknowledgements."""

    def __init__(
        self, sock: socket.socket, stream: ByteStream, end: Callable[[], None], reset: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._stream = stream
        self._end = end
        self._reset = reset
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._left = self._unacknowledged()
        self._until = self._loop.time() + (_STUCK if self._left else _LINGER)

    def _unacknowledged(self) -> int:
        """Bytes that the client has not acknowledged; the FIN counts as one."""
        try:
            return 0 if repair.is_closed(self._sock) else repair.unacknowledged(self._sock)
        except OSError:
            return 0

    def watch(self) -> None:
        """Is it over?"""
        self.leave()
        left, now = self._unacknowledged(), self._loop.time()
        if left < self._left:
            self._until = now + (_STUCK if left else _LINGER)
            self._left = left
        if left == 0 and (self._stream.input_ended or repair.is_closed(self._sock)):
            self._end()
        elif now >= self._until:
            self._reset()
        else:
            check = _TAIL_CHECK if self._stream.input_ended else _IDLE_TAIL_CHECK
            self._timer = self._loop.call_later(check, self.watch)

    def leave(self) -> None:
        """Watch it no more."""
        if self._timer is not None:
            self._timer.cancel()


class Stuck:
    """Watches a connection that is to be closed as long as not all was handed to the kernel. It calls `reset` once its
    client has acknowledged nothing for `_STUCK` to twice as many seconds. The kernel itself would wait for ever: a
    client that does not read answers its window probes."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, acknowledged: Callable[[], int], reset: Callable[[], None]
    ) -> None:
        """`acknowledged`: the position up to which the client has everything."""
        self._loop = loop
        self._acknowledged = acknowledged
        self._reset = reset
        self._last = acknowledged()
        self._timer = loop.call_later(_STUCK, self._look)

    def _look(self) -> None:
        last, self._last = self._last, self._acknowledged()
        if self._last == last:
            self._reset()
        else:
            self._timer = self._loop.call_later(_STUCK, self._look)

    def leave(self) -> None:
        """Watch it no more."""
        self._timer.cancel()
