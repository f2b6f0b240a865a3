"""The close gate's decisions: what to do with a FIN or RST that left a protected service without the close mark.

When a process dies its kernel closes its sockets: FIN, or RST if unread data waited. That must not reach a client whose
connection will be taken over. The gate cannot know yet whether the process is dying, so it *holds* the packet and asks
the agent: an answer proves life and the packet goes on; a failure means that it is dropped.
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from dataclasses import dataclass

from controller.collector import Record

HOLD_LIMIT = 4096
"""Packets held at most; more are dropped: their connection's client asks again, or the takeover saves it."""


class Decision(enum.Enum):
    FORWARD = "forwarded"
    HOLD = "held"
    DROP = "dropped"


@dataclass(frozen=True)
class Held:
    server: str
    in_port: int
    packet: bytes


def decide(record: Record | None, sender: str | None, sender_is_up: bool) -> Decision:
    """`sender`: whose switch port the packet came in by."""
    if sender is None or not sender_is_up:
        return Decision.DROP
    if record is None:
        return Decision.FORWARD  # the shared state does not know it: nobody will take it over
    if record.responsible == sender and record.settled:
        return Decision.HOLD
    return Decision.DROP  # the kernel of a backup that has no socket yet, or a server that lost the connection


class Gate:
    """Packets that wait for a sign of life."""

    def __init__(self) -> None:
        self._held: dict[int, list[Held]] = {}
        self._asked: dict[str, int] = {}
        self._nonces = itertools.count(1)
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(len(packets) for packets in self._held.values())

    def hold(self, held: Held) -> int | None:
        """Keep the packet. The nonce to ask its server with, or None when a question is under way already."""
        if len(self) >= HOLD_LIMIT:
            self.counts[Decision.DROP.value] += 1
            return None
        nonce = self._asked.get(held.server)
        if nonce is not None:
            self._held[nonce].append(held)
            return None
        nonce = next(self._nonces)
        self._asked[held.server] = nonce
        self._held[nonce] = [held]
        return nonce

    def here(self, server: str, nonce: int) -> list[Held]:
        """The server lives: its packets go on."""
        if self._asked.get(server) != nonce:
            return []
        del self._asked[server]
        packets = self._held.pop(nonce)
        self.counts[Decision.FORWARD.value] += len(packets)
        return packets

    def dead(self, server: str) -> None:
        """The server failed: nothing of it reaches a client."""
        nonce = self._asked.pop(server, None)
        if nonce is not None:
            self.counts[Decision.DROP.value] += len(self._held.pop(nonce))
