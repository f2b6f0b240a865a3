"""Claim 22: an application interface to the networking stack that allows an application to associate a byte of data
to be sent on a TCP connection with a current or *future* TCP send sequence number."""

from __future__ import annotations

from pathlib import Path

from dataplane import Seq
from dataplane.examples.ticker import line, offset_of
from tests.claims.clients import Clients
from tests.claims.wire import capture
from topologies import Lab

FIRST, SECOND = 24 << 20, 64 << 10


def test_a_byte_has_its_number_while_24_mib_before_it_are_unsent_and_keeps_it_over_a_death(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    """Two requests at once; the client reads nothing. HTTP has planned both responses: the second one's first byte is
    associated with a number that is far in the future."""
    with capture(lab, "c1", tmp_path, "tcp port 80") as wire:
        client = clients.plain("c1", 80, receive_buffer=64 << 10)
        client.say(
            b"GET /object.bin HTTP/1.1\r\nHost: vip\r\nRange: bytes=0-%d\r\n\r\n" % (FIRST - 1)
            + b"GET /64k HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n"
        )
        lab.until(lambda: clients.connection(client.port)["checkpoint"]["object"] == "/64k", "it is not planned")
        known = clients.connection(client.port)
        block = known["checkpoint"]
        future = Seq(block["object_first"])
        assert Seq(block["snd_nxt"]).distance(future) > FIRST, "in the future when it was associated"
        clients.fail(known["server"])
        second = clients.takeover()["to"]
        again = clients.checkpoint_of(second, client.port)
        assert (again["object"], again["object_first"]) == ("/64k", future), "the association is of the shared state"
        heard = client.hear(FIRST + SECOND + 4096)
        wire.stop()
    # The byte came with that number.
    position = (wire.iss(client.port) + 1).distance(future)
    assert heard[position:] == clients.content(0, SECOND, "/64k")
    assert heard[:position].count(b"HTTP/1.1 20") == 2
    carrier = next(s for s in wire.data(client.port) if s.segment.seq <= future < s.end)
    into = carrier.segment.seq.distance(future)
    assert carrier.segment.payload[into:] == clients.content(0, carrier.segment.payload_length - into, "/64k")
    assert carrier.sender == second


def test_a_protocol_of_ones_own_associates_bytes_that_it_has_not_even_made(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    with capture(lab, "c1", tmp_path, "tcp port 7000") as wire:
        ticking = clients.ticker(9998, 6, 400)
        ticking.take(1)
        block = clients.connection(ticking.port, 7000)["checkpoint"]
        assert block["stream"]["labels"] == [
            {"position": 0, "identifier": "ticker", "offset": offset_of(9998), "length": None}
        ]
        ticking.end()
        wire.stop()
    # Line 10,003 was written two seconds later; its number followed from what was associated with the first.
    first_of_last = Seq(block["object_first"]) + offset_of(10_003)
    assert Seq(block["snd_nxt"]) < first_of_last
    carriers = [s.segment.payload for s in wire.data(ticking.port) if s.segment.seq == first_of_last]
    assert carriers and set(carriers) == {line(10_003)}
