"""Probing many connections until each has proven itself: what to send when, and what the answers mean.

Sans-IO with time: `probes(now)` gives packets to send, `receive(packet, now)` takes what arrived, `given_up(now)` says
whose time is over, `deadline()` says when to call again. A connection leaves with a `Proof`, on the client's own word
(RST), or when its `Patience` ends.

Re-probing backs off from 1 ms (longer if there are many, or if answers take long) to 250 ms, and for a client of which
nothing is heard to 2 s. Every probe has a fresh random byte and all of them stay valid: whichever is answered, the
answer came after the fence. Two of three lie up to 2**30 below what is acknowledged; the second of three is near, for a
stateful firewall that drops the far ones, or answers them with RST.

Clients that cannot name the byte (`judge` says what each kind of proof is):

* With timestamps: what the client claims is challenged by an *echo*, sent with the next probe.
* With neither SACK nor timestamps nothing in an answer depends on the probe. Two equal claims are taken that are 10 ms
  and two probes apart, if no other claim came between them. To the first of the two probes the client itself answers,
  and contradicts whoever speaks in its name.
* A client that negotiated SACK and does not name the byte within 200 ms (it is in TIME-WAIT, or DSACK is switched off)
  may prove itself by echo. Without timestamps it cannot.
* A connection that is *live* in this host's kernel is asked by the stall guard. An echo would move its client's newest
  timestamp beyond the kernel's own, whose segments the client would then discard (PAWS). So equal claims have to do.

Two limits end the waiting (`docs/decisions/012-silent-clients.md`). A client that *speaks* and proves nothing is given
up soon. One of which nothing is heard is kept much longer; it goes over to the first limit when it speaks.
"""

from __future__ import annotations

import heapq
import math
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from dataplane import segment as tcp
from dataplane.judge import Doubt, Expectation, Proof, claim, proven
from dataplane.segment import Segment
from dataplane.sequence import Seq
from state.datablock import FourTuple
from state.errors import SegmentMalformed
from state.messages import CLOSE_MARK

FIRST_RETRY = 0.001
_RETRY_PER_CANDIDATE = 0.0001
"""Asking many takes time: nobody is asked twice before all were asked once and could answer."""
LAST_RETRY = 0.25
SILENT_RETRY = 2.0
_DELAYS = 4
"""As many times as first probes take to be answered: then one counts as lost."""
_SILENT_RETRY_PER_CANDIDATE = 0.001
PLAIN_AFTER = 0.2
"""A client that negotiated SACK is expected to prove itself by DSACK for so long."""
AGREE_AFTER = 0.01
_FAR = 1 << 30
_NEAR = 1 << 12
_PROBES_REMEMBERED = 32
_NUMBER_BYTES, _PAGE_BYTES = 8, 512
_ECHO_RANGE = 1 << 25
"""Milliseconds (9 hours) by which the client's newest timestamp may be moved ahead for an echo."""
_ECHO_WINDOW = 128
"""What an echo offers the client, unscaled: from a few bytes to 2 MiB, until the kernel says it anew."""
_CLAIMS_CHALLENGED = 4
_DISMISSING = 3.0
"""Seconds in which the client of a connection that was reset is told again."""
_RST = tcp.RST | tcp.ACK
_ECHOES_REMEMBERED = 16
_PLAIN_INPUT = 64 * 1024
"""Input ahead of the checkpoint that is believed of two equal claims: a forger's guess must come so near."""

Key = tuple[bytes, int, bytes, int]


class Random(Protocol):
    def randrange(self, stop: int, /) -> int: ...


class _SystemRandom:
    """The kernel's randomness, a page at a time: `secrets` asks it for every single number."""

    def __init__(self) -> None:
        self._left = b""

    def randrange(self, stop: int, /) -> int:
        """For `stop` up to 2**32, as good as evenly distributed."""
        if len(self._left) < _NUMBER_BYTES:
            self._left = secrets.token_bytes(_PAGE_BYTES)
        taken, self._left = self._left[-_NUMBER_BYTES:], self._left[:-_NUMBER_BYTES]
        return int.from_bytes(taken, "big") * stop >> 8 * _NUMBER_BYTES


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection may wait for proof, in seconds."""

    speaking: float
    """A client that is heard, and proves nothing."""
    silent: float
    """A client of which nothing is heard."""


@dataclass(slots=True)
class _Candidate:
    key: Key
    expected: Expectation
    patience: Patience
    added: float
    due: float
    limit: float
    """When it is decided whether the client spoke in vain; infinite while it is taken for silent."""
    forget: float
    live: bool
    heard: float = -math.inf
    plain: bool = False
    """Answers that name no probe are looked at."""
    asked: float = 0.0
    """When the last probe was sent."""
    tries: int = 0
    retry: float = 0.0
    challenges: list[int] = field(default_factory=list)
    echoes: list[int] = field(default_factory=list)
    newest_echo: Seq | None = None
    claims: list[Proof] = field(default_factory=list)
    """What the client may have said of itself, the newest last; each ACK once."""
    claimed_at: float = 0.0
    claimed_tries: int = 0

    @property
    def silent(self) -> bool:
        return self.limit == math.inf

    @property
    def echoing(self) -> bool:
        """Its claims are challenged by echoes."""
        return self.plain and self.expected.timestamps and not self.live


class Verdict(msgspec.Struct, frozen=True):
    """The outcome for one connection: a proof, that its client is gone, or that its time is over."""

    key: Key
    outcome: Proof | Doubt
    claimed: Proof | None = None
    """The last that the client said of itself without proving it."""


class Prover:
    """Connections that wait for proof, by (client, port, vip, port)."""

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or _SystemRandom()
        self._candidates: dict[Key, _Candidate] = {}
        self._due: list[tuple[float, Key]] = []
        self._limits: list[tuple[float, Key]] = []
        self.doubts: dict[Doubt, int] = {}
        """Segments that proved nothing, counted by reason."""
        self.delay = 0.0
        """How long first probes have been taking to be answered, while any connection waits; rather more than less."""
        self.plain: set[Key] = set()
        """Connections whose answers may carry no SACK block: they must be listened to with other ears."""
        self.plain_added = 0
        """Grows with every connection that comes to `plain`."""
        self._dismissed: dict[Key, tuple[Expectation, float]] = {}
        self._dismissals: deque[tuple[float, Key]] = deque()
        self.replies: list[bytes] = []
        """IP packets that answer what was received; whoever sends them takes them off."""

    def __len__(self) -> int:
        return len(self._candidates)

    def add(self, expected: Expectation, now: float, patience: Patience, *, live: bool = False) -> Key:
        """Begin with this connection: its first probe is due at once. `live`: it is in this host's kernel."""
        key = key_of(expected)
        self._remove(key)
        candidate = _Candidate(key, expected, patience, now, now, now + patience.speaking, now + patience.silent, live)
        self._candidates[key] = candidate
        heapq.heappush(self._due, (now, key))
        heapq.heappush(self._limits, (candidate.limit, key))
        heapq.heappush(self._limits, (candidate.forget, key))
        if not expected.sack:
            self._listen_plainly(candidate)
        return key

    def give_up(self, key: Key) -> None:
        """Forget the connection; later answers are nobody's."""
        self._remove(key)

    def _remove(self, key: Key) -> None:
        if self._candidates.pop(key, None) is not None:
            self.plain.discard(key)
        if not self._candidates:
            self.delay = 0.0

    def _listen_plainly(self, candidate: _Candidate) -> None:
        candidate.plain = True
        self.plain.add(candidate.key)
        self.plain_added += 1

    # --- time ---
    def deadline(self) -> float | None:
        """When `probes` or `given_up` has something to say."""
        while self._due and not self._current(*self._due[0]):
            heapq.heappop(self._due)
        while self._limits and not self._limiting(*self._limits[0]):
            heapq.heappop(self._limits)
        return min([heap[0][0] for heap in (self._due, self._limits) if heap], default=None)

    def _current(self, due: float, key: Key) -> bool:
        candidate = self._candidates.get(key)
        return candidate is not None and candidate.due == due

    def _limiting(self, limit: float, key: Key) -> bool:
        candidate = self._candidates.get(key)
        return candidate is not None and limit in (candidate.limit, candidate.forget)

    def given_up(self, now: float, most: int = 1 << 30) -> list[Verdict]:
        """Connections whose patience is at its end: at most `most` of them, the others are due all the same."""
        verdicts: list[Verdict] = []
        while self._limits and self._limits[0][0] <= now and len(verdicts) < most:
            limit, key = heapq.heappop(self._limits)
            if not self._limiting(limit, key):
                continue
            candidate = self._candidates[key]
            spoke = candidate.heard >= now - candidate.patience.speaking / 2
            if spoke and now >= candidate.limit:
                doubt = Doubt.UNPROVEN
            elif now >= candidate.forget:
                doubt = Doubt.UNPROVEN if spoke else Doubt.SILENT
            else:
                candidate.limit = math.inf
                continue
            self._remove(key)
            verdicts.append(Verdict(key, doubt, candidate.claims[-1] if candidate.claims else None))
        return verdicts

    def probes(self, now: float, most: int = 1 << 30) -> list[bytes]:
        """The IP packets to send now: about `most` of them, the others stay due."""
        packets: list[bytes] = []
        while self._due and self._due[0][0] <= now and len(packets) < most:
            due, key = heapq.heappop(self._due)
            if not self._current(due, key):
                continue
            candidate = self._candidates[key]
            if not candidate.plain and now >= candidate.added + PLAIN_AFTER:
                self._listen_plainly(candidate)
            packets += self._ask(candidate)
            candidate.asked = now
            candidate.retry = self._next_retry(candidate)
            self._schedule(candidate, now + candidate.retry)
        return packets

    def _next_retry(self, candidate: _Candidate) -> float:
        count = len(self._candidates)
        first = max(FIRST_RETRY, count * _RETRY_PER_CANDIDATE, min(_DELAYS * self.delay, LAST_RETRY))
        last = max(SILENT_RETRY, count * _SILENT_RETRY_PER_CANDIDATE) if candidate.silent else LAST_RETRY
        return min(max(first, candidate.retry * 2), last)

    def _schedule(self, candidate: _Candidate, due: float) -> None:
        candidate.due = due
        heapq.heappush(self._due, (due, candidate.key))

    # --- what is sent ---
    def _ask(self, candidate: _Candidate) -> list[bytes]:
        """A probe, and before it an echo for each claim that could be the client's."""
        expected, packets = candidate.expected, []
        if candidate.echoing:
            for claimed in candidate.claims:
                echo = Seq(claimed.tsecr + 1 + self._random.randrange(_ECHO_RANGE))
                candidate.echoes.append(echo)
                if candidate.newest_echo is None or echo > candidate.newest_echo:
                    candidate.newest_echo = echo
                packets.append(_towards_client(expected, claimed.ack, window=_ECHO_WINDOW, tsval=echo))
            del candidate.echoes[:-_ECHOES_REMEMBERED]
        candidate.tries += 1
        near = candidate.tries % 3 == 2
        challenge = self._challenge(expected, _NEAR if near else _FAR)
        candidate.challenges.append(challenge)
        del candidate.challenges[:-_PROBES_REMEMBERED]
        # A router before the client may take a far one for no part of the connection, and answer it with RST as if it
        # were the client (Linux's conntrack: INVALID, so not translated, and nobody's). RST says which was answered.
        ack = expected.rcv_nxt if near else expected.rcv_nxt - 1
        packets.append(_towards_client(expected, challenge, ack=ack, payload=b"\0", tsval=expected.tsval))
        return packets

    def _challenge(self, expected: Expectation, reach: int) -> Seq:
        # Strictly below the client's RCV.NXT - 1: a byte that ends exactly there would be acceptable.
        return expected.acked_seq - 2 - self._random.randrange(reach)

    # --- what is heard ---
    def receive(self, packet: bytes, now: float) -> Verdict | None:
        """A packet that came after the fence. None when it decides nothing."""
        try:
            segment = tcp.parse(packet)
        except SegmentMalformed:
            return None
        key = (segment.source, segment.source_port, segment.destination, segment.destination_port)
        candidate = self._candidates.get(key)
        if candidate is None:
            self._answer_dismissed(key, segment, now)
            return None
        found = claim(candidate.expected, segment)
        if not segment.flags & tcp.RST:
            self._speaks(candidate, now)
        if isinstance(found, Doubt):
            self.doubts[found] = self.doubts.get(found, 0) + 1
            if found is not Doubt.GONE or not candidate.tries:
                return None
        elif not proven(candidate.challenges, candidate.echoes, segment) and not self._agreed(candidate, found, now):
            self.doubts[Doubt.NO_PROOF] = self.doubts.get(Doubt.NO_PROOF, 0) + 1
            return None
        if candidate.tries == 1:  # of later ones nobody knows which was answered
            delay = now - candidate.asked
            self.delay = max(delay, self.delay + (delay - self.delay) / 8)
        self._remove(key)
        newest = candidate.newest_echo
        if isinstance(found, Proof) and newest is not None and newest > Seq(found.tsecr):
            found = msgspec.structs.replace(
                found, tsecr=int(newest)
            )  # it may be under way still: whoever goes on must go on above it
        return Verdict(key, found)

    # --- who cannot be resumed ---
    def dismiss(self, expected: Expectation, standing: Proof | None, now: float) -> bytes:
        """The RST for a connection that nobody goes on with; its client may stand where nobody knows. So what the
        client says in the next seconds is answered with another, exactly where it is."""
        while self._dismissals and self._dismissals[0][0] <= now:
            until, old = self._dismissals.popleft()
            if old in self._dismissed and self._dismissed[old][1] == until:
                del self._dismissed[old]
        key = key_of(expected)
        self._dismissed[key] = (expected, now + _DISMISSING)
        self._dismissals.append((now + _DISMISSING, key))
        return reset_segment(expected, standing, CLOSE_MARK)

    def readmit(self, connection: FourTuple) -> None:
        """A client begins anew from the same port: what it says now is not of the connection that was dismissed."""
        self._dismissed.pop(_key(connection), None)

    def _answer_dismissed(self, key: Key, segment: Segment, now: float) -> None:
        expected, until = self._dismissed.get(key, (None, 0.0))
        if expected is not None and now < until and segment.flags & (tcp.ACK | tcp.RST | tcp.SYN) == tcp.ACK:
            rst = _towards_client(expected, segment.ack, ack=segment.seq, flags=_RST, window=0, dscp=CLOSE_MARK)
            self.replies.append(rst)

    def _speaks(self, candidate: _Candidate, now: float) -> None:
        candidate.heard = now
        if candidate.silent:
            candidate.limit = now + candidate.patience.speaking
            candidate.retry = 0.0
            heapq.heappush(self._limits, (candidate.limit, candidate.key))
            self._schedule(candidate, now)

    def _agreed(self, candidate: _Candidate, found: Proof, now: float) -> bool:
        """Note what the client may have said. True if that is as good as a proof: see the module's text."""
        if not candidate.plain or not candidate.tries:
            return False
        last = candidate.claims[-1] if candidate.claims else None
        if last is None:
            if not candidate.echoing:  # from now on as slowly as it takes to answer
                asked = candidate.limit - candidate.patience.speaking
                candidate.retry = max(AGREE_AFTER, now - asked) / 2
            self._schedule(candidate, now)
        if last is None or (last.ack, last.seq) != (found.ack, found.seq):
            candidate.claims = [old for old in candidate.claims if old.ack != found.ack][1 - _CLAIMS_CHALLENGED :]
            candidate.claims.append(found)
            candidate.claimed_at, candidate.claimed_tries = now, candidate.tries
            return False
        candidate.claims[-1] = found
        return (
            (candidate.live or not candidate.expected.sack)
            and not candidate.echoing
            and found.input_missing <= _PLAIN_INPUT
            and candidate.tries >= candidate.claimed_tries + 2
            and now >= candidate.claimed_at + AGREE_AFTER
        )


# --- packets ---
def _towards_client(
    expected: Expectation,
    seq: Seq,
    *,
    ack: Seq | None = None,
    flags: int = tcp.ACK,
    window: int = 0xFFFF,
    payload: bytes = b"",
    tsval: int | None = None,
    dscp: int = 0,
) -> bytes:
    """A segment of the connection in its server's name. `tsval` is left out of a connection without timestamps."""
    connection = expected.connection
    return tcp.build(
        Segment(
            source=connection.source,
            source_port=connection.source_port,
            destination=connection.destination,
            destination_port=connection.destination_port,
            seq=seq,
            ack=expected.rcv_nxt if ack is None else ack,
            flags=flags,
            window=window,
            payload=payload,
            timestamps=(tsval, 0) if tsval is not None and expected.timestamps else None,
            dscp=dscp,
        )
    )


def key_of(expected: Expectation) -> Key:
    return _key(expected.connection)


def _key(connection: FourTuple) -> Key:
    return (connection.destination, connection.destination_port, connection.source, connection.source_port)


def reset_segment(expected: Expectation, standing: Proof | None, close_mark: int) -> bytes:
    """An RST that the client accepts: exactly at its RCV.NXT if that is known (RFC 5961), else at the best guess."""
    seq = expected.acked_seq if standing is None else standing.ack
    ack = None if standing is None else standing.seq
    return _towards_client(expected, seq, ack=ack, flags=_RST, window=0, dscp=close_mark)


def nudge_segment(expected: Expectation) -> bytes:
    """An old byte. A client that still has the connection answers with its ACK (RFC 9293, 3.10.7.4), and this host,
    which has it no more, answers that with an RST exactly where the client accepts it. An empty segment would not do:
    Linux 6.18 ignores one with an old timestamp (net/ipv4/tcp_input.c, `tcp_validate_incoming`)."""
    return _towards_client(expected, expected.acked_seq - _NEAR, payload=b"\0", tsval=expected.tsval)


def anywhere(connection: FourTuple) -> list[Expectation]:
    """Of a connection that nobody knows: two guesses, as far from each other as can be."""
    first = Seq(secrets.randbits(32))
    return [
        Expectation(connection, 0, acked_seq, 0, False, Seq(0), 0, False, 0) for acked_seq in (first, first + (1 << 31))
    ]
