"""Ports of a service's data connections: how they are written in the configuration, and how a switch matches them.

    data_ports: [20, 40960-45055, 5004-5005/udp]

A switch matches a port's value under a mask, so a run of ports becomes a few aligned blocks (`blocks`): 40960-45055 is
one, 40000-49999 are nine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TCP, UDP = "tcp", "udp"
_WRITTEN = re.compile(r"^(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp))?\Z", re.ASCII)
_LAST = 0xFFFF


@dataclass(frozen=True)
class DataPorts:
    """Ports from `first` to `last`, both included, of one transport."""

    first: int
    last: int
    transport: str

    @property
    def numbers(self) -> range:
        return range(self.first, self.last + 1)

    def overlaps(self, other: DataPorts) -> bool:
        return self.transport == other.transport and self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{ports}/{self.transport}"


def read(text: str, transport: str | None) -> DataPorts:
    """`PORT` or `FIRST-LAST`, with `/tcp` or `/udp`, or else of `transport`. Raises `ValueError` with why not."""
    match = _WRITTEN.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not PORT or FIRST-LAST, with or without /tcp or /udp")
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if not 1 <= first <= last <= _LAST:
        raise ValueError(f"{text!r} must go up from 1 to {_LAST}")
    named = match[3] or transport
    if named is None:
        raise ValueError(f"{text!r}: say /tcp or /udp, the protocol does not tell")
    return DataPorts(first, last, named)


def blocks(first: int, last: int) -> list[tuple[int, int]]:
    """The ports from `first` to `last` as (value, mask) pairs that do not overlap, as few as there can be."""
    found: list[tuple[int, int]] = []
    while first <= last:
        size = first & -first or _LAST + 1
        while first + size - 1 > last:
            size >>= 1
        found.append((first, _LAST + 1 - size))
        first += size
    return found
