"""The shell around the prover, with its two sockets replaced: more arrives than one turn of the loop may take."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence

import pytest

from dataplane import proving
from dataplane.prover import Patience
from tests.unit.builders import expectation

PATIENCE = Patience(2.0, 2.0)


class Flood:
    """An `AnswerSocket` at which segments that are nobody's arrive without end."""

    made: list[Flood]

    def __init__(self, vip: bytes) -> None:
        self._ends = socket.socketpair()
        self._ends[1].send(b"x")
        self.closed = False
        self.turns = 0
        Flood.made.append(self)

    def hear_plainly(self, ports: Sequence[int]) -> None:
        pass

    def fileno(self) -> int:
        return self._ends[0].fileno()

    def packets(self) -> Iterator[bytes]:
        self.turns += 1
        while True:
            assert not self.closed
            yield b"no segment"

    def close(self) -> None:
        self.closed = True
        for end in self._ends:
            end.close()


class Probes:
    def __init__(self, interface: int) -> None:
        self.sent: list[bytes] = []

    def send(self, packet: bytes) -> bool:
        self.sent.append(packet)
        return True


def test_a_flood_that_outlasts_a_takeover_does_not_keep_the_next_one_from_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sockets are closed for want of anything to prove while what arrived is still being read."""
    Flood.made = []
    monkeypatch.setattr(proving, "AnswerSocket", Flood)
    monkeypatch.setattr(proving, "ProbeSocket", Probes)
    monkeypatch.setattr(proving, "_IDLE_SECONDS", 0.02)

    async def run() -> None:
        asks = proving.Proving()
        key = asks.prove(expectation(), PATIENCE, lambda verdict: None)
        (flood,) = Flood.made
        while flood.turns < 2 or asks.ready():  # more than one turn could take
            await asyncio.sleep(0)
        turns = flood.turns
        for _ in range(20):
            await asyncio.sleep(0)
        assert flood.turns <= turns + 21, "once in a turn of the loop, though the socket tells of itself, too"
        asks.give_up(key)
        asks.turn()
        while not flood.closed:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert asks.ready()
        asks.prove(expectation(), PATIENCE, lambda verdict: None)
        assert len(Flood.made) == 2
        asks._rest()

    asyncio.run(asyncio.wait_for(run(), 20))
