"""Claim 1: a system for takeover of a TCP connection by a second server from a first: a structure for both to access
shared state information; a device that compares the sequence number of an acknowledgement byte received by the second
server with a sequence number related to the shared state; a device that recreates the connection based upon that."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dataplane import Seq
from tests.claims.clients import Clients
from tests.claims.wire import capture
from topologies import Lab

SIZE = 40 << 20


def test_what_the_client_acknowledged_is_compared_with_the_shared_state_and_the_connection_goes_on_there(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    with capture(lab, "c1", tmp_path, "tcp port 80") as wire:
        curl = clients.curl("c1", "/object.bin", "--limit-rate", "24M", "--range", f"0-{SIZE - 1}")
        assert curl.wait_for(8 << 20)
        before = clients.downloading()
        first, known = before["server"], before["checkpoint"]
        port = known["destination_port"]
        lab.until(lambda: lab.server(first)["unready"] == 1, "the second server does not have the shared state")
        killed = clients.fail(first)
        assert curl.wait() == 0
        takeover = clients.takeover()
        wire.stop()
    assert curl.digest == hashlib.sha256(clients.content(0, SIZE)).hexdigest()

    # The second server received acknowledgements after the death, and compared the number of one of them ...
    second = takeover["to"]
    (compared,) = takeover["comparisons"]
    assert (compared["connection"], compared["outcome"]) == (before["id"], "resumed")
    assert compared["ack"] in {int(s.segment.ack) for s in wire.answers_to_probes(port) if s.when > killed}
    # ... with numbers of the shared state: where the checkpoint knew the client to stand, and where its stream ends.
    header, body = known["object_first"] - known["iss"] - 1, SIZE
    assert compared["object_first"] == known["object_first"]
    assert compared["end"] == Seq(known["iss"]) + 1 + header + body
    assert Seq(known["snd_una"]) <= Seq(compared["snd_una"]) <= Seq(compared["ack"]) <= Seq(compared["end"])
    # The connection was recreated from it: the second server's first byte is the one that the client asked for.
    sent_by_second = wire.data(port, second)
    assert sent_by_second[0].segment.seq == compared["ack"]
    assert sent_by_second[0].when > killed
