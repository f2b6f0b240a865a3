"""The close gate's decisions: what to do with a FIN or RST that left a protected service without the close mark.

An agent marks every close of its own, so an unmarked one is the kernel's doing: the process is dying (FIN, or RST if
unread data waited), or a backup's kernel has no socket yet for a connection that it is about to get. Neither may reach
a client whose connection the shared state knows. Unknown connections nobody can take over: theirs goes on at once.

There is one honest case: somebody destroyed the socket of a live agent (`ss -K`). Then the agent says that the
connection is over. So the gate *holds* a known connection's packet for a moment, and lets it go when its server says
so.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass

from controller.collector import Record

HOLD_LIMIT = 4096
"""Packets held at most; more are dropped."""
HOLD_SECONDS = 1.0


class Decision(enum.Enum):
    FORWARD = "forwarded"
    HOLD = "held"
    DROP = "dropped"


@dataclass(frozen=True)
class Held:
    connection: str
    server: str
    in_port: int
    packet: bytes
    until: float


def decide(record: Record | None, sender: str | None, sender_is_up: bool) -> Decision:
    """`sender`: whose switch port the packet came in by."""
    if sender is None or not sender_is_up:
        return Decision.DROP
    if record is None:
        return Decision.FORWARD
    if record.responsible == sender and record.settled:
        return Decision.HOLD
    return Decision.DROP


class Gate:
    """Packets that wait for their server's word, the newest of each connection."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, held: Held) -> None:
        self.counts[Decision.HOLD.value] += 1
        if held.connection in self._held or len(self._held) >= HOLD_LIMIT:
            self.counts[Decision.DROP.value] += 1
        self._held.pop(held.connection, None)  # the newest goes to the end: `expire` relies on the order
        if len(self._held) < HOLD_LIMIT:
            self._held[held.connection] = held

    def closed(self, server: str, connections: list[str]) -> list[Held]:
        """The server says that these are over: their packets go on."""
        released = [held for name in connections if (held := self._held.get(name)) and held.server == server]
        for held in released:
            del self._held[held.connection]
        self.counts[Decision.FORWARD.value] += len(released)
        return released

    def expire(self, now: float) -> None:
        """Drop what nobody vouched for."""
        while self._held:
            name, held = next(iter(self._held.items()))
            if held.until > now:
                return
            del self._held[name]
            self.counts[Decision.DROP.value] += 1

    def dead(self, server: str) -> None:
        """The server failed: nothing of it reaches a client."""
        gone = [name for name, held in self._held.items() if held.server == server]
        for name in gone:
            del self._held[name]
        self.counts[Decision.DROP.value] += len(gone)
