"""TCP segments in IPv4 and IPv6 packets: bytes to typed fields and back (RFC 791, 8200, 9293, 7323, 2018).

Only what the proof needs: no fragments; of IPv6's extension headers those that leave the segment readable are passed
over. Tests hold both directions against scapy.
"""

from __future__ import annotations

import struct

import msgspec

from dataplane.sequence import Seq
from state.errors import SegmentMalformed

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_TCP = struct.Struct("!HHIIBBHHH")
_PAIR = struct.Struct("!II")
_TIMESTAMPS = b"\x01\x01\x08\x0a"
_IPPROTO_TCP = 6
_HOP_LIMIT = 64
EXTENSION_HEADERS = (0, 43, 60)
"""Hop-by-hop options, routing, destination options: `next header, length in 8 bytes beyond the first 8, ...`. Others
(fragment, AH, ESP) hide the segment or a part of it."""


class Segment(msgspec.Struct, frozen=True):  # quickly made: a takeover makes thousands
    """One segment. `window` is the field as sent, not scaled. Addresses have 4 or 16 bytes."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    seq: Seq
    ack: Seq
    flags: int
    window: int
    payload_length: int = 0
    payload: bytes = b""
    timestamps: tuple[int, int] | None = None
    """(TSval, TSecr)"""
    sack: tuple[tuple[Seq, Seq], ...] = ()
    """SACK blocks as (left edge, right edge); the first one may be a DSACK (RFC 2883)."""
    dscp: int = 0
    syn_options: bytes = b""
    """The options of a SYN as they came, for `handshake`."""


def parse(packet: bytes) -> Segment:
    """An IP packet that carries TCP. Raises `SegmentMalformed`.

    Checksums are not verified: the kernel did, or the sender left them to an offload that never happens on veth.
    """
    if not packet:
        raise SegmentMalformed("no bytes")
    version = packet[0] >> 4
    if version == 4:
        if len(packet) < _IPV4.size:
            raise SegmentMalformed("IPv4 header truncated")
        head, tos, total, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(packet)
        start = (head & 0x0F) * 4
        if start < _IPV4.size or protocol != _IPPROTO_TCP or fragment & 0x3FFF:
            raise SegmentMalformed("not a whole TCP packet")
    elif version == 6:
        if len(packet) < _IPV6.size:
            raise SegmentMalformed("IPv6 header truncated")
        first, length, protocol, _, source, destination = _IPV6.unpack_from(packet)
        total, tos = _IPV6.size + length, first >> 20 & 0xFF
        start = _IPV6.size if protocol == _IPPROTO_TCP else _after_extension_headers(packet, protocol)
    else:
        raise SegmentMalformed(f"IP version {version}")
    if total > len(packet) or total < start + _TCP.size:
        raise SegmentMalformed("packet truncated")
    sport, dport, seq, ack, offset, flags, window, _, _ = _TCP.unpack_from(packet, start)
    data = start + (offset >> 4) * 4
    if data < start + _TCP.size or data > total:
        raise SegmentMalformed("data offset outside the packet")
    timestamps, sack = _options(packet, start + _TCP.size, data)
    return Segment(
        source=source,
        source_port=sport,
        destination=destination,
        destination_port=dport,
        seq=Seq(seq),
        ack=Seq(ack),
        flags=flags,
        window=window,
        payload_length=total - data,
        payload=packet[data:total],
        timestamps=timestamps,
        sack=sack,
        dscp=tos >> 2,
        syn_options=packet[start + _TCP.size : data] if flags & SYN else b"",
    )


def _after_extension_headers(packet: bytes, protocol: int) -> int:
    """Where TCP begins in an IPv6 packet whose header names another next header (RFC 8200, section 4)."""
    at = _IPV6.size
    while protocol in EXTENSION_HEADERS:
        if at + 8 > len(packet):
            raise SegmentMalformed("IPv6 extension header truncated")
        protocol, at = packet[at], at + 8 + packet[at + 1] * 8
    if protocol != _IPPROTO_TCP:
        raise SegmentMalformed(f"IPv6 next header {protocol} is not TCP")
    return at


def _options(packet: bytes, at: int, end: int) -> tuple[tuple[int, int] | None, tuple[tuple[Seq, Seq], ...]]:
    timestamps: tuple[int, int] | None = None
    sack: list[tuple[Seq, Seq]] = []
    if packet[at : at + 4] == _TIMESTAMPS and at + 12 <= end:  # how all but every segment begins
        timestamps = _PAIR.unpack_from(packet, at + 4)
        at += 12
    while at < end:
        kind = packet[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        if at + 1 >= end:
            raise SegmentMalformed("option truncated")
        length = packet[at + 1]
        if length < 2 or at + length > end:
            raise SegmentMalformed("option of impossible length")
        if kind == 8 and length == 10:
            timestamps = _PAIR.unpack_from(packet, at + 2)
        elif kind == 5 and (length - 2) % 8 == 0:
            for edge in range(at + 2, at + length, 8):
                left, right = _PAIR.unpack_from(packet, edge)
                sack.append((Seq(left), Seq(right)))
        at += length
    return timestamps, tuple(sack)


def build(segment: Segment) -> bytes:
    """The IP packet, with correct checksums. Timestamps are written as Linux does (NOP NOP TS)."""
    options = b""
    if segment.timestamps is not None:
        options += struct.pack("!BBBBII", 1, 1, 8, 10, *segment.timestamps)
    if segment.sack:
        options += struct.pack("!BBBB", 1, 1, 5, 2 + 8 * len(segment.sack))
        for left, right in segment.sack:
            options += struct.pack("!II", left, right)
    header = _TCP.pack(
        segment.source_port,
        segment.destination_port,
        segment.seq,
        segment.ack,
        (_TCP.size + len(options)) // 4 << 4,
        segment.flags,
        segment.window,
        0,
        0,
    )
    tcp = header + options + segment.payload
    pseudo = segment.source + segment.destination + struct.pack("!II", len(tcp), _IPPROTO_TCP)
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    tos = segment.dscp << 2
    if len(segment.source) == 4:
        ip = _IPV4.pack(
            0x45,
            tos,
            _IPV4.size + len(tcp),
            0,
            0x4000,
            _HOP_LIMIT,
            _IPPROTO_TCP,
            0,
            segment.source,
            segment.destination,
        )
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    else:
        ip = _IPV6.pack(6 << 28 | tos << 20, len(tcp), _IPPROTO_TCP, _HOP_LIMIT, segment.source, segment.destination)
    return ip + tcp


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`, as it goes into the header."""
    if len(data) % 2:
        data += b"\0"
    # Adding 16-bit words with the carry wrapped around is counting modulo 0xFFFF, but for how zero is written.
    number = int.from_bytes(data, "big")
    return ~(number % 0xFFFF or (0xFFFF if number else 0)) & 0xFFFF
