"""Claim 7: data packets on one or more of the data connections are transmitted to one or more IP-multicast groups."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path

from dataplane.rtsp.protocol import RtspSection
from tests.claims.clients import VIP, Clients
from tests.claims.wire import capture
from topologies import Lab


def test_bundles_send_to_the_groups_that_the_shared_state_names(
    lab: Lab, clients: Clients, tmp_path: Path, copied: Callable[..., str]
) -> None:
    with capture(lab, "c1", tmp_path, "udp") as wire1, capture(lab, "c2", tmp_path, "udp") as wire2:
        players = [
            clients.player(tmp_path, "c1", "udp_multicast"),
            clients.player(tmp_path, "c2", "udp_multicast", copied("/clip.ts")),
        ]
        for player in players:
            player.wait_for(1.0)
        before = clients.bundles()
        first = before[0]["server"]
        known = [clients.stored(bundle["id"]) for bundle in before]
        clients.fail(first)
        takeover = clients.takeover()
        second = takeover["to"]
        for player in players:
            player.wait_for(player.played + 1.0)
        after = [clients.bundle(bundle["id"], second) for bundle in before]
        again = [clients.stored(bundle["id"]) for bundle in before]
        wire1.stop()
        wire2.stop()
    assert takeover["resumed"] == 2
    assert [bundle["parts"] for bundle in after] == [bundle["parts"] for bundle in before]
    groups = []
    for bundle, wire in zip(before, (wire1, wire2), strict=True):
        # What the system says: its data have a group for their address, and not the client.
        assert {part["transport"] for part in bundle["parts"]} == {"udp-multicast"}
        (group,) = {part["remote_address"] for part in bundle["parts"]}
        groups.append(group)
        assert ipaddress.ip_address(group) in ipaddress.ip_network("239.0.0.0/8")
        # It is so: before the death and after it.
        (port,) = {part["remote_port"] for part in bundle["parts"] if part["role"] == "rtp"}
        heard = [each for each in wire.rtp if each.destination == group]
        assert {(each.source, each.port) for each in heard} == {(VIP, port)}
        assert wire.senders(heard) == [first, second]
    assert groups[0] != groups[1], "each object has a group of its own"
    for group, block, later in zip(groups, known, again, strict=True):
        (session,), (session_later,) = (each.section("rtsp/1.0", RtspSection).sessions for each in (block, later))
        assert (session.way.kind, session.way.address) == ("multicast", group)
        assert (session_later.way, session_later.playing) == (session.way, session.playing)
