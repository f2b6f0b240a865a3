"""Bundles as the controller knows them: taken in all or none, shown as one thing; and the close gate's rule for ports
that a bundle's protocol is about to open again."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from controller import views
from controller.actions import Action, SendToSwitch
from controller.collector import Collector
from controller.conductor import INHERITED_GRACE
from controller.gate import Decision, decide
from dataplane import segment
from dataplane.segment import Segment
from dataplane.sequence import Seq
from state import messages
from state.datablock import DataBlock, FourTuple, Header
from state.sections import BUNDLE, BundleSection, Part
from tests.unit import scenario
from tests.unit.scenario import Scene

CLIENT_PORT = 40_000
CONTROL = FourTuple(scenario.four_tuple(1).source, 21, scenario.four_tuple(1).destination, CLIENT_PORT)
DATA = FourTuple(CONTROL.source, 40_960, CONTROL.destination, 40_500)
PARTS = [
    Part("data", "tcp", 40_960, scenario.CLIENT, 40_500),
    Part("next", "tcp", 40_961),
    Part("rtp", "udp", 5004, scenario.CLIENT, 6000),
]


def block(connection: FourTuple, *, serial: int = 1, incarnation: int = 1, bundle: str = CONTROL.id) -> bytes:
    header = Header("s1", incarnation, 1, serial, 0, connection, "ftp", 7, 7, 8, 8, 8, bundle=bundle)
    made = DataBlock(header)
    if bundle:
        control = connection == CONTROL
        made.append(BUNDLE, BundleSection(bundle, "control" if control else "data", PARTS if control else []))
    return made.encode()


def serials(collector: Collector) -> dict[str, int]:
    found = {}
    for name in collector.names():
        record = collector.get(name)
        assert record is not None
        found[name] = record.header.serial
    return found


# --- all or none ---
def test_of_a_bundles_blocks_in_one_message_none_is_taken_if_one_is_refused() -> None:
    collector = Collector()
    collector.take("s1", 1, [block(CONTROL, serial=5), block(DATA, serial=5)])
    for torn in ([block(CONTROL, serial=6), block(DATA, serial=4)], [block(DATA, serial=4), block(CONTROL, serial=6)]):
        intake = collector.take("s1", 1, torn)
        assert intake.accepted == [] and sorted(error.field for error in intake.refused) == ["bundle", "serial"]
    assert serials(collector) == {CONTROL.id: 5, DATA.id: 5}


def test_what_is_of_no_bundle_or_of_another_is_taken_all_the_same() -> None:
    collector = Collector()
    other = FourTuple(CONTROL.source, 21, CONTROL.destination, CLIENT_PORT + 1)
    alone = FourTuple(CONTROL.source, 21, CONTROL.destination, CLIENT_PORT + 2)
    message = [block(CONTROL), block(other, bundle=other.id), b"no block", block(alone, bundle="")]
    accepted = collector.take("s1", 1, [*message, block(DATA, incarnation=2)]).accepted
    assert [name for name, _, _ in accepted] == [other.id, alone.id]


def test_a_message_of_its_own_is_not_judged_by_an_earlier_one() -> None:
    collector = Collector()
    collector.take("s1", 1, [block(CONTROL), block(DATA, incarnation=2)])
    assert len(collector.take("s1", 1, [block(CONTROL), block(DATA)]).accepted) == 2


def test_an_older_block_does_not_replace_a_newer_one_of_the_same_message() -> None:
    collector = Collector()
    intake = collector.take("s1", 1, [block(DATA, serial=3, bundle=""), block(DATA, serial=2, bundle="")])
    assert len(intake.accepted) == 1 and serials(collector) == {DATA.id: 3}


# --- as one thing ---
@pytest.fixture
def collector() -> Collector:
    collector = Collector()
    collector.take("s1", 1, [block(CONTROL), block(DATA)])
    return collector


def shown(collector: Collector, name: str) -> dict[str, Any]:
    record = collector.get(name)
    assert record is not None
    return dict(views.connection(name, record))


def test_a_connection_shows_its_bundle(collector: Collector) -> None:
    assert shown(collector, DATA.id)["bundle"] == {"id": CONTROL.id, "role": "data", "parts": None}
    bundle = shown(collector, CONTROL.id)["bundle"]
    assert (bundle["id"], bundle["role"]) == (CONTROL.id, "control")
    assert bundle["parts"][0] == {
        "role": "data",
        "transport": "tcp",
        "local_port": 40_960,
        "remote_address": scenario.CLIENT,
        "remote_port": 40_500,
        "connection": DATA.id,
    }
    assert [part["connection"] for part in bundle["parts"][1:]] == [None, None]


def test_a_connection_of_its_own_shows_none() -> None:
    collector = Collector()
    collector.take("s1", 1, [block(CONTROL, bundle="")])
    assert shown(collector, CONTROL.id)["bundle"] is None and collector.bundles() == []


def test_a_bundle_is_one_thing_with_parts(collector: Collector) -> None:
    assert collector.bundles() == [CONTROL.id]
    record = collector.get(CONTROL.id)
    assert record is not None
    bundle = views.bundle(CONTROL.id, record)
    assert bundle == {
        "id": CONTROL.id,
        "server": "s1",
        "state": "established",
        "protocol": "ftp",
        "epoch": 1,
        "client": str(ipaddress.ip_address(CONTROL.destination)),
        "parts": shown(collector, CONTROL.id)["bundle"]["parts"],
    }


def test_a_bundle_without_parts_is_a_connection_again(collector: Collector) -> None:
    collector.take("s1", 1, [block(CONTROL, serial=2, bundle="")])
    assert collector.bundles() == []


def test_a_bundle_ends_with_its_control_connection(collector: Collector) -> None:
    collector.forget("s1", [CONTROL.id])
    assert collector.bundles() == []


def test_a_bundle_section_that_cannot_be_read_shows_what_is_known() -> None:
    collector = Collector()
    collector.take("s1", 1, [DataBlock(Header("s1", 1, 1, 1, 0, CONTROL, "ftp", 7, 7, 8, 8, 8, bundle="x")).encode()])
    assert shown(collector, CONTROL.id)["bundle"] == {"id": "x", "role": None, "parts": None}


# --- the gate ---
@pytest.mark.parametrize(
    ("refusal", "inheriting", "decision"),
    [
        (True, True, Decision.DROP),
        (True, False, Decision.HOLD),
        (False, True, Decision.FORWARD),
        (False, False, Decision.FORWARD),
    ],
)
def test_an_rst_to_whoever_nobody_knows_waits_and_an_heirs_is_dropped(
    refusal: bool, inheriting: bool, decision: Decision
) -> None:
    assert decide(None, "s2", True, refusal=refusal, inheriting=inheriting) is decision


REFUSAL = segment.RST | segment.ACK


def frame(flags: int) -> bytes:
    """What a server's kernel says to a client on the passive port, from the Ethernet header on."""
    seq = Seq(0) if flags == REFUSAL else Seq(1)
    made = Segment(DATA.source, DATA.source_port, DATA.destination, DATA.destination_port, seq, Seq(2), flags, 0)
    return bytes(14) + segment.build(made)


class Watch:
    """Three servers, and what the gate does when they refuse a connection that nobody knows."""

    def __init__(self) -> None:
        self.scene = Scene().up()

    def seen(self, server: int, flags: int = REFUSAL) -> list[Action]:
        return self.scene.conductor.close_seen(server, DATA, frame(flags), self.scene.now)

    def beat(self, server: int) -> list[Action]:
        self.scene.now += 0.02
        beat = messages.Heartbeat(1, 0, 0.0, 0.0)
        return self.scene.conductor.received(f"s{server}", beat, self.scene.now)

    def reaches(self, server: int, flags: int = REFUSAL) -> bool:
        """Does it reach the client, at once or after some heartbeats?"""
        actions = [*self.seen(server, flags), *(action for _ in range(4) for action in self.beat(server))]
        packets = [action.message.data for action in actions if isinstance(action, SendToSwitch)]
        assert packets in ([], [frame(flags)])
        return bool(packets)


def test_while_a_server_takes_over_it_refuses_nobody() -> None:
    watch = Watch()
    scene = watch.scene
    assert watch.reaches(2)
    scene.store("s1", 40_000)
    scene.end("s1")
    assert not watch.reaches(2)
    assert watch.reaches(3)
    for other in (segment.FIN, segment.RST):  # a reset, which answers what is no SYN, goes on
        assert [type(action) for action in watch.seen(2, other)] == [SendToSwitch]
    (takeover,) = scene.conductor.history.all()
    scene.commit(takeover.number)
    assert not watch.reaches(2)
    scene.report("s2", takeover.number, [40_000])
    assert watch.seen(2) == [] and len(scene.conductor.gate) == 0
    scene.now += INHERITED_GRACE
    assert watch.reaches(2)


ACTIVE = FourTuple(CONTROL.source, 20, CONTROL.destination, 50_123)


@pytest.mark.parametrize("flags", [segment.FIN | segment.ACK, segment.RST | segment.ACK])
def test_a_dying_server_does_not_end_what_nobody_knows_yet(flags: int) -> None:
    """A client would take the end of a data connection for the end of its file."""
    scene = Scene().up()
    made = Segment(ACTIVE.source, 20, ACTIVE.destination, ACTIVE.destination_port, Seq(7), Seq(2), flags, 0)
    packet = bytes(14) + segment.build(made)
    assert scene.conductor.close_seen(1, ACTIVE, packet, scene.now) == []
    assert not [action for action in scene.end("s1") if isinstance(action, SendToSwitch)]
    assert len(scene.conductor.gate) == 0


def test_a_server_that_connects_clears_its_way_at_once() -> None:
    """Its kernel's answer to a client that waits for a dead server, whether it still takes over or did so before."""
    scene = Scene().up()
    scene.conductor.collector.take("s1", 1, [block(CONTROL), block(DATA)])
    scene.end("s1")
    scene.commit(1)
    for _ in range(2):
        (packet,) = scene.conductor.close_seen(2, ACTIVE, frame(segment.RST), scene.now)
        assert isinstance(packet, SendToSwitch)
        scene.report("s2", 1, [CLIENT_PORT])
        scene.now += INHERITED_GRACE


def test_a_refusal_waits_until_its_server_proves_alive_after_it() -> None:
    """One heartbeat may have been on its way before the server died."""
    watch = Watch()
    assert watch.seen(1) == [] and watch.beat(2) == [] and watch.beat(1) == []
    assert len(watch.scene.conductor.gate) == 1
    assert [type(action) for action in watch.beat(1)] == [SendToSwitch]
    assert watch.beat(1) == [] and len(watch.scene.conductor.gate) == 0


def test_a_dying_servers_kernel_refuses_nobody() -> None:
    """Its process has just died; a client's SYN is answered before the controller knows. The SYN comes again."""
    watch = Watch()
    assert watch.seen(1) == [] and watch.beat(1) == []
    actions = watch.scene.end("s1")
    assert not [action for action in actions if isinstance(action, SendToSwitch)]
    assert len(watch.scene.conductor.gate) == 0
    watch.scene.hello("s1", 2)
    assert watch.beat(1) == []


def test_a_refusal_does_not_end_a_connection_that_has_come_meanwhile() -> None:
    watch = Watch()
    watch.seen(1)
    watch.scene.conductor.collector.take("s1", 1, [block(DATA, bundle="")])
    assert [*watch.beat(1), *watch.beat(1)] == [] and len(watch.scene.conductor.gate) == 0
