"""Claim 2: the device for recreating has an API that communicates with a plurality of protocols in the second server
and gives a ready signal in response to a successful comparison."""

from __future__ import annotations

from tests.claims.clients import MANY, Clients
from topologies import Lab

TICKER_PORT = 7000


def test_protocols_of_two_kinds_are_told_ready_and_each_goes_on_with_its_own_work(lab: Lab, clients: Clients) -> None:
    """Only its protocol's `ready` can make a ticker tick again, and an idle HTTP connection answer."""
    idle = clients.plain("c1", 80)
    owner = clients.connection(idle.port)["server"]
    ticking = clients.on(owner, TICKER_PORT, "c1", lambda: clients.ticker(1, MANY, 10))
    ticking.take(10)
    clients.fail(owner)
    takeover = clients.takeover()
    outcomes = {compared["protocol"]: compared["outcome"] for compared in takeover["comparisons"]}
    assert outcomes == {"ticker/1": "resumed", "http/1.1": "resumed"}
    idle.say(b"GET /1k HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
    response = idle.hear(1 << 20)
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith(clients.content(0, 1024, "/1k"))
    ticking.take(100)
