"""Claim 3: a connection checkpoint API communicates with each of a plurality of protocols in the first server and
causes each to append its state information to a data block passed to them, which so gets to the shared state."""

from __future__ import annotations

from dataplane.examples.ticker import TickerSection, line
from state.sections import STREAM, TCP, StreamSection, TcpSection
from tests.claims.clients import Clients
from topologies import Lab

TICKER_PORT = 7000
ASKED = b"GET /1k HTTP/1.1\r\nHost: vip\r\nConn"
REST = b"ection: close\r\n\r\n"


def test_every_protocol_of_a_connection_appends_its_section_and_the_second_server_lives_by_them(
    lab: Lab, clients: Clients
) -> None:
    """Half a request each: it was received and acknowledged, so only the protocol's own section still has it."""
    browsing = clients.plain("c1", 80)
    owner = clients.connection(browsing.port)["server"]
    ticking = clients.on(owner, TICKER_PORT, "c1", lambda: clients.plain("c1", TICKER_PORT))
    browsing.say(ASKED)
    ticking.say(b"START 33 5")
    names = [clients.connection(browsing.port)["id"], clients.connection(ticking.port, TICKER_PORT)["id"]]

    def received(name: str) -> int:
        return clients.stored(name).section(STREAM, StreamSection).received

    lab.until(lambda: (received(names[0]), received(names[1])) == (len(ASKED), 10), "the input is in no checkpoint")
    http, ticker = (clients.stored(name) for name in names)
    assert [section.name for section in http.sections] == ["tcp", "stream", "http/1.1"]
    assert [section.name for section in ticker.sections] == ["tcp", "stream", "ticker/1"]
    assert ASKED in http.sections[2].payload
    assert ticker.section("ticker/1", TickerSection) == TickerSection(b"START 33 5", 0, 0, 100)
    for block in (http, ticker):
        assert block.section(TCP, TcpSection).mss == 1460
        assert block.section(STREAM, StreamSection).sent == 0

    clients.fail(owner)
    takeover = clients.takeover()
    assert (takeover["resumed"], takeover["reset"]) == (2, {})
    browsing.say(REST)
    assert browsing.hear(1 << 20).endswith(clients.content(0, 1024, "/1k"))
    ticking.say(b"0 1\n")
    assert ticking.hear(1 << 20) == b"".join(line(number) for number in range(33, 83))
