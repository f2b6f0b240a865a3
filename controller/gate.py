"""The close gate's decisions: what to do with a FIN or RST that left a protected service without the close mark.

An agent marks every close of its own, so an unmarked one is the kernel's doing: the process is dying (FIN, or RST if
unread data waited), or a backup's kernel has no socket yet for a connection that it is about to get. Neither may reach
a client whose connection the shared state knows.

There is one honest case: somebody destroyed the socket of a live agent (`ss -K`). Then the agent says that the
connection is over. So the gate *holds* a known connection's packet for a moment, and lets it go when its server says
so.

A connection that nobody knows cannot be taken over: what its server's kernel says goes on. But not at once where the
death of the server's process, a moment ago, may have said it: where a socket *ends* (FIN, or RST with ACK: a client
would take the end of a data connection for the end of a file), where the kernel *refuses*, answers a SYN with RST (a
client that is refused does not ask again), and where the `witness` saw the connection begin, so that an heir can
recreate it. Such a packet is held until its server proves alive by heartbeats; if it is dead, what the client says next
finds the backup. While a server takes over, its refusals are dropped, and what it says of young connections: its kernel
does not know yet of a port that a protocol is about to open again there (a bundle's passive port).

RST without ACK answers what belongs to no socket, and goes on at once: a server that connects to a client which still
waits for a dead one clears its way by that (RFC 9293, 3.5.1; `docs/decisions/021-active-data-connections.md`).
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from controller.collector import Record
from dataplane import segment
from state.errors import SegmentMalformed

_ETHERNET = 14

HOLD_LIMIT = 4096
"""Packets held at most; more are dropped."""
HOLD_SECONDS = 1.0
PROOF_BEATS = 2
"""So many heartbeats after the packet prove that its server lives: one may have been on its way before."""


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
    known: bool = True
    """The shared state knows the connection. Else heartbeats of the server let the packet go."""


def decide(
    record: Record | None,
    sender: str | None,
    sender_is_up: bool,
    *,
    refusal: bool = False,
    inheriting: bool = False,
    ends: bool = False,
    young: bool = False,
) -> Decision:
    """`sender`: whose switch port the packet came in by. `refusal`: it answers a SYN. `inheriting`: the sender takes
    another server over, or did so just now. `ends`: a socket said it, so that it carries ACK. `young`: the connection's
    beginning was seen, but it has no checkpoint yet."""
    if sender is None or not sender_is_up:
        return Decision.DROP
    if record is None:
        if inheriting:
            return Decision.DROP if refusal or young else Decision.FORWARD
        return Decision.HOLD if refusal or ends or young else Decision.FORWARD
    if record.responsible == sender and record.settled:
        return Decision.HOLD
    return Decision.DROP


def kind_of(frame: bytes) -> tuple[bool, bool]:
    """Does it answer a SYN with RST (RFC 9293, 3.10.7.1)? Else, did a socket say it, so that it carries ACK? `frame`:
    from the Ethernet header on."""
    try:
        found = segment.parse(frame[_ETHERNET:])
    except SegmentMalformed:
        return False, False
    refusal = found.flags & (segment.RST | segment.ACK) == segment.RST | segment.ACK and found.seq == 0
    return refusal, not refusal and bool(found.flags & segment.ACK)


class Gate:
    """Packets that wait for their server's word, the newest of each connection."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._beats: Counter[str] = Counter()
        self._waiting: dict[str, deque[tuple[int, Held]]] = {}
        """Packets of unknown connections by server, with the heartbeat that lets them go."""
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
            if not held.known:
                due = self._beats[held.server] + PROOF_BEATS
                self._waiting.setdefault(held.server, deque()).append((due, held))

    def alive(self, server: str, is_known: Callable[[str], bool]) -> list[Held]:
        """A heartbeat came: packets of unknown connections that its server has survived go on. What became known
        meanwhile is another connection of the same name: a packet from before is not its end."""
        self._beats[server] += 1
        waiting, released = self._waiting.get(server), []
        while waiting and waiting[0][0] <= self._beats[server]:
            _, held = waiting.popleft()
            if self._held.get(held.connection) is not held:
                continue
            del self._held[held.connection]
            if is_known(held.connection):
                self.counts[Decision.DROP.value] += 1
            else:
                released.append(held)
        self.counts[Decision.FORWARD.value] += len(released)
        return released

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
        self._waiting.pop(server, None)
        gone = [name for name, held in self._held.items() if held.server == server]
        for name in gone:
            del self._held[name]
        self.counts[Decision.DROP.value] += len(gone)
