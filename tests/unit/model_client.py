"""A client's TCP in memory, as far as probing meets it (RFC 9293, 7323, 2018, 2883), and a network with delay and loss.

It speaks the example connection of `builders`. Positions count the server's bytes that it has.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from dataplane.prover import Prover, Verdict
from dataplane.segment import ACK, RST, Segment, build, parse
from dataplane.sequence import Seq
from tests.unit.builders import CLIENT, RCV_NXT, TSVAL, VIP, wire


@dataclass
class ModelClient:
    position: int
    sack: bool = True
    dsack: bool = True
    timestamps: bool = True
    window: int = 64_128
    port: int = 40001
    present: bool = True
    """False: its host has the connection no more."""
    waiting: bool = False
    """It is in TIME-WAIT: no SACK options any more."""
    sent: int = 0
    """Bytes of input beyond what the checkpoint knows."""
    ts_recent: int = TSVAL
    clock: int = 777

    @property
    def rcv_nxt(self) -> Seq:
        return Seq(wire(self.position))

    def says(self, dsack: tuple[Seq, Seq] | None = None) -> bytes:
        """Its present acknowledgement."""
        self.clock += 1
        return build(
            Segment(
                CLIENT,
                self.port,
                VIP,
                80,
                Seq(RCV_NXT) + self.sent,
                self.rcv_nxt,
                ACK,
                self.window >> 7,
                timestamps=(self.clock, self.ts_recent) if self.timestamps else None,
                sack=(dsack,) if dsack is not None else (),
            )
        )

    def hears(self, packet: bytes) -> list[bytes]:
        """What it answers. Raises `AssertionError` if the packet would put a byte into its stream."""
        segment = parse(packet)
        assert (segment.source, segment.source_port) == (VIP, 80)
        assert (segment.destination, segment.destination_port) == (CLIENT, self.port)
        if not self.present:
            return [build(Segment(CLIENT, self.port, VIP, 80, segment.ack, Seq(0), RST, 0))]
        assert (segment.timestamps is not None) == self.timestamps
        length, behind = segment.payload_length, segment.seq.distance(self.rcv_nxt)
        old = behind >= length if length else behind > 0
        beyond = -behind >= max(self.window, 1)
        stale = segment.timestamps is not None and Seq(segment.timestamps[0]).distance(self.ts_recent) > 0
        if not (old or beyond or stale):
            assert length == 0, "the byte would be taken"
            if behind == 0 and segment.timestamps is not None:
                self.ts_recent = segment.timestamps[0]  # RFC 7323, 4.3: SEG.SEQ <= Last.ACK.sent
            return []
        assert behind != length or not length, "a byte that ends at RCV.NXT is acceptable"
        names = self.sack and self.dsack and not self.waiting and length and old
        return [self.says((segment.seq, segment.seq + length) if names else None)]


@dataclass
class Network:
    """Carries packets between a prover and a client. `lost(number, to_client)` decides of each packet."""

    prover: Prover
    client: ModelClient
    delay: float = 0.01
    lost: Callable[[int, bool], bool] = lambda number, to_client: False
    now: float = 0.0
    _flying: list[tuple[float, int, bool, bytes]] = field(default_factory=list)
    _number: itertools.count[int] = field(default_factory=itertools.count)
    _changes: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)

    def send(self, packet: bytes, to_client: bool, delay: float | None = None) -> None:
        number = next(self._number)
        if not self.lost(number, to_client):
            arrival = self.now + (self.delay if delay is None else delay)
            heapq.heappush(self._flying, (arrival, number, to_client, packet))

    def at(self, when: float, change: Callable[[], None]) -> None:
        """Something happens at that time."""
        heapq.heappush(self._changes, (when, next(self._number), change))

    def run(self, until: float) -> Verdict | None:
        """The first verdict; None if there is none until then."""
        while True:
            times = [self.prover.deadline()]
            times += [heap[0][0] for heap in (self._flying, self._changes) if heap]
            soonest = min((time for time in times if time is not None), default=None)
            if soonest is None or soonest > until:
                self.now = until
                return None
            self.now = max(self.now, soonest)
            while self._changes and self._changes[0][0] <= self.now:
                heapq.heappop(self._changes)[2]()
            for packet in self.prover.probes(self.now):
                self.send(packet, to_client=True)
            for verdict in self.prover.given_up(self.now):
                return verdict
            while self._flying and self._flying[0][0] <= self.now:
                _, _, to_client, packet = heapq.heappop(self._flying)
                if to_client:
                    for answer in self.client.hears(packet):
                        self.send(answer, to_client=False)
                elif verdict := self.prover.receive(packet, self.now):
                    return verdict
