"""Claim 19: in the method, too, the shared state includes an identifier of the first server, the time at which the
state information is *received*, addresses and ports, the application protocol, initial and current sequence numbers of
both sides, and application layer information."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

from tests.claims.clients import MANY, Clients
from tests.claims.wire import capture
from topologies import Lab

TICKER_PORT = 7000


def test_what_the_second_server_gathers_has_every_field_and_is_of_the_same_connection(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    with capture(lab, "c1", tmp_path, f"tcp port {TICKER_PORT}") as wire:
        began = time.time()
        ticking = clients.ticker(1, MANY, 20)
        ticking.take(10)
        of_first = clients.connection(ticking.port, TICKER_PORT)["checkpoint"]
        first = of_first["server"]
        clients.fail(first)
        second = clients.takeover()["to"]
        of_second, ended = clients.checkpoint_of(second, ticking.port, TICKER_PORT), time.time()
        ticking.take_beyond(of_second)
        wire.stop()
    for name in ("server", "incarnation", "epoch", "serial", "time", "received_at"):
        assert of_first[name] != of_second[name], name
    for name in ("protocol", "iss", "irs", "rcv_nxt", "object", "object_first", "sections"):
        assert of_first[name] == of_second[name], name
    for block in (of_first, of_second):
        gathered, received = (datetime.fromisoformat(block[field]).timestamp() for field in ("time", "received_at"))
        assert began <= gathered <= received <= ended
        assert (block["source_address"], block["source_port"]) == ("10.0.0.100", TICKER_PORT)
        assert (block["destination_address"], block["destination_port"]) == ("10.0.0.201", ticking.port)
        assert block["protocol"] == "ticker/1"
        assert (block["iss"], block["irs"]) == (wire.iss(ticking.port), wire.irs(ticking.port))
        assert block["rcv_nxt"] == wire.irs(ticking.port) + 1 + len(b"START 1 %d 20\n" % MANY)
        assert block["snd_una"] in {int(s.segment.ack) for s in wire.from_client(ticking.port)}
        assert block["snd_nxt"] in {int(s.segment.seq) for s in wire.data(ticking.port)}
        assert (block["object"], block["sections"]) == ("ticker", ["tcp", "stream", "ticker/1"])
    assert of_second["epoch"] > of_first["epoch"]
