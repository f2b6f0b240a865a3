"""The close gate: which FIN or RST without the mark goes on, waits, or is dropped, and what becomes of those that
wait; then the same through the conductor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.actions import Action, SendToSwitch
from controller.collector import Collector, Record
from controller.gate import HOLD_LIMIT, HOLD_SECONDS, Decision, Gate, Held, decide
from tests.unit import scenario
from tests.unit.scenario import Scene


def record(owner: str, responsible: str) -> Record:
    """A connection whose checkpoint is `owner`'s and for which `responsible` answers now."""
    collector = Collector()
    collector.load(responsible, 1, scenario.block(owner, 40_000))
    found = collector.get(scenario.four_tuple(40_000).id)
    assert found is not None
    return found


def held(connection: str, server: str = "s1", now: float = 0.0, packet: bytes = b"FIN") -> Held:
    return Held(connection, server, 1, packet, now + HOLD_SECONDS)


# --- decisions ---
@pytest.mark.parametrize(
    ("known", "sender", "up", "decision"),
    [
        (None, "s1", True, Decision.FORWARD),
        (None, "s1", False, Decision.DROP),
        (None, None, False, Decision.DROP),
        (record("s1", "s1"), "s1", True, Decision.HOLD),
        (record("s1", "s1"), "s1", False, Decision.DROP),
        (record("s1", "s1"), "s2", True, Decision.DROP),
        (record("s1", "s2"), "s2", True, Decision.DROP),
        (record("s1", "s2"), "s1", True, Decision.DROP),
        (record("s1", "s1"), None, False, Decision.DROP),
    ],
    ids=[
        "unknown connection of a live server",
        "unknown connection of a dead server",
        "from no server",
        "known connection of its live owner",
        "known connection of its dead owner",
        "known connection, from another server",
        "the heir's kernel before it has the connection",
        "the old owner after it was taken over",
        "known connection, from no server",
    ],
)
def test_what_becomes_of_a_close(known: Record | None, sender: str | None, up: bool, decision: Decision) -> None:
    assert decide(known, sender, up) is decision


# --- holding ---
def test_the_servers_word_releases_its_packet_once() -> None:
    gate = Gate()
    gate.hold(held("a"))
    gate.hold(held("b"))
    assert gate.closed("s1", ["a", "never held"]) == [held("a")]
    assert gate.closed("s1", ["a"]) == [] and len(gate) == 1


def test_another_servers_word_neither_releases_nor_discards_it() -> None:
    gate = Gate()
    gate.hold(held("a", "s1"))
    assert gate.closed("s2", ["a"]) == []
    assert gate.closed("s1", ["a"]) == [held("a", "s1")]


def test_the_newest_packet_of_a_connection_is_the_one_that_waits() -> None:
    gate = Gate()
    gate.hold(held("a", packet=b"FIN"))
    gate.hold(held("a", packet=b"RST"))
    assert [packet.packet for packet in gate.closed("s1", ["a"])] == [b"RST"]


def test_what_nobody_vouches_for_is_dropped_when_its_time_is_over() -> None:
    gate = Gate()
    gate.hold(held("a", now=0.0))
    gate.hold(held("b", now=0.5))
    gate.expire(HOLD_SECONDS - 0.001)
    assert len(gate) == 2
    gate.expire(HOLD_SECONDS)
    assert gate.closed("s1", ["a"]) == [] and len(gate) == 1
    gate.expire(HOLD_SECONDS + 0.5)
    assert len(gate) == 0 and gate.counts["dropped"] == 2


def test_a_connection_that_is_held_again_does_not_keep_others_beyond_their_time() -> None:
    gate = Gate()
    gate.hold(held("a", now=0.0))
    gate.hold(held("b", now=0.1))
    gate.hold(held("a", now=0.9))
    gate.expire(0.1 + HOLD_SECONDS)
    assert gate.closed("s1", ["b"]) == []


def test_a_dead_servers_packets_are_dropped_and_only_those() -> None:
    gate = Gate()
    gate.hold(held("a", "s1"))
    gate.hold(held("b", "s2"))
    gate.dead("s1")
    assert gate.closed("s1", ["a"]) == [] and gate.closed("s2", ["b"]) == [held("b", "s2")]


def test_no_more_than_the_limit_is_held() -> None:
    gate = Gate()
    for number in range(HOLD_LIMIT + 10):
        gate.hold(held(str(number)))
    assert len(gate) == HOLD_LIMIT and gate.counts["dropped"] == 10


@given(
    st.lists(
        st.tuples(st.sampled_from(["hold", "closed", "expire", "dead"]), st.sampled_from("abc"), st.sampled_from("xy")),
        max_size=30,
    )
)
def test_every_packet_that_was_held_is_forwarded_or_dropped_or_still_waits(steps: list[tuple[str, str, str]]) -> None:
    gate = Gate()
    for now, (step, connection, server) in enumerate(steps):
        if step == "hold":
            gate.hold(held(connection, server, now / 4))
        elif step == "closed":
            gate.closed(server, [connection])
        elif step == "expire":
            gate.expire(now / 4)
        else:
            gate.dead(server)
        assert gate.counts["held"] == gate.counts["forwarded"] + gate.counts["dropped"] + len(gate)


# --- through the conductor ---
FRAME = b"a FIN without the mark"
S1_PORTS = (40_000, 40_006)
"""Client ports whose slots belong to s1 of three servers."""


@pytest.fixture
def scene() -> Scene:
    return Scene().up()


def close_seen(scene: Scene, in_port: int, client_port: int) -> list[Action]:
    return scene.conductor.close_seen(in_port, scenario.four_tuple(client_port), FRAME, scene.now)


def test_a_close_of_a_connection_that_nobody_knows_goes_on_at_once(scene: Scene) -> None:
    (action,) = close_seen(scene, 1, 40_000)
    assert isinstance(action, SendToSwitch)
    assert (action.message.data, action.message.in_port) == (FRAME, 1)


def test_a_close_of_a_known_connection_waits_for_its_servers_word(scene: Scene) -> None:
    scene.store("s1", 40_000)
    assert close_seen(scene, 1, 40_000) == []
    _, actions = scene.conductor.closed("s1", [scenario.four_tuple(40_000).id])
    assert [action.message.data for action in actions if isinstance(action, SendToSwitch)] == [FRAME]


def test_a_close_that_nobody_vouches_for_is_dropped_when_its_time_is_over(scene: Scene) -> None:
    scene.store("s1", 40_000)
    close_seen(scene, 1, 40_000)
    scene.conductor.tick(scene.now + HOLD_SECONDS)
    _, actions = scene.conductor.closed("s1", [scenario.four_tuple(40_000).id])
    assert not [action for action in actions if isinstance(action, SendToSwitch)]


def test_the_closes_of_a_dying_server_never_leave(scene: Scene) -> None:
    scene.store("s1", *S1_PORTS)
    close_seen(scene, 1, 40_000)
    actions = scene.end("s1")
    assert close_seen(scene, 1, 40_006) == [] and close_seen(scene, 1, 40_048) == []
    _, more = scene.conductor.closed("s2", [scenario.four_tuple(40_000).id])
    assert not [action for action in actions + more if isinstance(action, SendToSwitch)]
    assert len(scene.conductor.gate) == 0


def test_a_reset_of_the_heirs_kernel_before_it_has_the_connection_is_dropped(scene: Scene) -> None:
    scene.store("s1", 40_000)
    scene.end("s1")
    scene.commit(1)
    assert close_seen(scene, 2, 40_000) == [] and len(scene.conductor.gate) == 0
    assert scene.conductor.gate.counts["dropped"] == 1


def test_a_close_from_a_port_that_is_no_servers_is_dropped(scene: Scene) -> None:
    assert close_seen(scene, scenario.CLIENT_SWITCH_PORT, 40_000) == []
    assert scene.conductor.gate.counts["dropped"] == 1
