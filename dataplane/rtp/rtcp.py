"""RTCP (RFC 3550 section 6): the compound packets that a sender makes, and what it understands of a receiver's."""

from __future__ import annotations

import struct
from dataclasses import dataclass

SENDER_REPORT, RECEIVER_REPORT, DESCRIPTION, BYE = 200, 201, 202, 203

_VERSION = 2 << 6
_HEADER = struct.Struct("!BBH")
_SENDER = struct.Struct("!IIIIII")
_BLOCK = struct.Struct("!IIIIII")
_NTP_EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970 (RFC 5905)."""
_CNAME = 1


@dataclass(frozen=True, slots=True)
class Reception:
    """What a receiver says of one source (section 6.4.1)."""

    ssrc: int
    fraction_lost: int
    """In 256ths, since its last report."""
    lost: int
    """All in all; negative when packets came twice."""
    highest_seq: int
    """Extended by the number of wraps."""
    jitter: int
    """In ticks of the payload's clock."""


def sender_report(ssrc: int, time_ns: int, timestamp: int, packets: int, octets: int, cname: str) -> bytes:
    """A sender report, and the description that must follow it. `time_ns`: the wall clock at `timestamp`."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    sender = _SENDER.pack(
        ssrc,
        (seconds + _NTP_EPOCH) & 0xFFFF_FFFF,
        (rest << 32) // 1_000_000_000,
        timestamp & 0xFFFF_FFFF,
        packets & 0xFFFF_FFFF,
        octets & 0xFFFF_FFFF,
    )
    return _packet(SENDER_REPORT, 0, sender) + _description(ssrc, cname)


def bye(ssrc: int) -> bytes:
    """The last word of a source (section 6.6)."""
    return _packet(BYE, 1, ssrc.to_bytes(4, "big"))


def receptions(data: bytes) -> list[Reception]:
    """The report blocks of a compound packet. What is not understood is passed over, and nothing is raised."""
    found: list[Reception] = []
    at = 0
    while at + 4 <= len(data):
        first, kind, words = _HEADER.unpack_from(data, at)
        end = at + 4 + 4 * words
        if first & 0xC0 != _VERSION or end > len(data):
            break
        if kind in (SENDER_REPORT, RECEIVER_REPORT):
            block = at + (28 if kind == SENDER_REPORT else 8)
            for _ in range(first & 0x1F):
                if block + _BLOCK.size > end:
                    break
                ssrc, lost, highest, jitter, _, _ = _BLOCK.unpack_from(data, block)
                total = lost & 0xFF_FFFF
                total -= (total & 0x80_0000) << 1
                found.append(Reception(ssrc, lost >> 24, total, highest, jitter))
                block += _BLOCK.size
        at = end
    return found


def _description(ssrc: int, cname: str) -> bytes:
    name = cname.encode("utf-8")[:255]
    chunk = ssrc.to_bytes(4, "big") + bytes((_CNAME, len(name))) + name + b"\0"
    return _packet(DESCRIPTION, 1, chunk + bytes(-len(chunk) % 4))


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return _HEADER.pack(_VERSION | count, kind, len(body) // 4) + body
