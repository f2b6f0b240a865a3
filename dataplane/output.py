"""From the byte stream to the kernel: what is planned, stored and released, as far as the kernel has room for it.

Files go by `sendfile`. A turn is short; the next one comes when the kernel has room again, or when the disk has brought
what is to be sent (`page_cache`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from dataplane.held_objects import HeldObjects
from dataplane.objects import DocumentRoot, OpenObject
from dataplane.page_cache import in_memory
from dataplane.stream import ByteStream, Literal, Run
from state.datablock import FourTuple

_SENDFILE_BYTES = 512 * 1024
"""At most so much per turn of the loop: about half a millisecond."""
_GENERATED_BYTES = 64 * 1024
"""Of a generated object, so much is computed at a time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    sent: bool = False
    """Something was handed to the kernel."""
    grown_old: bool = False
    """The checkpoint must be made again."""
    cut: bool = False
    """An object has fewer bytes than were planned: nothing can follow."""


class Output:
    """Of one connection. `more` is called when another turn would do something."""

    def __init__(
        self,
        sock: socket.socket,
        connection: FourTuple,
        stream: ByteStream,
        objects: HeldObjects,
        root: DocumentRoot,
        more: Callable[[], None],
    ) -> None:
        self.until: int | None = None
        """Hand over nothing from this position on, whatever may be sent."""
        self._sock = sock
        self._connection = connection
        self._stream = stream
        self._objects = objects
        self._root = root
        self._more: Callable[[], None] | None = more
        self._loop = asyncio.get_running_loop()
        self._watching = False
        self._disk: asyncio.Future[None] | None = None
        self._brought_to = 0
        """Position up to which the disk has brought what is to be sent."""

    @property
    def waits(self) -> bool:
        """For the kernel or the disk: another turn comes by itself."""
        return self._watching or self._disk is not None

    def turn(self) -> Turn:
        """Hand over what goes in. Raises `OSError` when the kernel has the connection no more."""
        if self._disk is not None:
            return Turn()
        stream, budget, sent, grown_old = self._stream, min(_SENDFILE_BYTES, self._allowed()), False, False
        try:
            while budget > 0:
                chunk = stream.next()
                if chunk is None:
                    break
                count = self._literal(chunk, budget) if isinstance(chunk, Literal) else self._run(chunk, budget)
                if count == 0:  # the file was cut short under our hands
                    return Turn(sent, grown_old, cut=True)
                budget -= count
                sent = True
                grown_old |= stream.handed_over(count)
        except BlockingIOError:
            pass
        self._watch(self._disk is None and stream.next() is not None and self._allowed() > 0)
        return Turn(sent, grown_old)

    def _allowed(self) -> int:
        return _SENDFILE_BYTES if self.until is None else self.until - self._stream.sent

    def _literal(self, literal: Literal, budget: int) -> int:
        data = literal.data[:budget]
        more = self._stream.sent + len(data) < self._stream.limit
        return self._sock.send(data, socket.MSG_MORE if more else 0)

    def _run(self, run: Run, budget: int) -> int:
        """How many bytes of it the kernel took, none if the object has no more."""
        opened = self._objects.of(run.object)
        if isinstance(opened, OpenObject):
            length, warm = min(run.length, budget), self._brought_to - self._stream.sent
            if warm > 0:  # some file systems would say even now that it takes time
                length = min(length, warm)
            elif not in_memory(opened.fd, run.offset, length):
                self._brought_to = self._stream.sent + length
                self._disk = self._root.bring(opened, run.offset, length)
                self._disk.add_done_callback(self._brought)
                raise BlockingIOError
            return os.sendfile(self._sock.fileno(), opened.fd, run.offset, length)
        wanted = min(run.length, budget, _GENERATED_BYTES)
        try:
            data = opened.read(run.offset, wanted)
        except Exception:  # the protocol's author did not foresee it; other connections go on
            _log.exception("%s: %s cannot be computed", self._connection.id, run.object.identifier)
            return 0
        return self._sock.send(data[:wanted]) if data else 0

    def _brought(self, _: asyncio.Future[None]) -> None:
        self._disk = None
        if self._more is not None:
            self._more()

    def _watch(self, wanted: bool) -> None:
        if wanted == self._watching:
            return
        self._watching = wanted
        if wanted:
            assert self._more is not None
            self._loop.add_writer(self._sock.fileno(), self._more)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def move(self, sock: socket.socket) -> None:
        """The kernel's connection was made anew. `pause` went before."""
        self._sock = sock

    def pause(self) -> None:
        """The socket is about to be closed."""
        self._watch(False)

    def leave(self) -> None:
        """There is no next turn, and the connection is not referred to any more."""
        self._watch(False)
        self._more = None
