"""What all RTSP connections of a server share: the tables of its files, and what is on the air.

A table is made once per version of a file, on a thread, because a large file takes a while and the event loop must go
on beating. A server that stands ready makes them when it is told of a session, long before it needs them.
"""

from __future__ import annotations

import asyncio
import os
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

from dataplane.objects import DocumentRoot, OpenObject
from dataplane.rtp.h264 import ByteStreamH264, begins
from dataplane.rtp.media import Media, MediaRefused, Read
from dataplane.rtp.mpegts import TransportStream

if TYPE_CHECKING:
    from dataplane.rtsp.sending import UdpSender

TABLES = 256
"""So many are kept, the latest used."""

Version = tuple[int, int, int, int, int]
Told = Callable[[Media | MediaRefused], None]


class Station:
    """One per document root, hence one per agent."""

    _all: ClassVar[weakref.WeakKeyDictionary[DocumentRoot, Station]] = weakref.WeakKeyDictionary()

    def __init__(self) -> None:
        self.on_air: dict[tuple[OpenObject, str], UdpSender] = {}
        """What is sent to a multicast group now. Another name of the file is another presentation, with another group;
        and so is another version."""
        self._tables: OrderedDict[Version, Media | MediaRefused] = OrderedDict()
        self._waiting: dict[Version, list[Told]] = {}
        self._thread = ThreadPoolExecutor(1, "media")

    @classmethod
    def of(cls, root: DocumentRoot) -> Station:
        found = cls._all.get(root)
        if found is None:
            found = cls._all[root] = cls()
        return found

    def table(self, opened: OpenObject, told: Told) -> None:
        """The table of a file, or why there is none: at once if it is known, or later. The file may be released."""
        known = self._tables.get(opened.version)
        if known is not None:
            self._tables.move_to_end(opened.version)
            told(known)
            return
        waiting = self._waiting.setdefault(opened.version, [])
        waiting.append(told)
        if len(waiting) > 1:
            return
        version, size, descriptor = opened.version, opened.ref.size, os.dup(opened.fd)
        future = asyncio.get_running_loop().run_in_executor(self._thread, _index, descriptor, size)
        future.add_done_callback(lambda done: self._made(version, done))

    def _made(self, version: Version, done: asyncio.Future[Media | MediaRefused]) -> None:
        if done.cancelled() or done.exception() is not None:
            made: Media | MediaRefused = MediaRefused(f"the file cannot be read: {done}")
        else:
            made = done.result()
        self._tables[version] = made
        while len(self._tables) > TABLES:
            self._tables.popitem(last=False)
        for told in self._waiting.pop(version, ()):
            told(made)

    def group(self, opened: OpenObject) -> str:
        """The multicast group of a file: of the site's own (RFC 2365), by its name, unless another has it."""
        for playing, group in self.on_air:
            if playing is opened:
                return group
        taken = {group for _, group in self.on_air}
        number = zlib.crc32(opened.ref.identifier.encode("utf-8", "surrogateescape")) & 0xFFFF
        while (group := f"239.255.{number >> 8}.{number & 0xFF}") in taken:
            number = (number + 1) & 0xFFFF
        return group

    def go_on_air(self, opened: OpenObject, group: str, sender: UdpSender) -> None:
        """From now until `go_off_air` this is what the group hears."""
        self.on_air[opened, group] = sender

    def go_off_air(self, opened: OpenObject, group: str) -> None:
        self.on_air.pop((opened, group), None)


def index(read: Read, size: int) -> Media:
    """The table of a file by what is in it, whatever its name says. Raises `MediaRefused`."""
    if begins(read(0, 4)):
        return ByteStreamH264.index(read, size)
    return TransportStream.index(read, size)


def _index(descriptor: int, size: int) -> Media | MediaRefused:
    """On the thread."""
    try:
        return index(lambda offset, length: os.pread(descriptor, length, offset), size)
    except MediaRefused as refused:
        return refused
    finally:
        os.close(descriptor)
