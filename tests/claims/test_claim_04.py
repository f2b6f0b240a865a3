"""Claim 4: the connection checkpoint API of claim 3 is adapted to bundle connection information with respect to a
protocol that has a plurality of related connections, which involve both TCP and UDP."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from state.sections import BUNDLE, CONTROL, BundleSection
from tests.claims.clients import VIP, Clients
from tests.claims.wire import capture
from topologies import Lab

CLIENT = "10.0.0.201"


def test_one_checkpoint_bundles_a_tcp_connection_with_its_udp_ports_and_all_of_it_moves_as_one(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    alone = clients.plain("c1", 80)
    with capture(lab, "c1", tmp_path, "tcp port 554 or udp") as wire:
        player = clients.player(tmp_path, "c1", "udp")
        player.wait_for(1.0)
        (before,) = clients.bundles()
        name, first = before["id"], before["server"]
        known = clients.stored(name)
        clients.fail(first)
        takeover = clients.takeover()
        second = takeover["to"]
        after, again = clients.bundle(name, second), clients.stored(name)
        player.wait_for(player.played + 1.0)
        wire.stop()
    assert clients.connection(alone.port)["bundle"] is None, "nothing is related to it"

    # One data block, and in it what belongs together: the TCP connection that it is of, and two pairs of UDP ports.
    assert [section.name for section in known.sections] == ["tcp", "stream", "bundle", "rtsp/1.0"]
    section = known.section(BUNDLE, BundleSection)
    control = known.header.connection
    assert (section.id, section.role) == (control.id, CONTROL) == (name, CONTROL)
    assert control.destination_port in {int(s.segment.source_port) for s in wire.seen if s.sender == "c1"}
    parts = {part.role: part for part in section.parts}
    assert {part.transport for part in section.parts} == {"udp"} and parts.keys() == {"rtp", "rtcp"}
    assert {part.remote_address for part in section.parts} == {CLIENT}
    assert {(heard.source, heard.port) for heard in wire.rtp} == {(VIP, parts["rtp"].remote_port)}
    assert parts["rtcp"].remote_port == parts["rtp"].remote_port + 1
    # The system says the same of it.
    assert (before["protocol"], before["client"]) == ("rtsp/1.0", str(ipaddress.ip_address(control.destination)))
    shown = [{field: each[field] for field in ("role", "transport", "local_port")} for each in before["parts"]]
    assert shown == [{"role": p.role, "transport": "udp", "local_port": p.local_port} for p in section.parts]
    # One takeover moved all of it, and at its new owner it is the same bundle.
    assert (takeover["from"], takeover["reset"]) == (first, {})
    assert name in {c["connection"] for c in takeover["comparisons"] if c["outcome"] == "resumed"}
    assert (after["server"], after["parts"]) == (second, before["parts"])
    assert after["epoch"] > before["epoch"]
    assert (again.header.server, again.section(BUNDLE, BundleSection)) == (second, section)
    assert wire.senders(wire.rtp) == [first, second]
