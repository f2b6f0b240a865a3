"""Data connections that have just come to be, as the switch saw them. Pure.

A client that opens a data connection and then only listens is lost with its server, if that dies before its first
checkpoint: nobody knows the client's port, and nothing comes from it. So the switch shows the controller the SYN and
the SYN-ACK of data connections (`steering.COOKIE_WITNESS`), and the heir is told of those that no checkpoint knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dataplane.handshake import agreed
from dataplane.segment import ACK, SYN, Segment
from state.datablock import FourTuple
from state.errors import SegmentMalformed
from state.messages import Handshake

LIMIT = 4096
SECONDS = 10.0
"""A server's first checkpoint comes in milliseconds. What has none for so long was refused."""


@dataclass(eq=False)
class _Halves:
    until: float
    ours: Segment | None = None
    theirs: Segment | None = None
    """The newest of each; whether they belong together, `agreed` knows."""


class Witness:
    """Handshakes by the connections' ids, the latest last."""

    def __init__(self) -> None:
        self._seen: dict[str, _Halves] = {}
        self.malformed = 0
        """Handshakes whose options could not be read."""

    def __len__(self) -> int:
        return len(self._seen)

    def __contains__(self, connection: str) -> bool:
        return connection in self._seen

    def saw(self, found: Segment, *, from_vip: bool, now: float) -> None:
        """A segment with SYN, on its way from the VIP or to it. Not of those that a server opens: their clients hear of
        them when they are stored (`docs/decisions/021-active-data-connections.md`)."""
        if not found.flags & SYN or bool(found.flags & ACK) != from_vip:
            return
        here, there = (found.source, found.source_port), (found.destination, found.destination_port)
        connection = (FourTuple(*here, *there) if from_vip else FourTuple(*there, *here)).id
        halves = self._seen.pop(connection, None) or _Halves(now)
        if from_vip:
            halves.ours = found
        else:
            halves.theirs = found
        halves.until = now + SECONDS
        self._seen[connection] = halves  # at the end: `expire` relies on the order
        if len(self._seen) > LIMIT:
            del self._seen[next(iter(self._seen))]

    def known(self, connection: str) -> None:
        """It has a checkpoint, or has ended without."""
        self._seen.pop(connection, None)

    def expire(self, now: float) -> None:
        while self._seen:
            connection, halves = next(iter(self._seen.items()))
            if halves.until > now:
                return
            del self._seen[connection]

    def handshakes(self) -> Iterator[Handshake]:
        """Of connections that have none."""
        for halves in self._seen.values():
            if halves.ours is None or halves.theirs is None:
                continue
            try:
                found = agreed(halves.ours, halves.theirs)
            except SegmentMalformed:
                self.malformed += 1
                continue
            if found is not None:
                yield found
