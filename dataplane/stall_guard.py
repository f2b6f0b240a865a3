"""Watches connections for a while after they were recreated, and mends those that do not move.

Two things can stop a recreated connection, and for both the kernel would wait for seconds or for ever:

* Its first flight is lost. It has no round-trip sample, so its retransmission timer stands at 1 to 3 s.
* The client holds bytes beyond a hole (its answer had SACK blocks). When the hole is filled, its ACK jumps over them.
  This kernel has not sent so far yet, and ignores an ACK beyond SND.NXT, and so all that follow.

So a connection whose client holds bytes beyond a hole is asked again every millisecond until it is past them; if its
ACK has jumped beyond SND.NXT, the connection is made anew there, which also saves sending those bytes twice. A client
without SACK does not say what it holds: it may be anything in its window. Any other connection is looked at after 20
ms until SND.NXT is beyond the window in which the client may hold what it did not name, and twice as late each time
that nothing moved; if it has something outstanding and made no progress since the last look (or at eight
askings), it is proven again and made anew. `docs/decisions/003-out-of-order.md` says what was tried instead.

A connection that was idle, or whose client had closed its window, sends its first flight later: it is watched from then
on.

`Watch` decides and is pure; `StallGuard` is its shell.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
from collections import Counter
from dataclasses import dataclass

from dataplane.connection import LiveConnection
from dataplane.judge import Doubt, Proof
from dataplane.prover import Patience, Verdict
from dataplane.proving import Proving
from state.errors import RepairError

FIRST_LOOK = 0.02
LAST_LOOK = 0.64
FIRST_PURSUIT = 0.001
_LOOKS = 12
_PURSUITS = 100
_STILL = 8
"""Pursuits without progress after which the flight counts as lost."""

_PATIENCE = Patience(2.0, 2.0)
_ASKED_AT_ONCE, _ASKED_SECONDS = 4, 0.001
"""So many connections in so long: more would fill the very way on which they look for what was lost."""
_DELAYS = 2
"""As many times as answers take: before that, no progress means nothing."""

_log = logging.getLogger(__name__)


class Step(enum.Enum):
    LEAVE = "leave"
    """It lives by itself."""
    LOOK = "look"
    """Look again after `interval`."""
    REST = "rest"
    """Nothing is on its way: look again, after `interval`, when something is sent."""
    PROVE = "prove"
    """Ask the client where it stands, then call `proven`."""
    REBUILD = "rebuild"
    """Make it anew from the proof, then go on with `rebuilt`."""


@dataclass
class Watch:
    """One connection. Positions are of its send direction. `sack`: its client says what it holds."""

    goal: int
    """Once the client has more than this, and SND.NXT is at `edge`, the connection lives by itself."""
    acked: int
    sacked: int
    """The client may hold bytes up to here out of order; `acked` or less when it does not."""
    interval: float = FIRST_LOOK
    looks: int = 0
    pursuits: int = 0
    still: int = 0
    sack: bool = True
    edge: int = 0
    """Right edge of the client's window then. Beyond it the client holds nothing; below it, it may hold more than it
    named: its answer has room for three islands, and what was under way to it may have made another."""
    closed: bool = False
    """The client said after the recreating that it has no room: the kernel will hear when it has."""

    @classmethod
    def after(cls, proof: Proof, *, sack: bool = True) -> Watch:
        watch = cls(0, 0, 0, sack=sack)
        watch.rebuilt(proof)
        return watch

    def rebuilt(self, proof: Proof) -> None:
        """The connection was (re)created from this proof just now."""
        self.acked = proof.position
        self.sacked = proof.sacked if self.sack else proof.position + proof.window
        self.goal = max(self.acked, self.sacked)
        self.edge = proof.position + proof.window
        self.pursuits = self.still = 0
        self.closed = False
        if self.pursuing:
            self.interval = FIRST_PURSUIT

    @property
    def pursuing(self) -> bool:
        return self.sacked > self.acked and self.pursuits < _PURSUITS

    def look(self, acked: int, snd_nxt: int, sent: int) -> Step:
        """`acked`, `snd_nxt`: what this kernel knows to be acknowledged and has sent; `sent`: what it was given."""
        if acked > self.goal and snd_nxt >= self.edge:
            return Step.LEAVE  # its ACK cannot jump beyond SND.NXT any more
        if acked == sent:
            self.goal = self.acked = self.sacked = self.edge = acked  # it has everything, and holds nothing
            self.interval, self.looks = FIRST_LOOK, 0
            return Step.REST
        if self.closed and snd_nxt == acked:
            self.interval, self.looks = LAST_LOOK, 0
            return Step.LOOK
        self.closed = False
        moved, self.acked = acked > self.acked, max(acked, self.acked)
        self.still = 0 if moved else self.still + 1
        if self.pursuing:
            self.pursuits += 1
            return Step.PROVE
        self.looks += 1
        if self.looks > _LOOKS:
            return Step.LEAVE
        self.interval = FIRST_LOOK if moved else min(max(self.interval, FIRST_LOOK) * 2, LAST_LOOK)
        return Step.LOOK if moved else Step.PROVE

    def proven(self, proof: Proof, acked: int, snd_nxt: int) -> Step:
        """What the client said, and where this kernel stands now."""
        if proof.position > snd_nxt:
            return Step.REBUILD  # the kernel would ignore the client for ever
        if proof.window == 0:
            self.closed = True
            return Step.LOOK  # nothing to mend: the kernel itself asks when the window opens
        if self.pursuing and self.still < _STILL:
            if self.sack:
                self.sacked = max(self.sacked, proof.sacked)
                self.goal = max(self.goal, self.sacked)
            return Step.LOOK
        return Step.LOOK if acked > self.acked else Step.REBUILD


class StallGuard:
    """All connections of an agent that were recreated lately."""

    def __init__(self, proving: Proving) -> None:
        self._proving = proving
        self._loop = asyncio.get_running_loop()
        self._asked = 0
        self._asked_since = 0.0
        self.counts: Counter[str] = Counter()

    def watch(self, connection: LiveConnection, proof: Proof) -> None:
        """Begin with a connection that was just recreated from `proof`, and is to be resumed."""
        if (proof.sacked > proof.position and connection.sack) or connection.stream.closing:
            self._begin(connection, proof)
        else:  # most are idle: nothing can be lost before something is sent
            connection.when_sending(functools.partial(self._begin, connection, proof))

    def _begin(self, connection: LiveConnection, proof: Proof) -> None:
        self._again(connection, Watch.after(proof, sack=connection.sack))

    def _again(self, connection: LiveConnection, watch: Watch) -> None:
        interval = max(watch.interval, _DELAYS * self._proving.delay)
        self._loop.call_later(interval, self._look, connection, watch)

    def _look(self, connection: LiveConnection, watch: Watch) -> None:
        if connection.over:
            return
        if not self._may_ask():
            self._again(connection, watch)
            return
        try:
            standing = connection.standing
            step = watch.look(standing.acked(), standing.snd_nxt(), standing.written())
            if step is Step.PROVE:
                decided = functools.partial(self._proven, connection, watch)
                self._proving.prove(standing.expectation(), _PATIENCE, decided, live=True)
                self._asked += 1
        except OSError:
            return  # it ended meanwhile
        if step is Step.LOOK:
            self._again(connection, watch)
        elif step is Step.REST:
            connection.when_sending(functools.partial(self._again, connection, watch))

    def _may_ask(self) -> bool:
        now = self._loop.time()
        if now - self._asked_since >= _ASKED_SECONDS:
            self._asked, self._asked_since = 0, now
        return self._asked < _ASKED_AT_ONCE

    def _proven(self, connection: LiveConnection, watch: Watch, verdict: Verdict) -> None:
        outcome = verdict.outcome
        if connection.over:
            return
        if outcome is Doubt.GONE:
            connection.reset()
            return
        if isinstance(outcome, Doubt):  # no answer: its client may be asleep
            self._again(connection, watch)
            return
        try:
            step = watch.proven(outcome, connection.standing.acked(), connection.standing.snd_nxt())
            if step is Step.REBUILD:
                self._rebuild(connection, watch, outcome)
        except OSError:
            self.counts["lost"] += 1
            connection.lost()
        if not connection.over:
            self._again(connection, watch)

    def _rebuild(self, connection: LiveConnection, watch: Watch, proof: Proof) -> None:
        """Raises `OSError` when the kernel's connection is over."""
        expected = connection.standing.expectation()
        _log.info("%s is made anew at %d", connection.connection.id, proof.position)
        try:
            connection.rebuild(proof)
        except RepairError as error:  # nobody has it any more, and its client does not know
            _log.warning("%s; the connection is reset", error)
            self.counts["lost"] += 1
            connection.lost()
            self._proving.dismiss(expected, proof)
            return
        watch.rebuilt(proof)
        self.counts["rebuilt"] += 1
