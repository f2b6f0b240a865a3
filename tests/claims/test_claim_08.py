"""Claim 8: the shared state includes an identifier of the first server, the time at which the state was gathered,
source and destination address and port, the application protocol, both initial sequence numbers, both current ones, and
the sequence number of the first byte of an object and the object's identifier."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from dataplane import Seq
from dataplane.examples.ticker import line, offset_of
from state.datablock import Header
from tests.claims.clients import MANY, Clients
from tests.claims.wire import Capture, capture
from topologies import Lab

REQUEST = b"GET /object.bin HTTP/1.1\r\nHost: vip\r\nRange: bytes=1000-3000999\r\n\r\n"


def check_against_the_wire(block: dict[str, object], wire: Capture, port: int, request: bytes) -> None:
    """What is the same whatever is sent: who, which connection, and where both sides began and stand."""
    assert block["server"] == wire.data(port)[0].sender
    assert (block["source_address"], block["destination_address"]) == ("10.0.0.100", "10.0.0.201")
    assert block["destination_port"] == port
    assert block["iss"] == wire.iss(port)
    assert block["irs"] == wire.irs(port)
    assert block["rcv_nxt"] == wire.irs(port) + 1 + len(request)
    assert block["snd_una"] in {int(s.segment.ack) for s in wire.from_client(port)}
    # Everything below SND.NXT was sent, and the next byte that was sent is this one.
    assert block["snd_nxt"] in {int(s.segment.seq) for s in wire.data(port)}


def test_each_field_has_the_value_that_the_client_sees(lab: Lab, clients: Clients, tmp_path: Path) -> None:
    assert {"server", "time", "connection", "protocol", "iss", "irs", "snd_una", "snd_nxt", "rcv_nxt"} <= set(
        Header.__struct_fields__
    )
    with capture(lab, "c1", tmp_path, "tcp port 80") as wire:
        began = time.time()
        client = clients.plain("c1", 80)
        client.say(REQUEST)
        lab.until(lambda: clients.connection(client.port)["checkpoint"]["object"], "nothing is sent")
        seen = clients.connection(client.port)
        ended = time.time()
        response = client.hear(4096)
        head = response.index(b"\r\n\r\n") + 4
        assert response[head:] == clients.content(1000, len(response) - head)
        wire.stop()
    block = seen["checkpoint"]
    check_against_the_wire(block, wire, client.port, REQUEST)
    assert block["server"] == seen["server"] == lab.owner_of("c1", client.port)
    assert began <= datetime.fromisoformat(block["time"]).timestamp() <= ended
    assert block["source_port"] == 80
    assert block["protocol"] == "http/1.1"
    assert block["object"] == "/object.bin"
    # Byte 1,000 of the object follows the response's header; byte 0 lies where it would have been.
    assert Seq(block["object_first"]) + 1000 == wire.iss(client.port) + 1 + head
    shown = lab.run("c1", ["ss", "-Htn", "sport", "=", f":{client.port}"], capture_output=True, text=True, check=True)
    assert shown.stdout.split()[3:5] == [f"10.0.0.201:{client.port}", "10.0.0.100:80"]


@pytest.mark.parametrize("lines", [1, 12])
def test_the_current_numbers_move_on_with_the_connection(
    lab: Lab, clients: Clients, tmp_path: Path, lines: int
) -> None:
    with capture(lab, "c1", tmp_path, "tcp port 7000") as wire:
        ticking = clients.ticker(95, MANY, 20)
        ticking.take(lines)
        block = clients.connection(ticking.port, 7000)["checkpoint"]
        ticking.take_beyond(block)
        wire.stop()
    check_against_the_wire(block, wire, ticking.port, b"START 95 %d 20\n" % MANY)
    assert (block["protocol"], block["object"], block["source_port"]) == ("ticker/1", "ticker", 7000)
    # Line 95 was the first: by its number, the first byte of the stream is this byte of the object.
    assert Seq(block["object_first"]) + offset_of(95) == wire.iss(ticking.port) + 1
    assert Seq(block["object_first"]) + offset_of(95 + lines) <= Seq(block["snd_nxt"]) + len(line(100))
