"""The shell around the `Prover`: its packets on the wire, the clients' answers back, and each verdict to who asked.

One per agent. The sockets that listen for answers exist only while something waits for proof (and a second longer), so
that packets cost nothing otherwise. They hear segments with SACK blocks or RST of everyone, and others only of those
clients that need it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dataplane.judge import Expectation
from dataplane.packet_socket import AnswerSocket, ProbeSocket
from dataplane.prover import Key, Patience, Prover, Verdict

_IDLE_SECONDS = 1.0
_PACKETS_PER_TURN = 64

Decided = Callable[[Verdict], None]


class Proving:
    """`prove` as many connections as there are, then `turn` once: their first probes go out together."""

    def __init__(self, interface: int = 0) -> None:
        """`interface`: index of the one towards the clients, see `socket_address`."""
        self.prover = Prover()
        self._loop = asyncio.get_running_loop()
        self._decided: dict[Key, Decided] = {}
        self._answers: dict[bytes, AnswerSocket] = {}
        self._plain_heard = (0, False)
        self._probes = ProbeSocket(interface)
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None

    def prove(self, expected: Expectation, patience: Patience, decided: Decided, *, live: bool = False) -> Key:
        """Ask this client where it stands; `decided` is called once. Raises `OSError` if answers cannot be heard.

        `live`: the connection is this kernel's already.
        """
        vip = expected.connection.source
        if vip not in self._answers:
            answers = AnswerSocket(vip)
            self._answers[vip] = answers
            self._plain_heard = (0, False)
            self._loop.add_reader(answers.fileno(), self._answered, answers)
        key = self.prover.add(expected, self._loop.time(), patience, live=live)
        self._decided[key] = decided
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        return key

    def give_up(self, key: Key) -> None:
        """Stop asking; `decided` will not be called."""
        self.prover.give_up(key)
        self._decided.pop(key, None)

    def send(self, packet: bytes) -> None:
        """A packet of the caller's own making."""
        self._probes.send(packet)

    def turn(self) -> None:
        """Send what is due, tell who waited in vain, and set the timer for what comes next."""
        now = self._loop.time()
        packets = self.prover.probes(now)
        self._hear_plainly()
        for packet in packets:
            self._probes.send(packet)
        for verdict in self.prover.given_up(now):
            self._decided.pop(verdict.key)(verdict)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.prover.deadline()
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
        now, due = self._loop.time(), self.prover.deadline()
        for packet in answers.receive(_PACKETS_PER_TURN):
            verdict = self.prover.receive(packet, now)
            if verdict is not None:
                self._decided.pop(verdict.key)(verdict)
        left = self.prover.deadline()
        if left != due or (left is None and self._idle is None):
            self.turn()

    def _rest(self) -> None:
        self._idle = None
        for answers in self._answers.values():
            self._loop.remove_reader(answers.fileno())
            answers.close()
        self._answers.clear()
