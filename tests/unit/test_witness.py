"""What the controller knows of data connections that have just come to be, and what two SYNs agree on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from controller.actions import Announce
from controller.gate import Decision
from controller.takeover import Phase
from controller.witness import LIMIT, SECONDS, Witness
from dataplane.backup import INPUT_LOST
from dataplane.handshake import agreed
from dataplane.segment import Segment, parse
from state import configuration, messages
from state.datablock import FourTuple
from state.errors import SegmentMalformed
from state.messages import Handshake
from state.sections import TcpSection
from tests.unit import scenario
from tests.unit.scenario import Scene, said

CLIENT_OPTIONS = [("MSS", 1400), ("SAckOK", b""), ("Timestamp", (70, 0)), ("NOP", None), ("WScale", 9)]
SERVER_OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (900, 70)), ("NOP", None), ("WScale", 7)]
DATA_PORT = 41_000
VIP, CLIENT = scenario.VIP, "10.0.1.1"
PACKED_VIP = bytes([10, 0, 0, 100])


def _ip(source: str, destination: str) -> Any:
    return IPv6(src=source, dst=destination) if ":" in source else IP(src=source, dst=destination)


def seen(
    source: str, sport: int, destination: str, dport: int, flags: str, options: list[Any], **numbers: int
) -> Segment:
    tcp = TCP(sport=sport, dport=dport, flags=flags, options=options, **numbers)
    return parse(bytes(_ip(source, destination) / tcp))


def syn(options: list[Any] = CLIENT_OPTIONS, *, port: int = 5000, seq: int = 1000, client: str = CLIENT) -> Segment:
    return seen(client, port, vip_of(client), DATA_PORT, "S", options, seq=seq)


def answer(options: list[Any] = SERVER_OPTIONS, *, port: int = 5000, ack: int = 1001, client: str = CLIENT) -> Segment:
    return seen(vip_of(client), DATA_PORT, client, port, "SA", options, seq=2**32 - 1, ack=ack)


def vip_of(client: str) -> str:
    return "fd00::100" if ":" in client else VIP


# --- what they agree on ---
def test_a_handshake_says_all_that_recreating_needs() -> None:
    found = agreed(answer(), syn())
    connection = FourTuple(PACKED_VIP, DATA_PORT, bytes([10, 0, 1, 1]), 5000)
    tcp = TcpSection(1400, 9, 7, True, True, True, 900, 0xFFFF << 9)
    assert found == Handshake(connection, 2**32 - 1, 1000, tcp)


@pytest.mark.parametrize("missing", ["SAckOK", "Timestamp", "WScale", "MSS"])
def test_an_option_counts_if_both_have_it(missing: str) -> None:
    of_server, of_client = ([one for one in each if one[0] != missing] for each in (SERVER_OPTIONS, CLIENT_OPTIONS))
    for ours, theirs in ((SERVER_OPTIONS, of_client), (of_server, CLIENT_OPTIONS)):
        found = agreed(answer(ours), syn(theirs))
        assert found is not None
        tcp = found.tcp
        assert tcp.sack == (missing != "SAckOK")
        assert (tcp.timestamps, tcp.tsval != 0) == (missing != "Timestamp", missing != "Timestamp")
        assert tcp.window_scaling == (missing != "WScale")
        assert (tcp.snd_wscale, tcp.rcv_wscale) == ((0, 0) if missing == "WScale" else (9, 7))
        assert tcp.mss == (536 if "MSS" not in dict(theirs) else 1400), "what the client takes"


def test_on_ipv6_a_silent_host_takes_more() -> None:
    found = agreed(answer([], client="fd00::7"), syn([], client="fd00::7"))
    assert found is not None and found.tcp.mss == 1220


def test_segments_of_different_connections_agree_on_nothing() -> None:
    assert agreed(answer(ack=1002), syn()) is None
    assert agreed(answer(), answer()) is None
    assert agreed(syn(), syn()) is None


def test_options_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(SegmentMalformed):
        agreed(answer(), replace_options(syn(), b"\x02\x08\x05"))
    with pytest.raises(SegmentMalformed):
        agreed(answer(), replace_options(syn(), b"\x01\x02"))


def replace_options(segment: Segment, options: bytes) -> Segment:
    return msgspec.structs.replace(segment, syn_options=options)


# --- who knows of them ---
def test_a_connection_is_young_until_it_has_a_checkpoint() -> None:
    witness = Witness()
    witness.saw(syn(), from_vip=False, now=0.0)
    assert list(witness.handshakes()) == []
    witness.saw(answer(), from_vip=True, now=0.0)
    (found,) = witness.handshakes()
    assert found.connection.id in witness
    witness.known(found.connection.id)
    assert len(witness) == 0 and found.connection.id not in witness


def test_the_order_in_which_the_switch_shows_them_does_not_matter() -> None:
    witness = Witness()
    witness.saw(answer(), from_vip=True, now=0.0)
    witness.saw(syn(), from_vip=False, now=0.0)
    assert len(list(witness.handshakes())) == 1


def test_a_port_that_is_used_again_is_a_new_connection() -> None:
    witness = Witness()
    for segment, from_vip in ((syn(), False), (answer(), True), (syn(seq=5000), False)):
        witness.saw(segment, from_vip=from_vip, now=0.0)
    assert list(witness.handshakes()) == []
    witness.saw(answer(ack=5001), from_vip=True, now=0.0)
    assert [found.irs for found in witness.handshakes()] == [5000]


def test_what_a_server_opens_is_not_watched() -> None:
    witness = Witness()
    witness.saw(seen(VIP, 20, CLIENT, 5000, "S", SERVER_OPTIONS, seq=7), from_vip=True, now=0.0)
    witness.saw(seen(CLIENT, 5000, VIP, 20, "SA", CLIENT_OPTIONS, seq=9, ack=8), from_vip=False, now=0.0)
    assert len(witness) == 0


def test_what_nobody_speaks_of_is_forgotten() -> None:
    witness = Witness()
    witness.saw(syn(port=1), from_vip=False, now=0.0)
    witness.saw(syn(port=2), from_vip=False, now=1.0)
    witness.saw(answer(port=1), from_vip=True, now=2.0)
    witness.expire(1.0 + SECONDS)
    assert [found.connection.destination_port for found in witness.handshakes()] == [1]
    witness.expire(2.0 + SECONDS)
    assert len(witness) == 0


def test_a_flood_pushes_the_oldest_out() -> None:
    witness = Witness()
    for port in range(1, LIMIT + 3):
        witness.saw(syn(port=port), from_vip=False, now=0.0)
    assert len(witness) == LIMIT
    assert FourTuple(PACKED_VIP, DATA_PORT, bytes([10, 0, 1, 1]), 2).id not in witness


def test_options_that_cannot_be_read_are_counted() -> None:
    witness = Witness()
    witness.saw(replace_options(syn(), b"\x02\x00"), from_vip=False, now=0.0)
    witness.saw(answer(), from_vip=True, now=0.0)
    assert list(witness.handshakes()) == [] and witness.malformed == 1


# --- what the heir is told ---
def test_the_heir_is_told_of_the_dead_servers_young_connections_and_of_no_others() -> None:
    scene = with_ftp()
    mine, others = clients_of(scene, "s1"), clients_of(scene, "s3")
    for client in (*mine, *others):
        scene.conductor.handshake_seen(syn(client=client), scene.now)
        scene.conductor.handshake_seen(answer(client=client), scene.now)
    scene.end("s1")
    (resume,) = said(scene.commit(1), "s2", messages.Resume)
    told = {".".join(map(str, each.connection.destination)) for each in resume.handshakes}
    assert told == set(mine)
    assert messages.FrameReader(from_agent=False).feed(messages.encode(resume)) == [resume]


def with_ftp() -> Scene:
    text = scenario.text(3).replace("{port: 80, protocol: http, protected: true}", "{port: 21, protocol: ftp}")
    return Scene(configuration.parse(text)).up()


def of(client: str) -> FourTuple:
    return FourTuple(PACKED_VIP, DATA_PORT, bytes(map(int, client.split("."))), 5000)


def clients_of(scene: Scene, server: str) -> list[str]:
    """Two addresses whose data connections belong to this server."""
    every = [f"10.0.1.{last}" for last in range(1, 40)]
    return [client for client in every if scene.conductor.ownership.server_for(of(client)) == server][:2]


@pytest.mark.parametrize("known", [False, True])
def test_a_dying_servers_close_of_a_young_connection_does_not_reach_its_client(known: bool) -> None:
    scene = with_ftp()
    (client, *_) = clients_of(scene, "s1")
    if known:
        scene.conductor.handshake_seen(syn(client=client), scene.now)
        scene.conductor.handshake_seen(answer(client=client), scene.now)
    fin = bytes(14) + bytes(_ip(VIP, client) / TCP(sport=DATA_PORT, dport=5000, seq=5, ack=6, flags="R"))
    actions = scene.conductor.close_seen(1, of(client), fin, scene.now)
    assert bool(actions) != known
    assert len(scene.conductor.gate) == known
    scene.end("s1")
    assert len(scene.conductor.gate) == 0
    assert scene.conductor.gate.counts[Decision.DROP.value] == known


def test_what_ended_without_a_checkpoint_is_no_concern_of_the_heirs() -> None:
    scene = with_ftp()
    (client, *_) = clients_of(scene, "s1")
    scene.conductor.handshake_seen(syn(client=client), scene.now)
    scene.conductor.handshake_seen(answer(client=client), scene.now)
    assert scene.conductor.closed("s1", [of(client).id]) == ([], [])
    scene.end("s1")
    (resume,) = said(scene.commit(1), "s2", messages.Resume)
    assert resume.handshakes == []


# --- what became of them ---
def test_the_record_counts_them_also_when_the_takeover_is_done() -> None:
    scene = with_ftp()
    scene.end("s1")
    scene.commit(1)
    scene.report("s2", 1)
    (takeover,) = scene.conductor.history.all()
    assert (takeover.phase, takeover.connections) == (Phase.DONE, 0)
    said = messages.Young(1, [of("10.0.1.1").id], [(of("10.0.1.2").id, INPUT_LOST), (of("10.0.1.3").id, INPUT_LOST)])
    (announced,) = scene.conductor.received("s2", said, scene.now)
    assert isinstance(announced, Announce) and announced.kind == "takeover"
    assert (takeover.connections, takeover.resumed, dict(takeover.reset)) == (3, 1, {INPUT_LOST: 2})


def test_only_the_heir_speaks_of_its_takeover() -> None:
    scene = with_ftp()
    scene.end("s1")
    scene.commit(1)
    for server, number in (("s3", 1), ("s2", 9)):
        assert scene.conductor.received(server, messages.Young(number, [of("10.0.1.1").id], []), scene.now) == []
    (takeover,) = scene.conductor.history.all()
    assert takeover.connections == 0
