"""Claim 18: in the method, too, data packets are transmitted to IP-multicast groups. Those who listen to one need do
nothing when the server dies: not ask again, and not join again."""

from __future__ import annotations

from pathlib import Path

from tests.claims.clients import VIP, Clients
from tests.claims.wire import capture
from tests.one_stream import assert_only_the_stall_is_missing
from topologies import Lab

LISTENING = "tcp port 554 or udp or igmp"


def test_the_second_server_sends_to_the_same_group_and_two_receivers_go_on_without_a_word(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    with capture(lab, "c1", tmp_path, LISTENING) as wire1, capture(lab, "c2", tmp_path, LISTENING) as wire2:
        players = [clients.player(tmp_path, host, "udp_multicast") for host in ("c1", "c2")]
        for player in players:
            player.wait_for(2.5)  # a host says twice that it listens, the second time within two seconds
        first = clients.bundles()[0]["server"]
        killed = clients.fail(first)
        takeover = clients.takeover()
        for player in players:
            player.wait_for(player.played + 2.0)
        wire1.stop()
        wire2.stop()
    assert takeover["resumed"] == 2
    for wire in (wire1, wire2):
        assert_only_the_stall_is_missing(lab, wire.rtp, killed, first)
        assert wire.senders(wire.rtp) == [first, takeover["to"]]
        assert {heard.source for heard in wire.rtp} == {VIP}
        assert wire.memberships and max(wire.memberships) < killed, "it did not join again"
        requests = [s for s in wire.seen if s.sender == wire.client and s.segment.payload]
        assert requests and max(s.when for s in requests) < killed, "it did not ask again"
    assert len({heard.destination for wire in (wire1, wire2) for heard in wire.rtp}) == 1
    # What the heir sent was the same for both.
    begun = wire1.rtp[0].packet.seq
    heard = [{(each.packet.seq - begun) % 2**16 for each in wire.heard_from(takeover["to"])} for wire in (wire1, wire2)]
    last = min(max(numbers) for numbers in heard)
    assert {number for number in heard[0] if number <= last} == {number for number in heard[1] if number <= last}
