"""MPEG transport streams (ISO 13818-1) as RTP (RFC 2250): seven packets of 188 bytes in each, paced by the PCR.

A program clock reference (PCR) says when its byte is to arrive. Between two of them the bytes come at a constant rate
(ISO 13818-1 annex D), so a table of (offset, time) has every byte's time. The clock has 33 bits of 90 kHz and 9 bits of
27 MHz, and wraps after 26.5 hours; where it jumps (a recording that was cut and joined, or the discontinuity
indicator) the time goes on at the rate of before.

The scan looks at every packet of a file and must be quick: it slices one byte of each packet out of a large chunk
(`chunk[3::188]`) and finds those with a PCR by operations on the slices as wholes.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from dataclasses import dataclass

from dataplane.rtp.media import MediaRefused, Read, silences

PACKET_BYTES = 188
PER_RTP = 7
"""Packets of 188 bytes in one RTP packet: 1,316 bytes, as many as an Ethernet frame holds."""
PAYLOAD_BYTES = PER_RTP * PACKET_BYTES
PAYLOAD_TYPE = 33
"""RFC 3551 section 6."""

_SYNC = 0x47
_CHUNK_BYTES = 4096 * PACKET_BYTES
_PER_SECOND = 27_000_000
_PER_TICK = 300
_WRAP = (1 << 33) * _PER_TICK
_JUMP = 10 * _PER_SECOND
"""A larger step between two PCRs is no clock going on. They should come every 100 ms; sparse streams have seconds."""
_HAS_ADAPTATION = bytes(int(bool(value & 0x20)) for value in range(256))
_HAS_ROOM = bytes(int(7 <= value <= 183) for value in range(256))
_HAS_PCR = bytes(int(bool(value & 0x10)) for value in range(256))


@dataclass(frozen=True, slots=True)
class Pcr:
    """One clock reference: `clock` in 27 MHz, modulo its 42 bits' range."""

    offset: int
    clock: int
    discontinuity: bool
    random_access: bool


def parse_pcr(packet: bytes, offset: int) -> tuple[int, Pcr] | None:
    """(PID, reference) of a packet of 188 bytes; None when it has none or is marked as damaged."""
    if len(packet) < 12 or packet[0] != _SYNC or packet[1] & 0x80:
        return None
    if not packet[3] & 0x20 or packet[4] < 7 or not packet[5] & 0x10:
        return None
    field = int.from_bytes(packet[6:12], "big")
    clock = (field >> 15) * _PER_TICK + min(field & 0x1FF, _PER_TICK - 1)
    pid = (packet[1] & 0x1F) << 8 | packet[2]
    return pid, Pcr(offset, clock, bool(packet[5] & 0x80), bool(packet[5] & 0x40))


def scan(read: Read, size: int) -> tuple[dict[int, list[Pcr]], int | None]:
    """Every clock reference by PID, and the PID that the program map says has the clock. Raises `MediaRefused`."""
    references: dict[int, list[Pcr]] = {}
    named: int | None = None
    end = size - size % PACKET_BYTES
    if not end:
        raise MediaRefused("too short for a transport stream")
    for start in range(0, end, _CHUNK_BYTES):
        chunk = read(start, min(_CHUNK_BYTES, end - start))
        count = len(chunk) // PACKET_BYTES
        if len(chunk) != min(_CHUNK_BYTES, end - start) or chunk[::PACKET_BYTES].count(_SYNC) != count:
            raise MediaRefused("not a transport stream: packets do not begin with 0x47")
        if start == 0:
            named = clock_pid(chunk)
        having = int.from_bytes(chunk[3::PACKET_BYTES].translate(_HAS_ADAPTATION), "big")
        having &= int.from_bytes(chunk[4::PACKET_BYTES].translate(_HAS_ROOM), "big")
        having &= int.from_bytes(chunk[5::PACKET_BYTES].translate(_HAS_PCR), "big")
        marks, at = having.to_bytes(count, "big"), -1
        while (at := marks.find(1, at + 1)) >= 0:
            place = at * PACKET_BYTES
            found = parse_pcr(chunk[place : place + 12], start + place)
            if found is not None:
                references.setdefault(found[0], []).append(found[1])
    return references, named


def clock_pid(chunk: bytes) -> int | None:
    """PID of the clock of the first program: by the program association and program map tables (section 2.4.4).

    Tables that do not fit into one packet, as no stream of one program has them, are not understood.
    """
    map_pid: int | None = None
    for place in range(0, len(chunk) - PACKET_BYTES + 1, PACKET_BYTES):
        pid = int.from_bytes(chunk[place + 1 : place + 3], "big") & 0x1FFF
        if pid not in (0, map_pid):
            continue
        section = _section(chunk[place : place + PACKET_BYTES])
        if pid == 0 and section[:1] == b"\x00":
            length = int.from_bytes(section[1:3], "big") & 0xFFF
            for entry in range(8, min(3 + length - 4, len(section) - 3), 4):
                if section[entry : entry + 2] != b"\0\0":  # 0 names the network's table
                    map_pid = int.from_bytes(section[entry + 2 : entry + 4], "big") & 0x1FFF
                    break
        elif pid != 0 and section[:1] == b"\x02" and len(section) >= 10:
            return int.from_bytes(section[8:10], "big") & 0x1FFF
    return None


def _section(packet: bytes) -> bytes:
    """The section that begins in a packet; empty when none does."""
    if not packet[1] & 0x40 or not packet[3] & 0x10:
        return b""
    begin = 5 + packet[4] if packet[3] & 0x20 else 4
    if begin >= PACKET_BYTES:
        return b""
    return packet[begin + 1 + packet[begin] :]


def timetable(references: list[Pcr], size: int) -> tuple[list[int], list[int]]:
    """Offsets and their times (27 MHz, from 0 at offset 0), the last at `size`. Raises `MediaRefused`.

    Offsets rise strictly, times never fall.
    """
    steps: list[tuple[int, int, int | None]] = []  # from offset, bytes, 27 MHz; None: the clock jumped
    for before, after in itertools.pairwise(references):
        apart = (after.clock - before.clock) % _WRAP
        jumped = after.discontinuity or apart > _JUMP
        steps.append((before.offset, after.offset - before.offset, None if jumped else apart))
    known = [(count, step) for _, count, step in steps if step]
    if not known:
        raise MediaRefused("the transport stream has no clock that goes on")
    per = known[0]
    offsets, times, now = [0], [0], 0
    if references[0].offset:
        now = references[0].offset * per[1] // per[0]
        offsets.append(references[0].offset)
        times.append(now)
    for begin, count, step in steps:
        if step:
            per = (count, step)
        now += step if step is not None else count * per[1] // per[0]
        offsets.append(begin + count)
        times.append(now)
    if offsets[-1] < size:
        times.append(now + (size - offsets[-1]) * per[1] // per[0])
        offsets.append(size)
    return offsets, times


class TransportStream:
    """The table of a transport stream file (`media.Media`)."""

    encoding = "MP2T"
    payload_type = PAYLOAD_TYPE
    parameters = ""

    def __init__(self, offsets: list[int], times: list[int], entries: list[int]) -> None:
        """`entries`: offsets of packets at which a decoder may begin."""
        self._offsets = array("Q", offsets)
        self._times = array("Q", times)
        self._entries = array("Q", entries)
        self._size = offsets[-1]
        self.packets = -(-self._size // PAYLOAD_BYTES)
        self.silences = silences(self)

    @classmethod
    def index(cls, read: Read, size: int) -> TransportStream:
        """Scan a file. A last packet that is cut short is left out. Raises `MediaRefused`."""
        references, named = scan(read, size)
        if not references:
            raise MediaRefused("the transport stream has no clock reference")
        pid = named if named in references else max(references, key=lambda each: len(references[each]))
        chosen = references[pid]
        entries = [reference.offset for reference in chosen if reference.random_access]
        return cls(*timetable(chosen, size - size % PACKET_BYTES), entries)

    def ticks(self, packet: int) -> int:
        offset = min(packet * PAYLOAD_BYTES, self._size)
        after = min(bisect_right(self._offsets, offset), len(self._offsets) - 1)
        begin, end = self._offsets[after - 1], self._offsets[after]
        then = self._times[after - 1]
        return (then + (offset - begin) * (self._times[after] - then) // (end - begin)) // _PER_TICK

    def due(self, ticks: int) -> int:
        return bisect_right(range(self.packets), ticks, key=self.ticks)

    def entry(self, ticks: int) -> int:
        packet = max(0, self.due(ticks) - 1)
        before = bisect_right(self._entries, (packet + 1) * PAYLOAD_BYTES - 1)
        return self._entries[before - 1] // PAYLOAD_BYTES if before else packet

    def size_before(self, packet: int) -> int:
        return min(packet * PAYLOAD_BYTES, self._size)

    def marker(self, packet: int) -> bool:
        return False  # RFC 2250 section 2.1: only where timestamps jump; these never do

    def payload(self, packet: int, read: Read) -> bytes:
        offset = packet * PAYLOAD_BYTES
        return read(offset, min(PAYLOAD_BYTES, self._size - offset))
