"""Claim 9: a method: generating shared state information for access by both servers; comparing the byte sequence
number of an acknowledgement received by the second server with one related to the shared state; recreating the
connection within the second server based upon them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from dataplane import Seq
from tests.claims.clients import MANY, Clients
from tests.claims.wire import capture
from topologies import Lab

TICKER_PORT = 7000


def test_state_is_generated_before_the_death_compared_after_it_and_then_the_connection_is_recreated(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    with capture(lab, "c1", tmp_path, f"tcp port {TICKER_PORT}") as wire:
        ticking = clients.ticker(1, MANY, 10)
        ticking.take(25)
        before = clients.connection(ticking.port, TICKER_PORT)
        first = before["server"]
        killed = clients.fail(first)
        takeover = clients.takeover()
        ticking.take(25)
        wire.stop()
    second, (compared,) = takeover["to"], takeover["comparisons"]
    # Generated: by the first server, for both; the second lives by what the first had gathered before its death.
    assert before["checkpoint"]["server"] == first != second
    assert datetime.fromisoformat(before["checkpoint"]["time"]).timestamp() * 1e9 < killed
    # Compared: a number that the client acknowledged to the second server.
    answers = [s for s in wire.answers_to_probes(ticking.port) if s.when > killed]
    compared_at = next(s.when for s in answers if s.segment.ack == compared["ack"])
    assert Seq(compared["snd_una"]) <= Seq(compared["ack"]) <= Seq(compared["end"])
    # Recreated: after the comparison, and from that number on, there and nowhere else.
    recreated = wire.data(ticking.port, second)
    assert recreated[0].when > compared_at > killed
    assert recreated[0].segment.seq == compared["ack"]
    sockets = {
        server: lab.run(server, ["ss", "-Htn", "dst", f"10.0.0.201:{ticking.port}"], capture_output=True, text=True)
        for server in ("s1", "s2", "s3")
        if server not in (first, second)
    }
    assert all(shown.stdout == "" for shown in sockets.values())
