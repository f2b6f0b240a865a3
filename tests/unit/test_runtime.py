"""The controller's shell: checkpoints are taken in by portions, and a fenced server's last words are not."""

from __future__ import annotations

import itertools
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import eventlet
import pytest
from eventlet.greenio import GreenSocket

from controller.actions import Action
from controller.agents import AgentLink
from controller.complaints import Complaints
from controller.keeping import Keeping
from controller.runtime import Runtime
from state import messages
from state.store import EmbeddedStore
from tests.unit import scenario
from tests.unit.flow_table import TableSwitch


class Agent:
    """A server's agent at the far end of a socket pair."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self._ours, self._far = socket.socketpair()
        for sock in (self._ours, self._far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        self._far.setblocking(False)
        self.link = AgentLink(GreenSocket(self._ours), "test")
        runtime.agent_hello(self.link, scenario.hello(name))

    def heard(self) -> list[messages.Message]:
        return list(messages.FrameReader(from_agent=False).feed(self._far.recv(1 << 22)))

    def close(self) -> None:
        self._far.close()
        self._ours.close()


class System:
    def __init__(self, path: Path) -> None:
        self.store = EmbeddedStore(path)
        self.runtime = Runtime(scenario.config(2), self.store)
        ports = {server.port: number for number, server in enumerate(self.runtime.configuration.servers, 1)}
        self.runtime.switch_connected(TableSwitch(), ports)
        self.s1, self.s2 = (Agent(self.runtime, name) for name in ("s1", "s2"))
        self.s1.heard()
        self.s2.heard()

    def close(self) -> None:
        self.s1.close()
        self.s2.close()
        self.store.close()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path / "state.db")
    yield made
    made.close()


def stores(*sizes: int) -> list[messages.FromAgent]:
    """Of server s1, each of so many connections."""
    said: list[messages.FromAgent] = []
    port = 20_000
    for number, size in enumerate(sizes, 1):
        said.append(messages.Store(number, [scenario.block("s1", p) for p in range(port, port + 16 * size, 16)]))
        port += 16 * size
    return said


def test_many_stores_are_kept_in_portions_and_answered_when_they_are_kept_whole(system: System) -> None:
    system.runtime.agent_said(system.s1.link, stores(*[10] * 30, 500, 1))
    heard = [message.number for message in system.s1.heard() if isinstance(message, messages.Stored)]
    assert heard == sorted(heard)
    assert heard[-1] == 32
    assert 3 < len(heard) < 32, "one answer for several"
    assert len(list(system.store.checkpoints())) == 801
    passed = [message for message in system.s2.heard() if isinstance(message, messages.Backup)]
    assert sum(len(message.blocks) for message in passed) == 801
    assert max(len(message.blocks) for message in passed) <= messages.PORTION_BLOCKS


def test_others_have_their_turn_between_portions(system: System) -> None:
    turns: list[int] = []

    def other() -> None:
        while len(turns) < 100:
            turns.append(len(system.runtime.conductor.collector))
            eventlet.sleep(0)

    eventlet.spawn_n(other)
    system.runtime.agent_said(system.s1.link, stores(*[10] * 60))
    seen = sorted(set(turns))
    assert len(seen) >= 8, "600 blocks are ten portions"
    assert max(b - a for a, b in itertools.pairwise(seen)) <= messages.PORTION_BLOCKS


def test_a_server_that_is_fenced_while_its_words_are_taken_in_is_not_heard_to_the_end(system: System) -> None:
    def fence() -> None:
        system.runtime.agent_gone(system.s1.link)
        system.s1.link.close()

    eventlet.spawn_n(fence)
    said = [*stores(*[10] * 60), messages.Closed([scenario.four_tuple(20_000).id])]
    system.runtime.agent_said(system.s1.link, said)
    collector = system.runtime.conductor.collector
    assert 0 < len(collector) < 600
    assert collector.count("s1") == 0, "what came before is the heir's, and stays so"
    assert collector.get(scenario.four_tuple(20_000).id) is not None


def full(system: System, *, pages: int = 1) -> None:
    system.store._db.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_ends_no_agents_connection_and_the_agent_is_told(system: System) -> None:
    full(system)
    system.runtime.agent_said(system.s1.link, [*stores(500), *beats(1)])
    (answer,) = (message for message in system.s1.heard() if isinstance(message, messages.Stored))
    assert answer.number == 1
    assert answer.refused and "full" in answer.refused[-1]
    assert not system.s1.link.closed and system.runtime.conductor.servers["s1"].connections == 7
    assert system.runtime.errors["store"] > 0
    assert sum(len(m.blocks) for m in system.s2.heard() if isinstance(m, messages.Backup)) == 500, "protected by s2"


def test_what_a_full_disk_did_not_take_of_the_controllers_own_is_kept_later(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    full(system)
    system.store._db.execute("DELETE FROM fact")
    filled = [(f"{number}", "s1", bytes(4000)) for number in range(10)]
    for _ in range(3):
        assert system.runtime._keeping.put(filled) is not None
    said = [record for record in caplog.records if "full" in record.getMessage()]
    assert len(said) == 1 and system.runtime.errors["store"] == 3, "counted each time, said seldom"
    now = [0.0]
    keeping = Keeping(system.store, Complaints(Counter()), lambda: now[0])
    keeping.put_fact("conductor", bytes(40_000))
    full(system, pages=1000)
    keeping.retry()
    assert system.store.fact("conductor") is None, "not at every tick"
    now[0] += 1.0
    keeping.retry()
    assert system.store.fact("conductor") == bytes(40_000)


def test_a_tick_that_fails_is_not_the_last(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    ticked = eventlet.event.Event()
    calls = itertools.count()

    def tick(now: float) -> list[Action]:
        if next(calls) == 0:
            raise RuntimeError("nobody foresaw this")
        ticked.send(None)
        raise eventlet.greenlet.GreenletExit

    monkeypatch.setattr(system.runtime.conductor, "tick", tick)
    eventlet.spawn_n(system.runtime._tick)
    with eventlet.Timeout(5):
        ticked.wait()
    assert system.runtime.errors["tick"] == 1


def test_a_message_that_nobody_foresaw_is_not_its_agents_end(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def received(*_: object) -> list[Action]:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(system.runtime.conductor, "received", received)
    system.runtime.agent_said(system.s1.link, [*beats(1), *stores(3)])
    assert not system.s1.link.closed and len(system.runtime.conductor.collector) == 3
    assert system.runtime.errors["agent message taken in"] == 1


def beats(*numbers: int) -> list[messages.FromAgent]:
    return [messages.Heartbeat(number, 7, 0.0, 0.0) for number in numbers]


def test_a_message_that_is_not_a_store_keeps_its_place(system: System) -> None:
    first, second = stores(10, 10)
    gone = scenario.four_tuple(20_000).id
    system.runtime.agent_said(system.s1.link, [first, messages.Closed([gone]), second])
    collector = system.runtime.conductor.collector
    assert collector.get(gone) is None
    assert len(collector) == 19
    assert len(list(system.store.checkpoints())) == 19
