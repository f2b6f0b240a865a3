"""Claim 6: one or more of the data connections are carried over UDP."""

from __future__ import annotations

from pathlib import Path

from dataplane.rtsp.protocol import RtspSection
from tests.claims.clients import VIP, Clients
from tests.claims.wire import capture
from topologies import Lab


def test_the_shared_state_has_what_the_data_over_udp_go_on_with(lab: Lab, clients: Clients, tmp_path: Path) -> None:
    """Datagrams are acknowledged by nobody, so no checkpoint is needed for each: all follows from the session's."""
    with capture(lab, "c1", tmp_path, "udp") as wire:
        player = clients.player(tmp_path, "c1", "udp")
        player.wait_for(1.5)
        (bundle,) = clients.bundles()
        assert [each["id"] for each in lab.connections()] == [bundle["id"]], "UDP has no checkpoint of its own"
        first, known = bundle["server"], clients.stored(bundle["id"])
        clients.fail(first)
        second = clients.takeover()["to"]
        player.wait_for(player.played + 1.5)
        clients.bundle(bundle["id"], second)
        again = clients.stored(bundle["id"])
        wire.stop()
    assert wire.senders(wire.rtp) == [first, second]
    sessions = [block.section("rtsp/1.0", RtspSection).sessions for block in (known, again)]
    (before,), (after,) = sessions
    # The second server's state says the same of the session, and that its time has gone on.
    assert (after.id, after.object, after.way, after.playing) == (before.id, before.object, before.way, before.playing)
    assert before.active and after.active and after.elapsed_ns > before.elapsed_ns
    # And every packet is the one that the state says, whichever server sent it.
    assert before.way.kind == "unicast"
    per_packet = len(wire.rtp[0].packet.payload)
    for heard in wire.rtp:
        assert (heard.source, heard.destination, heard.port) == (VIP, before.way.address, before.way.ports[0])
        assert heard.packet.ssrc == before.playing.ssrc
        number = before.playing.start + (heard.packet.seq - before.playing.first_seq) % 2**16
        assert heard.packet.payload == clients.content(number * per_packet, per_packet, "/clip.ts")
