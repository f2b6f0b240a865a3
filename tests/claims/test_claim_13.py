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
    begun, sent = compared["offset"], wire.data(block["destination_port"], takeover["to"])
    places = [int(s.segment.seq - block["object_first"]) for s in sent]
    assert places[0] == min(places) == begun, "it sent what the client had acknowledged"
    assert max(place + s.segment.payload_length for place, s in zip(places, sent, strict=True)) == SIZE
    assert 8 << 20 < begun < SIZE
    for place, seen in zip(places, sent, strict=True):
        assert seen.segment.payload == content[place : place + seen.segment.payload_length]
