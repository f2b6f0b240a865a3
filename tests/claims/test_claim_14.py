"""Claim 14: a network protocol stack includes the protocols and the checkpoint information; an API on the second server
notifies each of the protocols to use it and so create an "unready" connection."""

from __future__ import annotations

from pathlib import Path

from tests.claims.clients import MANY, Clients
from tests.claims.wire import capture
from topologies import Lab

TICKER_PORT = 7000


def test_unready_connections_are_there_before_any_failure_and_do_nothing(
    lab: Lab, clients: Clients, tmp_path: Path
) -> None:
    with capture(lab, "c1", tmp_path) as wire:
        idle = [clients.plain("c1", 80) for _ in range(4)]
        ticking = [clients.ticker(1, MANY, 30) for _ in range(4)]
        services = {client.port: 80 for client in idle} | {client.port: TICKER_PORT for client in ticking}
        owners = {port: clients.connection(port, service)["server"] for port, service in services.items()}

        def prepared() -> bool:
            """The API: each server's backup holds as many unready connections as the server has."""
            counts = {server["name"]: (server["connections"], server["unready"]) for server in lab.servers()}
            return all(have == unready == list(owners.values()).count(name) for name, (have, unready) in counts.items())

        lab.until(prepared, "the backups do not hold what the servers have")
        takeovers = len(lab.takeovers())

        def sockets(server: str) -> set[int]:
            """Ports of the clients whose connection is in that server's kernel."""
            shown = lab.run(server, ["ss", "-Htn", "src", "10.0.0.100"], capture_output=True, text=True, check=True)
            return {int(row.split()[4].rpartition(":")[2]) for row in shown.stdout.splitlines()}

        for server in ("s1", "s2", "s3"):
            assert sockets(server) == {port for port, owner in owners.items() if owner == server}
        for client in ticking:
            client.take(1)
        first = owners[ticking[0].port]
        second = lab.server(first)["backup"]
        theirs = {port for port, owner in owners.items() if owner == first}
        assert not any(t["connections"] for t in lab.takeovers()[takeovers:]), "nothing of theirs had failed so far"
        killed = clients.fail(first)
        takeover = clients.takeover()
        wire.stop()
    for port in services:
        before = {s.sender for s in wire.to_client(port) if s.when < killed}
        assert before == {owners[port]}, "an unready connection sends nothing"
    # What was unready became ready, and nothing else was needed for it.
    assert (takeover["to"], takeover["connections"], takeover["resumed"]) == (second, len(theirs), len(theirs))
    assert theirs <= sockets(second)
    for client in idle:
        client.say(b"GET /1k HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
        assert client.hear(1 << 20).endswith(clients.content(0, 1024, "/1k"))
    for client in ticking:
        client.take(50)
