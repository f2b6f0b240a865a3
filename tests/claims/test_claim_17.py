"""Claim 17: in the method, too, one or more of the data connections are carried over UDP. To the client they are one
stream from one source, with nothing twice and nothing missing but what was due while nobody was there to send it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.claims.clients import Clients
from tests.claims.wire import capture
from tests.one_stream import assert_only_the_stall_is_missing
from topologies import Lab


@pytest.mark.parametrize("how", ["kill", "hang", "link"])
def test_the_data_go_on_where_the_clock_is_and_the_first_server_is_not_heard_again(
    lab: Lab, clients: Clients, tmp_path: Path, how: str
) -> None:
    with capture(lab, "c1", tmp_path, "udp") as wire:
        player = clients.player(tmp_path, "c1", "udp")
        player.wait_for(1.5)
        first = clients.bundles()[0]["server"]
        failed = clients.fail(first, how)
        takeover = clients.takeover()
        player.wait_for(player.played + 1.0)
        lab.heal(first)  # it is there again, with all that it knew when it hung or was cut off
        player.wait_for(player.played + 1.0)
        wire.stop()
    assert takeover["resumed"] == 1
    assert_only_the_stall_is_missing(lab, wire.rtp, failed, first)
    fenced = takeover["detected_at_ns"] + takeover["phases_ms"]["fence"] * 1_000_000
    assert wire.senders([heard for heard in wire.rtp if heard.at_ns > fenced]) == [takeover["to"]]
    assert {(heard.source, heard.destination) for heard in wire.rtp} == {("10.0.0.100", "10.0.0.201")}
