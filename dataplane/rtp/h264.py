"""H.264 byte streams (ITU-T H.264 annex B) as RTP (RFC 6184): single NAL units, and fragments (FU-A) of large ones.

A byte stream has no times. Its sequence parameter set may say how many pictures a second has; if it does not, 25.
Then picture n is at n / 25 s, provided that pictures are sent in the order in which they are shown: a stream with B
pictures is refused, and so is an interlaced one. Such files belong into a transport stream, which brings its times.
"""

from __future__ import annotations

import base64
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from dataplane.rtp.media import MediaRefused, Read, silences
from dataplane.rtp.packet import CLOCK_RATE

PAYLOAD_TYPE = 96
LARGEST_PAYLOAD = 1400
"""With all headers less than an Ethernet frame holds."""
DEFAULT_RATE = (25, 1)

_START = b"\0\0\1"
_CHUNK_BYTES = 1 << 20
_SLICE, _IDR, _SEI, _SPS, _PPS, _DELIMITER, _FILLER = 1, 5, 6, 7, 8, 9, 12
_BEGINS_PICTURE = (_SEI, _SPS, _PPS, _DELIMITER, 14, 15, 16, 17, 18)
_B_SLICES = (1, 6)
_FU_A = 28
_START_BIT, _END_BIT = 0x80, 0x40
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What of a sequence parameter set (section 7.3.2.1) matters here. `rate`: pictures per seconds, as a fraction."""

    profile_level: bytes
    progressive: bool
    output_order: bool
    """Pictures are shown in the order in which they are decoded (pic_order_cnt_type 2)."""
    rate: tuple[int, int] | None


class _Bits:
    """Reads an RBSP (section 7.2) bit by bit. Beyond the end there are zeros, and `over` is true."""

    def __init__(self, payload: bytes) -> None:
        data = payload.replace(b"\0\0\3", b"\0\0")  # emulation prevention, section 7.4.1
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8

    @property
    def over(self) -> bool:
        return self._left < 0

    def take(self, count: int) -> int:
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1) if self._left >= 0 else 0

    def ue(self) -> int:
        """Exp-Golomb code (section 9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32 or self.over:
                return 0
        return (1 << zeros) - 1 + self.take(zeros)

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def parse_sps(nal: bytes) -> Parameters:
    """A sequence parameter set with its header byte. Raises `MediaRefused`."""
    bits = _Bits(nal[1:512])
    profile = bits.take(8)
    bits.take(16)
    bits.ue()
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        if chroma == 3:
            bits.take(1)
        bits.ue(), bits.ue(), bits.take(1)
        if bits.take(1):
            _skip_scaling_lists(bits, 8 if chroma != 3 else 12)
    bits.ue()
    order = bits.ue()
    if order == 0:
        bits.ue()
    elif order == 1:
        bits.take(1), bits.se(), bits.se()
        for _ in range(min(bits.ue(), 255)):
            bits.se()
    bits.ue(), bits.take(1), bits.ue(), bits.ue()
    progressive = bool(bits.take(1))
    if not progressive:
        bits.take(1)
    bits.take(1)
    if bits.take(1):  # cropping
        bits.ue(), bits.ue(), bits.ue(), bits.ue()
    rate = _rate(bits) if bits.take(1) else None
    if bits.over or len(nal) < 4:
        raise MediaRefused("the sequence parameter set is cut short")
    return Parameters(nal[1:4], progressive, order == 2, rate)


def _skip_scaling_lists(bits: _Bits, count: int) -> None:
    for number in range(count):
        if not bits.take(1):
            continue
        last = following = 8
        for _ in range(16 if number < 6 else 64):
            if following:
                following = (last + bits.se()) % 256
            last = following or last


def _rate(bits: _Bits) -> tuple[int, int] | None:
    """Of the video usability information (annex E.1.1): a picture lasts two ticks of its clock."""
    if bits.take(1) and bits.take(8) == 255:  # sample aspect ratio
        bits.take(32)
    if bits.take(1):  # overscan
        bits.take(1)
    if bits.take(1):  # video signal type
        bits.take(4)
        if bits.take(1):
            bits.take(24)
    if bits.take(1):  # place of chroma samples
        bits.ue(), bits.ue()
    if not bits.take(1):
        return None
    ticks, scale = bits.take(32), bits.take(32)
    return (scale, 2 * ticks) if ticks and scale and scale // (2 * ticks) <= 1000 else None


def begins(data: bytes) -> bool:
    """Do a file's first four bytes begin a byte stream?"""
    return data[:4] == b"\0" + _START or data[:3] == _START


def nal_units(read: Read, size: int) -> Iterator[tuple[int, int, bytes]]:
    """(offset, length, first bytes) of every NAL unit of a byte stream (annex B.1). Raises `MediaRefused`."""
    if not begins(read(0, 4)):
        raise MediaRefused("not a byte stream of NAL units")
    begin = -1
    for found in _starts(read, size):
        if begin >= 0:
            yield from _unit(read, begin, found)
        begin = found + len(_START)
    yield from _unit(read, begin, size)


def _starts(read: Read, size: int) -> Iterator[int]:
    at = 0
    while at < size:
        chunk, place = read(at, _CHUNK_BYTES), -1
        while (place := chunk.find(_START, place + 1)) >= 0:
            yield at + place
        at += _CHUNK_BYTES - (len(_START) - 1)


def _unit(read: Read, begin: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """A NAL unit does not end with zeros: what follows it does."""
    while end > begin:
        tail = read(max(begin, end - 64), min(64, end - begin))
        end -= len(tail) - len(tail.rstrip(b"\0"))
        if tail.rstrip(b"\0"):
            yield begin, end - begin, read(begin, min(16, end - begin))
            return
        if not tail:
            return


class ByteStreamH264:
    """The table of a file (`media.Media`). Packets of one picture have one time, and the last one the M bit."""

    encoding = "H264"
    payload_type = PAYLOAD_TYPE

    def __init__(self, sps: bytes, pps: bytes) -> None:
        parameters = parse_sps(sps)
        if not parameters.progressive:
            raise MediaRefused("interlaced video is not served from a byte stream")
        self._in_order = parameters.output_order
        self._rate = parameters.rate or DEFAULT_RATE
        sets = ",".join(base64.b64encode(each).decode() for each in (sps, pps) if each)
        level = parameters.profile_level.hex().upper()
        self.parameters = f"packetization-mode=1;profile-level-id={level};sprop-parameter-sets={sets}"
        self._offsets = array("Q")
        """Of each packet: where its bytes are in the file, ..."""
        self._lengths = array("H")
        self._heads = array("H")
        """... what goes before them (0, or the two bytes of FU-A), ..."""
        self._pictures = array("I")
        """... to which picture they belong, ..."""
        self._sizes = array("Q", [0])
        """... and payload bytes up to its end (one more, at the front)."""
        self._entries = array("I")
        """Packets at which a decoder may begin."""
        self._count = 0
        self.silences: list[int] = []

    @classmethod
    def index(cls, read: Read, size: int) -> ByteStreamH264:
        """Scan a file. Raises `MediaRefused`."""
        first: dict[int, bytes] = {}
        for offset, length, head in nal_units(read, size):
            kind = head[0] & 0x1F
            if kind in (_SPS, _PPS) and kind not in first:
                first[kind] = read(offset, min(length, 4096))
            if len(first) == 2 or kind in (_SLICE, _IDR):
                break
        if _SPS not in first:
            raise MediaRefused("there is no sequence parameter set before the first picture")
        table = cls(first[_SPS], first.get(_PPS, b""))
        table._fill(read, size)
        if not table.packets:
            raise MediaRefused("there is no picture")
        return table

    def _fill(self, read: Read, size: int) -> None:
        begin, has_slice = 0, False
        for offset, length, head in nal_units(read, size):
            kind = head[0] & 0x1F
            coded = kind in (_SLICE, _IDR)
            if coded:
                bits = _Bits(head[1:])
                first = bits.ue() == 0  # first_mb_in_slice
                if bits.ue() in _B_SLICES and not self._in_order:
                    raise MediaRefused("pictures are not sent in the order in which they are shown")
            else:
                first = kind in _BEGINS_PICTURE
            if first and has_slice:
                self._count, begin, has_slice = self._count + 1, len(self._offsets), False
            if coded and not has_slice and kind == _IDR:
                self._entries.append(begin)
            has_slice |= coded
            if kind not in (_DELIMITER, _FILLER):
                self._add(offset, length, head[0])
        self._count += has_slice
        self._pictures.append(self._count)
        self.silences = silences(self)

    def _add(self, offset: int, length: int, head: int) -> None:
        if length <= LARGEST_PAYLOAD:
            self._packet(offset, length, 0)
            return
        indicator, room = (head & 0xE0 | _FU_A) << 8, LARGEST_PAYLOAD - 2
        for begin in range(1, length, room):
            flags = (_START_BIT if begin == 1 else 0) | (_END_BIT if begin + room >= length else 0)
            self._packet(offset + begin, min(room, length - begin), indicator | flags | head & 0x1F)

    def _packet(self, offset: int, length: int, head: int) -> None:
        self._offsets.append(offset)
        self._lengths.append(length)
        self._heads.append(head)
        self._pictures.append(self._count)
        self._sizes.append(self._sizes[-1] + length + (2 if head else 0))

    @property
    def packets(self) -> int:
        return len(self._offsets)

    def ticks(self, packet: int) -> int:
        pictures, seconds = self._rate
        return self._pictures[packet] * CLOCK_RATE * seconds // pictures

    def due(self, ticks: int) -> int:
        return bisect_right(range(self.packets), ticks, key=self.ticks)

    def entry(self, ticks: int) -> int:
        packet = max(0, self.due(ticks) - 1)
        before = bisect_right(self._entries, packet)
        return self._entries[before - 1] if before else 0

    def size_before(self, packet: int) -> int:
        return self._sizes[packet]

    def marker(self, packet: int) -> bool:
        return self._pictures[packet] != self._pictures[packet + 1]

    def payload(self, packet: int, read: Read) -> bytes:
        head = self._heads[packet]
        data = read(self._offsets[packet], self._lengths[packet])
        return head.to_bytes(2, "big") + data if head else data
