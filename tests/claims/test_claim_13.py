"""Claim 13: the relating includes resuming to send the data of the object over the restarted TCP connection."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.claims.clients import Clients
from tests.claims.wire import capture
from topologies import Lab

SIZE = 40 << 20


def test_the_second_server_sends_the_rest_of_the_object_and_only_the_rest(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    content = clients.content(0, SIZE)
    with capture(lab, "c1", tmp_path, "tcp port 80") as wire:
        curl = clients.curl("c1", "/object.bin", "--limit-rate", "24M", "--range", f"0-{SIZE - 1}")
        assert curl.wait_for(12 << 20)
        known = clients.downloading()
        first, block = known["server"], known["checkpoint"]
        clients.fail(first)
        assert curl.wait() == 0
        takeover = clients.takeover()
        wire.stop()
    assert (curl.received, curl.digest) == (SIZE, hashlib.sha256(content).hexdigest())
    (compared,) = takeover["comparisons"]
    port, sent = block["destination_port"], 0
    for seen in wire.data(port, takeover["to"]):
        at = int(seen.segment.seq - block["object_first"])
        assert compared["offset"] <= at, "it sent what the client had acknowledged"
        assert seen.segment.payload == content[at : at + seen.segment.payload_length]
        sent += seen.segment.payload_length
    # What the client held beyond a hole need not be sent again; of the rest every byte came from the second server.
    assert sent > (SIZE - compared["offset"]) // 2
    assert all(s.sender == first for s in wire.data(port) if s.segment.seq - block["object_first"] < compared["offset"])
