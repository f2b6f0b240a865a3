"""A file that is being uploaded. The disk is a thread's affair: the event loop, and its heartbeat, never wait for it.

A new file appears under its name when it is whole and on the disk, not before: until then it has no name at all, and
is gone with the process. One that is continued (`offset`) is written where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import Callable

_CROWDED = 1 << 20
"""Bytes that may wait for the disk before the client has to wait, too."""
_MODE = 0o644


class Upload:
    """`told` is called once, from the event loop: with None when all is on the disk, or with what went wrong; never
    after `abandon`."""

    def __init__(
        self,
        path: str,
        offset: int | None,
        told: Callable[[OSError | None], None],
        room: Callable[[], None],
        *,
        exactly: bool = False,
    ) -> None:
        """`path`: where the file is to be, of the file system. `offset`: its first so many bytes are kept; None: it is
        a new file. `room` is called when it is not `crowded`, after each piece.

        Raises `OSError`, also when the file has fewer bytes than `offset`, or with `exactly` any other number: since
        its size was looked at another may have written it, or this is another server with another copy.
        """
        self._path = path
        self._new = offset is None
        if offset is None:
            flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
            self._fd = os.open(os.path.dirname(path), flags, _MODE)
        else:
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (0 if offset else os.O_CREAT)
            self._fd = os.open(path, flags, _MODE)
            try:
                size = os.fstat(self._fd).st_size
                if size < offset or (exactly and size != offset):
                    raise OSError(errno.ESTALE, f"it has {size} bytes here, not {offset}")
                os.ftruncate(self._fd, offset)
                os.lseek(self._fd, offset, os.SEEK_SET)
            except OSError:
                os.close(self._fd)
                raise
        self._told, self._room = told, room
        self._waiting: list[bytes] = []
        self._ends = self._abandoned = False
        self._writing: asyncio.Future[None] | None = None
        self.unwritten = 0
        """Bytes that wait for the disk."""

    @property
    def crowded(self) -> bool:
        return self.unwritten > _CROWDED

    def write(self, data: bytes) -> None:
        self._waiting.append(data)
        self.unwritten += len(data)
        self._go_on()

    def end(self) -> None:
        """That was all."""
        self._ends = True
        self._go_on()

    def abandon(self) -> None:
        """Nobody wants it any more. A new file was never there."""
        self._abandoned = True
        self._waiting.clear()
        if self._writing is None:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _go_on(self) -> None:
        if self._writing is not None or self._fd < 0 or not (self._waiting or self._ends):
            return
        batch, self._waiting = self._waiting, []
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._carry_out, batch, self._ends)
        size, last = sum(map(len, batch)), self._ends
        self._writing.add_done_callback(lambda done: self._written(done, size, last))

    def _carry_out(self, batch: list[bytes], last: bool) -> None:
        """On the thread."""
        for data in batch:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        if last:
            os.fsync(self._fd)
            if self._new:
                self._name()

    def _name(self) -> None:
        """Give it its name, in the place of what had it."""
        folder = os.path.dirname(self._path)
        name = os.path.join(folder, f".upload-{secrets.token_hex(8)}")
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(f"/proc/self/fd/{self._fd}", name, dst_dir_fd=at, follow_symlinks=True)
            try:
                os.replace(name, self._path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
            os.fsync(at)
        finally:
            os.close(at)

    def _written(self, done: asyncio.Future[None], size: int, last: bool) -> None:
        self._writing = None
        self.unwritten -= size
        error = done.exception() if not done.cancelled() else OSError("the server ends")
        if self._abandoned:
            self._close()
        elif error is not None or last:
            self._close()
            self._told(error if error is None or isinstance(error, OSError) else OSError(str(error)))
        else:
            if not self.crowded:
                self._room()
            self._go_on()
