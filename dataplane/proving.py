"""The shell around the `Prover`: its packets on the wire, the clients' answers back, and each verdict to who asked.

One per agent. The sockets that listen for answers exist only while something waits for proof (and a second longer), so
that packets cost nothing otherwise. They hear segments with SACK blocks or RST of everyone, and others only of those
clients that need it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable

from dataplane.event_loop import SECONDS_PER_TURN, prefer
from dataplane.judge import Expectation, Proof
from dataplane.packet_socket import AnswerSocket, ProbeSocket, hush, unhush
from dataplane.prover import Key, Patience, Prover, Verdict, anywhere, nudge_segment
from state.datablock import FourTuple

_IDLE_SECONDS = 1.0
_PROBES_PER_TURN = 64
_NUDGES = (0.3, 1.2)
"""Seconds after a reset at which the client is nudged, in case the RST did not reach it or was not where it stands. By
then the shared state has forgotten the connection, so that the close gate lets the kernel's own RST out, too."""

Decided = Callable[[Verdict], None]


class Proving:
    """The first probes of what is to be proven (`prove`) in one turn of the loop go out together after it."""

    def __init__(self, interface: int = 0, listeners: Callable[[], Iterable[socket.socket]] = tuple) -> None:
        """`interface`: index of the one towards the clients, see `socket_address`. `listeners`: those to which the
        answers are addressed, as far as the kernel knows."""
        self._listeners = listeners
        self.prover = Prover()
        self._loop = asyncio.get_running_loop()
        self._decided: dict[Key, Decided] = {}
        self._answers: dict[bytes, AnswerSocket] = {}
        self._plain_heard = (0, False)
        self._probes = ProbeSocket(interface)
        self._timer: asyncio.TimerHandle | None = None
        self._turning = False
        self._behind: set[AnswerSocket] = set()
        """At these, answers wait to be read."""
        self._fresh = 0
        """Were added since all that was due was sent, but for live ones."""
        self._idle: asyncio.TimerHandle | None = None

    def prove(self, expected: Expectation, patience: Patience, decided: Decided, *, live: bool = False) -> Key:
        """Ask this client where it stands; `decided` is called once. Raises `OSError` if answers cannot be heard.

        `live`: the connection is this kernel's already.
        """
        self._listen(expected.connection.source)
        key = self.prover.add(expected, self._loop.time(), patience, live=live)
        self._decided[key] = decided
        self._fresh += not live
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self.turn)
        return key

    def _listen(self, vip: bytes) -> None:
        if vip in self._answers:
            return
        answers = AnswerSocket(vip)
        self._answers[vip] = answers
        self._plain_heard = (0, False)
        prefer(self._loop, answers.fileno())
        for listener in self._listeners():
            hush(listener)
        self._loop.add_reader(answers.fileno(), self._answered, answers)

    def ready(self) -> bool:
        """Whom `prove` is told now, it asks at once: neither answers nor earlier questions wait."""
        return not self._behind and self._fresh < _PROBES_PER_TURN

    @property
    def delay(self) -> float:
        """Seconds that answers have been taking lately."""
        return self.prover.delay

    def give_up(self, key: Key) -> None:
        """Stop asking; `decided` will not be called."""
        self.prover.give_up(key)
        self._decided.pop(key, None)

    def dismiss(self, expected: Expectation, standing: Proof | None) -> None:
        """Reset a connection that nobody goes on with. `standing`: where its client is, if that is known."""
        self._probes.send(self.prover.dismiss(expected, standing, self._loop.time()))
        for later in _NUDGES:
            self._loop.call_later(later, self._probes.send, nudge_segment(expected))

    def dismiss_unknown(self, connection: FourTuple) -> None:
        """Reset a connection of which nothing is known but its ends. To two bytes half of all numbers apart, its client
        answers where it stands, and is reset there: one of them is old, and its answer has a SACK block. Raises
        `OSError` if answers cannot be heard."""
        self._listen(connection.source)
        for expected in anywhere(connection):
            self.dismiss(expected, None)
            self._probes.send(nudge_segment(expected))
        self.turn()

    def begins_anew(self, connection: FourTuple) -> None:
        """A client was accepted: if an earlier connection from its port was dismissed, that is over."""
        self.prover.readmit(connection)

    def turn(self) -> None:
        """Send what is due, tell who waited in vain, and set the timer for what comes next."""
        self._turning = False
        now = self._loop.time()
        # Answers that wait come before further questions: what is asked faster than heard is only asked again.
        packets = self.prover.probes(now, _PROBES_PER_TURN) if not self._behind else []
        self._hear_plainly()
        for packet in packets:
            self._probes.send(packet)
        for verdict in self.prover.given_up(now, _PROBES_PER_TURN):
            decided = self._decided.pop(verdict.key, None)
            if decided is not None:  # else it fell with another of its bundle just now
                decided(verdict)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.prover.deadline()
        if due is None or due > now:
            self._fresh = 0
        if due is not None:
            self._timer = self._loop.call_at(due, self.turn)
        elif self._idle is None and self._answers:
            self._idle = self._loop.call_later(_IDLE_SECONDS, self._rest)

    def _hear_plainly(self) -> None:
        """Before their probes go out: some clients answer without SACK blocks."""
        wanted = (self.prover.plain_added, bool(self.prover.plain))
        if wanted == self._plain_heard:
            return
        self._plain_heard = wanted
        for vip, answers in self._answers.items():
            answers.hear_plainly(sorted({port for _, port, to, _ in self.prover.plain if to == vip}))

    def _answered(self, answers: AnswerSocket) -> None:
        """The socket has something. What one turn of the loop has no time for is heard in the next."""
        if answers not in self._behind:
            self._hear(answers)

    def _hear(self, answers: AnswerSocket) -> None:
        self._behind.discard(answers)
        if answers.closed:
            return  # all were decided before its turn came again
        now, due = self._loop.time(), self.prover.deadline()
        until = time.perf_counter() + SECONDS_PER_TURN
        for packet in answers.packets():
            verdict = self.prover.receive(packet, now)
            if verdict is not None:
                self._decided.pop(verdict.key)(verdict)
            for reply in self.prover.replies:
                self._probes.send(reply)
            self.prover.replies.clear()
            if time.perf_counter() >= until:
                self._behind.add(answers)
                self._loop.call_soon(self._hear, answers)
                break
        left = self.prover.deadline()
        if left != due or (left is None and self._idle is None):
            self.turn()

    def _rest(self) -> None:
        self._idle = None
        self._behind.clear()  # what waits there is nobody's answer
        for answers in self._answers.values():
            self._loop.remove_reader(answers.fileno())
            answers.close()
        self._answers.clear()
        for listener in self._listeners():
            unhush(listener)
