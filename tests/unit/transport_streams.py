"""Transport streams for tests: made by hand, packet by packet, and a real one by ffmpeg."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

PACKET = 188
VIDEO, OTHER = 0x100, 0x200


def plain(pid: int = VIDEO, fill: int = 0xFF) -> bytes:
    """A packet with payload only. Its payload looks like an adaptation field with a clock, to who does not look."""
    return bytes((0x47, pid >> 8, pid & 0xFF, 0x10)) + bytes((fill,)) * (PACKET - 4)


def clocked(base: int, pid: int = VIDEO, extension: int = 0, *, flags: int = 0, damaged: bool = False) -> bytes:
    """A packet with a PCR of `base` (90 kHz) and `extension` (27 MHz)."""
    field = base << 15 | 0x3F << 9 | extension
    head = bytes((0x47, pid >> 8 | (0x80 if damaged else 0), pid & 0xFF, 0x30, 7, 0x10 | flags))
    return (head + field.to_bytes(6, "big")).ljust(PACKET, b"\xff")


def tables(clock_pid: int, map_pid: int = 0x1000) -> bytes:
    """Program association and program map of one program."""
    pat = b"\x00\xb0\x0d\x00\x01\xc1\x00\x00" + b"\x00\x01" + (0xE000 | map_pid).to_bytes(2, "big") + bytes(4)
    pmt = b"\x02\xb0\x0d\x00\x01\xc1\x00\x00" + (0xE000 | clock_pid).to_bytes(2, "big") + b"\xf0\x00" + bytes(4)
    return _table(0, pat) + _table(map_pid, pmt)


def _table(pid: int, section: bytes) -> bytes:
    return (bytes((0x47, 0x40 | pid >> 8, pid & 0xFF, 0x10, 0)) + section).ljust(PACKET, b"\xff")


def steady(packets: int, ticks_per_packet: int = 90, every: int = 10, start: int = 0) -> bytes:
    """A stream of constant rate with a clock in every tenth packet; `start` is the first clock (it wraps)."""
    out = []
    for number in range(packets):
        clock = (start + number * ticks_per_packet) % (1 << 33)
        out.append(plain() if number % every else clocked(clock))
    return b"".join(out)


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


def file_reader(path: Path) -> Callable[[int, int], bytes]:
    descriptor = os.open(path, os.O_RDONLY)
    return lambda offset, length: os.pread(descriptor, length, offset)
