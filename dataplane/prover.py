"""Probing many connections until each has proven itself: what to send when, and what the answers mean.

Sans-IO with time: `probes(now)` gives packets to send, `receive(packet, now)` takes what arrived, `deadline()` says
when to call `probes` again. A connection leaves with a `Proof`, or when `Prover` is told to give it up. Nothing here
gives up by itself except on the client's own word (RST).

Re-probing backs off from 1 ms (or longer, if there are many) to 250 ms. Every probe has a fresh random byte and all of
them stay valid: whichever is answered, the answer came after the fence. The first probes lie up to 2**30 below what is
acknowledged; every third is near, for a stateful firewall that drops the far ones.
"""

from __future__ import annotations

import heapq
import secrets
from dataclasses import dataclass, field
from typing import Protocol

from dataplane import segment as tcp
from dataplane.judge import Doubt, Expectation, Proof, judge
from dataplane.segment import Segment
from dataplane.sequence import Seq
from state.errors import SegmentMalformed

FIRST_RETRY = 0.001
_RETRY_PER_CANDIDATE = 0.0001
"""Asking many takes time: nobody is asked twice before all were asked once and could answer."""
LAST_RETRY = 0.25
_FAR = 1 << 30
_NEAR = 1 << 12
_PROBES_REMEMBERED = 32

Key = tuple[bytes, int, bytes, int]


class Random(Protocol):
    def randrange(self, stop: int, /) -> int: ...


@dataclass(slots=True)
class _Candidate:
    key: Key
    expected: Expectation
    tries: int = 0
    retry: float = 0.0
    due: float = 0.0
    challenges: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome for one connection: a proof, or that its client is gone."""

    key: Key
    outcome: Proof | Doubt


class Prover:
    """Connections that wait for proof, by (client, port, vip, port)."""

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or secrets.SystemRandom()
        self._candidates: dict[Key, _Candidate] = {}
        self._due: list[tuple[float, Key]] = []
        self.doubts: dict[Doubt, int] = {}
        """Segments that proved nothing, counted by reason."""

    def __len__(self) -> int:
        return len(self._candidates)

    def add(self, expected: Expectation, now: float) -> Key:
        """Begin with this connection: its first probe is due at once."""
        key = key_of(expected)
        self._candidates[key] = _Candidate(key, expected, due=now)
        heapq.heappush(self._due, (now, key))
        return key

    def give_up(self, key: Key) -> None:
        """Forget the connection; later answers are nobody's."""
        self._candidates.pop(key, None)

    def deadline(self) -> float | None:
        """When the next probe is due."""
        while self._due and not self._current(*self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def probes(self, now: float) -> list[bytes]:
        """The IP packets to send now."""
        packets: list[bytes] = []
        while self._due and self._due[0][0] <= now:
            due, key = heapq.heappop(self._due)
            if not self._current(due, key):
                continue
            candidate = self._candidates[key]
            packets.append(self._probe(candidate))
            first = max(FIRST_RETRY, len(self._candidates) * _RETRY_PER_CANDIDATE)
            candidate.retry = min(max(first, candidate.retry * 2), LAST_RETRY)
            candidate.due = now + candidate.retry
            heapq.heappush(self._due, (candidate.due, key))
        return packets

    def _current(self, due: float, key: Key) -> bool:
        candidate = self._candidates.get(key)
        return candidate is not None and candidate.due == due

    def _probe(self, candidate: _Candidate) -> bytes:
        expected = candidate.expected
        candidate.tries += 1
        challenge = self._challenge(expected, _NEAR if candidate.tries % 3 == 0 else _FAR)
        candidate.challenges.append(challenge)
        del candidate.challenges[:-_PROBES_REMEMBERED]
        return _probe_segment(expected, challenge)

    def _challenge(self, expected: Expectation, reach: int) -> Seq:
        # Strictly below the client's RCV.NXT - 1: a byte that ends exactly there would be acceptable.
        return expected.acked_seq - 2 - self._random.randrange(reach)

    def receive(self, packet: bytes, now: float) -> Verdict | None:
        """A packet that came after the fence. None when it decides nothing."""
        del now  # an answer is as good late as early: only `give_up` ends the wait
        try:
            segment = tcp.parse(packet)
        except SegmentMalformed:
            return None
        key = (segment.source, segment.source_port, segment.destination, segment.destination_port)
        candidate = self._candidates.get(key)
        if candidate is None:
            return None
        outcome = judge(candidate.expected, candidate.challenges, segment)
        if isinstance(outcome, Proof) or (outcome is Doubt.GONE and candidate.tries):
            del self._candidates[key]
            return Verdict(key, outcome)
        self.doubts[outcome] = self.doubts.get(outcome, 0) + 1
        return None


def _probe_segment(expected: Expectation, challenge: Seq) -> bytes:
    connection = expected.connection
    return tcp.build(
        Segment(
            source=connection.source,
            source_port=connection.source_port,
            destination=connection.destination,
            destination_port=connection.destination_port,
            seq=challenge,
            ack=expected.rcv_nxt,
            flags=tcp.ACK,
            window=0xFFFF,
            payload=b"\0",
            timestamps=(expected.tsval, 0) if expected.timestamps else None,
        )
    )


def key_of(expected: Expectation) -> Key:
    connection = expected.connection
    return (connection.destination, connection.destination_port, connection.source, connection.source_port)


def reset_segment(expected: Expectation, proof: Proof | None, close_mark: int) -> bytes:
    """An RST that the client accepts: exactly at its RCV.NXT if that is proven (RFC 5961), else at the best guess."""
    connection = expected.connection
    return tcp.build(
        Segment(
            source=connection.source,
            source_port=connection.source_port,
            destination=connection.destination,
            destination_port=connection.destination_port,
            seq=proof.ack if proof is not None else expected.acked_seq,
            ack=Seq(proof.seq if proof is not None else expected.rcv_nxt),
            flags=tcp.RST | tcp.ACK,
            window=0,
            dscp=close_mark,
        )
    )
