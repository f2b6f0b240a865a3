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
    port, rest = block["destination_port"], bytearray(SIZE - compared["offset"])
    for seen in wire.data(port, takeover["to"]):
        at = (seen.segment.seq - block["object_first"]) - compared["offset"]
        assert 0 <= int(at) <= len(rest), "it sent what the client had acknowledged"
        rest[int(at) : int(at) + seen.segment.payload_length] = seen.segment.payload
    assert hashlib.sha256(rest).digest() == hashlib.sha256(content[compared["offset"] :]).digest()
    assert all(s.sender == first for s in wire.data(port) if s.segment.seq - block["object_first"] < compared["offset"])
