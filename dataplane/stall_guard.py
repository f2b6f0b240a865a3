"""Watches connections for a while after they were recreated, and mends those that do not move.

A recreated connection has no round-trip sample: its retransmission timer stands at 1 to 3 s. If its first flight is
lost, or if the client turns out to hold bytes beyond SND.NXT that its answer had no room to name (the SACK option has
three blocks), the kernel would wait that long, or for ever. The guard looks after 20 ms, then twice as late each time.
A connection that has something outstanding and made no progress since the last look is proven again and made anew.

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
from dataplane.proving import Proving
from state.errors import RepairError

_log = logging.getLogger(__name__)

FIRST_LOOK = 0.02
LAST_LOOK = 0.64
_LOOKS = 12


class Finding(enum.Enum):
    WELL = "well"
    WAIT = "wait"
    STALLED = "stalled"


@dataclass
class Watch:
    """One connection. `goal`: once the client has more than this, the connection lives by itself."""

    goal: int
    acked: int
    interval: float = FIRST_LOOK
    looks: int = 0

    def look(self, acked: int, sent: int) -> Finding:
        """`acked`, `sent`: positions now. After `WAIT` or `STALLED` look again in `interval` seconds."""
        self.looks += 1
        if acked > self.goal or acked == sent or self.looks > _LOOKS:
            return Finding.WELL
        moved = acked > self.acked
        self.acked = acked
        self.interval = FIRST_LOOK if moved else min(self.interval * 2, LAST_LOOK)
        return Finding.WAIT if moved else Finding.STALLED


class StallGuard:
    """All connections of an agent that were recreated lately."""

    def __init__(self, proving: Proving) -> None:
        self._proving = proving
        self._loop = asyncio.get_running_loop()
        self.counts: Counter[str] = Counter()

    def watch(self, connection: LiveConnection, proof: Proof) -> None:
        """Begin with a connection that was just recreated from `proof`."""
        if proof.sacked > proof.position:
            # Its kernel has the bytes as sent but not what the client holds of them: the answer to this tells it.
            self._proving.send(self._proving.prover.nudge(connection.expectation()))
        watch = Watch(goal=max(proof.position, proof.sacked), acked=proof.position)
        self._loop.call_later(watch.interval, self._look, connection, watch)

    def _look(self, connection: LiveConnection, watch: Watch) -> None:
        if connection.over:
            return
        try:
            finding = watch.look(connection.acked_position(), connection.stream.sent)
            if finding is Finding.STALLED:
                self._proving.prove(connection.expectation(), functools.partial(self._proven, connection, watch))
                self._proving.turn()
        except OSError:
            return  # it ended meanwhile
        if finding is Finding.WAIT:
            self._loop.call_later(watch.interval, self._look, connection, watch)

    def _proven(self, connection: LiveConnection, watch: Watch, outcome: Proof | Doubt) -> None:
        if connection.over:
            return
        _log.info(
            "%s stood still at %d of %d: %s", connection.connection.id, watch.acked, connection.stream.sent, outcome
        )
        if isinstance(outcome, Doubt):
            connection.reset()
            return
        if outcome.window > 0:  # with a closed window there is nothing to mend: the kernel asks when it opens
            try:
                connection.rebuild(outcome)
            except RepairError:
                self.counts["lost"] += 1
                connection.lost()
                return
            self.counts["rebuilt"] += 1
            if outcome.sacked > outcome.position:
                self._proving.send(self._proving.prover.nudge(connection.expectation()))
            watch.goal = max(outcome.position, outcome.sacked)
            watch.acked = outcome.position
        self._loop.call_later(watch.interval, self._look, connection, watch)
