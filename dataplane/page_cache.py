"""Files that are not in memory: the event loop must not wait for a disk.

`sendfile` of a cold file holds its caller up, and every connection with it: 1.5 to 7 ms a time on a quick disk
(measured, kernel 6.18). So a piece is looked at before it is sent, without waiting (`RWF_NOWAIT`, preadv2(2), kernel
4.14), and brought in on a thread when it is cold. The kernel's own read-ahead sees to what follows: of a file that is
sent from its beginning to its end, most pieces are warm.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

_THREADS = 4
_PIECE = 128 * 1024
"""As far as the kernel reads ahead, unless it was told otherwise."""


def in_memory(descriptor: int, offset: int, length: int) -> bool:
    """These bytes can be had without waiting, as far as one in 128 KiB and the last tell; also True where the file
    system cannot tell."""
    places = (*range(offset, offset + length, _PIECE), offset + length - 1)
    try:
        return all(os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) >= 0 for at in places)
    except BlockingIOError:
        return False
    except OSError:
        return True  # whatever it is, whoever sends meets it


class Disk:
    """Threads that wait for the disk in the loop's place."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "disk")

    def bring(self, descriptor: int, offset: int, length: int) -> asyncio.Future[None]:
        """Done when these bytes are in memory, or cannot be. The descriptor must stay open until then."""
        return asyncio.get_running_loop().run_in_executor(self._threads, _read, descriptor, offset, length)

    def close(self) -> None:
        self._threads.shutdown(wait=True)


def _read(descriptor: int, offset: int, length: int) -> None:
    with contextlib.suppress(OSError):
        piece = bytearray(_PIECE)
        for at in range(offset, offset + length, _PIECE):
            if not os.preadv(descriptor, [piece], at):
                return
