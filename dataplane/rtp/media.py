"""What a media file is to RTP: a numbered list of packets, each with its time.

Packets are numbered from the beginning of the file, whatever part of it is played, so that a position is one number.
Times are ticks of 90 kHz since the file's first byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dataplane.rtp.packet import CLOCK_RATE
from state.errors import PeerError

Read = Callable[[int, int], bytes]
"""`read(offset, length)` of the file's bytes; fewer at its end."""
SILENCE_TICKS = 5 * CLOCK_RATE
"""Whoever does something at such intervals (`plan`) must know where there was nothing for longer."""


class MediaRefused(PeerError):
    """The file is not what its name says, or has nothing to be paced by: 415 to a client."""


class Media(Protocol):
    """The table of a file. Its methods are cheap, but for `payload` read nothing, and know no time but the file's."""

    encoding: str
    """As in an SDP's rtpmap: `MP2T`, `H264`."""
    payload_type: int
    parameters: str
    """SDP's `fmtp` parameters, or empty."""
    silences: list[int]
    """Packets that come more than `SILENCE_TICKS` after the one before, in order: most files have none."""

    @property
    def packets(self) -> int: ...

    def ticks(self, packet: int) -> int:
        """When a packet is to be sent, and its timestamp; of packet number `packets`: the duration. Never decreases."""

    def due(self, ticks: int) -> int:
        """How many packets have a time not after `ticks`."""

    def entry(self, ticks: int) -> int:
        """The packet to begin with, so that a decoder has something to show at `ticks`."""

    def size_before(self, packet: int) -> int:
        """Payload bytes of all packets before this one."""

    def marker(self, packet: int) -> bool:
        """The M bit."""

    def payload(self, packet: int, read: Read) -> bytes:
        """The payload. Shorter than planned only if the file has changed meanwhile."""


def silences(media: Media) -> list[int]:
    """What `Media.silences` is to be. It looks at the whole file: it is for the thread that makes the table."""
    found: list[int] = []
    packet = 0
    while (after := media.due(media.ticks(packet) + SILENCE_TICKS)) < media.packets:
        if media.ticks(after) - media.ticks(after - 1) > SILENCE_TICKS:
            found.append(after)
        packet = after
    return found
