"""RTP's fixed header (RFC 3550 section 5.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from state.errors import PeerError

HEADER_BYTES = 12
CLOCK_RATE = 90_000
"""Ticks per second of every payload here (RFC 2250 section 2, RFC 6184 section 5.1)."""

_HEADER = struct.Struct("!BBHII")
_VERSION = 2 << 6


class RtpMalformed(PeerError):
    """Bytes that are not an RTP packet."""


@dataclass(frozen=True, slots=True)
class RtpPacket:
    """One packet, without contributing sources and extensions."""

    payload_type: int
    seq: int
    timestamp: int
    ssrc: int
    marker: bool
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> RtpPacket:
        """Raises `RtpMalformed`. Contributing sources, an extension and padding are skipped."""
        if len(data) < HEADER_BYTES or data[0] & 0xC0 != _VERSION:
            raise RtpMalformed("not a packet of RTP version 2")
        first, second, seq, timestamp, ssrc = _HEADER.unpack_from(data)
        begin, end = HEADER_BYTES + 4 * (first & 0x0F), len(data)
        if first & 0x10:
            if begin + 4 > end:
                raise RtpMalformed("the extension is cut short")
            begin += 4 + 4 * int.from_bytes(data[begin + 2 : begin + 4], "big")
        if first & 0x20:
            end -= data[-1]
        if begin > end:
            raise RtpMalformed("the packet is shorter than it says")
        return cls(second & 0x7F, seq, timestamp, ssrc, bool(second & 0x80), data[begin:end])


def header(payload_type: int, seq: int, timestamp: int, ssrc: int, marker: bool) -> bytes:
    """The 12 bytes before a payload. `seq` and `timestamp` wrap here."""
    return _HEADER.pack(_VERSION, payload_type | (0x80 if marker else 0), seq & 0xFFFF, timestamp & 0xFFFF_FFFF, ssrc)
