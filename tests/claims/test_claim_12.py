"""Claim 12: the API relates the compared sequence numbers, in conjunction with the ready signal, to a byte sequence
number in an object that is referenced in the shared state information."""

from __future__ import annotations

from pathlib import Path

from dataplane import Seq
from dataplane.examples.ticker import line, offset_of
from tests.claims.clients import MANY, Clients
from tests.claims.wire import capture
from topologies import Lab

START, SIZE = 1_000_003, 40 << 20


def test_an_acknowledgement_is_a_byte_of_a_file(lab: Lab, clients: Clients, tmp_path: Path) -> None:
    with capture(lab, "c1", tmp_path, "tcp port 80") as wire:
        curl = clients.curl("c1", "/object.bin", "--limit-rate", "24M", "--range", f"{START}-{START + SIZE - 1}")
        assert curl.wait_for(6 << 20)
        known = clients.downloading()
        clients.fail(known["server"])
        takeover = clients.takeover()
        assert curl.wait_for(24 << 20)
        wire.stop()
    (compared,) = takeover["comparisons"]
    assert compared["object"] == known["checkpoint"]["object"] == "/object.bin"
    assert Seq(known["checkpoint"]["object_first"]) + compared["offset"] == compared["ack"]
    assert START < compared["offset"] < START + SIZE
    # And that is what the second server's first bytes are.
    first = wire.data(known["checkpoint"]["destination_port"], takeover["to"])[0].segment
    assert first.seq == compared["ack"]
    assert first.payload == clients.content(compared["offset"], first.payload_length)


def test_an_acknowledgement_is_a_byte_of_what_a_protocol_makes_itself(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    with capture(lab, "c1", tmp_path, "tcp port 7000") as wire:
        ticking = clients.ticker(8, MANY, 10)
        ticking.take(20)
        owner = clients.connection(ticking.port, 7000)["server"]
        clients.fail(owner)
        takeover = clients.takeover()
        ticking.take(20)
        wire.stop()
    (compared,) = takeover["comparisons"]
    assert compared["object"] == "ticker"
    first = wire.data(ticking.port, takeover["to"])[0].segment
    assert first.seq == compared["ack"]
    everything = b"".join(line(number) for number in range(2000))
    assert first.payload == everything[compared["offset"] :][: first.payload_length]
    assert compared["offset"] >= offset_of(8 + 20)
